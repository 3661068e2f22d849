"""The loop of a stage: gathers cohorts, trains, evaluates, saves."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from headstart.devices import replicated
from headstart.experiment.experiment import Centralized, Experiment, Stage
from headstart.learning.client_state import ClientStates
from headstart.learning.parallel import Parallel
from headstart.learning.rounds import Cohort, State
from headstart.training import cluster
from headstart.training.divergence import RoundMonitor, metrics_at_start
from headstart.training.sampling import CohortBatch, Cohorts, cohorts
from headstart.training.seed_run import (
    Position,
    RunContext,
    SeedRun,
    evaluate,
    record_round,
    report_interrupted,
    save,
    start_params,
    target_reached,
)

# One call of the compiled program trains at most CALL_ROUNDS, for about CALL_SECONDS: then Ctrl-C is heard.
CALL_ROUNDS = 32
CALL_SECONDS = 0.5
# Of the cohorts of one call.
SMALL_BYTES = 2**23


def train(seed_run: SeedRun, position: Position) -> Position | None:
    """The rounds that are left of a stage; None if interrupted, with everything saved."""
    context, (experiment, task, *_) = seed_run.context, seed_run.context.prepared
    stage = experiment.stages[position.stage]
    first = sum(earlier.rounds for earlier in experiment.stages[: position.stage]) + 1
    last, capacity = first + stage.rounds - 1, _capacity(context, stage)
    gather = _cohorts(seed_run, stage, first)
    monitor = _monitor(seed_run, stage, gather)
    program, saved, pace = context.programs[position.stage], time.monotonic(), 1
    position = position._replace(state=_placed(seed_run, position))
    done = _ends(seed_run, stage, first, lambda: seed_run.log.evaluated(task, position.round))
    count = 0 if done else min(1, last - position.round)
    cohort_batch = gather(position.round + 1, count, capacity) if count else None
    while cohort_batch is not None:
        began, number = time.perf_counter(), position.round + 1
        state, infos = program(
            position.state, _with_states(cohort_batch, position.client_states), seed_run.key, number, count
        )
        clients = cohort_batch.clients
        # The next cohorts are gathered while the devices compute.
        following = min(capacity, pace, _next_evaluation_round(experiment, number + count, last) - number - count + 1)
        cohort_batch = gather(number + count, following, capacity) if following else None
        infos = jax.device_get(infos)
        if position.client_states is not None:
            position.client_states.put(clients, infos.client_state)
        seconds = (time.perf_counter() - began) / count
        for i in range(count):
            info = jax.tree.map(lambda leaf, i=i: leaf[i], infos._replace(client_state=None))
            record_round(seed_run, monitor, stage.name, number + i, info, seconds)
        position = position._replace(round=number + count - 1, state=state)
        pace = max(1, int(cluster.broadcast(min(CALL_SECONDS, context.options.checkpoint_seconds) / seconds)))
        count = following
        if position.round == _next_evaluation_round(experiment, position.round, last):
            value = evaluate(seed_run, position)
            if _ends(seed_run, stage, first, lambda value=value: value):
                cohort_batch = None
        elapsed = time.monotonic() - saved >= context.options.checkpoint_seconds
        requested = cluster.any_of(context.interrupt.requested)
        if cohort_batch is None or requested or elapsed:
            save(seed_run, position)
            saved = time.monotonic()
        if requested:
            report_interrupted(seed_run, position)
            return None
    return position


def compile_ahead(seed_run: SeedRun, position: Position) -> Callable[[], Any]:
    """Trace the rounds of the stage and compile them on another thread; returns what waits until that is done."""
    context, number = seed_run.context, position.round + 1
    stage = context.prepared.experiment.stages[position.stage]
    cohort_batch = _cohorts(seed_run, stage, number)(number, 1, _capacity(context, stage))
    return context.programs[position.stage].ahead(
        _placed(seed_run, position), _with_states(cohort_batch, position.client_states), seed_run.key, number, 1
    )


def _placed(seed_run: SeedRun, position: Position) -> State:
    """The state on the devices that train; the pool of a datacenter is walked by one."""
    context = seed_run.context
    is_pool = isinstance(context.prepared.experiment.stages[position.stage], Centralized)
    return replicated(position.state, None if is_pool else context.gather.mesh)


def _ends(seed_run: SeedRun, stage: Stage | Centralized, first: int, value: Callable[[], float | None]) -> bool:
    """Whether a stage has come to its target, or to the end of its patience, as process 0 sees it.

    first: its first round. value: of the first metric, at the newest evaluation.
    """
    if stage.stop_at is None and stage.patience is None:
        return False
    task = seed_run.context.prepared.task
    reached = stage.stop_at is not None and target_reached(task, stage, value())
    stagnant = stage.patience is not None and seed_run.log.stagnant(task, first - 1, stage.patience)
    return cluster.broadcast(bool(reached or stagnant))


def _with_states(cohort_batch: CohortBatch, client_states: ClientStates | None) -> Cohort:
    """The cohorts, with what their clients keep."""
    return (
        cohort_batch.cohort
        if client_states is None
        else cohort_batch.cohort._replace(client_state=client_states.of(cohort_batch.clients))
    )


def _cohorts(seed_run: SeedRun, stage: Stage | Centralized, first: int) -> Cohorts:
    context = seed_run.context
    return cohorts(
        stage,
        context.prepared.groups.train,
        context.gather,
        seed=seed_run.seed,
        first_round=first,
        parallel=Parallel(context.options.lanes, context.gather.mesh),
    )


def _monitor(seed_run: SeedRun, stage: Stage | Centralized, gather: Cohorts) -> RoundMonitor:
    context, (_, task, model, *_) = seed_run.context, seed_run.context.prepared
    # The pool of a datacenter is on one device.
    mesh = context.gather.mesh if isinstance(stage, Stage) else None
    parallel = Parallel(context.options.lanes, mesh)
    return RoundMonitor(task, metrics_at_start(task, model, lambda: start_params(seed_run), gather, parallel))


def _capacity(context: RunContext, stage: Stage | Centralized) -> int:
    """How many rounds one call of the compiled program holds at most."""
    federation = context.prepared.federation
    if isinstance(stage, Centralized):
        return min(stage.rounds, CALL_ROUNDS)
    if stage.method.is_stateful:
        # What a client keeps in one round it has in the next.
        return 1
    # Row numbers, and the rows themselves if they stream, in two blocks: one is cohort_batch while the other trains.
    cohort_bytes = 4 * stage.cohort * federation.capacity()
    if context.gather.resident is None:
        cohort_bytes += federation.nbytes * stage.cohort // len(federation)
    # Where they are small, stages of few rounds have the shapes, and so the program, of those of many.
    small = CALL_ROUNDS * cohort_bytes <= SMALL_BYTES
    capacity = CALL_ROUNDS if small else min(stage.rounds, CALL_ROUNDS)
    return max(1, min(capacity, context.options.device_bytes // (4 * cohort_bytes)))


def _next_evaluation_round(experiment: Experiment, number: int, last: int) -> int:
    """The first round from `number` on after which validation clients are evaluated."""
    every = experiment.evaluate_every or last
    return min(-(-number // every) * every, last)


def is_evaluated(experiment: Experiment) -> Callable[[int], bool]:
    """Whether validation clients are evaluated after a round, counted over all stages, while the experiment is run."""
    every, ends = experiment.evaluate_every, set(np.cumsum([stage.rounds for stage in experiment.stages]).tolist())
    return lambda number: number == 0 or number in ends or (every > 0 and number % every == 0)
