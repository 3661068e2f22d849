"""Tasks: the loss of a model's output on every item, and metrics with a name, a unit and a direction.

An item is what a mean is taken over: an example, or a token of a sequence. A task weighs its own items; rows of padding
are masked where the items are summed. Sums have the type `sum_type`, whatever a model computes in: in half precision no
sum of ones goes beyond 256 (bfloat16) or 65,504 (float16).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

from headstart.data.federation import Array, Examples, Tree
from headstart.fields import at_least, check_fields

Items = tuple[Array, Array]
Sums = dict[str, tuple[Array, Array]]


class Metric(NamedTuple):
    """A metric: what is measured of every item, and how it is reported.

    name, unit: for tables and axes.
    higher_is_better: its direction.
    items: maps `(output, y)` to per-item values and weights, both `[batch, ...]`. Of a metric among a task's `more` an
        item's value may have statistics on a last axis that the weights have not, `[batch, ..., k]`.
    finish: maps the weighted mean of the values to what is reported; of statistics `[..., k]` to `[...]`.
    zero_one: whether an item's value is only ever 0 or 1.
    partial: whether a client may have no value, which then is NaN, and is left out of means over clients.
    """

    name: str
    unit: str
    higher_is_better: bool
    items: Callable[[Tree, Tree], Items]
    finish: Callable[[Any], Any] = lambda mean: mean
    zero_one: bool = False
    partial: bool = False

    @property
    def sign(self) -> int:
        """The factor that makes a change for the better positive."""
        return 1 if self.higher_is_better else -1

    def reached(self, value: Any, target: float) -> Any:
        """Whether a value (a number or an array of them) is as good as the target."""
        return value >= target if self.higher_is_better else value <= target


class Task(Protocol):
    """A task: a loss and metrics, of which `metrics[0]` is the one that decisions are made by."""

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The metrics, the most important first."""
        ...

    def loss(self, output: Tree, y: Tree) -> Items:
        """Per-item losses and weights, both `[batch, ...]`, to be minimised in the weighted mean."""
        ...


@dataclass(frozen=True)
class Classification:
    """Outputs are logits `[batch, classes]`, targets int `[batch]`; the loss is the cross-entropy in nats.

    more: what is measured of clients besides, as `learning.metrics.evaluated_metrics` takes it.
    """

    more: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self)

    def loss(self, output: Array, y: Array) -> Items:
        """Cross-entropy `[batch]`, every example with weight 1."""
        values = optax.losses.softmax_cross_entropy_with_integer_labels(at_least_float32(output), y)
        return values, jnp.ones_like(values)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Accuracy, then loss."""

        def correct(output: Array, y: Array) -> Items:
            values = (output.argmax(axis=-1) == y).astype(sum_type())
            return values, jnp.ones_like(values)

        return (_accuracy(correct), Metric("loss", "nats per example", False, self.loss))


@dataclass(frozen=True)
class NextCharacter:
    """Outputs are logits `[batch, length, vocabulary]`, targets the next token at each position, int `[batch, length]`.

    padding: the token that fills up a sequence; neither loss nor metrics count it.
    not_counted: tokens the accuracy leaves out, as in Reddi et al. 2020: pad, oov, bos, eos.
    """

    padding: int = at_least(0, 0)
    not_counted: tuple[int, ...] = at_least(0, (0, 87, 88, 89))

    def __post_init__(self) -> None:
        check_fields(self)

    def loss(self, output: Array, y: Array) -> Items:
        """Cross-entropy `[batch, length]`, weight 1 where there is a token."""
        values = optax.losses.softmax_cross_entropy_with_integer_labels(at_least_float32(output), y)
        return values, (y != self.padding).astype(values.dtype)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Accuracy, loss, perplexity."""

        def correct(output: Array, y: Array) -> Items:
            counted = jnp.all(y[..., None] != jnp.array(self.not_counted, y.dtype), axis=-1)
            return (output.argmax(axis=-1) == y).astype(sum_type()), counted.astype(sum_type())

        return (
            _accuracy(correct),
            Metric("loss", "nats per character", False, self.loss),
            Metric("perplexity", "characters", False, self.loss, finish=np.exp),
        )


@dataclass(frozen=True)
class Regression:
    """Outputs `[batch]` or `[batch, outputs]`, targets of the same shape (a last axis of 1 may be missing).

    The loss is the squared error of an example, averaged over its outputs.

    center, scale: of targets that were standardized as (target - center) / scale, one for each output; empty where
        they were not. The loss is of what was standardized; metrics and predictions are in the targets' own units.
    more: what is measured of clients besides, as `learning.metrics.evaluated_metrics` takes it.
    """

    center: tuple[float, ...] = ()
    scale: tuple[float, ...] = at_least(0, (), above=True)
    more: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self)

    def loss(self, output: Array, y: Array) -> Items:
        """Squared error `[batch]`."""
        return _per_example(lambda error: error**2, output, y)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Mean squared error, then mean absolute error, in the targets' own units."""
        squared = self._squared_error if self.scale else self.loss
        return (
            Metric("mean squared error", "squared units of the target", False, squared),
            Metric("mean absolute error", "units of the target", False, self._absolute_error),
        )

    def _squared_error(self, output: Array, y: Array) -> Items:
        return _per_example(lambda error: self._own_units(error) ** 2, output, y)

    def _absolute_error(self, output: Array, y: Array) -> Items:
        return _per_example(lambda error: jnp.abs(self._own_units(error)), output, y)

    def _own_units(self, errors: Array) -> Array:
        return errors * jnp.array(self.scale, errors.dtype) if self.scale else errors

    def in_own_units(self, output: np.ndarray) -> np.ndarray:
        """What the model predicts `[rows, ...]`, in the targets' own units."""
        if not self.scale:
            return output
        return (output * np.array(self.scale) + np.array(self.center)).astype(np.float32).reshape(output.shape)


def _accuracy(correct: Callable[[Array, Array], Items]) -> Metric:
    return Metric("accuracy", "share", True, correct, zero_one=True)


def _per_example(error: Callable[[Array], Array], output: Array, y: Array) -> Items:
    errors = error(at_least_float32(output) - at_least_float32(y.reshape(output.shape)))
    values = errors.reshape(errors.shape[0], -1).mean(axis=1)
    return values, jnp.ones_like(values)


def loss_metric(task: Task) -> Metric:
    """The metric that is the task's loss, or else its first."""
    return next((metric for metric in task.metrics if metric.items == task.loss), task.metrics[0])


def masked(items: Items, mask: Array) -> Items:
    """The items with weight 0 where `mask` (bool `[batch]`) marks a row of padding."""
    values, weights = items
    return values, weights * mask.reshape(mask.shape + (1,) * (weights.ndim - 1))


def weighted_sum(items: Items) -> tuple[Array, Array]:
    """The weighted sum of the values, and the sum of the weights; a value of weight 0 does not count, even if NaN.

    Of statistics `[batch, ..., k]` with weights `[batch, ...]` each is summed, `[k]`.
    """
    values, weights = (jnp.asarray(leaf).astype(sum_type()) for leaf in items)
    if values.ndim > weights.ndim:
        each = weights[..., None]
        return jnp.sum(jnp.where(each > 0, values * each, 0), axis=tuple(range(weights.ndim))), jnp.sum(weights)
    return jnp.sum(jnp.where(weights > 0, values * weights, 0)), jnp.sum(weights)


def mean(total: Array, count: Array) -> Array:
    """`total / count`, and 0 where nothing was counted."""
    return total / jnp.where(count > 0, count, 1)


def measure(task: Task, output: Tree, examples: Examples) -> Sums:
    """Each metric's `(sum, count)` over a batch; the mean of several batches is the ratio of the sums."""
    return measure_each(task.metrics, output, examples)


def measure_each(metrics: Sequence[Metric], output: Tree, examples: Examples) -> Sums:
    """As `measure`, of these metrics."""
    return {metric.name: weighted_sum(metric_items(metric, output, examples)) for metric in metrics}


def metric_items(metric: Metric, output: Tree, examples: Examples) -> Items:
    """A metric's per-item values and weights, of outputs in float32 at least; the weights of padding are 0."""
    return masked(metric.items(at_least_float32(output), examples.y), examples.mask)


def total_loss(task: Task, output: Tree, examples: Examples) -> tuple[Array, Array]:
    """The weighted sum of a batch's losses, and the sum of the weights."""
    return weighted_sum(masked(task.loss(at_least_float32(output), examples.y), examples.mask))


def no_sums(task: Task, dtype: Any = jnp.float32) -> Sums:
    """The zero of `add`, in `dtype` or the type of sums, whichever is wider."""
    zero = jnp.zeros((), jnp.promote_types(dtype, sum_type()))
    return {metric.name: (zero, zero) for metric in task.metrics}


def sum_type() -> Any:
    """The type of sums of values, weights and counts: float32, or float64 where JAX computes in 64 bits."""
    return jnp.result_type(float)


def at_least_float32(tree: Tree) -> Tree:
    """The tree with its arrays of half precision as float32; all others are left as they are."""

    def widened(leaf: Array) -> Array:
        narrow = jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.dtype.itemsize < 4
        return leaf.astype(jnp.float32) if narrow else leaf

    return jax.tree.map(widened, tree)


def add(a: Tree, b: Tree) -> Tree:
    """The leafwise sum of two trees."""
    return jax.tree.map(jnp.add, a, b)
