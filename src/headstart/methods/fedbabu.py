"""FedBABU (Oh et al., arXiv:2106.06042): the body alone is trained, under a head that nobody changes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import optax

from headstart.data.federation import Array, Client, Tree
from headstart.fields import at_least
from headstart.learning.local_sgd import LocalSGD, batches_per_epoch
from headstart.learning.method import ClientUpdate, GradientTransform, Reply
from headstart.learning.tasks import Task
from headstart.methods.paper import SearchSpace, Segment, replied, weighted_path
from headstart.methods.partial import head_of, only, rest_of
from headstart.models.zoo import Model


@dataclass(frozen=True)
class FedBABU(ClientUpdate):
    """E epochs on the body, the head as it was initialized; an empty head is FedAvg.

    head: as in `bends.head_of`. A held-out client fine-tunes the head, or everything if `whole`.
    """

    epochs: int = at_least(1, 1)
    learning_rate: float = 0.02
    batch_size: int = at_least(1, 20)
    head: tuple[str, ...] | None = None
    whole: bool = False

    search_space: ClassVar[SearchSpace] = {"epochs": (1, 5), "whole": (False, True)}

    def __call__(
        self, task: Task, model: Model, broadcast: Tree, client: Client, client_state: Tree, key: Array
    ) -> Reply:
        """A client update; see `ClientUpdate`."""
        bend = only(rest_of(head_of(broadcast, self.head)))
        local_sgd = LocalSGD(task, model, optax.sgd(self.learning_rate), self.batch_size, bend)
        steps = self.epochs * batches_per_epoch(client, self.batch_size)
        return replied(client, *weighted_path(local_sgd, broadcast, key, Segment(client, steps, 1.0)))

    def personal_gradient(self, start: Tree) -> GradientTransform | None:
        """Personalization moves the head, or everything."""
        return None if self.whole else only(head_of(start, self.head))
