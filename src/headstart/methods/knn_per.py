"""kNN-Per (Marfoq et al., arXiv:2111.09360): a global model, mixed with the nearest of the client's own examples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from headstart.data.federation import Array, Client, Examples, Tree
from headstart.errors import UserError
from headstart.fields import at_least
from headstart.learning.local_sgd import collect_batches
from headstart.learning.method import PersonalTraining
from headstart.learning.personalization import EVALUATION_BATCH, Personalization
from headstart.learning.tasks import Classification, Task, at_least_float32
from headstart.methods.as_fedavg import TrainedAsFedAvg
from headstart.methods.paper import SearchSpace
from headstart.models.last_layer import features_and_output
from headstart.models.zoo import Model

# Of a class that no neighbour has, where nothing else is asked.
LEAST_SHARE = 1e-6


@dataclass(frozen=True)
class KNNPer(TrainedAsFedAvg):
    """FedAvg; a held-out client predicts λ p_kNN + (1 − λ) p, p of the global model, and takes no gradient steps.

    p_kNN(y | x) ∝ Σ exp(−‖φ(x) − φ(x_i)‖ / scale) over those of the `neighbors` nearest support examples x_i whose
    class is y; φ are the inputs of the model's last dense layer: of a linear model, its own inputs.

    spacing: what would be n epochs of personalization is λ = n · spacing, 1 at most. One λ is chosen for all clients,
        on validation clients; the authors choose one for each client, on rows of its own.
    scale: 1 in the paper; the authors' code takes squared distances over the number of features.
    """

    neighbors: int = at_least(1, 10, most=1000, constant=True)
    scale: float = at_least(0, 1.0, above=True)
    spacing: float = at_least(0, 0.1, above=True, most=1)

    title: ClassVar[str] = "kNN-Per"
    search_space: ClassVar[SearchSpace] = {"epochs": (1, 5), "scale": (0.3, 1.0, 3.0)}
    personal_grid: ClassVar[tuple[str, int] | None] = ("mixing weight", 10)
    differs: ClassVar[str] = (
        "one mixing weight for all clients, chosen on validation clients, where the authors choose one for each"
        " client on rows of its own; its scale of distances is searched, and 1 in the paper"
    )

    def personal_training(
        self, task: Task, model: Model, recipe: Personalization, broadcast: Tree, client: Client, key: Array
    ) -> PersonalTraining:
        """The client's own features and labels, beside the model, with one λ after another."""

        def stored(examples: Examples) -> tuple[Array, Array]:
            return at_least_float32(features_and_output(model, broadcast, examples.x)[0]), examples.y

        features, labels = collect_batches(client, EVALUATION_BATCH, stored)
        own = {"params": broadcast, "features": features, "labels": labels, "size": client.size}

        def advance(mixing: Array, number: Array) -> Array:
            # Without examples there are no neighbours.
            moves = (number > 0) & (client.size > 0)
            return jnp.where(moves, jnp.minimum(number * self.spacing, 1.0).astype(mixing.dtype), mixing)

        return PersonalTraining(jnp.zeros((), features.dtype), advance, lambda mixing: {**own, "mixing": mixing})

    def personal_model(self, task: Task, model: Model) -> Model:
        """The mixture, whose outputs are logarithms of its probabilities; at λ = 0 the model as it is."""
        if not isinstance(task, Classification):
            raise UserError(
                f"kNN-Per mixes probabilities of an example's class, and the task is {type(task).__name__}; choose"
                " another method"
            )

        def apply(variables: Mapping[str, Tree], x: Tree, *, key: Array | None = None) -> tuple[Array, Tree]:
            features, logits = features_and_output(model, variables["params"], x)
            logits = at_least_float32(logits)
            mixing = variables["mixing"]
            near = self._of_neighbors(at_least_float32(features), variables, logits.shape[-1])
            mixed = mixing * near + (1 - mixing) * jax.nn.softmax(logits)
            return jnp.where(mixing > 0, jnp.log(jnp.maximum(mixed, LEAST_SHARE)), logits), variables

        return Model(model.init, apply)

    def _of_neighbors(self, features: Array, variables: Mapping[str, Tree], classes: int) -> Array:
        """p_kNN `[rows, classes]` of features `[rows, features]`."""
        known, labels = variables["features"], variables["labels"]
        squares = jnp.sum(features**2, axis=1)[:, None] + jnp.sum(known**2, axis=1) - 2 * features @ known.T
        distances = jnp.where(jnp.arange(len(known)) < variables["size"], jnp.sqrt(jnp.maximum(squares, 0)), jnp.inf)
        nearness, numbers = jax.lax.top_k(-distances, min(self.neighbors, len(known)))
        # Less that of the nearest: otherwise exponentials of large distances would all be zero.
        weights = jax.nn.softmax(nearness / self.scale, axis=1)
        return jnp.einsum("nk,nkc->nc", weights, jax.nn.one_hot(labels[numbers], classes, dtype=weights.dtype))
