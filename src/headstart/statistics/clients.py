"""Statistics over clients: means, spreads, intervals, and clients with a lower value beyond test noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from headstart.learning.metrics import evaluated_metrics
from headstart.learning.personalization import Curves, diverged
from headstart.learning.tasks import Metric, Task
from headstart.statistics.distributions import binomial, binomial_above, normal_below

PERCENTILES = (5, 10, 25, 50, 75, 90, 95)


def summarize(curves: Curves, task: Task, *, epochs: int, seed: int = 0, resamples: int = 2000) -> dict[str, Any]:
    """Summary of a group of clients after `epochs` epochs of personalization, as a JSON document.

    Clients without test items are counted as `untested` and left out of everything else. `diverged`, where there are
    any, counts those whose personalization diverged: they are in everything else. Of a metric that not every client
    has (`Metric.partial`) those without count as its `undefined` and are left out of it; of one with statistics,
    `pooled` is the value of all test items together.
    """
    _, counts = curves.metrics[task.metrics[0].name]
    tested = counts > 0
    report: dict[str, Any] = {"clients": int(tested.sum()), "untested": int((~tested).sum()), "length": epochs}
    for metric in measured_metrics(curves, task):
        values = curves.means(metric)
        known = tested & defined(metric, values[:, 0], values[:, epochs])
        values, weights = values[known], curves.metrics[metric.name][1][known]
        columns = {"initial": values[:, 0], "personalized": values[:, epochs]}
        columns["difference"] = columns["personalized"] - columns["initial"]
        report[metric.name] = {
            name: describe(column, weights, seed=seed, resamples=resamples) for name, column in columns.items()
        }
        report[metric.name]["curve"] = [float(v) for v in values.mean(axis=0)] if len(values) else []
        report[metric.name] |= _of_all_items(curves, metric, int(tested.sum() - known.sum()), epochs)
    report["hurt"] = harmed(curves, task.metrics[0], epochs=epochs)
    lost = int(diverged(curves, task)[:, epochs].sum())
    return {**report, "diverged": lost} if lost else report


def measured_metrics(curves: Curves, task: Task) -> list[Metric]:
    """The task's metrics, and of those of its field `more` the ones that were measured."""
    own = {metric.name for metric in task.metrics}
    return [metric for metric in evaluated_metrics(task) if metric.name in own | set(curves.metrics)]


def defined(metric: Metric, *values: np.ndarray) -> np.ndarray:
    """Bool `[clients]`: who has all these values of a metric; everybody, of a metric that every client has."""
    return ~np.any(np.isnan(values), axis=0) | (not metric.partial)


def _of_all_items(curves: Curves, metric: Metric, undefined: int, epochs: int) -> dict[str, Any]:
    sums, counts = curves.metrics[metric.name]
    lost = {"undefined": undefined} if undefined else {}
    if sums.ndim == 2 or not counts.any():
        return lost
    with np.errstate(invalid="ignore"):
        before, after = (
            float(metric.finish(sums[:, n].sum(axis=0, dtype=np.float64) / counts.sum())) for n in (0, epochs)
        )
    return {**lost, "pooled": {"initial": before, "personalized": after, "difference": after - before}}


@np.errstate(over="ignore", invalid="ignore")  # clients whose training diverged
def describe(values: np.ndarray, weights: np.ndarray, *, seed: int = 0, resamples: int = 2000) -> dict[str, Any]:
    """Description of per-client values `[clients]`: uniform and weighted mean, 95 % interval, spread, percentiles.

    weights: `[clients]`, the number of test items. interval: of the uniform mean, by a bootstrap over clients.
    """
    if not len(values):
        return {}
    low, high = bootstrap(values, seed=seed, resamples=resamples)
    ordered = np.sort(values)
    return {
        "mean": float(values.mean()),
        "interval": [low, high],
        "weighted_mean": float(np.average(values, weights=weights)),
        "spread": float(values.std(ddof=1)) if len(values) > 1 else 0.0,
        "percentiles": {
            str(p): float(v) for p, v in zip(PERCENTILES, np.percentile(ordered, PERCENTILES), strict=True)
        },
    }


def bootstrap(values: np.ndarray, *, seed: int = 0, resamples: int = 2000, level: float = 0.95) -> tuple[float, float]:
    """The percentile interval of the mean of `values` `[clients]`, clients drawn with replacement.

    With the same seed and number of clients the same clients are drawn, so intervals of two quantities are paired.
    """
    generator = np.random.default_rng(seed)
    # Some resamples at a time: all of them together would not fit in memory for a million clients.
    count, size = max(1, 2**16 // len(values)), len(values)
    starts = range(0, resamples, count)
    drawn = (values[generator.integers(0, size, (min(count, resamples - start), size))] for start in starts)
    means = np.concatenate([clients.mean(axis=1) for clients in drawn])
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def harmed(curves: Curves, metric: Metric, *, epochs: int) -> dict[str, Any]:
    """The share of clients with a lower value after personalization, and the share expected from test noise alone.

    Lower means worse in the metric's own direction, on the client's few test items, or training that diverged.
    `by_chance` is the expected share of such clients if every client's true gain were the same, the mean one over all
    test items, and so were the share of its items that change; `chance_interval` is where the share would lie in 95 of
    100 repetitions. Test items are taken as independent. `beyond_chance` says whether the observed share lies above
    that interval. If the mean gain is not positive, most clients are expected to have a lower value.

    `by_chance` is too large where clients differ in how much changes: by 2 to 3 points where their shares of changed
    items have a standard deviation of half their mean, by 5 to 7 where it is 0.8 of it. And harm lowers the mean gain
    with which it is compared. So a share beyond it is a sign of harm (or of items that are not independent), and one
    that is not says little: of 149 clients with 14 items each, a fifth that lose 20 points are not noticed
    (tests/test_statistics.py).
    """
    _, counts = curves.metrics[metric.name]
    tested = counts > 0
    gain, squared, counts = curves.gain[tested, epochs], curves.gain_squared[tested, epochs], counts[tested]
    if not len(gain):
        return {}
    chances = chance_of_harm(gain, squared, counts, discrete=metric.zero_one)
    share, expected = float(((gain < 0) | ~np.isfinite(gain)).mean()), float(chances.mean())
    margin = 1.96 * float(np.sqrt((chances * (1 - chances)).sum())) / len(gain)
    interval = [max(0.0, expected - margin), min(1.0, expected + margin)]
    return {"share": share, "by_chance": expected, "chance_interval": interval, "beyond_chance": share > interval[1]}


def chance_of_harm(gain: np.ndarray, squared: np.ndarray, counts: np.ndarray, *, discrete: bool) -> np.ndarray:
    """The probability `[clients]` of a lower value, if every client's true gain were the pooled one.

    gain, squared, counts: per client, sums over its test items of the change, of its square, and their number.
    discrete: the change of an item is -1, 0 or 1 (right before, wrong after; unchanged; the reverse). Then the number
        of changed items is binomial and so is, of these, the number made worse; otherwise a normal approximation.
    """
    finite = np.isfinite(gain) & np.isfinite(squared)
    total = max(counts[finite].sum(), 1)
    mean, squared = gain[finite].sum() / total, squared[finite]
    if not discrete:
        spread = np.sqrt(max(squared.sum() / total - mean**2, 0))
        if spread == 0:
            return np.full(len(counts), float(mean < 0))
        return normal_below(-mean * np.sqrt(counts) / spread)
    changed = squared.sum() / total
    worse = (changed - mean) / 2 / changed if changed else 0.0
    sizes, of_client = np.unique(np.round(counts).astype(int), return_inverse=True)
    return np.array([_worse_than_better(n, changed, worse) for n in sizes.tolist()])[of_client]


def _worse_than_better(items: int, changed: float, worse: float) -> float:
    """P(more items get worse than better), of `items` that change with one probability and then worsen with another."""
    number = np.arange(items + 1)
    return float(np.sum(binomial(number, items, changed) * binomial_above(number // 2, number, worse)))


def rounds_to_target(rounds: Sequence[int], values: Sequence[float], target: float, *, metric: Metric) -> int | None:
    """The first evaluated round at which a curve reaches the target; None if it never does."""
    return next((r for r, value in zip(rounds, values, strict=True) if metric.reached(value, target)), None)
