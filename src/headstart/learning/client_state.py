"""What clients keep between rounds: a store beside the server's state, with room for those who have taken part."""

from __future__ import annotations

import jax
import numpy as np

from headstart.data.federation import Tree


class ClientStates:
    """Trees by client number, on the host. A client is given the default state until it has left one of its own.

    default_state: what a client keeps before its first round, a tree of arrays.
    """

    def __init__(self, default_state: Tree) -> None:
        self._default = jax.tree.map(np.asarray, default_state)
        self._positions: dict[int, int] = {}
        self._states = jax.tree.map(lambda leaf: np.zeros((0, *leaf.shape), leaf.dtype), self._default)

    def __len__(self) -> int:
        """How many clients have left something."""
        return len(self._positions)

    def of(self, clients: np.ndarray) -> Tree:
        """What these clients (int `[...]`) keep: a tree with their axes in front; -1 is nobody, with the default."""
        positions = np.array([self._positions.get(int(i), -1) for i in clients.ravel()]).reshape(clients.shape)

        def gather(blank: np.ndarray, kept: np.ndarray) -> np.ndarray:
            gathered = np.broadcast_to(blank, (*positions.shape, *blank.shape)).copy()
            gathered[positions >= 0] = kept[positions[positions >= 0]]
            return gathered

        return jax.tree.map(gather, self._default, self._states)

    def put(self, clients: np.ndarray, tree: Tree) -> None:
        """Keep the trees that these clients left; those of -1 are forgotten."""
        present = clients >= 0
        for client in clients[present]:
            self._positions.setdefault(int(client), len(self._positions))
        positions = [self._positions[int(client)] for client in clients[present]]

        def put(kept: np.ndarray, new: np.ndarray) -> np.ndarray:
            if len(kept) < len(self):
                # Doubled, so that it is seldom copied.
                room = max(2 * len(kept), len(self)) - len(kept)
                kept = np.concatenate([kept, np.zeros((room, *kept.shape[1:]), kept.dtype)])
            kept[positions] = np.asarray(new)[present]
            return kept

        self._states = jax.tree.map(put, self._states, tree)

    def as_tree(self) -> Tree:
        """All of it as one tree of arrays, to be saved."""
        kept = jax.tree.map(lambda leaf: leaf[: len(self)], self._states)
        return {"blank": self._default, "clients": np.array(list(self._positions), np.int32), "kept": kept}


def from_tree(tree: Tree) -> ClientStates:
    """What `as_tree` wrote."""
    states = ClientStates(tree["blank"])
    states.put(tree["clients"], tree["kept"])
    return states


def tree_shapes(default_state: Tree, clients: int) -> Tree:
    """What `as_tree` of so many clients looks like, if the default state looks like this (arrays or their shapes)."""

    def several(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((clients, *leaf.shape), leaf.dtype)

    return {
        "blank": default_state,
        "clients": jax.ShapeDtypeStruct((clients,), np.int32),
        "kept": jax.tree.map(several, default_state),
    }
