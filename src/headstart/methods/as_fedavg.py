"""What methods share that train as FedAvg does, and differ in how a client personalizes."""

from __future__ import annotations

from dataclasses import dataclass

from headstart.data.federation import Array, Client, Tree
from headstart.fields import MOST_EPOCHS, at_least
from headstart.learning.method import ClientUpdate, Reply
from headstart.learning.tasks import Task
from headstart.methods.paper import FedAvg
from headstart.models.zoo import Model


@dataclass(frozen=True)
class TrainedAsFedAvg(ClientUpdate):
    """FedAvg's update; what a method is beyond it are its hooks of personalization."""

    epochs: int = at_least(1, 1, most=MOST_EPOCHS)
    learning_rate: float = at_least(0, 0.02)
    batch_size: int = at_least(1, 20)

    def __call__(
        self, task: Task, model: Model, broadcast: Tree, client: Client, client_state: Tree, key: Array
    ) -> Reply:
        """A client update; see `ClientUpdate`."""
        fedavg = FedAvg(self.epochs, self.learning_rate, self.batch_size)
        return fedavg(task, model, broadcast, client, client_state, key)
