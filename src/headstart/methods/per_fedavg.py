"""Per-FedAvg, first order (Fallah et al., arXiv:2002.07948): several meta-steps on the client, then averaging."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import optax

from headstart.data.federation import Array, Client, Tree
from headstart.fields import MOST_STEPS, at_least
from headstart.learning.local_sgd import LocalSGD, LocalState
from headstart.learning.method import ClientUpdate, Reply, Weighting
from headstart.learning.tasks import Task, at_least_float32
from headstart.methods.paper import Scaling, SearchSpace, difference, make_reply
from headstart.models.zoo import Model


@dataclass(frozen=True)
class PerFedAvg(ClientUpdate):
    """`steps` meta-steps w̃ = w − α g(w; D), then w ← w − β g(w̃; D′); Δ = w_0 − w. The outer step starts from w again.

    learning_rate: α. meta_rate: β. D and D′ are successive batches of the client's path.
    """

    steps: int = at_least(1, 5, most=MOST_STEPS)
    learning_rate: float = at_least(0, 0.02, above=True)
    meta_rate: float = at_least(0, 0.02)
    batch_size: int = at_least(1, 20)

    title: ClassVar[str] = "Per-FedAvg"
    weighting: ClassVar[Weighting] = "uniform"
    search_space: ClassVar[SearchSpace] = {"steps": (1, 5), "meta_rate": (0.3, 1.0, 3.0)}
    scaled_by_learning_rate: ClassVar[Scaling] = {"meta_rate": 1}
    differs: ClassVar[str] = "first order; held-out clients fine-tune for epochs, where its authors take a step"

    def __call__(
        self, task: Task, model: Model, broadcast: Tree, client: Client, client_state: Tree, key: Array
    ) -> Reply:
        """A client update; see `ClientUpdate`."""
        local_sgd = LocalSGD(task, model, optax.sgd(self.learning_rate), self.batch_size)
        ratio = self.meta_rate / self.learning_rate

        def meta_step(_: Array, local_state: LocalState) -> LocalState:
            inner = local_sgd.run(local_state, client, key, steps=1)
            outer = local_sgd.run(inner, client, key, steps=1)
            # The last step was α g(w̃; D′); it is taken from w, with β.
            moved = difference(inner.params, outer.params)
            stepped = jax.tree.map(lambda w, d: w - ratio * d, at_least_float32(local_state.params), moved)
            params = jax.tree.map(lambda new, old: new.astype(old.dtype), stepped, outer.params)
            return outer._replace(params=params)

        steps = jnp.where(client.size > 0, self.steps, 0)
        end = jax.lax.fori_loop(0, steps, meta_step, local_sgd.init(broadcast))
        return make_reply(client, difference(broadcast, end.params), end.metrics)
