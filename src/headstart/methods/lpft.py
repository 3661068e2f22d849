"""LP-FT (Kumar et al., arXiv:2202.10054; federated: Chen et al., arXiv:2511.12695): the head first, then everything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from headstart.data.federation import Array, Client, Tree
from headstart.fields import MOST_EPOCHS, at_least
from headstart.learning.local_sgd import LocalSGD, LocalState
from headstart.learning.method import PersonalTraining
from headstart.learning.personalization import Personalization, steps_per_unit
from headstart.learning.tasks import Task
from headstart.methods.as_fedavg import TrainedAsFedAvg
from headstart.methods.paper import SearchSpace
from headstart.methods.partial import head_of
from headstart.models.zoo import Model


@dataclass(frozen=True)
class LPFT(TrainedAsFedAvg):
    """FedAvg; a held-out client trains the head alone at first (linear probing), then everything (fine-tuning).

    head: as in `partial.head_of`. head_epochs: how many epochs of personalization, or steps where the recipe counts
        those, are on the head alone; all others are on everything.

    The authors fit the head to its end, and tune a learning rate for either part; here the first part is as short as
    that, and one rate serves both.
    """

    head: tuple[str, ...] | None = None
    head_epochs: int = at_least(0, 3, most=MOST_EPOCHS)

    title: ClassVar[str] = "LP-FT"
    search_space: ClassVar[SearchSpace] = {"epochs": (1, 5), "head_epochs": (2, 5)}
    differs: ClassVar[str] = (
        "the head has a few epochs at the learning rate of the rest, where Kumar et al. fit it to its end and"
        " tune a rate for either part"
    )

    def personal_training(
        self, task: Task, model: Model, recipe: Personalization, broadcast: Tree, client: Client, key: Array
    ) -> PersonalTraining:
        """Local SGD whose gradients are those of the head alone for as many units."""
        head, steps = head_of(broadcast, self.head), steps_per_unit(recipe, client)

        def advance(local_state: LocalState, number: Array) -> LocalState:
            def transform(gradient: Tree, _: Tree) -> Tree:
                moves = number > self.head_epochs
                return jax.tree.map(lambda g, inside: g if inside else jnp.where(moves, g, 0), gradient, head)

            local_sgd = LocalSGD(task, model, recipe.optimizer.build(), recipe.batch_size, transform)
            return local_sgd.run(local_state, client, key, steps=jnp.where(number > 0, steps, 0))

        first = LocalSGD(task, model, recipe.optimizer.build(), recipe.batch_size).init(broadcast)
        return PersonalTraining(first, advance, lambda local_state: local_state.params)
