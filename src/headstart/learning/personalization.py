"""Personalization: local training of held-out clients, evaluated along the way (arXiv:1909.12488, Algorithm 2, line 3).

Every held-out client starts from the initial model, trains on its own support examples, and is measured on its own
query examples before the first and after every further epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from headstart.data.device_data import Gather, on_device
from headstart.data.federation import Array, Client, Examples, Federation, Tree
from headstart.devices import replicated, spans_processes
from headstart.errors import UserError
from headstart.fields import MOST_EPOCHS, at_least, check_fields
from headstart.learning.client_state import ClientStates
from headstart.learning.divergence import beyond_use, judged_metrics
from headstart.learning.dual import dual_form
from headstart.learning.local_sgd import (
    LocalSGD,
    LocalState,
    batch_in_order,
    batches_per_epoch,
    fold_batches,
    room_for_batches,
    write_batch,
)
from headstart.learning.method import PLAIN, GradientTransform, LinearTransform, Method, PersonalTraining
from headstart.learning.metrics import evaluated_metrics
from headstart.learning.optimizers import Optimizer
from headstart.learning.optimum import pulled_optimum
from headstart.learning.parallel import Parallel, assign_clients, map_reduce_clients
from headstart.learning.partial_batches import lengths_to_measure, with_partial_batches
from headstart.learning.programs import SharedProgram
from headstart.learning.rounds import client_key
from headstart.learning.tasks import Items, Metric, Sums, Task, add, loss_metric, measure_each, metric_items, sum_type
from headstart.models.rewrite import is_wanted
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
    pulls: of a convex model, in place of epochs: local training goes to the optimum of the sum of the client's losses +
        pull / 2 · ‖w - w₀‖², w₀ the initial model, for each of these pulls, from strong to weak; 1 is worth about an
        example. The one used, or the initial model as it is, is chosen on validation clients.
    """

    optimizer: Optimizer = Optimizer("sgd", 0.02)
    batch_size: int = at_least(1, 20)
    epochs: int = at_least(0, 5, most=MOST_EPOCHS)
    steps: int | None = at_least(0, None, most=MOST_EPOCHS)
    learning_rates: tuple[float, ...] = at_least(0, ())
    pulls: tuple[float, ...] | None = at_least(0, None, above=True)

    def __post_init__(self) -> None:
        check_fields(self)
        if any(weaker >= stronger for stronger, weaker in pairwise(self.pulls or ())):
            raise UserError(f"Personalization.pulls is {list(self.pulls or ())}; give each once, from strong to weak")

    @property
    def candidate_rates(self) -> tuple[float, ...]:
        """The learning rates to choose from, one at least; an optimum has none to choose."""
        return (() if self.pulls is not None else self.learning_rates) or (self.optimizer.learning_rate,)

    @property
    def unit(self) -> Literal["epochs", "steps", "pulls"]:
        """The unit that is counted in: "epochs", or "steps" or "pulls" where the recipe has them."""
        if self.pulls is not None:
            return "pulls"
        return "epochs" if self.steps is None else "steps"

    @property
    def most(self) -> int:
        """The largest number of epochs (or steps, or pulls) that is tried."""
        if self.pulls is not None:
            return len(self.pulls)
        return self.epochs if self.steps is None else self.steps

    @property
    def unchosen(self) -> int:
        """The number of epochs (or steps, pulls) where no validation client chooses: the most, of pulls the middle."""
        return self.most if self.pulls is None else (self.most + 1) // 2

    def at_most(self, count: int) -> Personalization:
        """The recipe with this largest number of epochs (or steps), or with this many of its pulls.

        Raises:
            UserError: if it has fewer pulls.
        """
        if self.pulls is None:
            return replace(self, **{self.unit: count})
        if not 0 <= count <= len(self.pulls):
            raise UserError(f"there are {len(self.pulls)} pulls of personalization, not {count}; give 0 to that number")
        return replace(self, pulls=self.pulls[:count])

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


def shared_curves(
    task: Task, model: Model, recipe: Personalization, *, parallel: Parallel = Parallel(), dual: bool = True
) -> SharedProgram:
    """The program of `(method, params, adapt, test, key, learning_rate[, epochs[, states]])` -> the fields of `Curves`.

    It is one for all methods, and one more where only some number of epochs is to be measured, or where clients start
    from states of their own (a tree with their axis in front).

    Methods that differ in numbers alone share one, and so do all learning rates.
    dual: as in `client_curves`.
    """
    # Every process of a cluster wants all results; a single one takes them from where they are.
    mesh = parallel.mesh
    everywhere = NamedSharding(mesh, PartitionSpec()) if spans_processes(mesh) else None

    def all_curves(
        method: Method,
        params: Tree,
        adapt: Client,
        test: Client,
        key: Array,
        learning_rate: Array,
        epochs: Array | None = None,
        states: Tree = None,
    ) -> Tree:
        chosen = recipe.with_learning_rate(learning_rate)

        def one(shared: tuple[Tree, Array], nothing: Tree, member: tuple[Client, Any]) -> tuple[Tree, Tree]:
            (params, key), (adapt_one, (test_one, state)) = shared, member
            params = params if states is None else method.with_client_state(params, state)
            test_one = test_one._replace(block=adapt_one.block)
            own = client_key(key, adapt_one)
            return nothing, client_curves(
                task, model, chosen, params, adapt_one, test_one, own, method, dual=dual, epochs=epochs
            )

        extra = test._replace(block=None), states
        return map_reduce_clients(one, (params, key), (), adapt, extra, parallel=parallel)[1]

    return SharedProgram(all_curves, out_shardings=everywhere)


def personalizer(
    task: Task,
    model: Model,
    recipe: Personalization,
    *,
    method: Method = PLAIN,
    parallel: Parallel = Parallel(),
    clients_at_once: int | None = None,
    curves: SharedProgram | None = None,
) -> Personalizer:
    """A compiled `(params, clients, gather, key, progress, learning_rate, epochs, states) -> Curves`.

    params: what the server broadcasts; for most methods the parameters of the initial model.
    clients: numbers of the clients to personalize (int array `[n]`); one without query examples gets NaN.
    gather: gathers their examples, from `on_device`. progress: called with how many more clients are done.
    learning_rate: by default the first to try; all of them share the program.
    epochs: None measures after every one (or step, or pull); a number, before the first and after that many alone, so
        that the curves have two columns. All numbers share a program.
    states: the states that clients kept in training, from which they start; by default they have none.
    method: how its clients personalize. parallel: how many are worked on at once.
    clients_at_once: how many are gathered together, a matter of memory; by default four for every lane, or 32.
    curves: what `shared_curves` has compiled for the recipe, to be used again.
    """
    mesh, at_once = parallel.mesh, clients_at_once or max(32, 4 * parallel.lanes * parallel.devices)
    all_curves = shared_curves(task, model, recipe, parallel=parallel) if curves is None else curves

    def personalize_all(
        params: Tree,
        clients: np.ndarray,
        gather: Gather,
        key: Array,
        progress: Callable[[int], None] = lambda clients: None,
        learning_rate: float = recipe.candidate_rates[0],
        epochs: int | None = None,
        states: ClientStates | None = None,
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
            more = () if epochs is None else (epochs,)
            more = more if states is None else (epochs, states.of(assigned))
            result = all_curves(method, params, *gather.parts(assigned, "adapt", "test"), key, learning_rate, *more)
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
    *,
    dual: bool = True,
    epochs: Array | int | None = None,
) -> tuple[Sums, Array, Array]:
    """Curves of one client: metrics, gain and gain squared, each `[epochs + 1]`, as in `Curves`.

    dual: whether they may be computed in dual coordinates, on a CPU and where that costs less; see `learning.dual`.
    epochs: measures before the first and after that many alone, so that each is `[2]`.
    """
    training = method.personal_training(task, model, recipe, params, adapt, key)
    if training is None:
        start = method.personal_init(task, model, params, adapt, key)
        transform = method.personal_gradient(start)
        if dual and is_wanted() and jax.default_backend() == "cpu" and _is_linear(recipe, transform):
            model, start, adapt, test = dual_form(model, start, adapt, test, epochs=_epochs(recipe, adapt))
        training = _local_training(task, model, recipe, start, adapt, key, method)
    model = method.personal_model(task, model)
    measured, sign = evaluated_metrics(task), task.metrics[0].sign

    def unit(carry: tuple[Tree, Array], number: Array) -> tuple[tuple[Tree, Array], Tree]:
        state, before = carry
        # Unit 0 does nothing: the initial model is measured by the same code.
        state = training.advance(state, number) if epochs is None else _after(training, number)
        metrics, (values, weights) = evaluate(measured, model, training.params(state), test)
        before = jnp.where(number > 0, before, values)
        change = jnp.where(weights > 0, sign * (values - before), 0)
        return (state, before), (metrics, jnp.sum(weights * change), jnp.sum(weights * change**2))

    first = training.params(training.first)
    values = jax.eval_shape(lambda: nothing_measured(measured[:1], model, first, test)[1][0])
    start = training.first, jnp.zeros(values.shape, values.dtype)
    numbers = jnp.arange(recipe.most + 1) if epochs is None else jnp.stack([jnp.int32(0), jnp.int32(epochs)])
    return jax.lax.scan(unit, start, numbers)[1]


def _local_training(
    task: Task, model: Model, recipe: Personalization, start: Tree, client: Client, key: Array, method: Method
) -> PersonalTraining:
    if recipe.pulls is not None:
        return _to_optima(task, model, recipe.pulls, start, client)
    return local_training(task, model, recipe, start, client, key, method.personal_gradient(start))


def local_training(
    task: Task,
    model: Model,
    recipe: Personalization,
    start: Tree,
    client: Client,
    key: Array,
    transform: GradientTransform | None = None,
) -> PersonalTraining:
    """Local SGD from these parameters, in the recipe's epochs or steps.

    transform: of the gradient, as of `LocalSGD`.
    """
    local_sgd = LocalSGD(task, model, recipe.optimizer.build(), recipe.batch_size, transform)
    first, steps = local_sgd.init(start), steps_per_unit(recipe, client)

    def advance(local_state: LocalState, number: Array) -> LocalState:
        return local_sgd.run(local_state, client, key, steps=jnp.where(number > 0, steps, 0))

    def after(count: Array | int) -> LocalState:
        return local_sgd.run(first, client, key, steps=count * steps)

    return PersonalTraining(first, advance, lambda local_state: local_state.params, after)


def _to_optima(task: Task, model: Model, pulls: tuple[float, ...], start: Tree, client: Client) -> PersonalTraining:
    """The optima for the pulls, one after another: unit n is that for the n-th, sought from the one before."""
    strengths = jnp.array(pulls or (1.0,), jnp.float32)

    def advance(params: Tree, number: Array) -> Tree:
        strength = strengths[jnp.maximum(number, 1) - 1]
        return jax.lax.cond(
            number > 0, lambda: pulled_optimum(task, model, params, start, client, strength), lambda: params
        )

    return PersonalTraining(start, advance, lambda params: params)


def _is_linear(recipe: Personalization, transform: GradientTransform | None) -> bool:
    """Whether local training adds up gradients with factors that depend on none, so that its coordinates are free."""
    return recipe.pulls is None and recipe.optimizer.name == "sgd" and isinstance(transform, LinearTransform | None)


def _epochs(recipe: Personalization, client: Client) -> float:
    """The most epochs of the recipe; of one that counts steps, for a client that fills the room for its examples."""
    return recipe.epochs if recipe.steps is None else recipe.steps * recipe.batch_size / len(client.rows)


def steps_per_unit(recipe: Personalization, client: Client) -> Array:
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
    """The client's own parameters after n epochs (or steps, pulls) of the recipe, as `client_curves` measures them."""
    training = method.personal_training(task, model, recipe, params, client, key)
    if training is None:
        start = method.personal_init(task, model, params, client, key)
        training = _local_training(task, model, recipe, start, client, key, method)
    return training.params(_after(training, epochs))


def _after(training: PersonalTraining, count: Array | int) -> Tree:
    """The state after n units of a personalization."""
    if training.after is not None:
        return training.after(count)
    return jax.lax.fori_loop(0, count, lambda index, state: training.advance(state, index + 1), training.first)


def evaluate(metrics: Sequence[Metric], model: Model, params: Tree, client: Client) -> tuple[Sums, Items]:
    """Metrics over a client's examples, and the first one's items `[capacity rounded up, ...]`."""
    measured = with_partial_batches(_measured(metrics, model), lengths_to_measure)

    def accumulate(carry: tuple[Sums, Items], examples: Examples, number: Array) -> tuple[Sums, Items]:
        (sums, items), (more, new) = carry, measured(examples, params)
        return add(sums, more), write_batch(items, new, number)

    return fold_batches(client, EVALUATION_BATCH, accumulate, nothing_measured(metrics, model, params, client))


def nothing_measured(metrics: Sequence[Metric], model: Model, params: Tree, client: Client) -> tuple[Sums, Items]:
    """Zeros of what `evaluate` returns."""
    first = batch_in_order(client, 0, batch_size=EVALUATION_BATCH)
    # Of a whole batch alone: the parts of one are shaped alike, and each would be traced.
    sums, items = jax.eval_shape(_measured(metrics, model), first, params)
    no_sums = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), sums)
    return no_sums, room_for_batches(client, items)


def _measured(metrics: Sequence[Metric], model: Model) -> Callable[[Examples, Tree], tuple[Sums, Items]]:
    """Metrics of a batch, and the first one's items, for a whole batch."""

    def measured(examples: Examples, params: Tree) -> tuple[Sums, Items]:
        output, _ = model.apply(params, examples.x)
        items = metric_items(metrics[0], output, examples)
        items = jax.tree.map(lambda leaf: whole_batch(jnp.asarray(leaf).astype(sum_type())), items)
        return measure_each(metrics, output, examples), items

    return measured


def whole_batch(leaf: Array) -> Array:
    """What was computed of a batch, with zeros up to the length of a whole one."""
    return jnp.concatenate([leaf, jnp.zeros((EVALUATION_BATCH - leaf.shape[0], *leaf.shape[1:]), leaf.dtype)])


def diverged(curves: Curves, task: Task) -> np.ndarray:
    """Bool `[clients, epochs + 1]`: whose personalization has diverged by then, judged beside its own initial model."""
    judged = [(metric, curves.means(metric)) for metric in judged_metrics(task) if metric.name in curves.metrics]
    return np.any([beyond_use(metric, values, values[:, :1]) for metric, values in judged], axis=0)


def choose_epochs(curves: Curves, task: Task, *, by: Metric | None = None) -> int:
    """The number of epochs (from 0 on) at which the clients' uniform mean of a metric is best, by default the first.

    It is chosen on validation clients, never on test clients.
    """
    return choose_recipe([curves], task, by=by)[1]


def choose_recipe(
    curves: Sequence[Curves], task: Task, *, by: Metric | None = None, otherwise: int | None = None
) -> tuple[int, int]:
    """The index of the best of several learning rates, each given by its curves of the same clients, and its epochs.

    The best is that of `choose_epochs`; among equals the first. One at which a client has diverged is only chosen if
    there is no other. Where no client has a test item nothing can be chosen: the first learning rate is taken, and the
    epochs of `otherwise`, by default the most.
    """
    metric = by or task.metrics[0]
    means = metric.sign * np.stack([mean_over_clients(each, metric) for each in curves])
    if not (curves[0].metrics[metric.name][1] > 0).any():
        return 0, means.shape[1] - 1 if otherwise is None else otherwise
    finite = np.isfinite(means)
    sound = finite & ~np.stack([diverged(each, task).any(axis=0) for each in curves])
    best = np.argmax(np.where(sound if sound.any() else finite, means, -np.inf))
    recipe, epochs = np.unravel_index(best, means.shape)
    return int(recipe), int(epochs)


def deciding_metric(task: Task, recipe: Personalization) -> Metric:
    """The metric by which epochs are chosen: the task's first; of pulls its loss, which says more of few examples."""
    return task.metrics[0] if recipe.pulls is None else loss_metric(task)


def pooled(curves: Sequence[Curves]) -> Curves:
    """The curves of the same clients on several parts of their examples, as one."""
    return jax.tree.map(lambda *leaves: np.sum(leaves, axis=0), *curves)


def edges(recipe: Personalization, learning_rate: float, count: int) -> list[str]:
    """Sentences on a choice at an edge of what was tried, beyond which there may be a better one.

    learning_rate, count: the learning rate and the number of epochs (or steps, or pulls) that were chosen.
    """
    if recipe.pulls is not None:
        weakest = count == recipe.most
        return (
            [f"the weakest pull of personalization that was tried ({recipe.pulls[-1]:g}) {_SUITED}"] if weakest else []
        )
    found, learning_rates = [], recipe.candidate_rates
    if count and count == recipe.most:
        found.append(f"the most {recipe.unit} of personalization that were tried ({count}) {_SUITED}")
    if count and learning_rate in (least_and_most := (min(learning_rates), max(learning_rates))) and learning_rates[1:]:
        which = "smallest" if learning_rate == least_and_most[0] else "largest"
        found.append(f"the {which} learning rate of personalization that was tried ({learning_rate:g}) {_SUITED}")
    return found


_SUITED = "suited best; beyond that edge it may do better"


def mean_over_clients(curves: Curves, metric: Metric) -> np.ndarray:
    """`[epochs + 1]`: the uniform mean over the clients that have test items; NaN where one of them diverged."""
    tested = curves.metrics[metric.name][1] > 0
    values = curves.means(metric)[tested]
    return values.mean(axis=0) if len(values) else np.full(values.shape[1], np.nan)
