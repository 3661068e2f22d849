"""FedRep (Collins et al., arXiv:2102.07078): clients fit a head of their own, then the shared body."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import optax

from headstart.data.federation import Array, Client, Tree
from headstart.fields import MOST_EPOCHS, at_least
from headstart.learning.local_sgd import LocalSGD, batches_per_epoch
from headstart.learning.method import ClientUpdate, GradientTransform, Reply, Weighting
from headstart.learning.tasks import Task
from headstart.methods.paper import SearchSpace, make_reply, without
from headstart.methods.partial import complement, head_of, masked_to, replace_leaves, select_leaves
from headstart.models.zoo import Model


@dataclass(frozen=True)
class FedRep(ClientUpdate):
    """Epochs on the head alone, then epochs on the body alone; Δ is that of the body.

    head: as in `partial.head_of`. A held-out client fits a head to the body, from the untrained one.
    """

    head_epochs: int = at_least(0, 1, most=MOST_EPOCHS)
    body_epochs: int = at_least(0, 1, most=MOST_EPOCHS)
    learning_rate: float = at_least(0, 0.02)
    batch_size: int = at_least(1, 20)
    head: tuple[str, ...] | None = None

    weighting: ClassVar[Weighting] = "uniform"
    search_space: ClassVar[SearchSpace] = {"head_epochs": (1, 5), "body_epochs": (1, 5)}
    differs: ClassVar[str] = (
        "made for clients that take part and keep their heads; a held-out client fits one from an untrained one"
    )

    def __call__(
        self, task: Task, model: Model, broadcast: Tree, client: Client, client_state: Tree, key: Array
    ) -> Reply:
        """A client update; see `ClientUpdate`."""
        head, per_epoch = head_of(broadcast, self.head), batches_per_epoch(client, self.batch_size)
        on_head, on_body = (
            LocalSGD(task, model, optax.sgd(self.learning_rate), self.batch_size, masked_to(part))
            for part in (head, complement(head))
        )
        fitted = on_head.run(
            on_head.init(replace_leaves(head, broadcast, client_state)), client, key, steps=self.head_epochs * per_epoch
        )
        end = on_body.run(fitted, client, key, steps=self.body_epochs * per_epoch)
        return make_reply(
            client, without(head, broadcast, end.params), end.metrics, client_state=select_leaves(head, end.params)
        )

    def init_client_state(self, params: Tree) -> Tree:
        """The head's leaves."""
        return select_leaves(head_of(params, self.head), params)

    def with_client_state(self, broadcast: Tree, client_state: Tree) -> Tree:
        """The body that is broadcast, with the client's own head."""
        return replace_leaves(head_of(broadcast, self.head), broadcast, client_state)

    def personal_gradient(self, start: Tree) -> GradientTransform:
        """The mask of the head, which personalization moves alone."""
        return masked_to(head_of(start, self.head))
