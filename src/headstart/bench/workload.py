"""Workload of `headstart bench`: a synthetic federation, and how much arithmetic its training needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from headstart.data.federation import Federation, from_arrays
from headstart.experiment.experiment import Stage
from headstart.learning.optimizers import Optimizer
from headstart.learning.parallel import Parallel, assign_clients
from headstart.learning.partial_batches import lengths
from headstart.learning.tasks import Classification, NextCharacter, Task
from headstart.methods.paper import FedAvg
from headstart.models.zoo import ALIASES, Model, as_model
from headstart.training.sampling import sample

SEED = 0
CLASSES = 62
SNIPPET = 80
LEARNING_RATE = 0.02


class Arithmetic(NamedTuple):
    """The useful floating-point operations of a model: 2 for each multiplication and addition, padding not counted.

    layers: multiply-adds of the forward pass for one example, layer by layer.
    from_data: whether the first layer's input is the data, which needs no gradient.
    """

    layers: tuple[int, ...]
    from_data: bool = True

    @property
    def forward(self) -> int:
        """Operations to apply the model to one example."""
        return 2 * sum(self.layers)

    @property
    def training(self) -> int:
        """Operations for the gradient of one example: three times the forward pass, less what nobody needs."""
        return 3 * self.forward - 2 * self.layers[0] * self.from_data


ARITHMETIC = {
    "cnn": Arithmetic((26**2 * 9 * 32, 24**2 * 288 * 64, 9216 * 128, 128 * CLASSES)),
    # What pooling leaves out need not be computed: the second convolution's last row and column.
    "cnn_lean": Arithmetic((26**2 * 9 * 16, 10**2 * 144 * 32, 800 * 128, 128 * CLASSES)),
    # Each position of the snippet; the embedding before the first layer learns too.
    "char_lstm": Arithmetic(
        tuple(SNIPPET * n for n in (8 * 1024, 256 * 1024, 256 * 1024, 256 * 1024, 256 * 90)), False
    ),
    "mlp": Arithmetic((784 * 200, 200 * CLASSES)),
    "logistic": Arithmetic((784 * CLASSES,)),
}
MODELS = tuple(ARITHMETIC)


class Work(NamedTuple):
    """A model and what it trains on.

    training, held_out: client numbers int64 `[n]`; those held out have a fifth of their examples for tests.
    cohort: clients per round. batch_size: of local training.
    """

    name: str
    task: Task
    model: Model
    federation: Federation
    training: np.ndarray
    held_out: np.ndarray
    cohort: int
    batch_size: int

    @property
    def arithmetic(self) -> Arithmetic:
        """The arithmetic of one example."""
        return ARITHMETIC[self.name]

    @property
    def stage(self) -> Stage:
        """One local epoch of FedAvg a round, averaged plainly."""
        update = FedAvg(1, LEARNING_RATE, self.batch_size)
        return Stage("bench", update, Optimizer("sgd", 1.0), 10**6, self.cohort)

    def chosen(self, number: int) -> np.ndarray:
        """The clients of round `number`, as a run with seed 0 draws them."""
        return self.training[sample(SEED, number, self.cohort, len(self.training))]

    def examples(self, first: int, count: int) -> int:
        """The number of examples that `count` rounds from round `first` on train on."""
        return sum(int(self.federation.sizes[self.chosen(n), 0].sum()) for n in range(first, first + count))


def work_of(name: str, cohort: int) -> Work:
    """A model of `MODELS` on clients as large as the writers of FEMNIST; of snippets of text they have fewer."""
    text = name == "char_lstm"
    training = max(200, 2 * cohort)
    count = training + cohort
    sizes = client_sizes(count, mean=16, low=5, high=60) if text else client_sizes(count, mean=104, low=10, high=400)
    tests = np.where(np.arange(count) < training, 0, sizes // 5)
    x, y = (_snippets if text else _images)(int(sizes.sum()))
    ids = [f"client{i}" for i in range(count)]
    federation = from_arrays("bench", ids, np.stack([sizes - tests, tests], axis=1), x, y)
    task: Task = NextCharacter() if text else Classification()
    trained, held_out = np.split(np.arange(count), [training])
    return Work(name, task, _model(name, x), federation, trained, held_out, cohort, 10 if text else 20)


def client_sizes(count: int, *, mean: float, low: int, high: int) -> np.ndarray:
    """Log-normal sizes, int64 `[count]`, as skewed as the writers of FEMNIST, scaled to a mean and clipped."""
    draws = np.random.default_rng(SEED).lognormal(0.0, 0.6, count)
    return np.clip(np.round(draws / draws.mean() * mean), low, high).astype(np.int64)


def _images(rows: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(SEED)
    x = generator.integers(0, 256, (rows, 28, 28, 1), np.uint8)
    return x, generator.integers(0, CLASSES, rows, np.int32)


def _snippets(rows: int) -> tuple[np.ndarray, np.ndarray]:
    text = np.random.default_rng(SEED).integers(1, 87, (rows, SNIPPET + 1), np.int32)
    return text[:, :-1].copy(), text[:, 1:].copy()


def _model(name: str, x: np.ndarray) -> Model:
    options: dict[str, Any] = {} if name == "char_lstm" else {"classes": CLASSES}
    return as_model(ALIASES[name](**options), x[:1].astype(np.float32) if x.dtype == np.uint8 else x[:1])


def padding(work: Work, rounds: Sequence[int], parallel: Parallel) -> float:
    """The share of the rows computed in these rounds that are padding."""
    sizes = work.federation.sizes[:, 0]
    computed = examples = 0
    for number in rounds:
        chosen = work.chosen(number)
        slots = assign_clients(chosen, sizes[chosen], parallel)
        beside = np.where(slots >= 0, sizes[slots], 0).reshape(parallel.devices, -1)
        computed += rows_computed(beside, work.batch_size, parallel.lanes)
        examples += int(sizes[chosen].sum())
    return 1 - examples / computed


def rows_computed(sizes: np.ndarray, batch_size: int, lanes: int) -> int:
    """The number of rows that are computed in one epoch of every client.

    sizes: int `[devices, slots]`: examples of the clients as they were assigned, 0 for an empty slot.

    In a lane by itself the last batch is computed in part. Lanes side by side compute whole batches, and wait for the
    one that has most of them.
    """
    lanes = min(lanes, sizes.shape[1])
    if lanes == 1:
        return int(padded_rows(sizes, batch_size).sum())
    batches = -(-sizes.reshape(len(sizes), lanes, -1) // batch_size)
    return int(batches.max(axis=1).sum()) * lanes * batch_size


def padded_rows(sizes: np.ndarray, batch_size: int) -> np.ndarray:
    """The rows computed of each size when the last batch is cut as `partial_batches.with_partial_batches` cuts it."""
    possible = np.array([0, *lengths(batch_size)])
    whole, rest = np.divmod(sizes, batch_size)
    return whole * batch_size + possible[np.searchsorted(possible, rest)]
