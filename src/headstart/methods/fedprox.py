"""FedProx (Li et al., arXiv:1812.06127): FedAvg on the client's loss plus μ/2 ‖θ_j − θ‖²."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import optax

from headstart.data.federation import Array, Client, Tree
from headstart.fields import MOST_EPOCHS, at_least
from headstart.learning.local_sgd import LocalSGD, batches_per_epoch
from headstart.learning.method import ClientUpdate, Reply
from headstart.learning.tasks import Task
from headstart.methods.paper import Scaling, SearchSpace, Segment, make_reply, weighted_path
from headstart.methods.partial import proximal
from headstart.models.zoo import Model


@dataclass(frozen=True)
class FedProx(ClientUpdate):
    """Δ = θ − θ_K after E epochs with a proximal term around θ; FedAvg, if μ = 0.

    Held-out clients fine-tune without the term.
    """

    mu: float = at_least(0, 0.1)
    epochs: int = at_least(1, 1, most=MOST_EPOCHS)
    learning_rate: float = at_least(0, 0.02)
    batch_size: int = at_least(1, 20)

    search_space: ClassVar[SearchSpace] = {"epochs": (1, 5), "mu": (0.001, 0.01, 0.1)}
    scaled_by_learning_rate: ClassVar[Scaling] = {"mu": -1}
    differs: ClassVar[str] = "its authors train one global model; that clients fine-tune it is added here"

    def __call__(
        self, task: Task, model: Model, broadcast: Tree, client: Client, client_state: Tree, key: Array
    ) -> Reply:
        """A client update; see `ClientUpdate`."""
        local_sgd = LocalSGD(task, model, optax.sgd(self.learning_rate), self.batch_size, proximal(self.mu, broadcast))
        steps = self.epochs * batches_per_epoch(client, self.batch_size)
        return make_reply(client, *weighted_path(local_sgd, broadcast, key, Segment(client, steps, 1.0)))
