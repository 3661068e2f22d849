"""One seed of a run: its position, its records, and how its clients are evaluated."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from headstart.data.device_data import Gather
from headstart.data.federation import Federation, Tree
from headstart.experiment.experiment import Centralized, Experiment, Stage
from headstart.experiment.setup import Prepared
from headstart.fields import at_least, check_fields
from headstart.learning.client_state import ClientStates
from headstart.learning.parallel import MOST_LANES
from headstart.learning.personalization import Curves, Personalizer
from headstart.learning.rounds import Algorithm, Info, State, initial_key, personal_key
from headstart.learning.tasks import Task
from headstart.runs import checkpoint
from headstart.runs.log import Log, OnEvent, evaluation_record, round_record
from headstart.runs.start import read_parameters
from headstart.training import cluster
from headstart.training.divergence import RoundMonitor, check_evaluation
from headstart.training.interrupt import Interrupt
from headstart.training.stage_program import StageRounds


@dataclass(frozen=True)
class Options:
    """What decides not the result, but how it comes about.

    lanes: clients side by side on each device. devices: how many share a cohort; by default all that JAX has.
    checkpoint_seconds: the least time between saved states.
    device_bytes: a federation up to this size stays on the device.
    baselines: whether to measure, beside the run, constants, every test client trained alone and a model of pooled
        examples; None: of tables.
    examples: whether the run keeps, and its report shows, a few examples of a few clients; of glyphs and the published
        data sets it does anyway.
    hide_ids: whether pseudonyms are written in place of the clients' ids; see `runs.pseudonyms`.
    rewrite: whether this run has a model's convolutions and poolings replaced by what a CPU computes fast, and its
        first layer personalized in dual coordinates where they cost less; see `models.rewrite` and `learning.dual`.
    """

    lanes: int = at_least(1, 1, most=MOST_LANES)
    devices: int | None = at_least(1, None)
    checkpoint_seconds: float = at_least(0, 30.0, endless=True)
    device_bytes: int = at_least(0, 2**30, most=2**62)
    baselines: bool | None = None
    examples: bool = False
    hide_ids: bool = False
    rewrite: bool = True

    def __post_init__(self) -> None:
        check_fields(self)


class RunContext(NamedTuple):
    """What the seeds of a run share.

    gather: draws cohorts of the federation, on the devices in use.
    algorithms, programs: of every stage; the programs are its rounds, compiled. personalizers, evaluators: of every
        stage, compiled personalization, and the same of no epochs. of_participants: that of clients that took part.
    name: of the run, which its states carry; only the process that writes them has it. written: the federation as it is
        written, with pseudonyms where ids are hidden.
    """

    prepared: Prepared
    gather: Gather
    algorithms: tuple[Algorithm, ...]
    programs: tuple[StageRounds, ...]
    personalizers: tuple[Personalizer, ...]
    evaluators: tuple[Personalizer, ...]
    of_participants: tuple[Personalizer, ...]
    options: Options
    on_event: OnEvent
    interrupt: Interrupt
    name: str = ""
    written: Federation | None = None


class SeedRun(NamedTuple):
    """One seed of a run."""

    context: RunContext
    seed: int
    folder: Path
    key: jax.Array
    log: Log


class Position(NamedTuple):
    """Where a run is: in this stage, after this round (counted over all stages).

    client_states: what clients keep meanwhile; None where the stage's method keeps nothing.
    """

    stage: int
    round: int
    state: State
    client_states: ClientStates | None = None


class InterruptedRunError(Exception):
    """Ctrl-C was pressed while clients were personalized; the state was saved before."""


def report_interrupted(seed_run: SeedRun, position: Position) -> None:
    """Report where Ctrl-C stopped the run."""
    text = f"interrupted; saved after round {position.round}"
    seed_run.context.on_event({"event": "note", "seed": seed_run.seed, "text": text})


def record_round(seed_run: SeedRun, monitor: RoundMonitor, stage: str, number: int, info: Info, seconds: float) -> None:
    """Log a round, and stop where training has come to nothing.

    Raises:
        DivergedError: if no reply of the round was finite, or what it made is of no use.
    """
    monitor.check(_where(seed_run, stage, number), number, info)
    seed_run.log(round_record(seed_run.context.prepared.task, stage, number, info, seconds))


def _where(seed_run: SeedRun, stage: str, number: int) -> str:
    return f"stage {stage!r}, round {number} of seed {seed_run.seed}"


def start_params(seed_run: SeedRun) -> Tree:
    """The parameters of the model that the seed starts from, in all processes of a cluster."""
    experiment = seed_run.context.prepared.experiment
    params = seed_run.context.prepared.model.init(initial_key(seed_run.key))
    if experiment.start is None:
        return params
    own = initial_params(experiment, seed_run.seed, params) if cluster.is_first() else None
    return cluster.shared(own, params)


def initial_params(experiment: Experiment, seed: int, params: Tree) -> Tree:
    """What a seed starts from: the parameters in the file that the experiment names, or else these."""
    return params if experiment.start is None else read_parameters(start_file(experiment.start, seed), params)


def start_file(start: str, seed: int | str) -> Path:
    """The file of the parameters that a seed starts from, by an experiment's `start`."""
    return Path(start.replace("{seed}", str(seed)))


def evaluate(seed_run: SeedRun, position: Position) -> float | None:
    """Log how the state does on some validation clients, before and after personalization; returns the former.

    A stage with a target evaluates the initial model alone, and nobody waits for a personalization.

    Raises:
        DivergedError: if the initial model is of no use.
    """
    prepared = seed_run.context.prepared
    clients = monitored_clients(prepared)
    if not len(clients):
        return None
    began, stage = time.perf_counter(), prepared.experiment.stages[position.stage]
    curves = personalization_curves(seed_run, position, "validation", clients, personalized=stage.stop_at is None)
    check_initial_model(seed_run, position, "validation", clients, curves)
    recipe, seconds = prepared.experiment.personalization, time.perf_counter() - began
    middle = None if recipe.pulls is None else recipe.unchosen
    record = evaluation_record(prepared.task, stage.name, position.round, curves, seconds, middle=middle)
    seed_run.log(record)
    return record["validation"][prepared.task.metrics[0].name][0]


def check_initial_model(seed_run: SeedRun, position: Position, group: str, clients: np.ndarray, curves: Curves) -> None:
    """Stop where the initial model, measured on these clients, is of no use.

    Raises:
        DivergedError: as `check_evaluation` says.
    """
    context, key = seed_run.context, personal_key(seed_run.key)

    def before_training() -> Curves:
        broadcast = context.algorithms[0].init(start_params(seed_run)).params
        return context.evaluators[0](broadcast, clients, context.gather, key)

    if position.round:
        stage = context.prepared.experiment.stages[position.stage].name
        check_evaluation(context.prepared.task, _where(seed_run, stage, position.round), group, curves, before_training)


def target_reached(task: Task, stage: Stage | Centralized, value: float | None) -> bool:
    """Whether a stage with a target has come to it, by the initial model's first metric on validation clients."""
    return stage.stop_at is not None and value is not None and task.metrics[0].reached(value, stage.stop_at)


def monitored_clients(prepared: Prepared) -> np.ndarray:
    """The validation clients that are evaluated along training."""
    clients, count = prepared.groups.validation, prepared.experiment.evaluation_clients
    if not len(clients) or not count:
        return clients[:0]
    # Spread over the file, whose order may mean something.
    return clients[np.unique(np.linspace(0, len(clients) - 1, min(count, len(clients))).astype(int))]


def selection_clients(prepared: Prepared, stage: Stage | Centralized) -> np.ndarray:
    """The validation clients that choose the epochs of personalization.

    Where some of them have ended the stage at their best moment, the others choose, if there are any.
    """
    clients = prepared.groups.validation
    others = (
        clients
        if stage.stop_at is None and stage.patience is None
        else np.setdiff1d(clients, monitored_clients(prepared))
    )
    return others if len(others) else clients


def personalization_curves(
    seed_run: SeedRun,
    position: Position,
    group: str,
    clients: np.ndarray,
    *,
    learning_rate: float | None = None,
    personalized: bool = True,
    interruptible: bool = False,
) -> Curves:
    """Personalize clients of a group from the state of the run, or measure its initial model alone.

    Participants start from what they kept in training, too, or as new clients if they were in no round.

    rate: of personalization, by default the first to try.

    Raises:
        InterruptedRunError: on Ctrl-C, if interruptible.
    """
    context = seed_run.context
    head = {"event": "progress", "seed": seed_run.seed, "group": group, "of": len(clients)}

    def progress(done: int) -> None:
        context.on_event({**head, "clients": done})
        if interruptible and cluster.any_of(context.interrupt.requested):
            raise InterruptedRunError

    compiled = context.personalizers if personalized else context.evaluators
    learning_rate = (
        context.prepared.experiment.personalization.candidate_rates[0] if learning_rate is None else learning_rate
    )
    given = position.state.params, clients, context.gather, personal_key(seed_run.key), progress, learning_rate
    if group == "participants":
        stage = context.prepared.experiment.stages[position.stage]
        states = None
        if stage.method.personalizes_from_state and position.client_states is not None:
            # Who was in no round has kept nothing, and starts as a new client does.
            states = position.client_states.with_default(stage.method.init_client_state(position.state.params))
        return context.of_participants[position.stage](*given, states=states)
    return compiled[position.stage](*given)


def origin(seed_run: SeedRun) -> dict[str, Any]:
    """What a state says of where it comes from: the run and the seed."""
    return {"run": seed_run.context.name, "seed": seed_run.seed}


def save(seed_run: SeedRun, position: Position) -> None:
    """Write a checkpoint."""
    if not cluster.is_first():
        return
    tree, about = position.state, {"round": position.round, "stage": position.stage, **origin(seed_run)}
    if position.client_states is not None:
        tree, about = (tree, position.client_states.as_tree()), {**about, "kept": len(position.client_states)}
    checkpoint.write_round(seed_run.folder / "checkpoints", tree, about)
