"""Local-only training: every client starts from the untrained model, and nothing is shared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from headstart.data.federation import Array, Client, Tree
from headstart.learning.method import ClientUpdate, Reply
from headstart.learning.tasks import Task, no_sums
from headstart.methods.paper import make_reply
from headstart.models.zoo import Model


@dataclass(frozen=True)
class LocalOnly(ClientUpdate):
    """Δ = 0, whatever the examples: one round of one client is as good as many."""

    title: ClassVar[str] = "Local training alone"

    def __call__(
        self, task: Task, model: Model, broadcast: Tree, client: Client, client_state: Tree, key: Array
    ) -> Reply:
        """A client update; see `ClientUpdate`."""
        return make_reply(client, jax.tree.map(jnp.zeros_like, broadcast), no_sums(task))
