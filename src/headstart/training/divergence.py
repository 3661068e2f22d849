"""Monitoring of training: a run whose model has come to be of no use ends with a sentence, and not as a result.

A metric is judged beside that of the model which the run started from, on the same clients. It is only computed where
a metric looks bad, which in most runs is never.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from headstart.data.federation import Client, Tree
from headstart.devices import replicated, spans_processes
from headstart.errors import UserError
from headstart.learning.divergence import beyond_use, judged_metrics
from headstart.learning.parallel import Parallel, map_reduce_clients
from headstart.learning.personalization import Curves
from headstart.learning.personalization import evaluate as evaluate_client
from headstart.learning.rounds import Info
from headstart.learning.tasks import Sums, Task
from headstart.models.zoo import Model
from headstart.runs.log import means
from headstart.training.sampling import Cohorts

# Maps the number of a round to the metrics, on the round's clients, of the model that the run started from.
StartMetrics = Callable[[int], Mapping[str, float]]


class DivergedError(UserError):
    """Training came to nothing: no reply was finite, or what it made is of no use."""


class RoundMonitor:
    """Monitors the rounds of a stage.

    start: what a round's metrics are judged beside.
    """

    def __init__(self, task: Task, start: StartMetrics) -> None:
        self._task, self._start = task, start
        # The worst that the model before training did on any clients that were asked for.
        self._worst: dict[str, float] = {}

    def check(self, where: str, number: int, info: Info) -> None:
        """Stop where the training metrics of a round say that training has come to nothing.

        where: stage, round and seed, for the message.

        Raises:
            DivergedError: if one is not finite, or far worse than before training.
        """
        if not info.finite or (info.dropped and not info.clients):
            raise DivergedError(diverged_in(where, "the parameters are no longer finite"))
        found = means(self._task, info.metrics)
        for metric in judged_metrics(self._task):
            value, worst = found[metric.name], self._worst.get(metric.name, 1.0)
            if value is None or not beyond_use(metric, value, worst):
                continue
            start = self._start(number)[metric.name]
            if np.isfinite(start):
                self._worst[metric.name] = start = max(worst, start)
            if beyond_use(metric, value, start) or (metric.items == self._task.loss and not np.isfinite(value)):
                raise DivergedError(diverged_in(where, f"the training {metric.name} is {value:.3g}", start))


def check_evaluation(task: Task, where: str, group: str, curves: Curves, start: Callable[[], Curves]) -> None:
    """Stop where the metrics of a group of clients, before personalization, say that training has come to nothing.

    start: makes the same clients' curves of the model that the run started from.

    Raises:
        DivergedError: if most clients are far worse than before training, or a validation client is no longer finite.
    """
    for metric in judged_metrics(task):
        tested = curves.metrics[metric.name][1] > 0
        values = curves.means(metric)[tested, 0]
        if not len(values) or not (_most(beyond_use(metric, values, 1.0)) or not np.isfinite(values).all()):
            continue
        before = start().means(metric)[tested, 0]
        known = before[np.isfinite(before)]
        lost = np.isfinite(before) & ~np.isfinite(values)
        if _most(beyond_use(metric, values, before)) or (group == "validation" and lost.any()):
            with np.errstate(over="ignore"):
                what = f"the {group} clients' {metric.name} is {values.mean():.3g}"
            raise DivergedError(diverged_in(where, what, float(known.mean()) if len(known) else np.nan))


def _most(found: np.ndarray) -> bool:
    return bool(2 * found.sum() > len(found))


def diverged_in(where: str, what: str, start: float | None = None) -> str:
    """The sentence for training that has diverged.

    what: what says so. start: the same before training; None if that says nothing.
    """
    if start is not None and not np.isfinite(start):
        return f"training diverged in {where}: {what}, and was {start:.3g} before training; scale inputs and targets"
    before = "" if start is None else f", and was {start:.3g} before training"
    return f"training diverged in {where}: {what}{before}; lower the learning rates of the stage (client or server)"


def metrics_at_start(
    task: Task, model: Model, params: Callable[[], Tree], gather: Cohorts, parallel: Parallel
) -> StartMetrics:
    """What a round's metrics are judged beside: of each, the one with the largest size among the round's clients.

    params: makes the parameters that the run started from. gather: the cohorts of the stage.
    """
    mesh = parallel.mesh
    everywhere = NamedSharding(mesh, PartitionSpec()) if spans_processes(mesh) else None

    @partial(jax.jit, out_shardings=everywhere)
    def sums(params: Tree, rounds: Client) -> Sums:
        def one(params: Tree, nothing: Tree, member: tuple[Client, Tree]) -> tuple[Tree, Sums]:
            return nothing, evaluate_client(task.metrics, model, params, member[0])[0]

        return map_reduce_clients(one, params, (), rounds.at(0), parallel=parallel)[1]

    def start(number: int) -> dict[str, float]:
        given = params() if mesh is None else replicated(params(), mesh)
        found = jax.device_get(sums(given, gather(number, 1, 1).cohort.clients))
        return {metric.name: _largest(metric.finish, *found[metric.name]) for metric in task.metrics}

    return start


@np.errstate(over="ignore")
def _largest(finish: Callable[[np.ndarray], np.ndarray], total: np.ndarray, count: np.ndarray) -> float:
    """The largest size of the clients' means; NaN without any."""
    counted = count > 0
    return float(np.abs(finish(total[counted] / count[counted])).max()) if counted.any() else float("nan")
