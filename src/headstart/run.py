"""The loop: draws cohorts, trains, watches, saves. The only place that touches the disk during training."""

from __future__ import annotations

import os
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from headstart import checkpoint
from headstart.draw import Draw, on_device
from headstart.errors import UserError
from headstart.experiment import Centralized, Experiment, Stage
from headstart.files import write_json
from headstart.folder import Listener, Log, claimed, curve_arrays, write_arrays, write_samples
from headstart.interrupt import Interrupt
from headstart.lanes import all_devices
from headstart.personalize import Curves, Personalizer, choose_length, mean_over_clients, personalizer
from headstart.prepare import Prepared, prepare
from headstart.rounds import Algorithm, Info, State, several
from headstart.sampling import Cohorts, cohorts
from headstart.statistics import summarize
from headstart.tasks import Sums, Task

# One call of the compiled program trains at most so many rounds, for about so long: then Ctrl-C is heard.
CALL_ROUNDS = 32
CALL_SECONDS = 0.5


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
    """What the stages of one seed share.

    mesh: the devices, if there are several. draw: draws cohorts of the federation. watch: the compiled personalization.
    """

    prepared: Prepared
    mesh: Mesh | None
    draw: Draw
    watch: Personalizer
    options: Options
    listen: Listener
    interrupt: Interrupt


class Place(NamedTuple):
    """Where a run is: in this stage, after this round (counted over all stages)."""

    stage: int
    round: int
    state: State


def run(
    experiment: Experiment,
    out: str | os.PathLike[str],
    *,
    seeds: int = 1,
    options: Options = Options(),
    listen: Listener = lambda record: None,
    trusted: Collection[str] = (),
) -> bool:
    """Run an experiment into a folder, or go on with one that was interrupted there.

    seeds: how many runs, with seeds from `experiment.seed` on.
    listen: gets every record of the log as it is written, and others on progress.
    trusted: modules a saved experiment may import beside headstart's own.

    Returns:
        Whether it came to its end; False if Ctrl-C stopped it, with everything saved.

    Raises:
        UserError: for anything the user can mend; what was saved before stays.
    """
    prepared, out, mesh = prepare(experiment, trusted=trusted), Path(out), all_devices(options.devices)
    with claimed(out, prepared.experiment, prepared.federation), Interrupt() as interrupt:
        write_samples(out, prepared.federation, prepared.groups.test)
        lanes, recipe = options.lanes, experiment.personalization
        watch = personalizer(prepared.task, prepared.model, recipe, lanes=lanes, mesh=mesh)
        draw = on_device(prepared.federation, limit=options.device_bytes, mesh=mesh)
        session = Session(prepared, mesh, draw, watch, options, listen, interrupt)
        return all(_run_seed(session, out / f"seed-{experiment.seed + i}", experiment.seed + i) for i in range(seeds))


def _run_seed(session: Session, folder: Path, seed: int) -> bool:
    stages = session.prepared.experiment.stages
    if all((folder / f"stage-{number}.json").exists() for number in range(len(stages))):
        return True
    key = jax.random.key(seed, impl="threefry2x32")
    trial = Trial(session, seed, folder, key, Log(folder / "metrics.jsonl", session.listen, seed))
    task, model, lanes, mesh = session.prepared.task, session.prepared.model, session.options.lanes, session.mesh
    algorithms = [stage.algorithm(task, model, lanes=lanes, mesh=mesh) for stage in stages]
    place = _start(trial, algorithms)
    for number in range(place.stage, len(stages)):
        if number > place.stage:
            place = Place(number, place.round, algorithms[number].init(place.state.params))
        reached = _train(trial, algorithms[number], place)
        if reached is None:
            return False
        place = reached
        try:
            _finish_stage(trial, place)
        except InterruptedRunError:
            _tell_interrupted(trial, place)
            return False
    return True


class InterruptedRunError(Exception):
    """Ctrl-C was pressed while clients were personalized; the state was saved before."""


def _tell_interrupted(trial: Trial, place: Place) -> None:
    text = f"interrupted; saved after round {place.round}"
    trial.session.listen({"event": "note", "seed": trial.seed, "text": text})


class Trial(NamedTuple):
    """One seed of a session."""

    session: Session
    seed: int
    folder: Path
    key: jax.Array
    log: Log


def _start(trial: Trial, algorithms: list[Algorithm]) -> Place:
    """The newest saved place, or the beginning."""
    listen = trial.session.listen
    params = trial.session.prepared.model.init(jax.random.fold_in(trial.key, 0))
    expected = {number: jax.eval_shape(algorithm.init, params) for number, algorithm in enumerate(algorithms)}
    saved, complaints = checkpoint.read_newest(trial.folder / "checkpoints", expected)
    for complaint in complaints:
        listen({"event": "note", "seed": trial.seed, "text": complaint})
    if saved is None:
        trial.log.cut(None)
        place = Place(0, 0, algorithms[0].init(params))
        _evaluate(trial, place)
        return place
    place = Place(saved.about["stage"], saved.about["round"], saved.tree)
    for record in trial.log.cut(place.round):
        listen({**record, "past": True})
    listen({"event": "note", "seed": trial.seed, "text": f"seed {trial.seed} goes on after round {place.round}"})
    return place


def _train(trial: Trial, algorithm: Algorithm, place: Place) -> Place | None:
    """The rounds that are left of a stage; None if interrupted, with everything saved."""
    session, experiment = trial.session, trial.session.prepared.experiment
    stage = experiment.stages[place.stage]
    first = sum(earlier.rounds for earlier in experiment.stages[: place.stage]) + 1
    last, room = first + stage.rounds - 1, _room(session, stage)
    draw = _cohorts(trial, stage, first)
    program, saved, pace = several(algorithm), time.monotonic(), 1
    place = place._replace(state=_put(place.state, session.mesh if isinstance(stage, Stage) else None))
    count = min(1, last - place.round)
    drawn = draw(place.round + 1, count, room) if count else None
    while drawn is not None:
        began, number = time.perf_counter(), place.round + 1
        state, infos = program(place.state, drawn, trial.key, number, count)
        # The next cohorts are drawn while the devices compute.
        following = min(room, pace, _watched(experiment, number + count, last) - number - count + 1)
        drawn = draw(number + count, following, room) if following else None
        infos = jax.device_get(infos)
        seconds = (time.perf_counter() - began) / count
        for i in range(count):
            _record_round(trial, stage.name, number + i, jax.tree.map(lambda leaf, i=i: leaf[i], infos), seconds)
        place = Place(place.stage, number + count - 1, state)
        pace = max(1, int(min(CALL_SECONDS, session.options.checkpoint_seconds) / seconds))
        count = following
        if place.round == _watched(experiment, place.round, last):
            _evaluate(trial, place)
        elapsed = time.monotonic() - saved >= session.options.checkpoint_seconds
        if place.round == last or session.interrupt.requested or elapsed:
            _save(trial, place)
            saved = time.monotonic()
        if session.interrupt.requested:
            _tell_interrupted(trial, place)
            return None
    return place


def _cohorts(trial: Trial, stage: Stage | Centralized, first: int) -> Cohorts:
    session = trial.session
    return cohorts(
        stage,
        session.prepared.federation,
        session.prepared.groups.train,
        session.draw,
        seed=trial.seed,
        first_round=first,
        lanes=session.options.lanes,
        mesh=session.mesh,
    )


def _room(session: Session, stage: Stage | Centralized) -> int:
    """How many rounds one call of the compiled program holds at most."""
    federation, room = session.prepared.federation, min(stage.rounds, CALL_ROUNDS)
    if isinstance(stage, Centralized):
        return room
    # Row numbers, and the rows themselves if they stream, in two blocks: one is drawn while the other trains.
    cohort_bytes = 4 * stage.clients_per_round * federation.capacity()
    if session.draw.resident is None:
        cohort_bytes += federation.nbytes * stage.clients_per_round // len(federation)
    return max(1, min(room, session.options.device_bytes // (4 * cohort_bytes)))


def _watched(experiment: Experiment, number: int, last: int) -> int:
    """The first round from `number` on after which validation clients are evaluated."""
    every = experiment.evaluate_every or last
    return min(-(-number // every) * every, last)


def _put(state: State, mesh: Mesh | None) -> State:
    """The state where the stage works: on one device, or on each of several."""
    where = jax.local_devices()[0] if mesh is None else NamedSharding(mesh, PartitionSpec())
    return jax.device_put(state, where)


def _record_round(trial: Trial, stage: str, number: int, info: Info, seconds: float) -> None:
    """Log a round, and stop where training has come to nothing.

    Raises:
        UserError: if no reply of the round was finite, or the new parameters are not.
    """
    if not info.finite or (info.dropped and not info.clients):
        raise UserError(
            f"training diverged in stage {stage!r}, round {number} of seed {trial.seed}: the parameters are"
            " no longer finite; lower the learning rates of the stage (client or server)"
        )
    trial.log(
        {
            "event": "round",
            "round": number,
            "stage": stage,
            "training": means(trial.session.prepared.task, info.metrics),
            "clients": int(info.clients),
            "dropped": int(info.dropped),
            "seconds": seconds,
        }
    )


def means(task: Task, sums: Sums) -> dict[str, float | None]:
    """What is reported of summed metrics; None where nothing was counted."""
    report = {}
    for metric in task.metrics:
        total, count = sums[metric.name]
        report[metric.name] = float(metric.finish(total / count)) if count > 0 else None
    return report


def _evaluate(trial: Trial, place: Place) -> None:
    """Log how the state does on some validation clients, before and after personalization."""
    prepared = trial.session.prepared
    clients, count = prepared.groups.validation, prepared.experiment.evaluation_clients
    if not len(clients) or not count:
        return
    # Spread over the file, whose order may mean something.
    clients = clients[np.unique(np.linspace(0, len(clients) - 1, min(count, len(clients))).astype(int))]
    began = time.perf_counter()
    curves = _watch(trial, place, "validation", clients)
    summary = {metric.name: mean_over_clients(curves, metric).tolist() for metric in prepared.task.metrics}
    seconds = time.perf_counter() - began
    stage = prepared.experiment.stages[place.stage].name
    record = {"event": "evaluation", "round": place.round, "stage": stage, "validation": summary}
    trial.log({**record, "clients": len(clients), "seconds": seconds})


def _watch(trial: Trial, place: Place, group: str, clients: np.ndarray, *, interruptible: bool = False) -> Curves:
    """Personalize clients of a group from the state of the run.

    Raises:
        InterruptedRunError: on Ctrl-C, if interruptible.
    """
    session = trial.session
    told = {"event": "progress", "seed": trial.seed, "group": group, "of": len(clients)}

    def progress(done: int) -> None:
        session.listen({**told, "clients": done})
        if interruptible and session.interrupt.requested:
            raise InterruptedRunError

    return session.watch(
        place.state.params,
        clients,
        session.draw,
        jax.random.fold_in(trial.key, 2),
        progress,
    )


def _save(trial: Trial, place: Place) -> None:
    checkpoint.write_round(trial.folder / "checkpoints", place.state, {"round": place.round, "stage": place.stage})


def _finish_stage(trial: Trial, place: Place) -> None:
    """Choose the length of personalization on the validation clients, then measure the test clients, once."""
    prepared, stage = trial.session.prepared, trial.session.prepared.experiment.stages[place.stage]
    length, arrays = prepared.experiment.personalization.length, {}
    report: dict[str, Any] = {"stage": stage.name, "round": place.round, "seed": trial.seed}
    for group, clients in (("validation", prepared.groups.validation), ("test", prepared.groups.test)):
        if not len(clients):
            continue
        curves = _watch(trial, place, group, clients, interruptible=True)
        if group == "validation":
            length = choose_length(curves, prepared.task)
        arrays |= curve_arrays(group, prepared.federation.select(clients), curves)
        report[group] = summarize(curves, prepared.task, length=length)
    checkpoint.write(trial.folder / f"stage-{place.stage}.safetensors", place.state.params, {"round": place.round})
    write_arrays(trial.folder / f"stage-{place.stage}.npz", arrays)
    write_json(trial.folder / f"stage-{place.stage}.json", report)
    trial.session.listen({"event": "stage", **report})
