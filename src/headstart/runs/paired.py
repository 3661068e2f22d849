"""Two runs beside each other: their difference client by client and seed by seed, on the same test clients."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from headstart.errors import UserError
from headstart.runs.results import StageResult, values_by_seed
from headstart.runs.run import Run
from headstart.statistics.verdicts import LEAST_SEEDS, Difference, difference


class PairedDifference(NamedTuple):
    """One run less another in the first metric, each at the last stage that it has finished.

    initial, personalized: of the two models, with their intervals; positive where the first run is better, whatever the
        metric's direction. They are of the clients with a finite value in both runs and every seed.
    """

    initial: Difference
    personalized: Difference

    @property
    def is_two_way(self) -> bool:
        """Whether the seeds are enough to speak of the methods; otherwise intervals are of these models alone."""
        return self.initial.seeds >= LEAST_SEEDS


def paired_difference(run: Run, other: Run) -> PairedDifference:
    """One run less another, client by client on the same test clients.

    Seeds that both have are paired; where they have none in common, in their order.

    Raises:
        UserError: if a run has no finished stage, or they measure another metric, or other test clients.
    """
    for each in (run, other):
        if not each.stage_results:
            raise UserError(f"{each.label} has no finished stage yet; continue it, or compare another run")
    if run.metric.name != other.metric.name:
        raise UserError(
            f"{run.label} measures {run.metric.name} and {other.label} {other.metric.name}; compare runs of one task"
        )
    mine, theirs = run.stage_results[-1], other.stage_results[-1]
    if mine.ids != theirs.ids:
        raise UserError(
            f"{run.label} and {other.label} were tested on other clients, so they cannot be compared client by client;"
            " run both on the same data, with the same data.train, data.validation and data.seed"
        )
    pairs = _seed_pairs(mine, theirs)
    first = values_by_seed(mine, run.metric)[[index for index, _ in pairs]]
    second = values_by_seed(theirs, run.metric)[[index for _, index in pairs]]
    initial, personalized = run.metric.sign * np.moveaxis(first - second, 1, 0)
    return PairedDifference(difference(initial), difference(personalized))


def _seed_pairs(mine: StageResult, theirs: StageResult) -> list[tuple[int, int]]:
    """The indices of paired seeds among the seeds of two results."""
    common = [(mine.seeds.index(seed), theirs.seeds.index(seed)) for seed in mine.seeds if seed in theirs.seeds]
    return common or [(i, i) for i in range(min(len(mine.seeds), len(theirs.seeds)))]
