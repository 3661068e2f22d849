"""The loop of a stage: draws cohorts, trains, watches, saves."""

from __future__ import annotations

import time

import jax

from headstart.devices import replicated
from headstart.experiment.experiment import Centralized, Experiment, Stage
from headstart.learning.client_state import ClientStates
from headstart.learning.rounds import Cohort
from headstart.training import cluster
from headstart.training.sampling import Cohorts, Drawn, cohorts
from headstart.training.seed_run import Place, Session, Trial, evaluate, reached, record_round, save, tell_interrupted

# One call of the compiled program trains at most so many rounds, for about so long: then Ctrl-C is heard.
CALL_ROUNDS = 32
CALL_SECONDS = 0.5


def train(trial: Trial, place: Place) -> Place | None:
    """The rounds that are left of a stage; None if interrupted, with everything saved."""
    session, (experiment, task, *_) = trial.session, trial.session.prepared
    stage = experiment.stages[place.stage]
    first = sum(earlier.rounds for earlier in experiment.stages[: place.stage]) + 1
    last, room = first + stage.rounds - 1, _room(session, stage)
    draw = _cohorts(trial, stage, first)
    program, saved, pace = session.programs[place.stage], time.monotonic(), 1
    # The pool of a datacenter is walked by one device.
    place = place._replace(state=replicated(place.state, session.draw.mesh if isinstance(stage, Stage) else None))
    done = stage.until is not None and _reached(trial, stage, trial.log.evaluated(task, place.round))
    count = 0 if done else min(1, last - place.round)
    drawn = draw(place.round + 1, count, room) if count else None
    while drawn is not None:
        began, number = time.perf_counter(), place.round + 1
        state, infos = program(place.state, _with_states(drawn, place.client_states), trial.key, number, count)
        clients = drawn.clients
        # The next cohorts are drawn while the devices compute.
        following = min(room, pace, _watched(experiment, number + count, last) - number - count + 1)
        drawn = draw(number + count, following, room) if following else None
        infos = jax.device_get(infos)
        if place.client_states is not None:
            place.client_states.put(clients, infos.client_state)
        seconds = (time.perf_counter() - began) / count
        for i in range(count):
            told = jax.tree.map(lambda leaf, i=i: leaf[i], infos._replace(client_state=None))
            record_round(trial, stage.name, number + i, told, seconds)
        place = place._replace(round=number + count - 1, state=state)
        pace = max(1, int(cluster.told(min(CALL_SECONDS, session.options.checkpoint_seconds) / seconds)))
        count = following
        if place.round == _watched(experiment, place.round, last) and _reached(trial, stage, evaluate(trial, place)):
            drawn = None
        elapsed = time.monotonic() - saved >= session.options.checkpoint_seconds
        requested = cluster.any_of(session.interrupt.requested)
        if drawn is None or requested or elapsed:
            save(trial, place)
            saved = time.monotonic()
        if requested:
            tell_interrupted(trial, place)
            return None
    return place


def _reached(trial: Trial, stage: Stage | Centralized, value: float | None) -> bool:
    """Whether a stage with a target has come to it, as process 0 sees it."""
    return stage.until is not None and reached(trial.session.prepared.task, stage, cluster.told(value))


def _with_states(drawn: Drawn, client_states: ClientStates | None) -> Cohort:
    """The cohorts, with what their clients keep."""
    return (
        drawn.cohort if client_states is None else drawn.cohort._replace(client_state=client_states.of(drawn.clients))
    )


def _cohorts(trial: Trial, stage: Stage | Centralized, first: int) -> Cohorts:
    session = trial.session
    return cohorts(
        stage,
        session.prepared.groups.train,
        session.draw,
        seed=trial.seed,
        first_round=first,
        lanes=session.options.lanes,
    )


def _room(session: Session, stage: Stage | Centralized) -> int:
    """How many rounds one call of the compiled program holds at most."""
    federation, room = session.prepared.federation, min(stage.rounds, CALL_ROUNDS)
    if isinstance(stage, Centralized):
        return room
    if stage.method.is_stateful:
        # What a client keeps in one round it has in the next.
        return 1
    # Row numbers, and the rows themselves if they stream, in two blocks: one is drawn while the other trains.
    cohort_bytes = 4 * stage.clients_per_round * federation.capacity()
    if session.draw.resident is None:
        cohort_bytes += federation.nbytes * stage.clients_per_round // len(federation)
    return max(1, min(room, session.options.device_bytes // (4 * cohort_bytes)))


def _watched(experiment: Experiment, number: int, last: int) -> int:
    """The first round from `number` on after which validation clients are evaluated."""
    every = experiment.evaluate_every or last
    return min(-(-number // every) * every, last)
