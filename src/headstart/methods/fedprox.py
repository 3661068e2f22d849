"""FedProx (Li et al., arXiv:1812.06127): FedAvg on the client's loss plus μ/2 ‖θ_j − θ‖²."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import optax

from headstart.bends import pull
from headstart.data import Array, Client, Tree
from headstart.local import Descent, batches_per_epoch
from headstart.models import Model
from headstart.tasks import Task
from headstart.updates import Leg, Relative, Reply, Tries, replied, weighted_path


@dataclass(frozen=True)
class FedProx:
    """Δ = θ − θ_K after E epochs that are pulled back to θ; μ = 0 is FedAvg. Held-out clients fine-tune freely."""

    mu: float = 0.1
    epochs: int = 1
    learning_rate: float = 0.02
    batch_size: int = 20

    tries: ClassVar[Tries] = {"epochs": (1, 5), "mu": (0.001, 0.01, 0.1)}
    relative: ClassVar[Relative] = {"mu": -1}

    def __call__(self, task: Task, model: Model, broadcast: Tree, client: Client, memory: Tree, key: Array) -> Reply:
        """A client update; see `ClientUpdate`."""
        descent = Descent(task, model, optax.sgd(self.learning_rate), self.batch_size, pull(self.mu, broadcast))
        steps = self.epochs * batches_per_epoch(client, self.batch_size)
        return replied(client, *weighted_path(descent, broadcast, key, Leg(client, steps, 1.0)))
