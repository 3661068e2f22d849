"""FedPer (Arivazhagan et al., arXiv:1912.00818): the body is averaged, the head stays with the client."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import optax

from headstart.data.federation import Array, Client, Tree
from headstart.fields import MOST_EPOCHS, at_least
from headstart.learning.local_sgd import LocalSGD, batches_per_epoch
from headstart.learning.method import ClientUpdate, Reply
from headstart.learning.tasks import Task
from headstart.methods.paper import SearchSpace, make_reply, without
from headstart.methods.partial import head_of, replace_leaves, select_leaves
from headstart.models.zoo import Model


@dataclass(frozen=True)
class FedPer(ClientUpdate):
    """E epochs on the body and the client's own head; Δ is that of the body. FedAvg, if the head is empty.

    head: as in `partial.head_of`. A held-out client has no head yet: it starts from the untrained one and fine-tunes
        everything.
    """

    epochs: int = at_least(1, 1, most=MOST_EPOCHS)
    learning_rate: float = at_least(0, 0.02)
    batch_size: int = at_least(1, 20)
    head: tuple[str, ...] | None = None

    search_space: ClassVar[SearchSpace] = {"epochs": (1, 5)}
    differs: ClassVar[str] = (
        "made for clients that take part and keep their heads; a held-out client starts from an untrained one"
    )

    def __call__(
        self, task: Task, model: Model, broadcast: Tree, client: Client, client_state: Tree, key: Array
    ) -> Reply:
        """A client update; see `ClientUpdate`."""
        head = head_of(broadcast, self.head)
        local_sgd = LocalSGD(task, model, optax.sgd(self.learning_rate), self.batch_size)
        steps = self.epochs * batches_per_epoch(client, self.batch_size)
        end = local_sgd.run(local_sgd.init(replace_leaves(head, broadcast, client_state)), client, key, steps=steps)
        return make_reply(
            client, without(head, broadcast, end.params), end.metrics, client_state=select_leaves(head, end.params)
        )

    def init_client_state(self, params: Tree) -> Tree:
        """The head's leaves."""
        return select_leaves(head_of(params, self.head), params)

    def with_client_state(self, broadcast: Tree, client_state: Tree) -> Tree:
        """The body that is broadcast, with the client's own head."""
        return replace_leaves(head_of(broadcast, self.head), broadcast, client_state)
