"""Client states: what stateful methods keep of each client between rounds, beside the server's state."""

from __future__ import annotations

import copy

import jax
import numpy as np

from headstart.data.federation import Tree


class ClientStates:
    """Trees by client number, on the host; a client that has taken part in no round has the default state.

    default_state: the state before a client's first round, a tree of arrays.
    expected: for how many clients to keep room from the beginning, so that nothing is copied when more take part; what
        no client has used of it takes no memory.
    """

    def __init__(self, default_state: Tree, *, expected: int = 0) -> None:
        self._default = jax.tree.map(np.asarray, default_state)
        self._positions: dict[int, int] = {}
        # Zeros are given by the system page by page, when they are first written to.
        self._states = jax.tree.map(lambda leaf: np.zeros((expected, *leaf.shape), leaf.dtype), self._default)

    def __len__(self) -> int:
        """The number of clients with a state of their own."""
        return len(self._positions)

    def with_default(self, default_state: Tree) -> ClientStates:
        """The same states, which are shared, with another one for clients that have taken part in no round."""
        found = copy.copy(self)
        found._default = jax.tree.map(np.asarray, default_state)
        return found

    def of(self, clients: np.ndarray) -> Tree:
        """The states of these clients (int `[...]`), a tree with their axes in front; the default for -1."""
        positions = np.array([self._positions.get(int(i), -1) for i in clients.ravel()]).reshape(clients.shape)

        def gather(default: np.ndarray, states: np.ndarray) -> np.ndarray:
            gathered = np.broadcast_to(default, (*positions.shape, *default.shape)).copy()
            gathered[positions >= 0] = states[positions[positions >= 0]]
            return gathered

        return jax.tree.map(gather, self._default, self._states)

    def put(self, clients: np.ndarray, tree: Tree) -> None:
        """Store the new states of these clients; those of -1 are dropped."""
        present = clients >= 0
        for client in clients[present]:
            self._positions.setdefault(int(client), len(self._positions))
        positions = [self._positions[int(client)] for client in clients[present]]

        def put(states: np.ndarray, new: np.ndarray) -> np.ndarray:
            if len(states) < len(self):
                # Doubled, so that it is seldom copied.
                more = max(2 * len(states), len(self)) - len(states)
                states = np.concatenate([states, np.zeros((more, *states.shape[1:]), states.dtype)])
            states[positions] = np.asarray(new)[present]
            return states

        self._states = jax.tree.map(put, self._states, tree)

    def as_tree(self) -> Tree:
        """All states as one tree of arrays, to be saved."""
        states = jax.tree.map(lambda leaf: leaf[: len(self)], self._states)
        # Names of the file format.
        return {"blank": self._default, "clients": np.array(list(self._positions), np.int32), "kept": states}


def from_tree(tree: Tree, *, expected: int = 0) -> ClientStates:
    """The client states of a tree from `as_tree`; expected: as of `ClientStates`."""
    states = ClientStates(tree["blank"], expected=expected)
    states.put(tree["clients"], tree["kept"])
    return states


def tree_shapes(default_state: Tree, clients: int) -> Tree:
    """The shapes of `as_tree` for a number of clients.

    default_state: arrays or their shapes.
    """

    def stacked(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((clients, *leaf.shape), leaf.dtype)

    return {
        "blank": default_state,
        "clients": jax.ShapeDtypeStruct((clients,), np.int32),
        "kept": jax.tree.map(stacked, default_state),
    }
