"""FedBABU (Oh et al., arXiv:2106.06042): the body alone is trained, under a head that stays as initialized."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import optax

from headstart.data.federation import Array, Client, Tree
from headstart.fields import MOST_EPOCHS, at_least
from headstart.learning.local_sgd import LocalSGD, batches_per_epoch
from headstart.learning.method import ClientUpdate, GradientTransform, Reply
from headstart.learning.tasks import Task
from headstart.methods.paper import SearchSpace, Segment, make_reply, weighted_path
from headstart.methods.partial import complement, head_of, masked_to
from headstart.models.zoo import Model


@dataclass(frozen=True)
class FedBABU(ClientUpdate):
    """E epochs on the body, under the initial head; FedAvg, if the head is empty.

    head: as in `partial.head_of`. A held-out client fine-tunes the head, or everything if `whole`.
    """

    epochs: int = at_least(1, 1, most=MOST_EPOCHS)
    learning_rate: float = at_least(0, 0.02)
    batch_size: int = at_least(1, 20)
    head: tuple[str, ...] | None = None
    whole: bool = False

    search_space: ClassVar[SearchSpace] = {"epochs": (1, 5), "whole": (False, True)}
    differs: ClassVar[str] = "its authors measure clients that took part"

    def __call__(
        self, task: Task, model: Model, broadcast: Tree, client: Client, client_state: Tree, key: Array
    ) -> Reply:
        """A client update; see `ClientUpdate`."""
        transform = masked_to(complement(head_of(broadcast, self.head)))
        local_sgd = LocalSGD(task, model, optax.sgd(self.learning_rate), self.batch_size, transform)
        steps = self.epochs * batches_per_epoch(client, self.batch_size)
        return make_reply(client, *weighted_path(local_sgd, broadcast, key, Segment(client, steps, 1.0)))

    def personal_gradient(self, start: Tree) -> GradientTransform | None:
        """The mask of the head, or none."""
        return None if self.whole else masked_to(head_of(start, self.head))
