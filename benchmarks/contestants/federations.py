"""The federations that the contestants train on, and the workloads made of them."""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np

from headstart.bench.workload import client_sizes
from headstart.data.load import load
from headstart.models.zoo import CNN, MLP, CharLSTM, LeanCNN, Logistic, Model, as_model

from .workload import Settings, Workload

CLIENTS = 200
TEST_CLIENTS = 10
ROUNDS = 4096
WORKLOADS = ("cnn", "cnn_dropout", "cnn_lean", "lstm", "logistic", "mlp")
RATES = {"cnn": 0.1, "cnn_dropout": 0.1, "cnn_lean": 0.1, "lstm": 1.0, "logistic": 0.05, "mlp": 0.1}
_CHARACTERS = 8  # tokens 1 to 8 of 90
_LENGTH = 80


class Examples(NamedTuple):
    """Rows of clients one after another, and test rows."""

    x: np.ndarray
    y: np.ndarray
    sizes: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray


def examples_of(workload: str) -> Examples:
    """The federation of a workload."""
    return _text() if workload == "lstm" else _images()


def workload_of(name: str, examples: Examples, cohort: int, threads: int) -> Workload:
    """A workload, with cohorts drawn and parameters made by headstart."""
    generator = np.random.default_rng([1, cohort])
    draws = [generator.choice(CLIENTS, cohort, replace=False) for _ in range(ROUNDS)]
    batch_size = 10 if name == "lstm" else 20
    settings = Settings(name, RATES[name], batch_size, cohort, threads)
    parameters = flat(model_of(name, examples.x).init(jax.random.key(0)))
    return Workload(settings, **examples._asdict(), cohorts=np.array(draws), parameters=parameters)


def model_of(name: str, x: np.ndarray) -> Model:
    """Headstart's model of a workload."""
    modules = {
        "cnn": CNN(dropout=None),
        "cnn_dropout": CNN(),
        "cnn_lean": LeanCNN(),
        "lstm": CharLSTM(),
        "logistic": Logistic(62),
        "mlp": MLP(62, (200,)),
    }
    example = np.zeros((1, *x.shape[1:]), np.float32 if x.dtype == np.uint8 else x.dtype)
    return as_model(modules[name], example)


def flat(tree: dict) -> dict[str, np.ndarray]:
    """A tree of dictionaries as arrays by path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(str(entry.key) for entry in path): np.array(leaf) for path, leaf in leaves}


def _images() -> Examples:
    """Characters of `glyphs`, one writer per client, in hands that are easy to read; ink is 255."""
    sizes = client_sizes(CLIENTS, mean=104, low=10, high=400)
    federation = load("glyphs", writers=CLIENTS + TEST_CLIENTS, examples=401, habits=0.0, variation=0.3)
    pieces = []
    for client, size in enumerate([*sizes, *[100] * TEST_CLIENTS]):
        x, y = federation.fetch(np.array([client]))
        pieces.append((255 - x[:size], y[:size]))
    x, y = (np.concatenate(part) for part in zip(*pieces, strict=True))
    rows = int(sizes.sum())
    return Examples(x[:rows], y[:rows], sizes, x[rows:], y[rows:])


def _text() -> Examples:
    """Snippets in which one character comes most of the time, and otherwise the successor of the last one.

    A few rounds teach only the frequencies: which character comes most of the time.
    """
    sizes = client_sizes(CLIENTS, mean=16, low=5, high=60)
    rows, generator = int(sizes.sum()), np.random.default_rng(2)
    text = np.zeros((rows + 20, _LENGTH + 1), np.int32)
    text[:, 0] = generator.integers(0, _CHARACTERS, len(text))
    for t in range(_LENGTH):
        frequent = generator.random(len(text)) < 0.6
        text[:, t + 1] = np.where(frequent, 0, (text[:, t] + 1) % _CHARACTERS)
    x, y = text[:, :-1] + 1, text[:, 1:] + 1
    return Examples(x[:rows], y[:rows], sizes, x[rows:], y[rows:])
