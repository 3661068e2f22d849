"""The values that studies read and give: results of runs, choices, claims with their decisions, tables; as text too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from headstart.reports.format import format_points, format_share
from headstart.reports.style import FigureSpec
from headstart.statistics.verdicts import LEAST_SEEDS, LEAST_SEEDS_FOR_SPREAD, Decision, Difference, Power, Spread


class Result(NamedTuple):
    """The results at the end of a run, on one group of clients; values are those of the task's first metric.

    ids: `[clients]`. curves: `[seeds, clients, epochs + 1]`: each client's value after every epoch of personalization.
    epochs: `[seeds]`: the epochs chosen on validation clients.
    rounds: `[evaluations]`. history: `[seeds, evaluations, clients, epochs + 1]`, of validation clients along training.
    items: `[seeds]`: examples that trained, counted each time one was used. ends: `[seeds]`: the last round.
    by_chance: `[seeds]`: the share of clients expected to have lower accuracy from test noise alone, at most, as
        `statistics.clients.harmed` computes it. command: repeats the run.
    beyond_chance: `[seeds]`: whether more clients are harmed than expected from test noise.
    seconds: `[seeds]`: of training.
    personal_rates: `[seeds]`: the learning rate of personalization, chosen with the epochs where several are tried.
    """

    ids: tuple[str, ...]
    curves: np.ndarray
    epochs: np.ndarray
    rounds: np.ndarray
    history: np.ndarray
    items: np.ndarray
    ends: np.ndarray
    by_chance: np.ndarray
    command: str
    beyond_chance: np.ndarray = np.zeros(0, bool)
    seconds: np.ndarray = np.zeros(0)
    personal_rates: np.ndarray = np.zeros(0)

    @property
    def initial(self) -> np.ndarray:
        """`[seeds, clients]`: of the initial model."""
        return self.curves[:, :, 0]

    @property
    def personalized(self) -> np.ndarray:
        """`[seeds, clients]`: at the chosen number of epochs."""
        return self.curves[np.arange(len(self.epochs)), :, self.epochs]


class Choice(NamedTuple):
    """A choice on validation clients: the value of each candidate (NaN: it diverged), and the best."""

    what: str
    values: Mapping[str, float]
    chosen: str


class Claim(NamedTuple):
    """One claim with its decision.

    paper: the paper's own words or numbers, empty if they are not known; None for a claim that is not the paper's.
    evidence: the comparisons, a sentence each.
    """

    text: str
    paper: str | None
    decision: Decision
    evidence: tuple[str, ...]


class Table(NamedTuple):
    """A table of texts."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


class Evidence(NamedTuple):
    """The findings of a study on one federation.

    name: of the study. question: that it answers. commands: of its runs, by name.
    """

    name: str
    question: str
    claims: tuple[Claim, ...]
    tables: tuple[Table, ...]
    figure_specs: tuple[FigureSpec, ...]
    choices: tuple[Choice, ...] = ()
    notes: tuple[str, ...] = ()
    commands: Mapping[str, str] = {}


def lower_accuracy(result: Result) -> str:
    """The share of clients with lower accuracy after personalization, and that expected from test noise."""
    share = float((result.personalized < result.initial).mean())
    return f"{100 * share:.1f} / {format_share(float(result.by_chance.mean()))}"


def mean_gain(result: Result) -> str:
    """The mean gain from personalization, in points."""
    return format_points(float((result.personalized - result.initial).mean()), digits=1)


def foreseen(estimates: Mapping[str, Power]) -> str:
    """The power of comparisons in a sentence; of runs with one seed, which show no spread over seeds, it is unknown."""
    if not all(np.isfinite(power.smallest) for power in estimates.values()):
        return "How small a difference will be decided cannot be foreseen: settings were chosen with one seed."
    each = "; ".join(format_power(name, power) for name, power in estimates.items())
    return (
        f"Differences that are decided four times in five, expected from runs with other seeds that measure validation"
        f" clients alone: {each}."
    )


def format_difference(what: str, found: Difference) -> str:
    """A difference in a sentence: the two-way interval that decides it, then those over seeds and over clients."""
    intervals = found.interval, found.over_seeds, found.over_clients
    both, seeds, clients = (f"[{', '.join(map(format_points, ends))}]" for ends in intervals)
    return (
        f"{what}: {format_points(found.mean)} points, {both} two-way, {seeds} over {found.seeds} seeds, {clients} over"
        f" {found.clients} clients{_inconclusive(found.sign, found.seeds, LEAST_SEEDS)}"
    )


def _inconclusive(sign: int, seeds: int, least: int) -> str:
    """What stands after an inconclusive comparison, with the reason where it is the number of seeds."""
    if sign:
        return ""
    return " (inconclusive)" if seeds >= least else f" (inconclusive: {seeds} seeds, it takes {least})"


def format_spread(what: str, found: Spread) -> str:
    """A comparison of spreads in a sentence."""
    intervals = found.interval, found.over_seeds, found.over_clients
    both, seeds, clients = (f"[{low:.2f}, {high:.2f}]" for low, high in intervals)
    decided = _inconclusive(found.sign, found.seeds, LEAST_SEEDS_FOR_SPREAD)
    times = f"{found.ratio:.1f} times as wide over {found.seeds} seeds"
    return f"{what}: {times}, correlation {both} two-way, {seeds} over seeds, {clients} over clients{decided}"


def format_power(what: str, found: Power) -> str:
    """A power estimate in a sentence."""
    return (
        f"{what}: {100 * found.smallest:.2f} points ({100 * found.by_seeds:.2f} by {found.seeds} seeds alone,"
        f" {100 * found.by_clients:.2f} by {found.clients} clients alone)"
    )
