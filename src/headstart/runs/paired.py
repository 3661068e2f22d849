"""Two runs beside each other: their difference client by client and seed by seed, on the same test clients."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from headstart.errors import UserError
from headstart.runs.comparable import difference_of_data
from headstart.runs.results import StageResult, gains, tested, values_by_seed
from headstart.runs.run import Run
from headstart.statistics.verdicts import Difference, difference


class PairedDifference(NamedTuple):
    """One run less another in the first metric, each at the last stage that it has finished.

    initial, personalized: of the two models, with their intervals; positive where the first run is better, whatever the
        metric's direction. They are of the clients with finite values of both models, in both runs and every seed.
    left_out: how many tested clients are not in it, for their training diverged. Then neither run is said to be
        better: it may be so for want of them.
    unpaired: how many seeds of the two runs are not in it, for the other run does not have them.
    finished: whether both runs are.
    """

    initial: Difference
    personalized: Difference
    left_out: int
    unpaired: int
    finished: bool

    @property
    def decides(self) -> bool:
        """Whether it speaks of the methods, and not of these models alone: runs are finished, seeds are enough."""
        return self.finished and self.initial.is_two_way


def paired_difference(run: Run, other: Run) -> PairedDifference:
    """One run less another, client by client on the same test clients.

    Seeds that both have are paired; where they have none in common, in their order.

    Raises:
        UserError: if a run has no results on test clients yet, or they measure another metric, or other data or test
            clients.
    """
    for each in (run, other):
        if not each.stage_results:
            raise UserError(
                f"{each.label} has no results on test clients yet; finish a stage of it, or use another run"
            )
    if run.metric.name != other.metric.name:
        raise UserError(
            f"{run.label} measures {run.metric.name} and {other.label} {other.metric.name}; compare runs of one task"
        )
    if changed := difference_of_data(run, other):
        raise UserError(
            f"{run.label} and {other.label} cannot be compared client by client: {changed}; run both on the same data,"
            " with the same data.train, data.validation and data.seed"
        )
    mine, theirs = run.stage_results[-1], other.stage_results[-1]
    pairs = _seed_pairs(mine, theirs)
    measured = tested(mine) & tested(theirs)
    first = values_by_seed(mine, run.metric)[[index for index, _ in pairs]][:, :, measured]
    second = values_by_seed(theirs, run.metric)[[index for _, index in pairs]][:, :, measured]
    # A client without a value in any model has none to lose: its few examples do not define the metric.
    undefined = run.metric.partial & np.isnan(np.concatenate([first, second])).all(axis=(0, 1))
    finite = np.isfinite(np.concatenate([first, second])).all(axis=(0, 1))
    initial, personalized = np.moveaxis(gains(second[:, :, finite], first[:, :, finite], run.metric), 1, 0)
    return PairedDifference(
        difference(initial),
        difference(personalized),
        int((~finite & ~undefined).sum()),
        len(mine.seeds) + len(theirs.seeds) - 2 * len(pairs),
        run.finished and other.finished,
    )


def _seed_pairs(mine: StageResult, theirs: StageResult) -> list[tuple[int, int]]:
    """The indices of paired seeds among the seeds of two results."""
    common = [(mine.seeds.index(seed), theirs.seeds.index(seed)) for seed in mine.seeds if seed in theirs.seeds]
    return common or [(i, i) for i in range(min(len(mine.seeds), len(theirs.seeds)))]
