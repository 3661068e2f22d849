"""FedRep (Collins et al., arXiv:2102.07078): the client fits its own head, then takes its part in the shared body."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import optax

from headstart.bends import given, head_of, only, rest_of, taken
from headstart.data import Array, Client, Tree
from headstart.hooks import Bend
from headstart.local import Descent, batches_per_epoch
from headstart.models import Model
from headstart.tasks import Task
from headstart.updates import FORWARD, Reply, Tries, replied, without


@dataclass(frozen=True)
class FedRep:
    """Epochs on the head alone, then epochs on the body alone; Δ is that of the body.

    head: as in `bends.head_of`. A held-out client fits a head to the body, from the untrained one.
    """

    head_epochs: int = 1
    body_epochs: int = 1
    learning_rate: float = 0.02
    batch_size: int = 20
    head: tuple[str, ...] | None = None

    tries: ClassVar[Tries] = {"head_epochs": (1, 5), "body_epochs": (1, 5)}

    def __call__(self, task: Task, model: Model, broadcast: Tree, client: Client, memory: Tree, key: Array) -> Reply:
        """A client update; see `ClientUpdate`."""
        head, per_epoch = head_of(broadcast, self.head), batches_per_epoch(client, self.batch_size)
        on_head, on_body = (
            Descent(task, model, optax.sgd(self.learning_rate), self.batch_size, only(part))
            for part in (head, rest_of(head))
        )
        fitted = on_head.run(
            on_head.begin(given(head, broadcast, memory)), client, key, steps=self.head_epochs * per_epoch
        )
        end = on_body.run(fitted, client, key, steps=self.body_epochs * per_epoch)
        return replied(client, without(head, broadcast, end.params), end.metrics, memory=taken(head, end.params))

    def uncounted(self, examples: float) -> float:
        """A step on the head takes little more than a forward pass."""
        return (FORWARD - 1) * self.head_epochs * examples

    def keep(self, params: Tree) -> Tree:
        """The head."""
        return taken(head_of(params, self.head), params)

    def bend(self, start: Tree) -> Bend:
        """Personalization moves the head alone."""
        return only(head_of(start, self.head))
