"""ANIL, first order (Raghu et al., arXiv:1909.09157): the inner steps move the head alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import optax

from headstart.bends import head_of, only
from headstart.data import Array, Client, Tree
from headstart.hooks import Bend
from headstart.local import Descent
from headstart.models import Model
from headstart.tasks import Task
from headstart.updates import FORWARD, Reply, Tries, difference, mean_batch, replied


@dataclass(frozen=True)
class ANIL:
    """Δ = β g_{K+1} after K steps on the head; with everything for a head it is FOMAML.

    head: as in `bends.head_of`. A held-out client fine-tunes the head.
    """

    steps: int = 10
    learning_rate: float = 0.02
    batch_size: int = 20
    head: tuple[str, ...] | None = None

    tries: ClassVar[Tries] = {"steps": (1, 5)}

    def __call__(self, task: Task, model: Model, broadcast: Tree, client: Client, memory: Tree, key: Array) -> Reply:
        """A client update; see `ClientUpdate`."""
        outer = Descent(task, model, optax.sgd(self.learning_rate), self.batch_size)
        inner = replace(outer, adjust=only(head_of(broadcast, self.head)))
        adapted = inner.run(inner.begin(broadcast), client, key, steps=self.steps)
        end = outer.run(adapted, client, key, steps=1)
        return replied(client, difference(adapted.params, end.params), end.metrics)

    def uncounted(self, examples: float) -> float:
        """A step on the head takes little more than a forward pass."""
        return (FORWARD - 1) * self.steps * mean_batch(examples, self.batch_size)

    def bend(self, start: Tree) -> Bend:
        """Personalization moves the head alone."""
        return only(head_of(start, self.head))
