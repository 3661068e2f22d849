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
from headstart.training.any_server import USUAL, usual_number, usual_server, with_all_states, with_own_state

# The longest table of learning rates: the schedule of a longer stage stays a part of its program.
LONGEST_TABLE = 2**20


def shared_rounds(task: Task, model: Model, *, clients: int, parallel: Parallel = Parallel()) -> SharedProgram:
    """The program of `(stage, table, number, *arguments of rounds)` for stages on this task and model.

    Its arguments are those that `StageRounds` gives it. clients: how many train in all.
    """

    def rounds(
        stage: Stage | Centralized, table: Array | None, number: Array | None, *arguments: Any
    ) -> tuple[State, Info]:
        if table is not None:
            stage = _with_schedule(stage, RateTable("table", {}, table))
        more = {"clients": clients, "parallel": parallel}
        if isinstance(stage, Stage) and number is not None:
            more["server"] = usual_server(stage.server, number)
        return compose_rounds(stage.algorithm(task, model, **more))(*arguments)

    # The state is donated, as by `run_rounds`.
    return SharedProgram(rounds, donate=(2,))


class StageRounds(NamedTuple):
    """The rounds of a stage, as `run_rounds` of its algorithm has them, by the program that it shares with others.

    stage, table: as `computed_with` has them. number: of the stage's server among the usual ones, all of which share
    the program; None where the program has that server alone.
    """

    shared: SharedProgram
    stage: Stage | Centralized
    table: np.ndarray | None
    number: int | None = None

    def __call__(
        self, state: State, cohorts: Cohort, key: Array, first: Array | int, count: Array | int
    ) -> tuple[State, Info]:
        """The state after these rounds, and their infos."""
        state, infos = self.shared(*self._arguments(state, cohorts, key, first, count))
        return (state if self.number is None else with_own_state(state, self.number)), infos

    def ahead(self, *arguments: Any) -> Callable[[], Any]:
        """Trace the rounds for such a call and compile them on another thread; returns what waits for that."""
        return self.shared.ahead(*self._arguments(*arguments))

    def _arguments(self, state: State, *more: Any) -> tuple[Any, ...]:
        if self.number is not None:
            assert isinstance(self.stage, Stage)
            state = with_all_states(self._with_table(), state, self.number)
        return self.stage, self.table, self.number, state, *more

    def _with_table(self) -> Any:
        """The stage with a server that keeps what one with a schedule does, if it has one."""
        return self.stage if self.table is None else _with_schedule(self.stage, RateTable("table", {}, self.table))


def stage_rounds(shared: SharedProgram, stage: Stage | Centralized, *, any_server: bool = False) -> StageRounds:
    """The rounds of a stage by the program for its task and model, from `shared_rounds`.

    any_server: whether stages with any of the usual servers are to share it.
    """
    plain, table = computed_with(stage)
    number = usual_number(plain) if any_server and isinstance(plain, Stage) else None
    if number is not None and isinstance(plain, Stage):
        plain = replace(plain, server=replace(plain.server, name=USUAL[0].name, options=USUAL[0].options))
    return StageRounds(shared, plain, table, number)


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
