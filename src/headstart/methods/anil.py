"""ANIL, first order (Raghu et al., arXiv:1909.09157): the inner steps move the head alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import optax

from headstart.data.federation import Array, Client, Tree
from headstart.fields import MOST_STEPS, at_least
from headstart.learning.local_sgd import LocalSGD
from headstart.learning.method import ClientUpdate, GradientTransform, Reply, Weighting
from headstart.learning.tasks import Task
from headstart.methods.paper import SearchSpace, difference, make_reply
from headstart.methods.partial import head_of, masked_to
from headstart.models.zoo import Model


@dataclass(frozen=True)
class ANIL(ClientUpdate):
    """Δ = β g_{K+1} after K steps on the head; FOMAML, if the head is the whole model.

    head: as in `partial.head_of`. A held-out client fine-tunes the head.
    """

    steps: int = at_least(1, 10, most=MOST_STEPS)
    learning_rate: float = at_least(0, 0.02)
    batch_size: int = at_least(1, 20)
    head: tuple[str, ...] | None = None

    weighting: ClassVar[Weighting] = "uniform"
    search_space: ClassVar[SearchSpace] = {"steps": (1, 5)}
    differs: ClassVar[str] = "first order, where the paper's is exact, as MAML's"

    def __call__(
        self, task: Task, model: Model, broadcast: Tree, client: Client, client_state: Tree, key: Array
    ) -> Reply:
        """A client update; see `ClientUpdate`."""
        outer = LocalSGD(task, model, optax.sgd(self.learning_rate), self.batch_size)
        inner = replace(outer, gradient_transform=masked_to(head_of(broadcast, self.head)))
        adapted = inner.run(inner.init(broadcast), client, key, steps=self.steps)
        end = outer.run(adapted, client, key, steps=1)
        return make_reply(client, difference(adapted.params, end.params), end.metrics)

    def personal_gradient(self, start: Tree) -> GradientTransform:
        """The mask of the head, which personalization moves alone."""
        return masked_to(head_of(start, self.head))
