"""What clients keep between rounds: a store beside the server's state, with room for those who have taken part."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np

from headstart import checkpoint
from headstart.data import Tree


class Memory:
    """Trees by client number. A client is given the blank tree until it has left one of its own.

    blank: what a client keeps before its first round, a tree of arrays.
    """

    def __init__(self, blank: Tree) -> None:
        self._blank = jax.tree.map(np.asarray, blank)
        self._places: dict[int, int] = {}
        self._kept = jax.tree.map(lambda leaf: leaf[None][:0], self._blank)

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
            if len(kept) < len(self._places):
                # Doubled, so that it is seldom copied.
                room = max(2 * len(kept), len(self._places)) - len(kept)
                kept = np.concatenate([kept, np.zeros((room, *kept.shape[1:]), kept.dtype)])
            kept[places] = np.asarray(new)[present]
            return kept

        self._kept = jax.tree.map(put, self._kept, tree)

    def save(self, folder: Path, number: int) -> None:
        """Write it beside the state after round `number`, before that state, and drop those of dropped states."""
        clients = np.array(list(self._places), np.int32)
        tree = {"clients": clients, "kept": jax.tree.map(lambda leaf: leaf[: len(clients)], self._kept)}
        checkpoint.write(_path(folder, number), tree, {"round": number})
        states = {path.name.removeprefix("round-") for path in folder.glob("round-*.safetensors")}
        for path in folder.glob("memory-*.safetensors"):
            if path.name.removeprefix("memory-") not in states and path != _path(folder, number):
                path.unlink(missing_ok=True)

    def load(self, folder: Path, number: int) -> None:
        """Read what was kept after round `number`.

        Raises:
            UserError: if the file is missing or damaged.
        """
        path = _path(folder, number)
        arrays, _ = checkpoint.read_arrays(path)
        clients = arrays["['clients']"]
        like = jax.tree.map(lambda leaf: np.zeros((len(clients), *leaf.shape), leaf.dtype), self._blank)
        read = checkpoint.read(path, {"clients": clients, "kept": like}).tree
        self._places = {int(client): place for place, client in enumerate(clients)}
        self._kept = jax.tree.map(lambda leaf: np.array(leaf), read["kept"])


def _path(folder: Path, number: int) -> Path:
    return folder / f"memory-{number:07d}.safetensors"
