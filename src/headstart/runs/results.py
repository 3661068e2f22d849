"""What a run came to, as values: the history of training, and every finished stage; and what is said of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from headstart.learning.personalization import Curves
from headstart.learning.tasks import Metric
from headstart.runs.log import format_left_out
from headstart.statistics.clients import bootstrap, defined


class Estimate(NamedTuple):
    """A mean over clients and its 95 % interval, by a bootstrap over clients."""

    mean: float
    low: float
    high: float


class StageResult(NamedTuple):
    """A stage on a group of clients, over the seeds that have finished it.

    number, name: of the stage. round: its last one, counted over all stages. final: whether it is the run's last stage.
    seeds: the numbers of these seeds. epochs: of personalization, as each chose them on validation clients.
    ids, sizes: of the clients; sizes int `[clients, 2]`, support and query examples. curves: one entry per seed.
    reports: the `stage-n.json` of each seed.
    """

    number: int
    name: str
    round: int
    final: bool
    seeds: tuple[int, ...]
    epochs: tuple[int, ...]
    ids: list[str]
    sizes: np.ndarray
    curves: tuple[Curves, ...]
    reports: tuple[dict[str, Any], ...]


def stage_notes(report: Mapping[str, Any]) -> list[str]:
    """What must be said beside the numbers of a `stage-n.json`: lost replies, clients that diverged, edges."""
    lost = report.get("left_out")
    notes = [format_left_out(**lost)] if lost else []
    groups = [(name, report.get(name) or {}) for name in ("validation", "test")]
    notes += [
        format_diverged(found["diverged"], found["clients"], name) for name, found in groups if found.get("diverged")
    ]
    return [*notes, *report.get("edges", ())]


def format_diverged(lost: int, clients: int, group: str = "") -> str:
    """The clients whose personalization diverged, in words. group: which clients they are."""
    return (
        f"personalization diverged for {lost} of {clients} {f'{group} ' if group else ''}clients (a metric is not"
        " finite, or a thousand times worse than before): lower its learning rate"
    )


class History(NamedTuple):
    """The first metric on validation clients during training, of the seeds that have come furthest.

    rounds: `[evaluations]`. initial, personalized: `[seeds, evaluations]`, the latter at the epochs of personalization
    chosen at the end of the stage, or the most while a stage is under way.
    """

    rounds: np.ndarray
    initial: np.ndarray
    personalized: np.ndarray


def client_curves(stage_result: StageResult, metric: Metric) -> np.ndarray:
    """float64 `[tested clients, epochs + 1]`: every client's own value, averaged over the seeds."""
    values = np.mean([_values(curves, metric) for curves in stage_result.curves], axis=0)
    return values[tested(stage_result)]


def before_and_after(stage_result: StageResult, metric: Metric) -> tuple[np.ndarray, np.ndarray]:
    """float64 `[tested clients]` twice: initial and personalized value of every client, averaged over the seeds.

    Each seed counts at the epochs of personalization it chose. Clients that have no value of the metric are left out.
    """
    initial, personalized = client_values(stage_result, metric)
    mine = tested(stage_result) & defined(metric, initial, personalized)
    return initial[mine], personalized[mine]


def client_values(stage_result: StageResult, metric: Metric) -> tuple[np.ndarray, np.ndarray]:
    """float64 `[clients]` twice: as `before_and_after`, and NaN for a client without query examples."""
    initial, personalized = np.mean(values_by_seed(stage_result, metric), axis=0)
    return initial, personalized


def values_by_seed(stage_result: StageResult, metric: Metric) -> np.ndarray:
    """float64 `[seeds, 2, clients]`: initial and personalized value of every client; NaN without query examples."""
    each = [_values(curves, metric) for curves in stage_result.curves]
    return np.stack([np.stack([v[:, 0], v[:, n]]) for v, n in zip(each, stage_result.epochs, strict=True)])


def seed_means(stage_result: StageResult, metric: Metric) -> tuple[np.ndarray, np.ndarray]:
    """`[seeds]` twice: the clients' uniform mean, initial and personalized, of every seed."""
    mine = tested(stage_result)
    initial, personalized = values_by_seed(stage_result, metric)[:, :, mine].mean(axis=2).T
    return initial, personalized


def finite(stage_result: StageResult, metric: Metric) -> np.ndarray:
    """Bool `[tested clients]`: whose values are finite after every epoch; the others cannot be drawn."""
    return np.asarray(np.isfinite(client_curves(stage_result, metric)).all(axis=1))


def gains(initial: np.ndarray, personalized: np.ndarray, metric: Metric) -> np.ndarray:
    """How much better, whatever the metric's direction; rounding errors count as zero."""
    gain = (personalized - initial) * metric.sign
    return np.where(np.abs(gain) < 1e-7 * np.maximum(1, np.abs(initial)), 0.0, gain)


def estimate(values: np.ndarray) -> Estimate:
    """The mean of per-client values `[clients]` with its interval; NaN where there is none."""
    if not len(values):
        return Estimate(np.nan, np.nan, np.nan)
    if not np.isfinite(values).all():
        return Estimate(float(values.mean()), np.nan, np.nan)
    return Estimate(float(values.mean()), *bootstrap(values))


def _values(curves: Curves, metric: Metric) -> np.ndarray:
    sums, counts = curves.metrics[metric.name]
    return curves._replace(metrics={metric.name: (np.asarray(sums, np.float64), np.asarray(counts))}).means(metric)


def pooled_statistics(stage_result: StageResult, metric: Metric) -> tuple[np.ndarray, np.ndarray]:
    """`[statistics]` twice: the mean of a metric's statistics over all test items, initial and personalized."""
    each = []
    for curves, epochs in zip(stage_result.curves, stage_result.epochs, strict=True):
        sums, counts = curves.metrics[metric.name]
        each.append([sums[:, n].sum(axis=0, dtype=np.float64) / counts.sum() for n in (0, epochs)])
    initial, personalized = np.mean(each, axis=0)
    return initial, personalized


def tested(stage_result: StageResult) -> np.ndarray:
    """Bool `[clients]`: who has query examples in every seed, by the first metric, as in `summarize`."""
    counts = [next(iter(curves.metrics.values()))[1] for curves in stage_result.curves]
    return np.all(np.array(counts) > 0, axis=0)
