"""The local path: draw batch number t of a client, and descend for some steps.

Every first-order update of the paper and personalization are this one path, read differently.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from headstart.data.federation import Array, Client, Examples, Tree
from headstart.learning.partial_batches import with_partial_batches
from headstart.learning.tasks import Sums, Task, add, masked, mean, measure, no_sums, weighted_sum
from headstart.models.threefry import uniform
from headstart.models.zoo import Model


def batches_per_epoch(client: Client, batch_size: int) -> Array:
    """How many batches make one pass over the client's examples; the last one may be partial."""
    return (client.size + batch_size - 1) // batch_size


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
    """The batch at this position of an epoch, whose order is int32 `[capacity]`."""
    positions = position * batch_size + jnp.arange(batch_size)
    return client.examples(order[jnp.clip(positions, 0, order.shape[0] - 1)], positions < client.size)


def shuffled(client: Client, key: Array) -> Array:
    """int32 `[capacity]`: a random order of the client's positions, the padding last.

    Sorting uniform draws, unlike `jax.random.permutation`, gives the same order whatever the capacity.
    """
    draws = uniform(key, client.rows.shape)
    return jnp.argsort(jnp.where(jnp.arange(draws.shape[0]) < client.size, draws, jnp.inf)).astype(jnp.int32)


class LocalState(NamedTuple):
    """Where on its path a client is.

    params: the iterate θ_j. optimizer: the client optimizer's state. step: j. metrics: what training measured so far.
    """

    params: Tree
    optimizer: Tree
    step: Array
    metrics: Sums


@dataclass(frozen=True)
class LocalSGD:
    """How a client descends: one step of `optimizer` for each batch.

    adjust: maps `(gradient, params)` to the gradient to use instead, where a method bends it (FedProx, SCAFFOLD).
    differentiable: whether the path itself is to be differentiated, as exact MAML does.
    """

    task: Task
    model: Model
    optimizer: optax.GradientTransformation
    batch_size: int
    adjust: Callable[[Tree, Tree], Tree] | None = None
    differentiable: bool = False

    def init(self, params: Tree) -> LocalState:
        """The start of a path at `params`, with a fresh optimizer state."""
        dtype = jnp.result_type(*jax.tree.leaves(params))
        return LocalState(params, self.optimizer.init(params), jnp.zeros((), jnp.int32), no_sums(self.task, dtype))

    def run(self, local_state: LocalState, client: Client, key: Array, *, steps: Array | int) -> LocalState:
        """`steps` further steps (a number that may be traced). The key belongs to (round, client), not to the step."""

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
        """One step on a batch."""
        _, model_key = step_keys(key, local_state.step)
        gradient, (params, metrics) = self.gradient(examples, local_state.params, model_key)
        if self.adjust is not None:
            # Statistics of batches are no parameters: what a method does to gradients is not for them.
            statistics = batch_stats_mask(self.model, examples, local_state.params, model_key)
            bent = self.adjust(gradient, local_state.params)
            gradient = jax.tree.map(lambda own, old, new: old if own else new, statistics, gradient, bent)
        updates, optimizer = self.optimizer.update(gradient, local_state.optimizer, params)
        return LocalState(
            optax.apply_updates(params, updates), optimizer, local_state.step + 1, add(local_state.metrics, metrics)
        )

    def gradient(self, examples: Examples, params: Tree, key: Array) -> tuple[Tree, tuple[Tree, Sums]]:
        """What `gradient_at` says of the batch."""

        def at(examples: Examples, params: Tree, key: Array) -> tuple[Tree, tuple[Tree, Sums]]:
            return gradient_at(self.task, self.model, params, examples, key)

        whole = self.differentiable or has_batch_stats(self.model, examples, params, key)
        return (at if whole else with_partial_batches(at))(examples, params, key)


def has_batch_stats(model: Model, examples: Examples, params: Tree, key: Array) -> bool:
    """Whether training renews statistics of the batch: then its rows, padding among them, are not independent."""
    return any(jax.tree.leaves(batch_stats_mask(model, examples, params, key)))


def batch_stats_mask(model: Model, examples: Examples, params: Tree, key: Array) -> Tree:
    """Which leaves training has_batch_stats by themselves, as statistics of the batch: a tree of booleans."""
    found = []

    def look(examples: Examples, params: Tree, key: Array) -> None:
        _, after = model.apply(params, examples.x, key=key)
        found.append(jax.tree.map(lambda old, new: old is not new, params, after))

    jax.eval_shape(look, examples, params, key)
    return found[0]


def step_keys(key: Array, step: Array | int) -> tuple[Array, Array]:
    """The key of the client's order, the same for its whole path, and the key for the model at this step."""
    return jax.random.fold_in(key, 0), jax.random.fold_in(jax.random.fold_in(key, 1), step)


def gradient_at(
    task: Task, model: Model, params: Tree, examples: Examples, key: Array | None
) -> tuple[Tree, tuple[Tree, Sums]]:
    """The gradient of the mean loss, and `(params, metrics)`: the params with the statistics the model renewed."""
    return jax.grad(mean_loss, argnums=2, has_aux=True)(task, model, params, examples, key)


def mean_loss(
    task: Task, model: Model, params: Tree, examples: Examples, key: Array | None
) -> tuple[Array, tuple[Tree, Sums]]:
    """The weighted mean of a batch's losses (0 for a batch of padding), with the renewed params and the metrics."""
    output, renewed = model.apply(params, examples.x, key=key)
    loss = mean(*weighted_sum(masked(task.loss(output, examples.y), examples.mask)))
    return loss, (renewed, measure(task, output, examples))


def whole_gradient(
    task: Task, model: Model, params: Tree, client: Client, key: Array, *, batch_size: int
) -> tuple[Tree, Sums]:
    """The gradient of the mean loss over all of a client's examples at once, summed over batches to bound memory."""

    def loss_sum(examples: Examples, params: Tree, key: Array) -> tuple[Array, tuple[Array, Sums]]:
        output, _ = model.apply(params, examples.x, key=key)
        total, count = weighted_sum(masked(task.loss(output, examples.y), examples.mask))
        return total, (count, measure(task, output, examples))

    def accumulate(number: Array, sums: Tree) -> Tree:
        order_key, model_key = step_keys(key, number)
        examples = batch(client, number, order_key, batch_size=batch_size)
        gradient = jax.grad(loss_sum, argnums=1, has_aux=True)
        if not has_batch_stats(model, examples, params, model_key):
            gradient = with_partial_batches(gradient)
        return add(sums, gradient(examples, params, model_key))

    dtype = jnp.result_type(*jax.tree.leaves(params))
    nothing = (jax.tree.map(jnp.zeros_like, params), (jnp.zeros((), dtype), no_sums(task, dtype)))
    total, (count, metrics) = jax.lax.fori_loop(0, batches_per_epoch(client, batch_size), accumulate, nothing)
    return jax.tree.map(lambda leaf: mean(leaf, count), total), metrics


def whole_loss(task: Task, model: Model, params: Tree, client: Client, *, batch_size: int) -> Array:
    """The mean loss over all of a client's examples, batch after batch; 0 if it has none."""

    def one(number: Array, sums: tuple[Array, Array]) -> tuple[Array, Array]:
        positions = number * batch_size + jnp.arange(batch_size)
        examples = client.examples(positions, positions < client.size)
        output, _ = model.apply(params, examples.x)
        return add(sums, weighted_sum(masked(task.loss(output, examples.y), examples.mask)))

    nothing = jnp.zeros((), jnp.result_type(*jax.tree.leaves(params)))
    return mean(*jax.lax.fori_loop(0, batches_per_epoch(client, batch_size), one, (nothing, nothing)))
