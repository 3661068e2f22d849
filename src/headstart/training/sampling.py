"""Sampling of cohorts: a function of (seed, round) and nothing else, so a resumed run samples the same clients."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import numpy as np

from headstart.data.device_data import Gather, part_rows
from headstart.data.federation import Client, Part
from headstart.experiment.experiment import Centralized, Stage
from headstart.learning.parallel import Parallel, assign_clients
from headstart.learning.rounds import Cohort


class CohortBatch(NamedTuple):
    """The cohorts of some rounds, and the indices of their clients: int `[capacity, slots]`, -1 for an empty slot."""

    cohort: Cohort
    clients: np.ndarray


Cohorts = Callable[[int, int, int], CohortBatch]


def cohorts(
    stage: Stage | Centralized,
    clients: np.ndarray,
    gather: Gather,
    *,
    seed: int,
    first_round: int,
    parallel: Parallel = Parallel(),
) -> Cohorts:
    """Maps `(first, count, capacity)` to the cohorts of `count` rounds from round `first` on, for `rounds.run_rounds`.

    Rounds are counted over all stages, from 1; of the leading axis `[capacity]` the first `count` entries are filled.

    clients: the numbers of the training clients. Each uses all of its examples, unless the source itself keeps some for
    testing. parallel: over the devices of `gather`.
    """
    federation = gather.federation
    part, sizes = federation.training_part, federation.training_sizes
    if isinstance(stage, Centralized):
        return _pooled(stage, clients, gather, part, seed, first_round)

    def cohort_batch(first: int, count: int, capacity: int) -> CohortBatch:
        numbers = range(first, first + count)
        rounds = (clients[sample(seed, number, stage.cohort, len(clients))] for number in numbers)
        assigned = assign_rounds(rounds, sizes, capacity, parallel)
        return CohortBatch(Cohort(gather(assigned, part)), assigned)

    return cohort_batch


def assign_rounds(
    rounds: Iterable[np.ndarray], sizes: np.ndarray, capacity: int, parallel: Parallel = Parallel()
) -> np.ndarray:
    """The clients of several rounds, each as `assign_clients` has them: int `[capacity, slots]`, -1 for an empty slot.

    rounds: the client indices of each, int `[n]` with one n for all. sizes: int `[clients]`: every client's examples.
    """
    assigned = [assign_clients(clients, sizes[clients], parallel) for clients in rounds]
    return np.pad(assigned, ((0, capacity - len(assigned)), (0, 0)), constant_values=-1)


def _pooled(
    stage: Centralized, clients: np.ndarray, gather: Gather, part: Part, seed: int, first_round: int
) -> Cohorts:
    # Steps follow one after the other, on one device.
    block = jax.tree.map(lambda leaf: leaf.addressable_data(0), gather.everything())
    rows, size = part_rows(gather.federation, clients, part), stage.steps * stage.batch_size

    def pooled(first: int, count: int, capacity: int) -> CohortBatch:
        chosen = rows[stream(seed, (first - first_round) * size, count * size, len(rows))]
        chosen = np.concatenate([chosen, np.zeros((capacity - count) * size, chosen.dtype)]).reshape(capacity, 1, size)
        sizes, keys = np.full((capacity, 1), size, np.int32), np.zeros((capacity, 1, 2), np.uint32)
        pool = Client(block, *jax.device_put((chosen.astype(np.int32), sizes, keys)))
        return CohortBatch(Cohort(pool), np.full((capacity, 1), -1))

    return pooled


def sample(seed: int, number: int, count: int, clients: int) -> np.ndarray:
    """int64 `[count]`: distinct client indices below `clients`, for round `number`."""
    return np.random.default_rng([seed, number]).choice(clients, count, replace=False)


def stream(seed: int, start: int, count: int, total: int) -> np.ndarray:
    """Positions `start … start + count - 1` of an endless sequence of shuffled epochs over `total` examples."""
    epochs = range(start // total, (start + count - 1) // total + 1)
    shuffled = [np.random.default_rng([seed, 1, epoch]).permutation(total) for epoch in epochs]
    return np.concatenate(shuffled)[start - epochs[0] * total :][:count]
