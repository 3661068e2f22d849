"""Ditto (Li et al., arXiv:2012.04221): a global model by FedAvg, and personal models that stay near it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from headstart.data.federation import Array, Client, Tree
from headstart.fields import MOST_EPOCHS, at_least
from headstart.learning.method import ClientUpdate, GradientTransform, LinearTransform, Reply
from headstart.learning.tasks import Task
from headstart.methods.paper import FedAvg, Scaling, SearchSpace
from headstart.methods.partial import proximal
from headstart.models.zoo import Model


@dataclass(frozen=True)
class Ditto(ClientUpdate):
    """FedAvg, with personal models v = argmin F(v) + λ/2 ‖v − w‖², sought from the global model w.

    strength: λ. The personal models of training clients never reach the server nor a held-out client, so they are not
        computed.
    """

    epochs: int = at_least(1, 1, most=MOST_EPOCHS)
    learning_rate: float = at_least(0, 0.02)
    batch_size: int = at_least(1, 20)
    strength: float = at_least(0, 0.1)

    search_space: ClassVar[SearchSpace] = {"epochs": (1, 5), "strength": (0.001, 0.01, 0.1)}
    scaled_by_learning_rate: ClassVar[Scaling] = {"strength": -1}
    differs: ClassVar[str] = (
        "made for clients that take part, whose own models are trained round after round; a held-out client"
        " trains its own from the final model alone"
    )

    def __call__(
        self, task: Task, model: Model, broadcast: Tree, client: Client, client_state: Tree, key: Array
    ) -> Reply:
        """A client update; see `ClientUpdate`."""
        fedavg = FedAvg(self.epochs, self.learning_rate, self.batch_size)
        return fedavg(task, model, broadcast, client, client_state, key)

    def personal_gradient(self, start: Tree) -> GradientTransform:
        """The proximal term around the global model."""
        return LinearTransform(proximal(self.strength, start))
