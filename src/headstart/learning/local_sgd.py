"""Local SGD: the order in which a client's examples come, and the steps that a client takes on its batches.

Every first-order update of arXiv:1909.12488 and personalization run this one loop; they differ in what they read off
its iterates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from headstart.data.federation import Array, Client, Examples, Tree
from headstart.fields import Range, check_argument
from headstart.learning.partial_batches import with_partial_batches
from headstart.learning.tasks import Sums, Task, add, at_least_float32, mean, measure, no_sums, sum_type, total_loss
from headstart.models.threefry import uniform
from headstart.models.zoo import Model


def batches_per_epoch(client: Client, batch_size: int) -> Array:
    """The number of batches in one pass over the client's examples; the last one may be partial."""
    return (client.size + batch_size - 1) // batch_size


def batch_in_order(client: Client, number: Array | int, *, batch_size: int) -> Examples:
    """Batch `number` (from 0) of the client's examples in the order of its rows."""
    positions = number * batch_size + jnp.arange(batch_size)
    return client.examples(positions, positions < client.size)


def fold_batches(
    client: Client,
    batch_size: int,
    fn: Callable[[Tree, Examples, Array], Tree],
    zero: Tree,
    *,
    order: Array | None = None,
) -> Tree:
    """Fold `fn(carry, batch, number)` over the batches of one pass over a client's examples.

    zero: the carry to start with, and the result for a client without examples.
    order: int32 `[capacity]`, of the pass; by default the order of the client's rows.
    """

    def one(number: Array, carry: Tree) -> Tree:
        if order is None:
            examples = batch_in_order(client, number, batch_size=batch_size)
        else:
            examples = take(client, order, number, batch_size=batch_size)
        return fn(carry, examples, number)

    return jax.lax.fori_loop(0, batches_per_epoch(client, batch_size), one, zero)


def collect_batches(client: Client, batch_size: int, fn: Callable[[Examples], Tree]) -> Tree:
    """What `fn` makes of each batch, row by row, `[capacity rounded up, ...]`; zeros beyond the client's last batch."""

    def collect(collected: Tree, examples: Examples, number: Array) -> Tree:
        return write_batch(collected, fn(examples), number)

    first = batch_in_order(client, 0, batch_size=batch_size)
    return fold_batches(client, batch_size, collect, room_for_batches(client, jax.eval_shape(fn, first)))


def room_for_batches(client: Client, batch: Tree) -> Tree:
    """Zeros `[capacity rounded up, ...]` for what is computed of each batch, which looks like this one."""

    def zeros(leaf: Array) -> Array:
        size = leaf.shape[0]
        return jnp.zeros((size * -(-client.rows.shape[0] // size), *leaf.shape[1:]), leaf.dtype)

    return jax.tree.map(zeros, batch)


def write_batch(whole: Tree, batch: Tree, number: Array) -> Tree:
    """The tree of `room_for_batches` with the rows of batch `number` filled in."""

    def write(old: Array, new: Array) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(old, new, number * new.shape[0], 0)

    return jax.tree.map(write, whole, batch)


def batch(client: Client, number: Array | int, key: Array, *, batch_size: int) -> Examples:
    """Batch `number` (from 0) of the client's endless, shuffled path.

    Each epoch is a fresh permutation, drawn from `(key, epoch)`, so every epoch sees each example once and a client
    with few examples wraps at the end of its own epoch. A client without examples gets batches of padding.
    """
    epoch, position = position_in_epoch(client, number, batch_size=batch_size)
    return take(client, shuffled(client, jax.random.fold_in(key, epoch)), position, batch_size=batch_size)


def position_in_epoch(client: Client, number: Array | int, *, batch_size: int) -> tuple[Array, Array]:
    """The epoch that batch `number` belongs to, and the batch's position in it."""
    per_epoch = jnp.maximum(batches_per_epoch(client, batch_size), 1)
    return number // per_epoch, number % per_epoch


def take(client: Client, order: Array, position: Array, *, batch_size: int) -> Examples:
    """The batch at a position of an epoch whose order is int32 `[capacity]`."""
    positions = position * batch_size + jnp.arange(batch_size)
    return client.examples(order[jnp.clip(positions, 0, order.shape[0] - 1)], positions < client.size)


def shuffled(client: Client, key: Array) -> Array:
    """A random order of the client's positions, int32 `[capacity]`, the padding last.

    Sorting uniform draws, unlike `jax.random.permutation`, gives the same order whatever the capacity.
    """
    draws = uniform(key, client.rows.shape)
    return jnp.argsort(jnp.where(jnp.arange(draws.shape[0]) < client.size, draws, jnp.inf)).astype(jnp.int32)


class LocalState(NamedTuple):
    """State of local SGD between two steps.

    params: the iterate θ_j. optimizer: the client optimizer's state. step: j. metrics: sums over the steps so far.
    """

    params: Tree
    optimizer: Tree
    step: Array
    metrics: Sums


@dataclass(frozen=True)
class LocalSGD:
    """Local training of a client: one step of `optimizer` for each batch.

    gradient_transform: maps `(gradient, params)` to the gradient that the optimizer gets, as FedProx and SCAFFOLD need.
    differentiable: whether the steps themselves are to be differentiated, as exact MAML does.
    """

    task: Task
    model: Model
    optimizer: optax.GradientTransformation
    batch_size: int
    gradient_transform: Callable[[Tree, Tree], Tree] | None = None
    differentiable: bool = False

    def __post_init__(self) -> None:
        check_argument("LocalSGD.batch_size", self.batch_size, int, Range(1))

    def init(self, params: Tree) -> LocalState:
        """The state before the first step, at `params` and with a fresh optimizer."""
        optimizer = self.optimizer.init(at_least_float32(params))
        return LocalState(params, optimizer, jnp.zeros((), jnp.int32), no_sums(self.task))

    def run(self, local_state: LocalState, client: Client, key: Array, *, steps: Array | int) -> LocalState:
        """The state after `steps` further steps (a number that may be traced).

        key: belongs to (round, client), not to the step.
        """

        def one(_: Array, carry: tuple[LocalState, Array, Array]) -> tuple[LocalState, Array, Array]:
            local_state, order, drawn = carry
            order_key, _ = step_keys(key, local_state.step)
            epoch, position = position_in_epoch(client, local_state.step, batch_size=self.batch_size)
            # Sorting takes longer than a step of a small model, and an epoch has one order.
            order = jax.lax.cond(
                epoch == drawn, lambda: order, lambda: shuffled(client, jax.random.fold_in(order_key, epoch))
            )
            examples = take(client, order, position, batch_size=self.batch_size)
            return self.step(local_state, examples, key), order, epoch.astype(drawn.dtype)

        nothing_drawn = jnp.zeros(client.rows.shape, jnp.int32), jnp.full((), -1, jnp.int32)
        return jax.lax.fori_loop(0, steps, one, (local_state, *nothing_drawn))[0]

    def step(self, local_state: LocalState, examples: Examples, key: Array) -> LocalState:
        """The state after one more step, on this batch."""
        _, model_key = step_keys(key, local_state.step)
        gradient, (params, metrics) = self.gradient(examples, local_state.params, model_key)
        if self.gradient_transform is not None:
            # Batch statistics are no parameters: they have no gradient that a method could transform.
            statistics = batch_stats_mask(self.model, examples, local_state.params, model_key)
            transformed = self.gradient_transform(gradient, local_state.params)
            gradient = jax.tree.map(lambda skip, old, new: old if skip else new, statistics, gradient, transformed)
        params, optimizer = optimizer_step(self.optimizer, gradient, local_state.optimizer, params)
        return LocalState(params, optimizer, local_state.step + 1, add(local_state.metrics, metrics))

    def gradient(self, examples: Examples, params: Tree, key: Array) -> tuple[Tree, tuple[Tree, Sums]]:
        """The result of `gradient_at` on the batch, computed without most of its padding where that is possible."""

        def at(examples: Examples, params: Tree, key: Array) -> tuple[Tree, tuple[Tree, Sums]]:
            return gradient_at(self.task, self.model, params, examples, key)

        whole = self.differentiable or has_batch_stats(self.model, examples, params, key)
        return (at if whole else with_partial_batches(at))(examples, params, key)


def optimizer_step(
    optimizer: optax.GradientTransformation, gradient: Tree, state: Tree, params: Tree
) -> tuple[Tree, Tree]:
    """The parameters after a step of an optimizer, and its new state.

    state: of `optimizer.init(at_least_float32(params))`: an optimizer computes, and keeps its own sums, in float32 at
        least. The parameters keep their type.
    """
    updates, state = optimizer.update(at_least_float32(gradient), state, at_least_float32(params))
    return optax.apply_updates(params, updates), state


def has_batch_stats(model: Model, examples: Examples, params: Tree, key: Array) -> bool:
    """Whether training updates batch statistics: then the rows of a batch, padding among them, are not independent."""
    return any(jax.tree.leaves(batch_stats_mask(model, examples, params, key)))


def batch_stats_mask(model: Model, examples: Examples, params: Tree, key: Array) -> Tree:
    """A tree of booleans: the leaves that the model itself updates in training, as statistics of the batch."""
    found = []

    def compare(examples: Examples, params: Tree, key: Array) -> None:
        _, after = model.apply(params, examples.x, key=key)
        found.append(jax.tree.map(lambda old, new: old is not new, params, after))

    jax.eval_shape(compare, examples, params, key)
    return found[0]


def step_keys(key: Array, step: Array | int) -> tuple[Array, Array]:
    """The key of the order of examples, the same for all steps, and the key for the model at this step."""
    return jax.random.fold_in(key, 0), jax.random.fold_in(jax.random.fold_in(key, 1), step)


def gradient_at(
    task: Task, model: Model, params: Tree, examples: Examples, key: Array | None
) -> tuple[Tree, tuple[Tree, Sums]]:
    """The gradient of the mean loss, and `(params, metrics)`, the params with the batch statistics updated."""
    return jax.grad(mean_loss, argnums=2, has_aux=True)(task, model, params, examples, key)


def mean_loss(
    task: Task, model: Model, params: Tree, examples: Examples, key: Array | None
) -> tuple[Array, tuple[Tree, Sums]]:
    """The weighted mean of a batch's losses (0 for a batch of padding), with the updated params and the metrics."""
    output, updated = model.apply(params, examples.x, key=key)
    return mean(*total_loss(task, output, examples)), (updated, measure(task, output, examples))


def whole_gradient(
    task: Task, model: Model, params: Tree, client: Client, key: Array, *, batch_size: int
) -> tuple[Tree, Sums]:
    """The gradient of the mean loss over all of a client's examples, summed over batches to bound memory.

    The batches are those of the first epoch of `batch`.
    """
    order_key, _ = step_keys(key, 0)
    first_epoch = shuffled(client, jax.random.fold_in(order_key, 0))

    def loss_sum(examples: Examples, params: Tree, key: Array) -> tuple[Array, tuple[Array, Sums]]:
        output, _ = model.apply(params, examples.x, key=key)
        total, count = total_loss(task, output, examples)
        return total, (count, measure(task, output, examples))

    def accumulate(sums: Tree, examples: Examples, number: Array) -> Tree:
        _, model_key = step_keys(key, number)
        gradient = jax.grad(loss_sum, argnums=1, has_aux=True)
        if not has_batch_stats(model, examples, params, model_key):
            gradient = with_partial_batches(gradient)
        return add(sums, at_least_float32(gradient(examples, params, model_key)))

    nothing = jax.tree.map(jnp.zeros_like, at_least_float32(params))
    zero = nothing, (jnp.zeros((), sum_type()), no_sums(task))
    total, (count, metrics) = fold_batches(client, batch_size, accumulate, zero, order=first_epoch)
    return jax.tree.map(lambda leaf: mean(leaf, count.astype(leaf.dtype)), total), metrics


def whole_loss(task: Task, model: Model, params: Tree, client: Client, *, batch_size: int) -> Array:
    """The mean loss over all of a client's examples; 0 if it has none."""

    def accumulate(sums: tuple[Array, Array], examples: Examples, _: Array) -> tuple[Array, Array]:
        output, _ = model.apply(params, examples.x)
        return add(sums, total_loss(task, output, examples))

    zero = jnp.zeros((), sum_type())
    return mean(*fold_batches(client, batch_size, accumulate, (zero, zero)))
