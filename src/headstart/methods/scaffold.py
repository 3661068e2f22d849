"""SCAFFOLD (Karimireddy et al., arXiv:1910.06378), option II: control variates against the drift of local steps."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import optax

from headstart.data.federation import Array, Client, Tree
from headstart.fields import MOST_STEPS, at_least
from headstart.learning.local_sgd import LocalSGD
from headstart.learning.method import ClientUpdate, Reply, Weighting
from headstart.learning.tasks import Task, at_least_float32
from headstart.methods.paper import SearchSpace, difference, make_reply
from headstart.models.zoo import Model


@dataclass(frozen=True)
class Scaffold(ClientUpdate):
    """K steps along g − c_i + c; then c_i becomes c_i − c + (θ − θ_K) / (Kβ), the client's state.

    The server's c is the mean of all c_i if replies are weighted uniformly; otherwise it is weighted as the model is.
    """

    steps: int = at_least(1, 10, most=MOST_STEPS)
    learning_rate: float = at_least(0, 0.02, above=True)
    batch_size: int = at_least(1, 20)

    search_space: ClassVar[SearchSpace] = {"steps": (2, 10)}
    title: ClassVar[str] = "SCAFFOLD"
    weighting: ClassVar[Weighting] = "uniform"
    differs: ClassVar[str] = "its authors train one global model; that clients fine-tune it is added here"

    def __call__(
        self, task: Task, model: Model, broadcast: Tree, client: Client, client_state: Tree, key: Array
    ) -> Reply:
        """A client update; see `ClientUpdate`."""
        params, control = broadcast["params"], broadcast["control"]

        def transform(gradient: Tree, _: Tree) -> Tree:
            return jax.tree.map(lambda g, own, server: g - own + server, gradient, client_state, control)

        local_sgd = LocalSGD(task, model, optax.sgd(self.learning_rate), self.batch_size, transform)
        steps = jnp.where(client.size > 0, self.steps, 0)
        end = local_sgd.run(local_sgd.init(params), client, key, steps=steps)
        moved = difference(params, end.params)
        scale = 1 / (self.steps * self.learning_rate)
        new_state = jax.tree.map(lambda own, server, d: own - server + scale * d, client_state, control, moved)
        delta = {"params": moved, "control": jax.tree.map(jnp.subtract, client_state, new_state)}
        return make_reply(client, delta, end.metrics)._replace(client_state=new_state)

    def init_server(self, params: Tree) -> Tree:
        """The model, and the server's control variate c, zero at first."""
        return {"params": params, "control": jax.tree.map(jnp.zeros_like, at_least_float32(params))}

    def server_optimizer(
        self, optimizer: optax.GradientTransformation, participation: float
    ) -> optax.GradientTransformation:
        """The stage's optimizer for the model; c takes the mean change times the participation."""
        steps: dict[Hashable, optax.GradientTransformation]
        steps = {"params": optimizer, "control": optax.sgd(participation)}
        return optax.partition(steps, {"params": "params", "control": "control"})

    def init_client_state(self, params: Tree) -> Tree:
        """The client's control variate c_i, zero at first."""
        return jax.tree.map(jnp.zeros_like, at_least_float32(params))

    def personal_init(self, task: Task, model: Model, broadcast: Tree, client: Client, key: Array) -> Tree:
        """The model; a held-out client fine-tunes it without control variates."""
        return broadcast["params"]
