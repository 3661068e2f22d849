"""Meta-SGD (Li et al., arXiv:1707.09835; federated: Chen et al., arXiv:1802.07876): learning rates that are learned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import optax

from headstart.data.federation import Array, Client, Tree
from headstart.fields import MOST_STEPS, at_least
from headstart.learning.local_sgd import LocalSGD, mean_loss, step_keys
from headstart.learning.local_sgd import batch as gather_batch
from headstart.learning.method import ClientUpdate, GradientTransform, PersonalTraining, Reply, Weighting
from headstart.learning.personalization import Personalization, local_training
from headstart.learning.tasks import Sums, Task, add, at_least_float32
from headstart.methods.paper import SearchSpace, make_reply, support_and_query
from headstart.models.zoo import Model


@dataclass(frozen=True)
class MetaSGD(ClientUpdate):
    """Δ = β ∂/∂(θ, α) L(θ_K(θ, α); query), exact, after K steps θ ← θ − α ∘ g: MAML that learns a rate of every number.

    learning_rate: β, and what every α is at first. query_share: as in `FOMAML`.
    rate_factor: Δ of α has this factor beside that of θ. The papers have one outer rate for both, with which plain
        averaging hardly moves α.

    A held-out client takes steps along α ∘ g: with the learned α where its learning rate of personalization is β, and
    in proportion to it otherwise.
    """

    # A loop is differentiated backwards where its number of steps is known beforehand.
    steps: int = at_least(1, 1, most=MOST_STEPS, constant=True)
    learning_rate: float = at_least(0, 0.02, above=True)
    batch_size: int = at_least(1, 20)
    query_share: float = at_least(0, 0.0, most=1, constant=True)
    rate_factor: float = at_least(0, 1.0)

    title: ClassVar[str] = "Meta-SGD"
    weighting: ClassVar[Weighting] = "uniform"
    search_space: ClassVar[SearchSpace] = {"steps": (1, 3), "rate_factor": (1.0, 100.0)}
    differs: ClassVar[str] = (
        "clients take epochs of steps along the learned rates, all multiplied by the chosen learning rate over"
        " that of training, where its authors take the few steps that it was trained for"
    )

    def __call__(
        self, task: Task, model: Model, broadcast: Mapping[str, Tree], client: Client, client_state: Tree, key: Array
    ) -> Reply:
        """A client update; see `ClientUpdate`."""
        support, query = support_and_query(client, self.query_share, key, batch_size=self.batch_size)

        def query_loss(shared: Mapping[str, Tree]) -> tuple[Array, Sums]:
            along = _times(shared["learning_rates"])
            local_sgd = LocalSGD(task, model, optax.sgd(1.0), self.batch_size, along, differentiable=True)
            local_state = local_sgd.run(local_sgd.init(shared["params"]), support, key, steps=self.steps)
            order_key, model_key = step_keys(key, local_state.step)
            examples = gather_batch(query, local_state.step, order_key, batch_size=self.batch_size)
            loss, (_, metrics) = mean_loss(task, model, local_state.params, examples, model_key)
            return loss, add(local_state.metrics, metrics)

        gradient, metrics = jax.grad(query_loss, has_aux=True)(broadcast)
        factors = {"params": self.learning_rate, "learning_rates": self.learning_rate * self.rate_factor}
        delta = {
            name: jax.tree.map(lambda g, factor=factor: factor * g, at_least_float32(gradient[name]))
            for name, factor in factors.items()
        }
        return make_reply(client, delta, metrics, counts=query.size > 0)

    def init_server(self, params: Tree) -> Tree:
        """The model, and the rates α, a tree like it."""
        learning_rates = jax.tree.map(lambda leaf: jnp.full_like(leaf, self.learning_rate), at_least_float32(params))
        return {"params": params, "learning_rates": learning_rates}

    def personal_training(
        self, task: Task, model: Model, recipe: Personalization, broadcast: Tree, client: Client, key: Array
    ) -> PersonalTraining:
        """Local SGD along α ∘ g / β."""
        factors = jax.tree.map(lambda leaf: leaf / self.learning_rate, broadcast["learning_rates"])
        return local_training(task, model, recipe, broadcast["params"], client, key, _times(factors))


def _times(factors: Tree) -> GradientTransform:
    """The transform that multiplies a gradient number by number."""
    return lambda gradient, _: jax.tree.map(lambda g, factor: g * factor, gradient, factors)
