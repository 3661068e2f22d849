"""Personalization: local training of held-out clients, evaluated along the way (arXiv:1909.12488, Algorithm 2, line 3).

Every held-out client starts from the initial model, trains on its own support examples, and is measured on its own
query examples before the first and after every further epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from headstart.data.device_data import Gather, on_device
from headstart.data.federation import Array, Client, Examples, Federation, Tree
from headstart.devices import replicated, spans_processes
from headstart.fields import MOST_EPOCHS, at_least, check_fields
from headstart.learning.divergence import beyond_use, judged_metrics
from headstart.learning.local_sgd import LocalSGD, LocalState, batch_in_order, batches_per_epoch, fold_batches
from headstart.learning.method import PLAIN, Method
from headstart.learning.metrics import evaluated_metrics
from headstart.learning.optimizers import Optimizer
from headstart.learning.parallel import Parallel, assign_clients, map_reduce_clients
from headstart.learning.partial_batches import with_partial_batches
from headstart.learning.rounds import client_key
from headstart.learning.tasks import Items, Metric, Sums, Task, add, measure_each, metric_items, sum_type
from headstart.models.zoo import Model

EVALUATION_BATCH = 32


@dataclass(frozen=True)
class Personalization:
    """Recipe of a client's personalization.

    optimizer: the client's optimizer; its state is fresh for every client.
    batch_size: of the local training.
    epochs: the largest number of passes over the client's support examples that is tried; the number used is chosen on
        validation clients.
    steps: the largest number of local steps that is tried, for a recipe that counts steps in place of epochs.
    learning_rates: tried in place of the optimizer's own; the one used is chosen together with the epochs.
    """

    optimizer: Optimizer = Optimizer("sgd", 0.02)
    batch_size: int = at_least(1, 20)
    epochs: int = at_least(0, 5, most=MOST_EPOCHS)
    steps: int | None = at_least(0, None, most=MOST_EPOCHS)
    learning_rates: tuple[float, ...] = at_least(0, ())

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def candidate_rates(self) -> tuple[float, ...]:
        """The learning rates to choose from, one at least."""
        return self.learning_rates or (self.optimizer.learning_rate,)

    @property
    def unit(self) -> Literal["epochs", "steps"]:
        """The unit that is counted in: "epochs", or "steps" where the recipe has them."""
        return "epochs" if self.steps is None else "steps"

    @property
    def most(self) -> int:
        """The largest number of epochs (or steps) that is tried."""
        return self.epochs if self.steps is None else self.steps

    def at_most(self, count: int) -> Personalization:
        """The recipe with this largest number of epochs (or steps)."""
        return replace(self, **{self.unit: count})

    def with_learning_rate(self, learning_rate: Any) -> Personalization:
        """The recipe with this learning rate (a number that may be traced), and no other to choose."""
        optimizer = replace(self.optimizer, learning_rate=learning_rate)
        return replace(self, optimizer=optimizer, learning_rates=())


class Curves(NamedTuple):
    """Metrics of each client along personalization; numpy arrays over clients and epochs (or steps).

    metrics: `{name: (sums [clients, epochs + 1], counts [clients])}` on the client's query examples, of all that
        `evaluated_metrics` of the task names; column 0 is the initial model. Where a metric has statistics, the sums
        are `[clients, epochs + 1, statistics]`.
    gain, gain_squared: `[clients, epochs + 1]`: sums over test items of after - before, and of its square, in the
        task's first metric, its sign turned so that more is better. Together with the counts they separate harm from
        chance.
    """

    metrics: dict[str, tuple[np.ndarray, np.ndarray]]
    gain: np.ndarray
    gain_squared: np.ndarray

    def means(self, metric: Metric) -> np.ndarray:
        """`[clients, epochs + 1]`: the client's own value of a metric; NaN where it has no test items."""
        sums, counts = self.metrics[metric.name]
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            return metric.finish(sums / counts.reshape(-1, *[1] * (sums.ndim - 1)))


Personalizer = Callable[..., Curves]


def personalizer(
    task: Task,
    model: Model,
    recipe: Personalization,
    *,
    method: Method = PLAIN,
    parallel: Parallel = Parallel(),
    clients_at_once: int | None = None,
) -> Personalizer:
    """A compiled `(params, clients, gather, key, progress, learning_rate) -> Curves`.

    params: what the server broadcasts; for most methods the parameters of the initial model.
    clients: numbers of the clients to personalize (int array `[n]`); one without query examples gets NaN.
    gather: gathers their examples, from `on_device`. progress: called with how many more clients are done.
    learning_rate: by default the first to try; all of them share the program.
    method: how its clients personalize. parallel: how many are worked on at once.
    clients_at_once: how many are gathered together, a matter of memory; by default four for every lane, or 32.
    """
    mesh, at_once = parallel.mesh, clients_at_once or max(32, 4 * parallel.lanes * parallel.devices)

    # Every process of a cluster wants all results; a single one takes them from where they are.
    everywhere = NamedSharding(mesh, PartitionSpec()) if spans_processes(mesh) else None

    @partial(jax.jit, out_shardings=everywhere)
    def all_curves(params: Tree, adapt: Client, test: Client, key: Array, learning_rate: Array) -> Tree:
        chosen = recipe.with_learning_rate(learning_rate)

        def one(shared: tuple[Tree, Array], nothing: Tree, member: tuple[Client, Client]) -> tuple[Tree, Tree]:
            (params, key), (adapt_one, test_one) = shared, member
            test_one = test_one._replace(block=adapt_one.block)
            return nothing, client_curves(
                task, model, chosen, params, adapt_one, test_one, client_key(key, adapt_one), method
            )

        return map_reduce_clients(one, (params, key), (), adapt, test._replace(block=None), parallel=parallel)[1]

    def personalize_all(
        params: Tree,
        clients: np.ndarray,
        gather: Gather,
        key: Array,
        progress: Callable[[int], None] = lambda clients: None,
        learning_rate: float = recipe.candidate_rates[0],
    ) -> Curves:
        pieces = []
        if mesh is not None:
            params = replicated(params, mesh)
        for start in range(0, len(clients), at_once):
            chunk = clients[start : start + at_once]
            sizes = gather.federation.sizes[chunk, 0]
            missing = at_once - len(chunk)
            filled = np.pad(chunk, (0, missing), constant_values=-1)
            assigned = assign_clients(filled, np.pad(sizes, (0, missing)), parallel)
            result = all_curves(params, *gather.parts(assigned, "adapt", "test"), key, learning_rate)
            order = np.argsort(assigned)
            indices = order[np.searchsorted(assigned, chunk, sorter=order)]
            pieces.append(jax.tree.map(lambda leaf, indices=indices: np.asarray(leaf)[indices], result))
            progress(len(chunk))
        metrics, gain, gain_squared = jax.tree.map(lambda *leaves: np.concatenate(leaves), *pieces)
        return Curves({name: (sums, counts[:, 0]) for name, (sums, counts) in metrics.items()}, gain, gain_squared)

    return personalize_all


def personalize(
    task: Task,
    model: Model,
    params: Tree,
    federation: Federation,
    recipe: Personalization,
    *,
    key: Array,
    parallel: Parallel = Parallel(),
) -> Curves:
    """Personalize every client of a federation and measure it before and after every epoch."""
    everyone, gather = np.arange(len(federation)), on_device(federation, mesh=parallel.mesh)
    return personalizer(task, model, recipe, parallel=parallel)(params, everyone, gather, key)


def client_curves(
    task: Task,
    model: Model,
    recipe: Personalization,
    params: Tree,
    adapt: Client,
    test: Client,
    key: Array,
    method: Method = PLAIN,
) -> tuple[Sums, Array, Array]:
    """Curves of one client: metrics, gain and gain squared, each `[epochs + 1]`, as in `Curves`."""
    local_sgd, first, steps = _local_training(task, model, recipe, params, adapt, key, method)
    measured, sign = evaluated_metrics(task), task.metrics[0].sign

    def unit(carry: tuple[LocalState, Array], number: Array) -> tuple[tuple[LocalState, Array], Tree]:
        local_state, before = carry
        # Unit 0 takes no step: the initial model is measured by the same code.
        local_state = local_sgd.run(local_state, adapt, key, steps=jnp.where(number > 0, steps, 0))
        metrics, (values, weights) = evaluate(measured, model, local_state.params, test)
        before = jnp.where(number > 0, before, values)
        change = jnp.where(weights > 0, sign * (values - before), 0)
        return (local_state, before), (metrics, jnp.sum(weights * change), jnp.sum(weights * change**2))

    items = jax.eval_shape(lambda: evaluate(task.metrics, model, first.params, test)[1][0])
    start = first, jnp.zeros(items.shape, items.dtype)
    return jax.lax.scan(unit, start, jnp.arange(recipe.most + 1))[1]


def _local_training(
    task: Task, model: Model, recipe: Personalization, params: Tree, client: Client, key: Array, method: Method
) -> tuple[LocalSGD, LocalState, Array]:
    """The client's local SGD, its initial state, and the local steps in one unit of the recipe."""
    start = method.personal_init(task, model, params, client, key)
    local_sgd = LocalSGD(task, model, recipe.optimizer.build(), recipe.batch_size, method.personal_gradient(start))
    return local_sgd, local_sgd.init(start), _steps(recipe, client)


def _steps(recipe: Personalization, client: Client) -> Array:
    """The local steps in one unit of the recipe; none for a client without examples."""
    if recipe.unit == "epochs":
        return batches_per_epoch(client, recipe.batch_size)
    return jnp.minimum(client.size, 1)


def adapt_client(
    task: Task,
    model: Model,
    recipe: Personalization,
    params: Tree,
    client: Client,
    key: Array,
    epochs: Array | int,
    method: Method = PLAIN,
) -> Tree:
    """The client's own parameters after n epochs (or steps) of the recipe, as `client_curves` measures them."""
    local_sgd, first, steps = _local_training(task, model, recipe, params, client, key, method)
    return local_sgd.run(first, client, key, steps=epochs * steps).params


def evaluate(metrics: Sequence[Metric], model: Model, params: Tree, client: Client) -> tuple[Sums, Items]:
    """Metrics over a client's examples, and the first one's items `[capacity rounded up, ...]`."""

    @with_partial_batches
    def measured(examples: Examples, params: Tree) -> tuple[Sums, Items]:
        output, _ = model.apply(params, examples.x)
        items = metric_items(metrics[0], output, examples)
        items = jax.tree.map(lambda leaf: whole_batch(jnp.asarray(leaf).astype(sum_type())), items)
        return measure_each(metrics, output, examples), items

    def accumulate(carry: tuple[Sums, Items], examples: Examples, number: Array) -> tuple[Sums, Items]:
        (sums, items), (more, new) = carry, measured(examples, params)
        return add(sums, more), write_batch(items, new, number)

    first = batch_in_order(client, 0, batch_size=EVALUATION_BATCH)
    sums, items = jax.eval_shape(measured, first, params)
    no_sums = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), sums)
    return fold_batches(client, EVALUATION_BATCH, accumulate, (no_sums, room_for_batches(client, items)))


def room_for_batches(client: Client, batch: Tree) -> Tree:
    """Zeros `[capacity rounded up, ...]` for what is computed of each batch, which looks like this one."""
    capacity = EVALUATION_BATCH * -(-client.rows.shape[0] // EVALUATION_BATCH)
    return jax.tree.map(lambda leaf: jnp.zeros((capacity, *leaf.shape[1:]), leaf.dtype), batch)


def write_batch(whole: Tree, batch: Tree, number: Array) -> Tree:
    """The tree of `room_for_batches` with the rows of batch `number` filled in."""
    start = number * EVALUATION_BATCH
    return jax.tree.map(lambda old, new: jax.lax.dynamic_update_slice_in_dim(old, new, start, 0), whole, batch)


def whole_batch(leaf: Array) -> Array:
    """What was computed of a batch, with zeros up to the length of a whole one."""
    return jnp.concatenate([leaf, jnp.zeros((EVALUATION_BATCH - leaf.shape[0], *leaf.shape[1:]), leaf.dtype)])


def diverged(curves: Curves, task: Task) -> np.ndarray:
    """Bool `[clients, epochs + 1]`: whose personalization has diverged by then, judged beside its own initial model."""
    judged = [(metric, curves.means(metric)) for metric in judged_metrics(task) if metric.name in curves.metrics]
    return np.any([beyond_use(metric, values, values[:, :1]) for metric, values in judged], axis=0)


def choose_epochs(curves: Curves, task: Task) -> int:
    """The number of epochs (from 0 on) at which the clients' uniform mean of the first metric is best.

    It is chosen on validation clients, never on test clients.
    """
    return choose_recipe([curves], task)[1]


def choose_recipe(curves: Sequence[Curves], task: Task) -> tuple[int, int]:
    """The index of the best of several learning rates, each given by its curves of the same clients, and its epochs.

    The best is that of `choose_epochs`; among equals the first. One at which a client has diverged is only chosen if
    there is no other. Where no client has a test item nothing can be chosen: the first learning rate and the most
    epochs are taken.
    """
    metric = task.metrics[0]
    means = metric.sign * np.stack([mean_over_clients(each, metric) for each in curves])
    if not (curves[0].metrics[metric.name][1] > 0).any():
        return 0, means.shape[1] - 1
    finite = np.isfinite(means)
    sound = finite & ~np.stack([diverged(each, task).any(axis=0) for each in curves])
    best = np.argmax(np.where(sound if sound.any() else finite, means, -np.inf))
    recipe, epochs = np.unravel_index(best, means.shape)
    return int(recipe), int(epochs)


def mean_over_clients(curves: Curves, metric: Metric) -> np.ndarray:
    """`[epochs + 1]`: the uniform mean over the clients that have test items; NaN where one of them diverged."""
    tested = curves.metrics[metric.name][1] > 0
    values = curves.means(metric)[tested]
    return values.mean(axis=0) if len(values) else np.full(values.shape[1], np.nan)
