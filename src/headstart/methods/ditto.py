"""Ditto (Li et al., arXiv:2012.04221): a global model by FedAvg, and personal models that stay near it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from headstart.data.federation import Tree
from headstart.fields import at_least
from headstart.learning.method import GradientTransform, LinearTransform
from headstart.methods.as_fedavg import TrainedAsFedAvg
from headstart.methods.paper import Scaling, SearchSpace
from headstart.methods.partial import proximal


@dataclass(frozen=True)
class Ditto(TrainedAsFedAvg):
    """FedAvg, with personal models v = argmin F(v) + λ/2 ‖v − w‖², sought from the global model w.

    strength: λ. The personal models of training clients never reach the server nor a held-out client, so they are not
        computed.
    """

    strength: float = at_least(0, 0.1)

    search_space: ClassVar[SearchSpace] = {"epochs": (1, 5), "strength": (0.001, 0.01, 0.1)}
    scaled_by_learning_rate: ClassVar[Scaling] = {"strength": -1}
    differs: ClassVar[str] = (
        "made for clients that take part, whose own models are trained round after round; a held-out client"
        " trains its own from the final model alone"
    )

    def personal_gradient(self, start: Tree) -> GradientTransform:
        """The proximal term around the global model."""
        return LinearTransform(proximal(self.strength, start))
