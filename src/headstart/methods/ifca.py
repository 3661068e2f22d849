"""IFCA (Ghosh et al., arXiv:2006.04088), also known as HypCluster: several models, of which a client takes the best."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax

from headstart.data import Array, Client, Tree
from headstart.local import whole_loss
from headstart.models import Model
from headstart.tasks import Task
from headstart.updates import FedAvg, Reply


@dataclass(frozen=True)
class IFCA:
    """A client trains the model with the least loss on its examples, by FedAvg; one model is FedAvg.

    models: how many. spread: how far apart they begin: each but the first gets noise of so many times the root mean
    square of every array. A held-out client takes the model that suits its adapt part best, and fine-tunes it.
    """

    models: int = 3
    epochs: int = 1
    learning_rate: float = 0.02
    batch_size: int = 20
    spread: float = 0.5

    def __call__(self, task: Task, model: Model, broadcast: Tree, client: Client, memory: Tree, key: Array) -> Reply:
        """A client update; see `ClientUpdate`."""
        best = _best(task, model, broadcast["models"], client)
        chosen = jax.tree.map(lambda leaf: leaf[best], broadcast["models"])
        fedavg = FedAvg(self.epochs, self.learning_rate, self.batch_size)
        reply = fedavg(task, model, chosen, client, memory, key)

        def placed(every: Array, mine: Array | float) -> Array:
            return jnp.zeros_like(every).at[best].set(mine)

        models = jax.tree.map(placed, broadcast["models"], reply.delta)
        return reply._replace(delta={"models": models, "members": placed(broadcast["members"], 1.0)})

    def share(self, params: Tree) -> Tree:
        """The models `[models, ...]`, and a place to count whose weight chose each."""
        dtype, key = jnp.result_type(*jax.tree.leaves(params)), jax.random.key(0)

        def several(number: int, leaf: Array) -> Array:
            if not jnp.issubdtype(leaf.dtype, jnp.floating):
                return jnp.stack([leaf] * self.models)
            noise = jax.random.normal(jax.random.fold_in(key, number), (self.models, *leaf.shape), leaf.dtype)
            scale = self.spread * jnp.sqrt(jnp.mean(leaf**2))
            return leaf + noise.at[0].set(0) * scale

        leaves, structure = jax.tree.flatten(params)
        models = jax.tree.unflatten(structure, [several(number, leaf) for number, leaf in enumerate(leaves)])
        return {"models": models, "members": jnp.zeros(self.models, dtype)}

    def serve(self, optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
        """Each model steps by the mean of those who chose it, and stays where nobody did."""

        def init(params: Tree) -> Tree:
            return optimizer.init(params["models"])

        def update(updates: Tree, state: Tree, params: Tree | None = None) -> tuple[Tree, Tree]:
            members = updates["members"]

            def where_chosen(value: Array, otherwise: Array) -> Array:
                return jnp.where(members.reshape(-1, *[1] * (value.ndim - 1)) > 0, value, otherwise)

            def mean(leaf: Array) -> Array:
                return where_chosen(leaf / members.reshape(-1, *[1] * (leaf.ndim - 1)), jnp.zeros_like(leaf))

            models = None if params is None else params["models"]
            steps, state = optimizer.update(jax.tree.map(mean, updates["models"]), state, models)
            steps = jax.tree.map(lambda leaf: where_chosen(leaf, jnp.zeros_like(leaf)), steps)
            return {"models": steps, "members": jnp.zeros_like(members)}, state

        return optax.GradientTransformation(init, update)

    def begin(self, task: Task, model: Model, broadcast: Tree, client: Client, key: Array) -> Tree:
        """The model with the least loss on what the client adapts on."""
        best = _best(task, model, broadcast["models"], client)
        return jax.tree.map(lambda leaf: leaf[best], broadcast["models"])


def _best(task: Task, model: Model, models: Tree, client: Client) -> Array:
    return jax.vmap(lambda params: whole_loss(task, model, params, client, batch_size=32))(models).argmin()
