"""More rounds for the last stage of a run: it resumes from its saved state, as if it had had them from the start."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from headstart.errors import UserError
from headstart.experiment.experiment import Centralized, Experiment
from headstart.learning.optimizers import Schedule
from headstart.runs import checkpoint
from headstart.runs.contents import seed_folders, stage_report


def rounds_before(before: Mapping[str, Any], now: Mapping[str, Any]) -> int | None:
    """The rounds that the last stage had, if it has more now and nothing else differs; None otherwise.

    before, now: documents of experiments.
    """
    *others, last = before["stages"]
    rounds = now["stages"][-1]["rounds"]
    same = {**before, "stages": [*others, {**last, "rounds": rounds}]} == now
    return last["rounds"] if same and last["rounds"] < rounds else None


def reopen(out: Path, experiment: Experiment, had: int) -> None:
    """Take back the end of the last stage, where a seed has come to it; its results are made anew at the new end.

    had: the rounds that the stage had.

    Raises:
        UserError: if it cannot resume from there; nothing is changed.
    """
    _check_schedule(experiment, had)
    number = len(experiment.stages) - 1
    ends = [end for folder in seed_folders(out) if (end := folder / f"stage-{number}.json").exists()]
    for end in ends:
        state = checkpoint.newest(end.parent / "checkpoints")
        if state is None or (state.get("stage"), state.get("round")) != (number, stage_report(end)["round"]):
            raise UserError(
                f"{out} cannot be given more rounds: the state at the end of {end.parent.name} is missing or damaged;"
                " choose another --out"
            )
    for end in ends:
        end.unlink()


def _end(schedule: Schedule) -> Any:
    """The step that a schedule was made to end at; None for one that has no end, as an exponential decay."""
    options = schedule.options
    if "decay_steps" in options:
        return options["decay_steps"]
    if "exponential" in schedule.name or "transition_steps" not in options:
        return None
    return options["transition_steps"] + max(options.get("transition_begin", 0), 0)


def _check_schedule(experiment: Experiment, had: int) -> None:
    stage = experiment.stages[-1]
    optimizer, steps = (stage.optimizer, stage.steps) if isinstance(stage, Centralized) else (stage.server, 1)
    schedule = optimizer.schedule
    if schedule is None:
        return
    learning_rate = schedule.build(optimizer.learning_rate)
    learning_rates = np.array([learning_rate(count) for count in (had * steps, stage.rounds * steps - 1)], float)
    if had * steps == _end(schedule) or not learning_rates.any():
        raise UserError(
            f"the schedule of stage {stage.name!r} ({schedule.name}) is over after the {had} rounds that it had; for"
            " more rounds choose another schedule, and another --out"
        )
