"""Rows that are generated, kept on disk: to draw those of 500 writers takes a second, to read them a tenth of one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np

from headstart.data.cache import keep_rows, kept_rows
from headstart.data.readers.rows import Rows

# Fewer are drawn at once, and more would fill a disk.
_LEAST_BYTES, _MOST_BYTES = 2**23, 2**28


class Kept:
    """A `Federation.fetch` that draws rows, or reads them where those of all clients were drawn before.

    make: maps client numbers (int array `[n]`) to `(x, y)`. made_from: what it makes them of, beside `sizes`.
    sizes: int `[clients, 2]`, each client's numbers of rows.
    """

    def __init__(
        self, make: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]], made_from: str, sizes: np.ndarray
    ) -> None:
        self._make, self._sizes = make, sizes
        totals = sizes.sum(axis=1)
        self._ends, self._totals = np.cumsum(totals), totals
        # Another version of what draws may draw differently.
        versions = [f"{name} {version(name)}" for name in ("matplotlib", "numpy", "pillow")]
        digest = hashlib.sha256(np.ascontiguousarray(sizes, np.int64).tobytes()).hexdigest()
        self._what: list[Any] = [made_from, digest, *versions]
        self._rows: Rows | None = None
        self._sought = False

    def __call__(self, clients: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The rows of these clients."""
        clients = np.asarray(clients, np.int64)
        if not self._sought:
            self._rows, self._sought = kept_rows(self._what), True
        everyone = len(clients) == len(self._ends) and bool((np.diff(clients, prepend=-1) == 1).all())
        if self._rows is None:
            x, y = self._make(clients)
            if everyone and _LEAST_BYTES <= x.nbytes <= _MOST_BYTES:
                keep_rows(self._what, Rows([""] * len(clients), self._sizes, x, y, True, {}))
            return x, y
        if everyone:
            return self._rows.x, self._rows.y
        starts = (self._ends - self._totals)[clients]
        numbers = [np.arange(start, start + n) for start, n in zip(starts, self._totals[clients], strict=True)]
        rows = np.concatenate([np.zeros(0, np.int64), *numbers])
        return self._rows.x[rows], self._rows.y[rows]
