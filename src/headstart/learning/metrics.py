"""More metrics than a task's own, for evaluation alone: of many an item's value is a vector of statistics that add up.

A client's statistics are summed over its items, and `finish` makes a number of their mean; so does the mean of all
clients' statistics give the number over all of their items.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from headstart.data.federation import Array, Federation
from headstart.errors import UserError
from headstart.learning.tasks import Items, Metric, Regression, Task, sum_type

# Scores are binned by the log-odds of a class, from -8 to 8, and confidences by tenths.
SCORE_BINS, MOST_LOG_ODDS, CONFIDENCE_BINS = 128, 8.0, 10
# Less of a variance, beside the squared mean, is lost in float32.
LEAST_VARIANCE = 1e-5

# Beyond these, what statistics take would matter.
MOST_CLASSES, MOST_HISTOGRAMS = 50, 20_000


def metrics_of_table(federation: Federation) -> tuple[str, ...]:
    """What is measured of a table's clients besides, where nothing is said: all there is, but for what takes much."""
    classes = federation.metadata.get("classes")
    if not classes:
        return tuple(REGRESSION)
    if classes > MOST_CLASSES:
        return ()
    fits = classes * len(federation) <= MOST_HISTOGRAMS
    return tuple(name for name in CLASSIFICATION if fits or name != "auc")


def evaluated_metrics(task: Task) -> tuple[Metric, ...]:
    """All that is measured of a client: the task's metrics, then those of its field `more`, if it has one.

    Each of `more` is a name in `CLASSIFICATION` or `REGRESSION`, a `Metric`, or a value with its fields, such as a
    frozen dataclass, which a saved experiment can name.

    Raises:
        UserError: if one is none of these, or has the name of another.
    """
    metrics = (*task.metrics, *(_as_metric(task, each) for each in getattr(task, "more", ())))
    names = [metric.name for metric in metrics]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"the task measures {twice!r} twice; give every metric a name of its own")
    return metrics


def _as_metric(task: Task, given: Any) -> Metric:
    if isinstance(given, Metric):
        return _of_own_units(task, given)
    known = REGRESSION if isinstance(task, Regression) else CLASSIFICATION
    if isinstance(given, str) and given in known:
        return known[given](task)
    metric = None if isinstance(given, str) else _metric_of(given)
    if metric is None:
        raise UserError(
            f"the task's `more` holds {given!r}, which is no metric; give {', '.join(known)}, or a value that has name,"
            " unit, higher_is_better and items"
        )
    return _of_own_units(task, metric)


def _of_own_units(task: Task, metric: Metric) -> Metric:
    """A user's metric, given outputs and targets in their own units where these were standardized."""
    if not isinstance(task, Regression) or not task.scale:
        return metric

    def own(values: Array, output: Array) -> Array:
        scaled = values.reshape(output.shape) * jnp.array(task.scale) + jnp.array(task.center)
        return scaled.reshape(values.shape)

    return metric._replace(items=lambda output, y: metric.items(own(output, output), own(y, output)))


def _metric_of(given: Any) -> Metric | None:
    """The metric that a value with its fields is; None for any other."""
    try:
        more = {name: getattr(given, name) for name in ("finish", "zero_one", "partial") if hasattr(given, name)}
        metric = Metric(given.name, given.unit, given.higher_is_better, given.items, **more)
    except AttributeError:
        return None
    return metric if isinstance(metric.name, str) and metric.name and callable(metric.items) else None


def balanced_accuracy() -> Metric:
    """The mean, over the classes that there are, of the share of their examples that are right.

    Its statistics are the cells `[classes, classes]` of the confusion matrix; see `confusion`.
    """

    def items(output: Array, y: Array) -> Items:
        cells = _one_hot(y, output)[:, :, None] * _one_hot(output.argmax(axis=-1), output)[:, None, :]
        return cells.reshape(len(cells), -1), jnp.ones(len(cells))

    def finish(mean: Any) -> Any:
        cells = confusion(mean)
        right, there = np.diagonal(cells, axis1=-2, axis2=-1), cells.sum(axis=-1)
        return _mean_where(there > 0, _ratio(right, there))

    return Metric("balanced accuracy", "share", True, items, finish, partial=True)


def confusion(mean: Any) -> np.ndarray:
    """The confusion matrix `[..., classes, classes]` of the statistics of `balanced_accuracy`, [target, prediction]."""
    mean = np.asarray(mean)
    classes = round(mean.shape[-1] ** 0.5)
    return mean.reshape(*mean.shape[:-1], classes, classes)


def macro_f1() -> Metric:
    """The mean of the classes' F1, over the classes that are targets or predictions."""

    def items(output: Array, y: Array) -> Items:
        target, predicted = _one_hot(y, output), _one_hot(output.argmax(axis=-1), output)
        return jnp.concatenate([target * predicted, target + predicted], axis=1), jnp.ones(len(target))

    def finish(mean: Any) -> Any:
        both, either = np.split(np.asarray(mean), 2, axis=-1)
        return _mean_where(either > 0, _ratio(2 * both, either))

    return Metric("macro F1", "share", True, items, finish, partial=True)


def auc() -> Metric:
    """The area under the ROC curve, each class against the others, averaged over classes that have both.

    Scores that share one of `SCORE_BINS` bins of log-odds count as equal.
    """

    def items(output: Array, y: Array) -> Items:
        target, bins = _one_hot(y, output), _binned(_log_odds(output))
        pairs = jnp.stack([target[..., None] * bins, (1 - target)[..., None] * bins], axis=1)
        return pairs.reshape(len(pairs), -1), jnp.ones(len(pairs))

    def finish(mean: Any) -> Any:
        mean = np.asarray(mean)
        pairs = mean.reshape(*mean.shape[:-1], 2, mean.shape[-1] // (2 * SCORE_BINS), SCORE_BINS)
        positive, negative = pairs[..., 0, :, :], pairs[..., 1, :, :]
        below = np.cumsum(negative, axis=-1) - negative / 2
        known = (positive.sum(axis=-1) > 0) & (negative.sum(axis=-1) > 0)
        whole = positive.sum(axis=-1) * negative.sum(axis=-1)
        return _mean_where(known, _ratio((positive * below).sum(axis=-1), whole))

    return Metric("AUC", "share", True, items, finish, partial=True)


def _log_odds(output: Array) -> Array:
    """Of every class against all others together, `[batch, classes]`."""
    classes = output.shape[-1]
    others = jnp.where(jnp.eye(classes, dtype=bool), -jnp.inf, output[:, None, :])
    return output - jax.nn.logsumexp(others, axis=-1)


def _binned(log_odds: Array) -> Array:
    """One-hot `[..., SCORE_BINS]`; beyond the ends, in the first or last bin."""
    position = (log_odds + MOST_LOG_ODDS) * (SCORE_BINS / (2 * MOST_LOG_ODDS))
    return _in_bins(position, SCORE_BINS)


def _in_bins(position: Array, bins: int) -> Array:
    """One-hot `[..., bins]` of positions from 0 to their number; a position that is no number is in none."""
    number = jnp.clip(jnp.floor(position), 0, bins - 1)
    return (number[..., None] == jnp.arange(bins)).astype(sum_type())


def calibration_error() -> Metric:
    """The expected calibration error: how far accuracy is from confidence in each tenth of it, in the mean over items.

    Of few items it is large whatever the model.
    """

    def items(output: Array, y: Array) -> Items:
        confidence = jax.nn.softmax(output, axis=-1).max(axis=-1)
        excess = confidence - (output.argmax(axis=-1) == y)
        tenths = _in_bins(confidence * CONFIDENCE_BINS, CONFIDENCE_BINS)
        return excess[:, None] * tenths, jnp.ones(len(excess))

    def finish(mean: Any) -> Any:
        return np.abs(mean).sum(axis=-1)

    return Metric("calibration error", "share", False, items, finish, partial=True)


def root_mean_squared_error(task: Task) -> Metric:
    """The root of the task's mean squared error, in units of the target."""
    squared = task.metrics[0]

    def finish(mean: Any) -> Any:
        return np.sqrt(squared.finish(mean))

    return Metric("root mean squared error", "units of the target", False, squared.items, finish)


def r_squared() -> Metric:
    """The share of the targets' variance that is explained, averaged over outputs; a single target has none.

    The variance is that among the same items, so a client's is about the client's own mean.
    """

    def items(output: Array, y: Array) -> Items:
        y = y.reshape(output.shape).reshape(len(y), -1).astype(sum_type())
        errors = output.reshape(y.shape).astype(sum_type()) - y
        return jnp.concatenate([errors**2, y, y**2], axis=1), jnp.ones(len(y))

    def finish(mean: Any) -> Any:
        errors, first, second = np.split(np.asarray(mean, np.float64), 3, axis=-1)
        variance = second - first**2
        known = variance > LEAST_VARIANCE * second
        return np.where(known.all(axis=-1), (1 - _ratio(errors, variance)).mean(axis=-1), np.nan)

    return Metric("R squared", "share of variance", True, items, finish, partial=True)


def _one_hot(classes: Array, output: Array) -> Array:
    return jax.nn.one_hot(classes, output.shape[-1], dtype=sum_type())


def _ratio(part: Any, whole: Any) -> Any:
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        return part / whole


def _mean_where(known: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The mean over the last axis of the values that are known; NaN where none is."""
    return _ratio(np.where(known, values, 0).sum(axis=-1), known.sum(axis=-1))


CLASSIFICATION: Mapping[str, Callable[[Task], Metric]] = {
    "balanced_accuracy": lambda task: balanced_accuracy(),
    "macro_f1": lambda task: macro_f1(),
    "auc": lambda task: auc(),
    "calibration_error": lambda task: calibration_error(),
}
REGRESSION: Mapping[str, Callable[[Task], Metric]] = {
    "rmse": root_mean_squared_error,
    "r2": lambda task: r_squared(),
}
