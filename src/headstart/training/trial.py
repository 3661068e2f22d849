"""The trial of a run: short runs of its first stage, by which settings are chosen on validation clients.

One program serves all of them, since most of what a trial of small models costs is compilation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from headstart.data.federation import Array, Tree
from headstart.devices import replicated
from headstart.errors import UserError
from headstart.experiment.choice import Candidate, described, rate_of, rounded, settings_of, with_rate, with_server
from headstart.experiment.experiment import TRIAL_ROUNDS, Centralized, Experiment, Server, Stage, Trial
from headstart.experiment.measured import has_test_examples
from headstart.learning.divergence import beyond_use
from headstart.learning.parallel import Parallel
from headstart.learning.personalization import mean_over_clients
from headstart.learning.rounds import Algorithm, Cohort, State, federated, personal_key, run_rounds
from headstart.learning.tasks import Metric, loss_metric
from headstart.training.any_server import one_of
from headstart.training.sampling import cohorts
from headstart.training.seed_run import SeedRun, start_params

# Between neighbouring learning rates.
FACTOR = 10.0
# How many more learning rates are tried where the best is the last on one side, and where none is of use.
FURTHER, FALLING = 3, 14
# A larger learning rate must gain more than this share beyond what a smaller one gains.
NEARLY = 0.01


class TrialResult(NamedTuple):
    """What a trial has come to.

    metric: what decided, its lower values the better or not. clients: how many validation clients decided.
    rounds: of every short run. start: the metric of the model before training. chosen: None if nothing was tried.
    """

    metric: str
    clients: int
    rounds: int
    start: float | None
    candidates: tuple[Candidate, ...]
    chosen: Candidate


def run_trial(seed_run: SeedRun, trial: Trial) -> TrialResult:
    """Try settings of the first stage, and choose; says so as it goes.

    Raises:
        UserError: if no candidate is of use.
    """
    log, prepared = _logger(seed_run), seed_run.context.prepared
    stage = prepared.experiment.stages[0]
    rounds = min(stage.rounds, trial.rounds or max(TRIAL_ROUNDS, stage.rounds // 10))
    metric = loss_metric(prepared.task)
    servers = trial.servers[:1] if isinstance(stage, Centralized) else trial.servers
    tested = has_test_examples(prepared.federation, prepared.groups.validation)
    clients, own = prepared.groups.validation[tested], rate_of(stage)
    safest = Candidate(own if own is None or not trial.learning_rates else min(trial.learning_rates), servers[0], None)
    why = "no validation client has local test examples" if not len(clients) else _unfit(stage)
    if why:
        log(f"nothing was tried, for {why}: {described(safest)}")
        return TrialResult(metric.name, 0, rounds, None, (), safest)
    runs = _ShortRuns(seed_run, servers, rounds, metric, clients)
    log(
        f"trial: runs of {rounds} rounds, measured on {len(clients)} validation clients; {metric.name} {runs.start:.4g}"
    )
    found: list[Candidate] = []

    def attempt(learning_rate: float | None, server: Server) -> None:
        found.append(Candidate(learning_rate, server, runs.value(server, learning_rate)))
        log(f"trial: {described(found[-1])}: {_in_words(metric, found[-1].value)}")

    _try_rates(trial, own, metric, runs.start, found, lambda learning_rate: attempt(learning_rate, servers[0]))
    best = _best(metric, runs.start, found)
    for server in servers[1:]:
        attempt(safest.learning_rate if best is None else best.learning_rate, server)
    best = _best(metric, runs.start, found)
    if best is None:
        raise _refusal(found)
    log(f"trial: chosen: {described(best)}")
    return TrialResult(metric.name, len(clients), rounds, runs.start, tuple(found), best)


def _logger(seed_run: SeedRun) -> Callable[[str], None]:
    on_event = seed_run.context.on_event
    return lambda text: on_event({"event": "note", "text": text})


def _unfit(stage: Stage | Centralized) -> str:
    """Why a stage has no trial; empty if it can have one."""
    return f"clients of the stage {stage.name!r} keep a state" if stage.method.is_stateful else ""


def _in_words(metric: Metric, value: float | None) -> str:
    return "diverged" if value is None else f"{metric.name} {value:.4g}"


def _try_rates(
    trial: Trial,
    own: float | None,
    metric: Metric,
    start: float,
    found: list[Candidate],
    attempt: Callable[[float | None], None],
) -> None:
    """Try the learning rates of a trial; without its own, further ones while the best is the last on a side.

    Lower ones follow, too, while the best leaves the model worse than it was at the start.
    """
    learning_rates = trial.learning_rates or (() if not own else (own / FACTOR, own, own * FACTOR))
    for learning_rate in map(rounded, learning_rates) if learning_rates else (own,):
        attempt(learning_rate)
    if not own or trial.learning_rates:
        return
    further = 0
    for _ in range(FALLING):
        best, least, most = _best(metric, start, found), min(_rates(found)), max(_rates(found))
        lower = best is None or best.learning_rate == least
        if best is not None and not (lower and metric.sign * ((best.value or 0.0) - start) < 0):
            further += 1
            if least < (best.learning_rate or 0.0) < most or further > FURTHER:
                return
        attempt(rounded(least / FACTOR if lower else most * FACTOR))


def _rates(found: list[Candidate]) -> list[float]:
    return [candidate.learning_rate or 0.0 for candidate in found]


def _best(metric: Metric, start: float, found: list[Candidate]) -> Candidate | None:
    """The candidate with the best value, or rather, of those that gain nearly as much, that of the smallest steps.

    start: the value before training. None if all have diverged.
    """
    gains = {index: metric.sign * (each.value - start) for index, each in enumerate(found) if each.value is not None}
    if not gains:
        return None
    enough = max(gains.values()) - NEARLY * max(0.0, *gains.values())
    near = [found[index] for index, gain in gains.items() if gain >= enough]
    return min(near, key=lambda candidate: candidate.learning_rate or 0.0)


def _refusal(found: list[Candidate]) -> UserError:
    tried = ", ".join(f"{each:g}" for each in sorted(set(_rates(found))))
    return UserError(
        f"training diverged in every short run, with the learning rates {tried}; scale inputs and targets, or give a"
        " rate as stages.0.update.learning_rate"
    )


class _ShortRuns:
    """The short runs of a trial, all of which start alike and meet the same cohorts."""

    def __init__(
        self, seed_run: SeedRun, servers: Sequence[Server], rounds: int, metric: Metric, clients: np.ndarray
    ) -> None:
        self._seed_run, self._rounds, self._metric, self._clients = seed_run, rounds, metric, clients
        stage = seed_run.context.prepared.experiment.stages[0]
        self._stages = {server: with_server(stage, server) for server in servers}
        # The pool of a datacenter is walked by one device.
        self._mesh = seed_run.context.gather.mesh if isinstance(stage, Stage) else None
        self._program = jax.jit(self._rounds_of, donate_argnums=2)
        self.start = self._measured(self._algorithm(0, rate_of(stage)).init(start_params(seed_run)).params)

    def value(self, server: Server, learning_rate: float | None) -> float | None:
        """The metric after a run with these settings; None if it diverged."""
        number, key = list(self._stages).index(server), self._seed_run.key
        state = replicated(self._algorithm(number, learning_rate).init(start_params(self._seed_run)), self._mesh)
        for first, count, cohort in self._cohorts():
            state, infos = self._program(number, learning_rate, state, cohort, key, first, count)
            finite, dropped = (np.asarray(each)[:count] for each in jax.device_get((infos.finite, infos.dropped)))
            if not finite.all() or dropped.any():
                return None
        found = self._measured(state.params)
        return None if not math.isfinite(found) or beyond_use(self._metric, found, self.start) else found

    def _rounds_of(
        self,
        server: Array,
        learning_rate: Array | None,
        state: State,
        cohorts: Cohort,
        key: Array,
        first: Array,
        count: Array,
    ) -> tuple[State, Any]:
        return run_rounds(self._algorithm(server, learning_rate))(state, cohorts, key, first, count)

    def _algorithm(self, server: Any, learning_rate: Any) -> Algorithm:
        """The stage with a server, by its number, and a learning rate; both may be traced."""
        (_, task, model, _, groups), lanes = self._seed_run.context.prepared, self._seed_run.context.options.lanes
        stages, clients, parallel = list(self._stages.values()), len(groups.train), Parallel(lanes, self._mesh)
        stage = stages[0] if learning_rate is None else with_rate(stages[0], learning_rate)
        if isinstance(stage, Centralized):
            return stage.algorithm(task, model, parallel=parallel)
        servers = [each.server.build() for each in stages if isinstance(each, Stage)]
        more = {"weighting": stage.weighting, "participation": stage.cohort / clients, "parallel": parallel}
        return federated(task, model, stage.update, one_of(servers, server), **more)

    def _cohorts(self) -> Any:
        """The cohorts of the stage's first rounds, a few rounds at a time: the first, how many, and who."""
        prepared, context = self._seed_run.context.prepared, self._seed_run.context
        stage, at_once = prepared.experiment.stages[0], min(self._rounds, TRIAL_ROUNDS)
        parallel = Parallel(context.options.lanes, context.gather.mesh)
        gather = cohorts(
            stage, prepared.groups.train, context.gather, seed=self._seed_run.seed, first_round=1, parallel=parallel
        )
        for first in range(1, self._rounds + 1, at_once):
            count = min(at_once, self._rounds + 1 - first)
            yield first, count, gather(first, count, at_once).cohort

    def _measured(self, broadcast: Tree) -> float:
        """The mean over clients of the metric of the initial model."""
        context = self._seed_run.context
        curves = context.evaluators[0](broadcast, self._clients, context.gather, personal_key(self._seed_run.key))
        return float(mean_over_clients(curves, self._metric)[0])


def document_of_trial(result: TrialResult, experiment: Experiment) -> dict[str, Any]:
    """The `trial.json` of a run: every candidate with its value, what was chosen, and of which settings."""
    return {
        "settings": settings_of(experiment),
        **result._asdict(),
        "candidates": [candidate._asdict() for candidate in result.candidates],
        "chosen": result.chosen._asdict(),
    }
