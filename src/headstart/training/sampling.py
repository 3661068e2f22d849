"""Who takes part in a round: a function of (seed, round) and nothing else, so a resumed run draws the same."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from headstart.data.device_data import Draw, part_rows
from headstart.data.federation import Client, Part
from headstart.experiment.experiment import Centralized, Stage
from headstart.learning.parallel import deal
from headstart.learning.rounds import Cohort


class Drawn(NamedTuple):
    """The cohorts of some rounds, and the numbers of their clients, int `[room, places]`, -1 in an empty place."""

    cohort: Cohort
    clients: np.ndarray


Cohorts = Callable[[int, int, int], Drawn]


def cohorts(
    stage: Stage | Centralized,
    clients: np.ndarray,
    draw: Draw,
    *,
    seed: int,
    first_round: int,
    lanes: int = 1,
) -> Cohorts:
    """Maps `(first, count, room)` to the cohorts of `count` rounds from round `first` on, for `rounds.several`.

    Rounds are counted over all stages, from 1; the leading axis is `room` long, and what `count` leaves of it empty.

    clients: the numbers of the training clients. Each uses all of its examples, unless the source itself keeps some for
    testing.
    """
    federation = draw.federation
    part, sizes = federation.training_part, federation.training_sizes
    if isinstance(stage, Centralized):
        return _pooled(stage, clients, draw, part, seed, first_round)

    def drawn(first: int, count: int, room: int) -> Drawn:
        numbers = range(first, first + count)
        rounds = (clients[sample(seed, number, stage.clients_per_round, len(clients))] for number in numbers)
        dealt = deal_rounds(rounds, sizes, room, lanes=lanes, mesh=draw.mesh)
        return Drawn(Cohort(draw(dealt, part)), dealt)

    return drawn


def deal_rounds(
    rounds: Iterable[np.ndarray], sizes: np.ndarray, room: int, *, lanes: int = 1, mesh: Mesh | None = None
) -> np.ndarray:
    """The clients of several rounds, each dealt by `lanes.deal`: int `[room, places]`, -1 for an empty place.

    rounds: the client numbers of each, int `[n]` with one n for all. sizes: int `[clients]`: every client's examples.
    """
    dealt = [deal(clients, sizes[clients], lanes=lanes, mesh=mesh) for clients in rounds]
    return np.pad(dealt, ((0, room - len(dealt)), (0, 0)), constant_values=-1)


def _pooled(stage: Centralized, clients: np.ndarray, draw: Draw, part: Part, seed: int, first_round: int) -> Cohorts:
    # There is one path of steps, which one device walks.
    block = jax.tree.map(lambda leaf: leaf.addressable_data(0), draw.everything())
    rows, size = part_rows(draw.federation, clients, part), stage.steps * stage.batch_size

    def pooled(first: int, count: int, room: int) -> Drawn:
        chosen = rows[stream(seed, (first - first_round) * size, count * size, len(rows))]
        chosen = np.concatenate([chosen, np.zeros((room - count) * size, chosen.dtype)]).reshape(room, 1, size)
        sizes, keys = np.full((room, 1), size, np.int32), np.zeros((room, 1, 2), np.uint32)
        pool = Client(block, *jax.device_put((chosen.astype(np.int32), sizes, keys)))
        return Drawn(Cohort(pool), np.full((room, 1), -1))

    return pooled


def sample(seed: int, number: int, count: int, clients: int) -> np.ndarray:
    """int64 `[count]`: distinct client numbers below `clients`, for round `number`."""
    return np.random.default_rng([seed, number]).choice(clients, count, replace=False)


def stream(seed: int, start: int, count: int, total: int) -> np.ndarray:
    """Places `start … start + count - 1` of an endless row of shuffled epochs over `total` examples."""
    epochs = range(start // total, (start + count - 1) // total + 1)
    shuffled = [np.random.default_rng([seed, 1, epoch]).permutation(total) for epoch in epochs]
    return np.concatenate(shuffled)[start - epochs[0] * total :][:count]
