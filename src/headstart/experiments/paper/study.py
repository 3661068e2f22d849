"""The nouns of a study: its setting, the results it reads, the claims it decides and the evidence it gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

import numpy as np

from headstart.experiment import Centralized, Data, Experiment, Imported, Stage
from headstart.optimizers import Optimizer
from headstart.personalize import Personalization
from headstart.rounds import Weighting
from headstart.tasks import Task
from headstart.themes import Drawing
from headstart.updates import ClientUpdate, FedAvg
from headstart.verdicts import Decision, Difference, Power, Spread

T = TypeVar("T")
MOMENTUM = Optimizer("sgd", 1.0, {"momentum": 0.9})


@dataclass(frozen=True)
class Setting:
    """The data and the size of all studies of one scale; a study takes from it what it needs.

    client_rates, personal_factors: tried on validation clients; the personal rate is the client's times the factor.
    client_rate, personal_factor: the ones in force.
    epochs, cohorts: the E and M of Table 1. local_epochs, cohort: those of everything else. steps: K.
    rounds: of a first stage, and of what trains from scratch. more_rounds: of a second stage.
    seeds: of what is compared; most_seeds: of claims 2 and 3, which want a difference of a point decided;
        spread_seeds: of Table 1.
    tuning_seeds: of every run that only chooses.
    length: of personalization, in epochs, at most.
    target: the accuracy whose round Table 1 tells; None: nine tenths of the initial accuracy that FedAvg came to on
        validation clients when its rates were chosen.
    """

    scale: str
    data: Data
    model: Imported
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
    length: int = 5
    evaluate_every: int = 10
    evaluation_clients: int = 30
    client_rate: float = 0.02
    personal_factors: tuple[float, ...] = (1.0,)
    personal_factor: float = 1.0
    adam_rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    momentum_rates: tuple[float, ...] = (0.3, 1.0)

    def tried(self, values: Sequence[T]) -> Sequence[T]:
        """The values a study tries on validation clients: at the smallest scale only the first."""
        return values[:1] if self.scale == "smoke" else values

    def fedavg(
        self,
        *,
        epochs: int | None = None,
        cohort: int | None = None,
        server: Optimizer = MOMENTUM,
    ) -> Stage:
        """FedAvg(E) from scratch, by default with server momentum (PAPER, Algorithm 2, line 1)."""
        update = FedAvg(epochs or self.local_epochs, self.client_rate, self.batch_size)
        return Stage("FedAvg", update, server, self.rounds, cohort or self.cohort)

    def stage(
        self, name: str, update: ClientUpdate, server: Optimizer, *, rounds: int, weighting: Weighting = "uniform"
    ) -> Stage:
        """Rounds of any update with this setting's cohort."""
        return Stage(name, update, server, rounds, self.cohort, weighting)

    def experiment(
        self, name: str, *stages: Stage | Centralized, start: str | None = None, watch: bool = False
    ) -> Experiment:
        """What trains these stages and personalizes.

        start: as in `Experiment`. watch: evaluate along training too, not only at the end of a stage.
        """
        rate = self.client_rate * self.personal_factor
        return Experiment(
            name,
            stages,
            self.data,
            self.model,
            self.task,
            Personalization(Optimizer("sgd", rate), self.batch_size, self.length),
            evaluate_every=self.evaluate_every if watch else 0,
            evaluation_clients=self.evaluation_clients if watch else 0,
            start=start,
        )

    def with_rates(self, client_rate: float, personal_factor: float) -> Setting:
        """The setting with these rates in force."""
        return replace(self, client_rate=client_rate, personal_factor=personal_factor)


class Result(NamedTuple):
    """What a run came to at its end, on one group of clients; values are those of the task's first metric.

    ids: `[clients]`. curves: `[seeds, clients, length + 1]`: each client's value after every epoch of personalization.
    lengths: `[seeds]`: the epochs chosen on validation clients.
    rounds: `[evaluations]`. history: `[seeds, evaluations, clients, length + 1]`, of validation clients along training.
    items: `[seeds]`: how many examples, counted each time one was used, trained. ends: `[seeds]`: the last round.
    by_chance: `[seeds]`: the share of clients that chance alone would make look worse off, as `statistics.hurt` tells.
    command: what repeats the run.
    """

    ids: tuple[str, ...]
    curves: np.ndarray
    lengths: np.ndarray
    rounds: np.ndarray
    history: np.ndarray
    items: np.ndarray
    ends: np.ndarray
    by_chance: np.ndarray
    command: str

    @property
    def initial(self) -> np.ndarray:
        """`[seeds, clients]`: of the initial model."""
        return self.curves[:, :, 0]

    @property
    def personalized(self) -> np.ndarray:
        """`[seeds, clients]`: at the chosen number of epochs."""
        return self.curves[np.arange(len(self.lengths)), :, self.lengths]


class Choice(NamedTuple):
    """What was chosen on validation clients: the value of each candidate (NaN: it diverged), and the best."""

    what: str
    values: Mapping[str, float]
    chosen: str


class Claim(NamedTuple):
    """One claim of the paper, and what was found.

    paper: its own words or numbers, where they are known. evidence: the comparisons, a sentence each.
    """

    text: str
    paper: str
    decision: Decision
    evidence: tuple[str, ...]


class Table(NamedTuple):
    """Texts in rows and columns."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


class Evidence(NamedTuple):
    """What a study found on one federation.

    name: of the study. question: what it asks. commands: of its runs, by name.
    """

    name: str
    question: str
    claims: tuple[Claim, ...]
    tables: tuple[Table, ...]
    drawings: tuple[Drawing, ...]
    choices: tuple[Choice, ...] = ()
    notes: tuple[str, ...] = ()
    commands: Mapping[str, str] = {}


class Study(NamedTuple):
    """A question to a federation: `ask(setting, runs) -> Evidence`.

    kinds: of the federations it is asked of: "image", "text".
    """

    name: str
    ask: Callable[..., Evidence]
    kinds: tuple[str, ...] = ("image", "text")


def worse_off(result: Result) -> str:
    """The share of clients whose own value personalization lowers, and that by chance alone, means over seeds."""
    share = float((result.personalized < result.initial).mean())
    return f"{100 * share:.1f} / {100 * float(result.by_chance.mean()):.1f} %"


def gained(result: Result) -> str:
    """What personalization adds on average, in points."""
    return f"{100 * float((result.personalized - result.initial).mean()):+.1f}"


def foreseen(estimates: Mapping[str, Power]) -> str:
    """The power of comparisons in a sentence."""
    each = "; ".join(spoken_power(name, power) for name, power in estimates.items())
    return (
        f"Differences that are decided four times in five, expected from runs with other seeds that measure validation"
        f" clients alone: {each}."
    )


def percent(value: float) -> str:
    """A share as per cent: `71.3 %`."""
    return f"{100 * value:.1f} %"


def points(value: float) -> str:
    """A difference of shares: `+1.3`."""
    return f"{100 * value:+.2f}"


def spoken(what: str, found: Difference) -> str:
    """A difference in a sentence, with both intervals."""
    seeds, clients = (f"[{points(low)}, {points(high)}]" for low, high in (found.over_seeds, found.over_clients))
    return (
        f"{what}: {points(found.mean)} points, {seeds} over {found.seeds} seeds, {clients} over {found.clients}"
        f" clients{'' if found.sign else ' (not decided)'}"
    )


def spoken_spread(what: str, found: Spread) -> str:
    """A comparison of spreads in a sentence."""
    low, high = found.correlation
    decided = "" if found.sign else " (not decided)"
    times = f"{found.ratio:.1f} times as wide over {found.seeds} seeds"
    return f"{what}: {times}, correlation [{low:.2f}, {high:.2f}]{decided}"


def spoken_power(what: str, found: Power) -> str:
    """A power estimate in a sentence."""
    return (
        f"{what}: {100 * found.smallest:.2f} points ({100 * found.by_seeds:.2f} by {found.seeds} seeds,"
        f" {100 * found.by_clients:.2f} by {found.clients} clients)"
    )
