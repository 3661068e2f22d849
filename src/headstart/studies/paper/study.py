"""A study of the paper: its question, and the data and the size of its experiments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

from headstart.experiment.experiment import Centralized, Data, Experiment, ModelSpec, Stage
from headstart.learning.method import ClientUpdate, Weighting
from headstart.learning.optimizers import Optimizer
from headstart.learning.personalization import Personalization
from headstart.learning.tasks import Task
from headstart.methods.paper import FedAvg
from headstart.studies.evidence import Evidence
from headstart.training.by_examples import DRAWS

T = TypeVar("T")
# Of learning rates beyond the edge of a grid.
MOST_WIDENED = 4
MOMENTUM = Optimizer("sgd", 1.0, {"momentum": 0.9})


@dataclass(frozen=True)
class Setting:
    """The data and the size of all studies of one scale.

    client_rates, personal_factors: candidates; the learning rate of personalization is the client's times the factor.
    client_rate, personal_factor: the ones in force.
    epochs, cohorts: the E and M of Table 1. local_epochs, cohort: those of everything else. steps: K.
    rounds: of a first stage, and of training from scratch. more_rounds: of a second stage.
    seeds: of every comparison; most_seeds: of claims 2 and 3, which must decide a difference of a point;
        spread_seeds: of Table 1.
    tuning_seeds: of every candidate.
    personal_epochs: of personalization, at most.
    evaluations_per_round: of a centralized model, on as many examples as one round of FedAvg uses, so that it hardly
        overshoots its target.
    draws: of a client's local examples, in every seed, where fewer of them are given to it.
    target: the accuracy that the rounds of Table 1 count to; None: nine tenths of the initial accuracy of FedAvg on
        validation clients when its rates were chosen.
    """

    scale: str
    data: Data
    model: ModelSpec
    task: Task
    client_rates: tuple[float, ...]
    epochs: tuple[int, ...]
    cohorts: tuple[int, ...]
    rounds: int
    more_rounds: int
    seeds: int
    most_seeds: int
    spread_seeds: int
    tuning_seeds: int
    target: float | None
    local_epochs: int = 5
    steps: int = 10
    cohort: int = 10
    batch_size: int = 20
    personal_epochs: int = 5
    evaluate_every: int = 10
    evaluation_clients: int = 30
    evaluations_per_round: int = 10
    client_rate: float = 0.02
    personal_factors: tuple[float, ...] = (1.0,)
    personal_factor: float = 1.0
    adam_rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    momentum_rates: tuple[float, ...] = (0.3, 1.0)
    draws: int = DRAWS

    def candidates(self, values: Sequence[T]) -> Sequence[T]:
        """The values that are tried on validation clients: at the smallest scale only the first."""
        return values[:1] if self.scale == "smoke" else values

    @property
    def most_widened(self) -> int:
        """How many learning rates beyond an edge are tried at most: none at the smallest scale."""
        return 0 if self.scale == "smoke" else MOST_WIDENED

    def fedavg(
        self,
        *,
        epochs: int | None = None,
        cohort: int | None = None,
        server: Optimizer = MOMENTUM,
    ) -> Stage:
        """FedAvg(E) from scratch, by default with server momentum (arXiv:1909.12488, Algorithm 2, line 1)."""
        update = FedAvg(epochs or self.local_epochs, self.client_rate, self.batch_size)
        return Stage("FedAvg", update, server, self.rounds, cohort or self.cohort)

    def stage(
        self, name: str, update: ClientUpdate, server: Optimizer, *, rounds: int, weighting: Weighting = "uniform"
    ) -> Stage:
        """Rounds of any update with this setting's cohort."""
        return Stage(name, update, server, rounds, self.cohort, weighting)

    def experiment(
        self, name: str, *stages: Stage | Centralized, start: str | None = None, evaluate: bool = False
    ) -> Experiment:
        """The experiment that trains these stages and personalizes.

        start: as in `Experiment`. evaluate: along training too, not only at the end of a stage.
        """
        learning_rate = self.client_rate * self.personal_factor
        return Experiment(
            name,
            stages,
            self.data,
            self.model,
            self.task,
            Personalization(Optimizer("sgd", learning_rate), self.batch_size, self.personal_epochs),
            evaluate_every=self.evaluate_every if evaluate else 0,
            evaluation_clients=self.evaluation_clients if evaluate else 0,
            start=start,
        )

    def with_rates(self, client_rate: float, personal_factor: float) -> Setting:
        """The setting with these rates in force."""
        return replace(self, client_rate=client_rate, personal_factor=personal_factor)


class Study(NamedTuple):
    """A question to a federation: `ask(setting, runs) -> Evidence`.

    kinds: of federations that it suits: "image", "text".
    """

    name: str
    ask: Callable[..., Evidence]
    kinds: tuple[str, ...] = ("image", "text")
