"""What the contestants train: one file with the data, the cohorts, the initial parameters and the settings.

Only numpy is needed to read it, since every contestant runs in an environment of its own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class Settings(NamedTuple):
    """What is the same for everybody.

    model: "cnn", "cnn_dropout", "cnn_lean", "lstm", "logistic" or "mlp".
    threads: how many cores a contestant may use.
    """

    model: str
    learning_rate: float
    batch_size: int
    cohort: int
    threads: int


class Workload(NamedTuple):
    """A federation and who takes part when.

    x: uint8 `[rows, 28, 28, 1]`, to be used as float32 in [0, 1], or int32 tokens `[rows, 80]`.
    y: int32 `[rows]` or `[rows, 80]`.
    sizes: int64 `[clients]`; the rows are client after client.
    test_x, test_y: the rows that accuracy is measured on.
    cohorts: int64 `[rounds, cohort]`; after the last round the first one follows.
    parameters: the initial parameters by their path in headstart's tree, such as "params/Dense_0/kernel".
    """

    settings: Settings
    x: np.ndarray
    y: np.ndarray
    sizes: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray
    cohorts: np.ndarray
    parameters: dict[str, np.ndarray]

    @property
    def starts(self) -> np.ndarray:
        """int64 `[clients]`: every client's first row."""
        return np.cumsum(self.sizes) - self.sizes

    def cohort(self, number: int) -> np.ndarray:
        """The clients of round `number` (from 0)."""
        return self.cohorts[number % len(self.cohorts)]

    def rows(self, client: int) -> slice:
        """The rows of a client."""
        start = int(self.starts[client])
        return slice(start, start + int(self.sizes[client]))

    def examples(self, first: int, count: int) -> int:
        """How many examples the clients of `count` rounds from `first` on have."""
        return sum(int(self.sizes[self.cohort(number)].sum()) for number in range(first, first + count))


def write(path: Path, workload: Workload) -> None:
    """Write a workload to an .npz."""
    arrays: dict[str, Any] = {f"parameters:{name}": value for name, value in workload.parameters.items()}
    for name in ("x", "y", "sizes", "test_x", "test_y", "cohorts"):
        arrays[name] = getattr(workload, name)
    np.savez(path, settings=np.array(json.dumps(workload.settings._asdict())), **arrays)


def read(path: str | Path) -> Workload:
    """Read what `write` wrote."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    settings = Settings(**json.loads(str(arrays.pop("settings"))))
    prefix = "parameters:"
    parameters = {name[len(prefix) :]: value for name, value in arrays.items() if name.startswith(prefix)}
    return Workload(settings, parameters=parameters, **{k: v for k, v in arrays.items() if not k.startswith(prefix)})


def as_input(x: np.ndarray) -> np.ndarray:
    """Images as float32 in [0, 1]; tokens pass."""
    return x.astype(np.float32) / 255 if x.dtype == np.uint8 else x
