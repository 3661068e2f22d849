"""Who takes part in a round: a function of (seed, round) and nothing else, so a resumed run draws the same."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from headstart.data import Client, Draw, Federation, Part, part_rows
from headstart.experiment import Centralized, Stage
from headstart.rounds import Cohort


def cohorts(
    stage: Stage | Centralized, federation: Federation, clients: np.ndarray, draw: Draw, *, seed: int, first_round: int
) -> Callable[[int], Cohort]:
    """Maps a round's number (counted over all stages, from 1) to its cohort.

    clients: the numbers of the training clients. Each uses all of its examples, unless the source itself keeps some for
    testing.
    """
    part: Part = "adapt" if federation.own_split else "all"
    if isinstance(stage, Stage):
        return lambda number: Cohort(draw(clients[sample(seed, number, stage.clients_per_round, len(clients))], part))
    block = draw(np.arange(len(federation)), part).block
    rows, count = part_rows(federation, clients, part), stage.steps * stage.batch_size

    def pooled(number: int) -> Cohort:
        chosen = rows[stream(seed, (number - first_round) * count, count, len(rows))]
        size, key = np.array([count], np.int32), np.zeros((1, 2), np.uint32)
        return Cohort(Client(block, jnp.asarray(chosen[None], jnp.int32), jnp.asarray(size), jnp.asarray(key)))

    return pooled


def sample(seed: int, number: int, count: int, clients: int) -> np.ndarray:
    """int64 `[count]`: distinct client numbers below `clients`, for round `number`."""
    return np.random.default_rng([seed, number]).choice(clients, count, replace=False)


def stream(seed: int, start: int, count: int, total: int) -> np.ndarray:
    """Places `start … start + count - 1` of an endless row of shuffled epochs over `total` examples."""
    epochs = range(start // total, (start + count - 1) // total + 1)
    shuffled = [np.random.default_rng([seed, 1, epoch]).permutation(total) for epoch in epochs]
    return np.concatenate(shuffled)[start - epochs[0] * total :][:count]


def round_key(root: jax.Array, number: int) -> jax.Array:
    """The key of a round, from the key of the seed."""
    return jax.random.fold_in(jax.random.fold_in(root, 1), number)
