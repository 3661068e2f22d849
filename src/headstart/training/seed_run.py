"""One seed of a run: where it is, what it tells, and how its clients are watched."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from headstart.data.device_data import Draw
from headstart.data.federation import Tree
from headstart.errors import UserError
from headstart.experiment.experiment import Centralized, Experiment, Stage
from headstart.experiment.setup import Prepared
from headstart.learning.client_state import ClientStates
from headstart.learning.personalization import Curves, Personalizer
from headstart.learning.rounds import Algorithm, Info, Rounds, State, personal_key
from headstart.learning.tasks import Task
from headstart.runs import checkpoint
from headstart.runs.log import Listener, Log, evaluation_record, round_record
from headstart.training import cluster
from headstart.training.interrupt import Interrupt


@dataclass(frozen=True)
class Options:
    """What decides not the result, but how it comes about.

    lanes: clients side by side on each device. devices: how many share a cohort; by default all that JAX has.
    checkpoint_seconds: the least time between saved states.
    device_bytes: a federation up to this size stays on the device.
    """

    lanes: int = 1
    devices: int | None = None
    checkpoint_seconds: float = 30.0
    device_bytes: int = 2**30


class Session(NamedTuple):
    """What the seeds of a run share.

    draw: draws cohorts of the federation, on the devices in use.
    algorithms, programs: of every stage; the programs are its rounds, compiled. watch, measure: of every stage, the
        compiled personalization, and the same of no length.
    """

    prepared: Prepared
    draw: Draw
    algorithms: tuple[Algorithm, ...]
    programs: tuple[Rounds, ...]
    watch: tuple[Personalizer, ...]
    measure: tuple[Personalizer, ...]
    options: Options
    listen: Listener
    interrupt: Interrupt


class Trial(NamedTuple):
    """One seed of a session."""

    session: Session
    seed: int
    folder: Path
    key: jax.Array
    log: Log


class Place(NamedTuple):
    """Where a run is: in this stage, after this round (counted over all stages).

    client_states: what clients keep meanwhile; None where the stage's method keeps nothing.
    """

    stage: int
    round: int
    state: State
    client_states: ClientStates | None = None


class InterruptedRunError(Exception):
    """Ctrl-C was pressed while clients were personalized; the state was saved before."""


class DivergedError(UserError):
    """Training came to nothing: no reply was finite, or the new parameters are not."""


def tell_interrupted(trial: Trial, place: Place) -> None:
    """Tell the listener where Ctrl-C stopped the run."""
    text = f"interrupted; saved after round {place.round}"
    trial.session.listen({"event": "note", "seed": trial.seed, "text": text})


def record_round(trial: Trial, stage: str, number: int, info: Info, seconds: float) -> None:
    """Log a round, and stop where training has come to nothing.

    Raises:
        DivergedError: if no reply of the round was finite, or the new parameters are not.
    """
    if not info.finite or (info.dropped and not info.clients):
        raise DivergedError(
            f"training diverged in stage {stage!r}, round {number} of seed {trial.seed}: the parameters are"
            " no longer finite; lower the learning rates of the stage (client or server)"
        )
    trial.log(round_record(trial.session.prepared.task, stage, number, info, seconds))


def started(experiment: Experiment, seed: int, params: Tree) -> Tree:
    """What a seed starts from: the parameters in the file that the experiment names, or else these."""
    file = experiment.start
    return params if file is None else checkpoint.read(Path(file.replace("{seed}", str(seed))), like=params).tree


def evaluate(trial: Trial, place: Place) -> float | None:
    """Log how the state does on some validation clients, before and after personalization; returns the former.

    A stage with a target looks at the initial model alone, and nobody waits for a personalization.
    """
    prepared = trial.session.prepared
    clients = watched(prepared)
    if not len(clients):
        return None
    began, stage = time.perf_counter(), prepared.experiment.stages[place.stage]
    curves = watch(trial, place, "validation", clients, personalized=stage.until is None)
    record = evaluation_record(prepared.task, stage.name, place.round, curves, time.perf_counter() - began)
    trial.log(record)
    return record["validation"][prepared.task.metrics[0].name][0]


def reached(task: Task, stage: Stage | Centralized, value: float | None) -> bool:
    """Whether a stage with a target has come to it, by the initial model's first metric on validation clients."""
    if stage.until is None or value is None:
        return False
    return value >= stage.until if task.metrics[0].higher_is_better else value <= stage.until


def watched(prepared: Prepared) -> np.ndarray:
    """The validation clients that are looked at along training."""
    clients, count = prepared.groups.validation, prepared.experiment.evaluation_clients
    if not len(clients) or not count:
        return clients[:0]
    # Spread over the file, whose order may mean something.
    return clients[np.unique(np.linspace(0, len(clients) - 1, min(count, len(clients))).astype(int))]


def choosing(prepared: Prepared, stage: Stage | Centralized) -> np.ndarray:
    """The validation clients that choose the length of personalization.

    Where some of them have ended the stage at their best moment, the others choose, if there are any.
    """
    clients = prepared.groups.validation
    others = clients if stage.until is None else np.setdiff1d(clients, watched(prepared))
    return others if len(others) else clients


def watch(
    trial: Trial,
    place: Place,
    group: str,
    clients: np.ndarray,
    *,
    rate: float | None = None,
    personalized: bool = True,
    interruptible: bool = False,
) -> Curves:
    """Personalize clients of a group from the state of the run, or measure its initial model alone.

    rate: of personalization, by default the first to try.

    Raises:
        InterruptedRunError: on Ctrl-C, if interruptible.
    """
    session = trial.session
    told = {"event": "progress", "seed": trial.seed, "group": group, "of": len(clients)}

    def progress(done: int) -> None:
        session.listen({**told, "clients": done})
        if interruptible and cluster.any_of(session.interrupt.requested):
            raise InterruptedRunError

    look = session.watch if personalized else session.measure
    rate = session.prepared.experiment.personalization.tried[0] if rate is None else rate
    return look[place.stage](place.state.params, clients, session.draw, personal_key(trial.key), progress, rate)


def save(trial: Trial, place: Place) -> None:
    """Write a checkpoint."""
    if not cluster.is_first():
        return
    tree, about = place.state, {"round": place.round, "stage": place.stage}
    if place.client_states is not None:
        tree, about = (tree, place.client_states.as_tree()), {**about, "kept": len(place.client_states)}
    checkpoint.write_round(trial.folder / "checkpoints", tree, about)
