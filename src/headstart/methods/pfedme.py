"""pFedMe (Dinh et al., arXiv:2006.08848): the server's model follows the minima of its Moreau envelopes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import optax

from headstart.data.federation import Array, Client, Tree
from headstart.fields import MOST_EPOCHS, at_least
from headstart.learning.local_sgd import LocalSGD, LocalState, step_keys
from headstart.learning.local_sgd import batch as gather_batch
from headstart.learning.method import ClientUpdate, GradientTransform, LinearTransform, Reply, Weighting
from headstart.learning.tasks import Task, at_least_float32
from headstart.methods.paper import Scaling, SearchSpace, difference, make_reply
from headstart.methods.partial import proximal
from headstart.models.zoo import Model


@dataclass(frozen=True)
class PFedMe(ClientUpdate):
    """R rounds of θ̂ ≈ argmin f(θ; batch) + λ/2 ‖θ − w‖² by K steps from θ̂, then w ← w − ηλ (w − θ̂); Δ = w_0 − w_R.

    rounds: R. steps: K. strength: λ. learning_rate: of the K steps. outer_rate: η. A held-out client seeks its own θ̂
    on all of its support examples, from w.
    """

    rounds: int = at_least(1, 10, most=MOST_EPOCHS)
    steps: int = at_least(1, 5, most=MOST_EPOCHS)
    strength: float = at_least(0, 1.0)
    learning_rate: float = at_least(0, 0.02)
    outer_rate: float = at_least(0, 0.1)
    batch_size: int = at_least(1, 20)

    title: ClassVar[str] = "pFedMe"
    weighting: ClassVar[Weighting] = "uniform"
    search_space: ClassVar[SearchSpace] = {"rounds": (1, 5), "strength": (0.03, 0.3), "outer_rate": (1.0, 3.0)}
    scaled_by_learning_rate: ClassVar[Scaling] = {"strength": -1, "outer_rate": 1}
    differs: ClassVar[str] = "its authors measure clients that took part"

    def __call__(
        self, task: Task, model: Model, broadcast: Tree, client: Client, client_state: Tree, key: Array
    ) -> Reply:
        """A client update; see `ClientUpdate`."""
        order_key, _ = step_keys(key, 0)

        def outer_step(number: Array, carry: tuple[Tree, LocalState]) -> tuple[Tree, LocalState]:
            own, local_state = carry
            local_sgd = self._local_sgd(task, model, own)
            # All K steps are on one batch, as in the method's paper.
            examples = gather_batch(client, number, order_key, batch_size=self.batch_size)
            local_state = jax.lax.fori_loop(0, self.steps, lambda _, at: local_sgd.step(at, examples, key), local_state)
            scale = self.outer_rate * self.strength
            return jax.tree.map(lambda w, theta: w - scale * (w - theta), own, local_state.params), local_state

        start = self._local_sgd(task, model, broadcast).init(broadcast)
        rounds = jnp.where(client.size > 0, self.rounds, 0)
        own, local_state = jax.lax.fori_loop(0, rounds, outer_step, (at_least_float32(broadcast), start))
        return make_reply(client, difference(broadcast, own), local_state.metrics)

    def personal_gradient(self, start: Tree) -> GradientTransform:
        """The proximal term around the server's model."""
        return LinearTransform(proximal(self.strength, start))

    def _local_sgd(self, task: Task, model: Model, anchor: Tree) -> LocalSGD:
        transform = proximal(self.strength, anchor)
        return LocalSGD(task, model, optax.sgd(self.learning_rate), self.batch_size, transform)
