"""The settings of a first stage that a trial tries, and the experiment with those that it has chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from headstart.experiment.experiment import Centralized, Experiment, Server, Stage
from headstart.experiment.serialization import to_json
from headstart.learning.optimizers import Optimizer, Schedule

# Of Adam on the server.
ADAM_RATE = 0.01


class Candidate(NamedTuple):
    """Settings that were tried. value: the validation clients' mean of the metric; None if training diverged."""

    learning_rate: float | None
    server: Server
    value: float | None


def with_choice(experiment: Experiment, learning_rate: float | None, server: Server) -> Experiment:
    """The experiment with the chosen settings in place of its trial; later stages change their rates alike."""
    first, *later = experiment.stages
    own, chosen = rate_of(first), with_server(first, server)
    if learning_rate is not None and own is not None:
        chosen, factor = with_rate(chosen, learning_rate), learning_rate / own if own else 1.0
        later = [_scaled(stage, factor) for stage in later] if learning_rate != own else later
    return replace(experiment, stages=(chosen, *later), trial=None)


def rate_of(stage: Stage | Centralized) -> float | None:
    """The learning rate of a stage's clients, or of its own optimizer; None of a method without one."""
    return (
        stage.optimizer.learning_rate
        if isinstance(stage, Centralized)
        else getattr(stage.update, "learning_rate", None)
    )


def with_rate(stage: Stage | Centralized, learning_rate: Any) -> Stage | Centralized:
    """The stage with this learning rate (a number that may be traced) of its clients."""
    if isinstance(stage, Centralized):
        return replace(stage, optimizer=replace(stage.optimizer, learning_rate=learning_rate))
    return replace(stage, update=replace(stage.update, learning_rate=learning_rate))  # pyright: ignore


def _scaled(stage: Stage | Centralized, factor: float) -> Stage | Centralized:
    own = rate_of(stage) if isinstance(stage, Stage) else None
    return stage if own is None else with_rate(stage, rounded(own * factor))


def rounded(learning_rate: float) -> float:
    """A product of rates as it would be written."""
    return float(f"{learning_rate:.6g}")


def with_server(stage: Stage | Centralized, server: Server) -> Stage | Centralized:
    """The stage with its own optimizer, as it is or with a decay, or with Adam."""
    if server == "own":
        return stage
    if isinstance(stage, Centralized):
        return replace(stage, optimizer=_decayed(stage.optimizer, stage.rounds * stage.steps))
    return replace(
        stage, server=_decayed(stage.server if server == "decayed" else Optimizer("adam", ADAM_RATE), stage.rounds)
    )


def _decayed(optimizer: Optimizer, steps: int) -> Optimizer:
    """The optimizer with a learning rate that falls to zero in this many steps, unless it has a schedule."""
    schedule = optimizer.schedule or Schedule("cosine_decay_schedule", {"decay_steps": steps})
    return replace(optimizer, schedule=schedule)


def described(candidate: Candidate) -> str:
    """The settings of a candidate in words."""
    server = {
        "own": "the server's optimizer as it is",
        "decayed": "a decaying server rate",
        "adam": "Adam on the server",
    }
    learning_rate = "" if candidate.learning_rate is None else f"learning rate {candidate.learning_rate:g}, "
    return f"{learning_rate}{server[candidate.server]}"


def settings_of(experiment: Experiment) -> Mapping[str, Any]:
    """What of an experiment its trial depends on, beside the data: itself, and the stages but for their lengths."""
    stages = [
        {name: value for name, value in to_json(stage).items() if name != "rounds"} for stage in experiment.stages
    ]
    return {"trial": to_json(experiment.trial), "stages": stages, "seed": experiment.seed}
