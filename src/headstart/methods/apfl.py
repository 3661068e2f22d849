"""APFL (Deng et al., arXiv:2003.13461): clients mix the global model with one of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax

from headstart.data.federation import Array, Client, Tree
from headstart.fields import MOST_EPOCHS, at_least
from headstart.learning.local_sgd import LocalSGD, LocalState, batches_per_epoch
from headstart.learning.method import ClientUpdate, PersonalTraining, Reply, Weighting
from headstart.learning.personalization import Personalization, steps_per_unit
from headstart.learning.tasks import Items, Metric, Task, add, at_least_float32
from headstart.methods.paper import SearchSpace, difference, make_reply
from headstart.models.zoo import Model


@dataclass(frozen=True)
class APFL(ClientUpdate):
    """E epochs of local SGD on the global model w, as in FedAvg, and, batch for batch, on the client's own model v.

    The client predicts with v̄ = α v + (1 − α) w. A step is v ← v − η α ∇f(v̄) and, if `adaptive`,
    α ← α − η ⟨v − w, ∇f(v̄)⟩, kept between 0 and 1; at every step, as in the paper, where the authors' code updates α
    once a round.

    mixing: α, or what it is at first. v, which begins as the initial model, and α are the client's state.

    A held-out client begins with v = w and α as it is at first, and trains both; w stays what was broadcast. With a
    fixed α that is fine-tuning at α² times the learning rate: the method is made for clients that took part.
    """

    epochs: int = at_least(1, 1, most=MOST_EPOCHS)
    learning_rate: float = at_least(0, 0.02)
    batch_size: int = at_least(1, 20)
    mixing: float = at_least(0, 0.5, most=1)
    adaptive: bool = True

    weighting: ClassVar[Weighting] = "uniform"
    search_space: ClassVar[SearchSpace] = {"epochs": (1, 5), "mixing": (0.25, 0.75)}
    differs: ClassVar[str] = (
        "made for clients that take part and keep their own model; a held-out client's begins as the global one."
        " The authors' code updates α once a round, here every step does"
    )

    def __call__(
        self, task: Task, model: Model, broadcast: Tree, client: Client, client_state: Tree, key: Array
    ) -> Reply:
        """A client update; see `ClientUpdate`."""
        local_sgd = LocalSGD(
            _Both(task),
            Model(model.init, partial(_apply_both, model)),
            self._kept_in_range(optax.sgd(self.learning_rate)),
            self.batch_size,
        )
        steps = self.epochs * batches_per_epoch(client, self.batch_size)
        end = local_sgd.run(local_sgd.init({"broadcast": broadcast, **client_state}), client, key, steps=steps)
        own = {name: end.params[name] for name in client_state}
        return make_reply(client, difference(broadcast, end.params["broadcast"]), end.metrics, client_state=own)

    def init_client_state(self, params: Tree) -> Tree:
        """The client's own model, and α."""
        return {"own": params, "mixing": jnp.asarray(self.mixing, _float_type(params))}

    def with_client_state(self, broadcast: Tree, client_state: Tree) -> Tree:
        """The global model w beside the client's own v and α."""
        return _Kept(broadcast, client_state)

    def personal_training(
        self, task: Task, model: Model, recipe: Personalization, broadcast: Tree, client: Client, key: Array
    ) -> PersonalTraining:
        """Local SGD on v and α, from the client's own where it took part, else from v = w."""
        broadcast, own = broadcast if isinstance(broadcast, _Kept) else (broadcast, self.init_client_state(broadcast))
        mixture = Model(model.init, partial(_apply_mixture, model, broadcast))
        optimizer = self._kept_in_range(recipe.optimizer.build())
        local_sgd, steps = LocalSGD(task, mixture, optimizer, recipe.batch_size), steps_per_unit(recipe, client)

        def advance(local_state: LocalState, number: Array) -> LocalState:
            return local_sgd.run(local_state, client, key, steps=jnp.where(number > 0, steps, 0))

        first = local_sgd.init(own)
        return PersonalTraining(first, advance, lambda local_state: _mixed(broadcast, local_state.params))

    def _kept_in_range(self, optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
        """The optimizer, whose α ends between 0 and 1, or is never moved."""

        def update(updates: Tree, state: Tree, params: Tree | None = None) -> tuple[Tree, Tree]:
            assert params is not None
            stepped: tuple[Tree, Tree] = optimizer.update(updates, state, params)
            steps, state = stepped
            moved = jnp.clip(params["mixing"] + steps["mixing"], 0, 1) - params["mixing"]
            return {**steps, "mixing": moved if self.adaptive else jnp.zeros_like(moved)}, state

        return optax.GradientTransformation(optimizer.init, update)


class _Kept(NamedTuple):
    """What is broadcast, and what a client has kept."""

    broadcast: Tree
    own: Tree


def _float_type(params: Tree) -> Any:
    return jnp.result_type(*(leaf.dtype for leaf in jax.tree.leaves(at_least_float32(params))), jnp.float32)


def _mixed(broadcast: Tree, own: Mapping[str, Tree]) -> Tree:
    """v̄ = α v + (1 − α) w, in the types of w."""
    mixing = own["mixing"]

    def mix(mine: Array, theirs: Array) -> Array:
        return (mixing * mine + (1 - mixing) * theirs).astype(theirs.dtype)

    return jax.tree.map(mix, own["own"], broadcast)


def _apply_mixture(
    model: Model, broadcast: Tree, variables: Mapping[str, Tree], x: Tree, *, key: Array | None = None
) -> tuple[Tree, Tree]:
    """The output of the mixture, and the client's own part with updated batch statistics."""
    mixed = _mixed(broadcast, variables)
    output, updated = model.apply(mixed, x, key=key)

    def as_own(mine: Array, before: Array, after: Array) -> Array:
        return mine if after is before else after

    return output, {**variables, "own": jax.tree.map(as_own, variables["own"], mixed, updated)}


def _apply_both(model: Model, variables: Mapping[str, Tree], x: Tree, *, key: Array | None = None) -> tuple[Tree, Tree]:
    """The outputs of the global model and of the mixture, through which no gradient reaches the global model."""
    own = {name: variables[name] for name in ("own", "mixing")}
    output, updated = model.apply(variables["broadcast"], x, key=key)
    fixed = jax.lax.stop_gradient(variables["broadcast"])
    mixture, own = _apply_mixture(model, fixed, own, x, key=key)
    return (output, mixture), {"broadcast": updated, **own}


@dataclass(frozen=True)
class _Both:
    """The task for two outputs: the sum of their losses, and the metrics of the first."""

    task: Task

    def loss(self, output: tuple[Tree, Tree], y: Tree) -> Items:
        (first, weights), (second, _) = (self.task.loss(each, y) for each in output)
        return add(first, second), weights

    @property
    def metrics(self) -> tuple[Metric, ...]:
        def of_first(metric: Metric) -> Metric:
            return metric._replace(items=lambda output, y: metric.items(output[0], y))

        return tuple(map(of_first, self.task.metrics))
