"""Personalization: the same local training, watched.

Every held-out client starts from the initial model, trains on its own adapt part, and is measured on its own test part
before the first and after every further epoch (PAPER, Algorithm 2, line 3).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from headstart.data.device_data import Gather, on_device
from headstart.data.federation import Array, Client, Examples, Federation, Tree
from headstart.devices import device_count, replicated, spans_processes
from headstart.fields import at_least, check_fields
from headstart.learning.local_sgd import LocalSGD, LocalState, batches_per_epoch
from headstart.learning.method import PLAIN, Method
from headstart.learning.optimizers import Optimizer
from headstart.learning.parallel import assign_clients, map_reduce_clients
from headstart.learning.partial_batches import with_partial_batches
from headstart.learning.rounds import client_key
from headstart.learning.tasks import Items, Metric, Sums, Task, add, masked, measure
from headstart.models.zoo import Model

EVALUATION_BATCH = 32


@dataclass(frozen=True)
class Personalization:
    """How a client personalizes.

    optimizer: the client's optimizer; its state is fresh for every client.
    batch_size: of the local training.
    epochs: the largest number of passes over the client's support examples that is tried; the number used is chosen on
        validation clients.
    steps: the largest number of local steps that is tried, for a recipe that counts steps in start of epochs.
    learning_rates: tried in start of the optimizer's own; the one used is chosen together with the epochs.
    """

    optimizer: Optimizer = Optimizer("sgd", 0.02)
    batch_size: int = at_least(1, 20)
    epochs: int = at_least(0, 5)
    steps: int | None = at_least(0, None)
    learning_rates: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def candidate_rates(self) -> tuple[float, ...]:
        """The learning rates to choose from, one at least."""
        return self.learning_rates or (self.optimizer.learning_rate,)

    @property
    def unit(self) -> Literal["epochs", "steps"]:
        """What is counted: "epochs", or "steps" where the recipe has them."""
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
    """What personalization did to each client; numpy arrays over clients and epochs (or steps).

    metrics: `{name: (sums [clients, epochs + 1], counts [clients])}` on the client's test part; column 0 is the initial
        model.
    gain, gain_squared: `[clients, epochs + 1]`: sums over test items of after - before, and of its square, in the
        task's first metric, its sign turned so that more is better. With the counts they tell chance from harm.
    """

    metrics: dict[str, tuple[np.ndarray, np.ndarray]]
    gain: np.ndarray
    gain_squared: np.ndarray

    def means(self, metric: Metric) -> np.ndarray:
        """`[clients, epochs + 1]`: the client's own value of a metric; NaN where it has no test items."""
        sums, counts = self.metrics[metric.name]
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            return metric.finish(sums / counts[:, None])


Personalizer = Callable[..., Curves]


def personalizer(
    task: Task,
    model: Model,
    recipe: Personalization,
    *,
    method: Method = PLAIN,
    lanes: int = 1,
    mesh: Mesh | None = None,
    clients_at_once: int | None = None,
) -> Personalizer:
    """A compiled `(params, clients, gather, key, progress, rate) -> Curves`.

    params: what the server broadcasts; for most methods the parameters of the initial model.
    clients: numbers of the clients to personalize (int array `[n]`); one without a test part gets NaN.
    gather: draws them, from `on_device`. progress: told how many more clients are done.
    rate: the learning rate, by default the first to try; all of them share the program.
    method: how its clients personalize. lanes, mesh: as in `rounds.federated`.
    clients_at_once: how many are drawn together; a matter of memory; by default four for every lane, or 32.
    """
    at_once = clients_at_once or max(32, 4 * lanes * device_count(mesh))

    # Every process of a cluster wants all results; a single one takes them from where they are.
    everywhere = NamedSharding(mesh, PartitionSpec()) if spans_processes(mesh) else None

    @partial(jax.jit, out_shardings=everywhere)
    def all_curves(params: Tree, adapt: Client, test: Client, key: Array, rate: Array) -> Tree:
        at_rate = recipe.with_learning_rate(rate)

        def one(shared: tuple[Tree, Array], nothing: Tree, member: tuple[Client, Client]) -> tuple[Tree, Tree]:
            (params, key), (adapt_one, test_one) = shared, member
            test_one = test_one._replace(block=adapt_one.block)
            return nothing, client_curves(
                task, model, at_rate, params, adapt_one, test_one, client_key(key, adapt_one), method
            )

        return map_reduce_clients(one, (params, key), (), adapt, test._replace(block=None), lanes=lanes, mesh=mesh)[1]

    def personalize_all(
        params: Tree,
        clients: np.ndarray,
        gather: Gather,
        key: Array,
        progress: Callable[[int], None] = lambda clients: None,
        rate: float = recipe.candidate_rates[0],
    ) -> Curves:
        pieces = []
        if mesh is not None:
            params = replicated(params, mesh)
        for start in range(0, len(clients), at_once):
            chunk = clients[start : start + at_once]
            sizes = gather.federation.sizes[chunk, 0]
            missing = at_once - len(chunk)
            filled = np.pad(chunk, (0, missing), constant_values=-1)
            assigned = assign_clients(filled, np.pad(sizes, (0, missing)), lanes=lanes, mesh=mesh)
            result = all_curves(params, *gather.parts(assigned, "adapt", "test"), key, rate)
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
    lanes: int = 1,
) -> Curves:
    """Personalize every client of a federation and measure it before and after every epoch."""
    everyone = np.arange(len(federation))
    return personalizer(task, model, recipe, lanes=lanes)(params, everyone, on_device(federation), key)


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
    """One client: metrics, gain and gain squared, each `[epochs + 1]`, as in `Curves`."""
    local_sgd, first, steps = _path(task, model, recipe, params, adapt, key, method)
    sign = task.metrics[0].sign

    def unit(carry: tuple[LocalState, Array], number: Array) -> tuple[tuple[LocalState, Array], Tree]:
        progress, before = carry
        # Unit 0 takes no step: the initial model is measured by the same code.
        progress = local_sgd.run(progress, adapt, key, steps=jnp.where(number > 0, steps, 0))
        metrics, (values, weights) = evaluate(task, model, progress.params, test)
        before = jnp.where(number > 0, before, values)
        change = jnp.where(weights > 0, sign * (values - before), 0)
        return (progress, before), (metrics, jnp.sum(weights * change), jnp.sum(weights * change**2))

    items = jax.eval_shape(lambda: evaluate(task, model, first.params, test)[1][0])
    start = first, jnp.zeros(items.shape, items.dtype)
    return jax.lax.scan(unit, start, jnp.arange(recipe.most + 1))[1]


def _path(
    task: Task, model: Model, recipe: Personalization, params: Tree, client: Client, key: Array, method: Method
) -> tuple[LocalSGD, LocalState, Array]:
    """How the client descends, where it begins, and the local steps in one unit of the recipe."""
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
    """The client's own parameters after so many epochs (or steps) of the recipe, as `client_curves` measured them."""
    local_sgd, first, steps = _path(task, model, recipe, params, client, key, method)
    return local_sgd.run(first, client, key, steps=epochs * steps).params


def evaluate(task: Task, model: Model, params: Tree, client: Client) -> tuple[Sums, Items]:
    """All metrics over a client's examples, and the first metric's items `[capacity rounded up, ...]`."""

    def measured(examples: Examples, params: Tree) -> tuple[Sums, Items]:
        output, _ = model.apply(params, examples.x)
        items = masked(task.metrics[0].items(output, examples.y), examples.mask)
        return measure(task, output, examples), jax.tree.map(_whole, items)

    def measure_batch(number: Array | int) -> tuple[Sums, Items]:
        positions = number * EVALUATION_BATCH + jnp.arange(EVALUATION_BATCH)
        return with_partial_batches(measured)(client.examples(positions, positions < client.size), params)

    def one(number: Array, carry: tuple[Sums, Items]) -> tuple[Sums, Items]:
        sums, kept = carry
        more, items = measure_batch(number)
        start = number * EVALUATION_BATCH
        kept = jax.tree.map(lambda old, new: jax.lax.dynamic_update_slice_in_dim(old, new, start, 0), kept, items)
        return add(sums, more), kept

    room = EVALUATION_BATCH * -(-client.rows.shape[0] // EVALUATION_BATCH)
    sums, items = jax.eval_shape(measure_batch, 0)
    no_measure = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), sums)
    no_items = jax.tree.map(lambda leaf: jnp.zeros((room, *leaf.shape[1:]), leaf.dtype), items)
    return jax.lax.fori_loop(0, batches_per_epoch(client, EVALUATION_BATCH), one, (no_measure, no_items))


def _whole(leaf: Array) -> Array:
    """Values of the items of a batch, with zeros up to the length of a whole one."""
    return jnp.concatenate([leaf, jnp.zeros((EVALUATION_BATCH - leaf.shape[0], *leaf.shape[1:]), leaf.dtype)])


def choose_epochs(curves: Curves, task: Task) -> int:
    """The number of epochs (from 0 on) at which the clients' uniform mean of the first metric is best.

    To be asked of validation clients, never of test clients.
    """
    return choose_recipe([curves], task)[1]


def choose_recipe(curves: Sequence[Curves], task: Task) -> tuple[int, int]:
    """Which of several learning rates is best, by what each did to the same clients, and after how many epochs.

    As of `choose_epochs`; of equals the first.
    """
    metric = task.metrics[0]
    means = metric.sign * np.stack([mean_over_clients(each, metric) for each in curves])
    best = np.argmax(np.where(np.isfinite(means), means, -np.inf))
    recipe, epochs = np.unravel_index(best, means.shape)
    return int(recipe), int(epochs)


def mean_over_clients(curves: Curves, metric: Metric) -> np.ndarray:
    """`[epochs + 1]`: the uniform mean over the clients that have test items; NaN where one of them diverged."""
    tested = curves.metrics[metric.name][1] > 0
    values = curves.means(metric)[tested]
    return values.mean(axis=0) if len(values) else np.full(values.shape[1], np.nan)
