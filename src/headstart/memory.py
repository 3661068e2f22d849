"""What clients keep between rounds: a store beside the server's state, with room for those who have taken part."""

from __future__ import annotations

import jax
import numpy as np

from headstart.data import Tree


class Memory:
    """Trees by client number, on the host. A client is given the blank tree until it has left one of its own.

    blank: what a client keeps before its first round, a tree of arrays.
    """

    def __init__(self, blank: Tree) -> None:
        self._blank = jax.tree.map(np.asarray, blank)
        self._places: dict[int, int] = {}
        self._kept = jax.tree.map(lambda leaf: np.zeros((0, *leaf.shape), leaf.dtype), self._blank)

    def __len__(self) -> int:
        """How many clients have left something."""
        return len(self._places)

    def of(self, clients: np.ndarray) -> Tree:
        """What these clients (int `[...]`) keep: a tree with their axes in front; -1 is nobody, who keeps the blank."""
        places = np.array([self._places.get(int(i), -1) for i in clients.ravel()]).reshape(clients.shape)

        def gather(blank: np.ndarray, kept: np.ndarray) -> np.ndarray:
            gathered = np.broadcast_to(blank, (*places.shape, *blank.shape)).copy()
            gathered[places >= 0] = kept[places[places >= 0]]
            return gathered

        return jax.tree.map(gather, self._blank, self._kept)

    def put(self, clients: np.ndarray, tree: Tree) -> None:
        """Keep the trees that these clients left; those of -1 are forgotten."""
        present = clients >= 0
        for client in clients[present]:
            self._places.setdefault(int(client), len(self._places))
        places = [self._places[int(client)] for client in clients[present]]

        def put(kept: np.ndarray, new: np.ndarray) -> np.ndarray:
            if len(kept) < len(self):
                # Doubled, so that it is seldom copied.
                room = max(2 * len(kept), len(self)) - len(kept)
                kept = np.concatenate([kept, np.zeros((room, *kept.shape[1:]), kept.dtype)])
            kept[places] = np.asarray(new)[present]
            return kept

        self._kept = jax.tree.map(put, self._kept, tree)

    def as_tree(self) -> Tree:
        """All of it as one tree of arrays, to be saved."""
        kept = jax.tree.map(lambda leaf: leaf[: len(self)], self._kept)
        return {"blank": self._blank, "clients": np.array(list(self._places), np.int32), "kept": kept}


def restored(tree: Tree) -> Memory:
    """The memory that `as_tree` told."""
    memory = Memory(tree["blank"])
    memory.put(tree["clients"], tree["kept"])
    return memory


def expected(blank: Tree, clients: int) -> Tree:
    """What `as_tree` of so many clients looks like, if the blank looks like this (arrays or their shapes)."""

    def several(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((clients, *leaf.shape), leaf.dtype)

    return {
        "blank": blank,
        "clients": jax.ShapeDtypeStruct((clients,), np.int32),
        "kept": jax.tree.map(several, blank),
    }
