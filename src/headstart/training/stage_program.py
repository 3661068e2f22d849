"""The compiled rounds of a stage: one program for all stages that differ in numbers alone, of their schedules too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from headstart.data.federation import Array
from headstart.experiment.experiment import Centralized, Stage
from headstart.learning.optimizers import RateTable
from headstart.learning.parallel import Parallel
from headstart.learning.programs import SharedProgram
from headstart.learning.rounds import Cohort, Info, State, compose_rounds
from headstart.learning.tasks import Task
from headstart.models.zoo import Model

# The longest table of learning rates: the schedule of a longer stage stays a part of its program.
LONGEST_TABLE = 2**20


def shared_rounds(task: Task, model: Model, *, clients: int, parallel: Parallel = Parallel()) -> SharedProgram:
    """The program of `(stage, table, *arguments of rounds)` for stages on this task and model; see `stage_rounds`.

    clients: how many train in all.
    """

    def rounds(stage: Stage | Centralized, table: Array | None, *arguments: Any) -> tuple[State, Info]:
        if table is not None:
            stage = _with_schedule(stage, RateTable("table", {}, table))
        return compose_rounds(stage.algorithm(task, model, clients=clients, parallel=parallel))(*arguments)

    # The state is donated, as by `run_rounds`.
    return SharedProgram(rounds, donate=(1,))


class StageRounds(NamedTuple):
    """The rounds of a stage, as `run_rounds` of its algorithm has them, by the program that it shares with others."""

    shared: SharedProgram
    stage: Stage | Centralized
    table: np.ndarray | None

    def __call__(
        self, state: State, cohorts: Cohort, key: Array, first: Array | int, count: Array | int
    ) -> tuple[State, Info]:
        """The state after these rounds, and their infos."""
        return self.shared(self.stage, self.table, state, cohorts, key, first, count)

    def ahead(self, *arguments: Any) -> Callable[[], Any]:
        """Trace the rounds for such a call and compile them on another thread; returns what waits for that."""
        return self.shared.ahead(self.stage, self.table, *arguments)


def stage_rounds(shared: SharedProgram, stage: Stage | Centralized) -> StageRounds:
    """The rounds of a stage by the program for its task and model, from `shared_rounds`."""
    return StageRounds(shared, *computed_with(stage))


def computed_with(stage: Stage | Centralized) -> tuple[Stage | Centralized, np.ndarray | None]:
    """The stage without what no round computes with, and the learning rates of its schedule in place of that.

    The learning rates, float `[n]`, are None where there is no schedule, or it stays a part of the stage.
    """
    plain: Stage | Centralized = replace(stage, name="", rounds=1, stop_at=None, patience=None)
    optimizer, steps = (
        (stage.server, stage.rounds) if isinstance(stage, Stage) else (stage.optimizer, stage.rounds * stage.steps)
    )
    if optimizer.schedule is None or steps > LONGEST_TABLE:
        return plain, None
    return _with_schedule(plain, None), optimizer.tabulated(steps)


def _with_schedule(stage: Stage | Centralized, schedule: RateTable | None) -> Stage | Centralized:
    if isinstance(stage, Centralized):
        return replace(stage, optimizer=replace(stage.optimizer, schedule=schedule))
    return replace(stage, server=replace(stage.server, schedule=schedule))
