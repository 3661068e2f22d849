"""IFCA (Ghosh et al., arXiv:2006.04088), also known as HypCluster: several models, of which a client takes the best."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import optax

from headstart.data.federation import Array, Client, Tree, named
from headstart.fields import MOST_EPOCHS, at_least
from headstart.learning.local_sgd import whole_loss
from headstart.learning.method import ClientUpdate, Reply
from headstart.learning.tasks import Task
from headstart.methods.paper import FedAvg, SearchSpace
from headstart.methods.partial import is_statistic
from headstart.models.zoo import Model


@dataclass(frozen=True)
class IFCA(ClientUpdate):
    """A client trains the model with the least loss on its examples, by FedAvg; one model is FedAvg.

    models: how many. spread: how far apart they begin: each but the first gets noise with a standard deviation of
        `spread` times the root mean square of every array. A held-out client takes the model with the least loss on its
        support examples, and fine-tunes it.
    """

    models: int = at_least(1, 3, most=1000, constant=True)
    epochs: int = at_least(1, 1, most=MOST_EPOCHS)
    learning_rate: float = at_least(0, 0.02)
    batch_size: int = at_least(1, 20)
    spread: float = at_least(0, 0.5)

    search_space: ClassVar[SearchSpace] = {"epochs": (1, 5), "models": (2, 4)}
    differs: ClassVar[str] = "its authors take the chosen model as it is; that clients fine-tune it is added here"

    def __call__(
        self, task: Task, model: Model, broadcast: Tree, client: Client, client_state: Tree, key: Array
    ) -> Reply:
        """A client update; see `ClientUpdate`."""
        best = _best(task, model, broadcast["models"], client)
        chosen = jax.tree.map(lambda leaf: leaf[best], broadcast["models"])
        fedavg = FedAvg(self.epochs, self.learning_rate, self.batch_size)
        reply = fedavg(task, model, chosen, client, client_state, key)

        def scatter(own: Array) -> Array:
            return jnp.zeros((self.models, *own.shape), own.dtype).at[best].set(own)

        members = scatter(jnp.ones((), broadcast["members"].dtype))
        return reply._replace(delta={"models": jax.tree.map(scatter, reply.delta), "members": members})

    def init_server(self, params: Tree) -> Tree:
        """The models `[models, ...]`, and the weight of the clients that chose each."""
        leaves = [leaf for path, leaf in named(params) if not is_statistic(path, params)]
        # From the parameters' own bits, so that it differs from seed to seed.
        total = jnp.sum(jnp.stack([jnp.sum(leaf) for leaf in leaves])).astype(jnp.float32)
        words = jax.lax.bitcast_convert_type(total, jnp.uint32)
        key = jax.random.fold_in(jax.random.key(0, impl="threefry2x32"), words)

        def replicate(number: int, path: str, leaf: Array) -> Array:
            if is_statistic(path, params):
                return jnp.stack([leaf] * self.models)
            noise = jax.random.normal(jax.random.fold_in(key, number), (self.models, *leaf.shape), leaf.dtype)
            return leaf + noise.at[0].set(0) * self.spread * jnp.sqrt(jnp.mean(leaf**2))

        models = [replicate(number, *pair) for number, pair in enumerate(named(params))]
        members = jnp.zeros(self.models, jnp.promote_types(jnp.float32, jnp.result_type(*leaves)))
        return {"models": jax.tree.unflatten(jax.tree.structure(params), models), "members": members}

    def server_optimizer(
        self, optimizer: optax.GradientTransformation, participation: float
    ) -> optax.GradientTransformation:
        """An optimizer for each model, which takes the mean Δ of the clients that chose it, and no step without any."""

        def init(params: Tree) -> Tree:
            return jax.vmap(optimizer.init)(params["models"])

        def one(delta: Tree, members: Array, state: Tree, params: Tree) -> tuple[Tree, Tree]:
            chosen = members > 0
            mean = jax.tree.map(lambda leaf: leaf / jnp.where(chosen, members, 1), delta)
            stepped = optimizer.update(mean, state, params)
            unchanged = jax.tree.map(jnp.zeros_like, params), state
            return jax.tree.map(lambda new, old: jnp.where(chosen, new, old), stepped, unchanged)

        def update(updates: Tree, state: Tree, params: Tree | None = None) -> tuple[Tree, Tree]:
            assert params is not None
            steps, state = jax.vmap(one)(updates["models"], updates["members"], state, params["models"])
            return {"models": steps, "members": jnp.zeros_like(updates["members"])}, state

        return optax.GradientTransformation(init, update)

    def personal_init(self, task: Task, model: Model, broadcast: Tree, client: Client, key: Array) -> Tree:
        """The model with the least loss on the client's support examples."""
        best = _best(task, model, broadcast["models"], client)
        return jax.tree.map(lambda leaf: leaf[best], broadcast["models"])


def _best(task: Task, model: Model, models: Tree, client: Client) -> Array:
    losses = jax.vmap(lambda params: whole_loss(task, model, params, client, batch_size=32))(models)
    return jnp.where(jnp.isfinite(losses), losses, jnp.inf).argmin()
