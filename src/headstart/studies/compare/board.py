"""The tables of a comparison: the leaderboard, what it costs, and who gains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from headstart.reports.tables import shown as shown_value
from headstart.reports.tables import shown_interval
from headstart.runs.results import Estimate
from headstart.statistics.verdicts import TwoWay
from headstart.studies.compare.leaderboard import Row, SizeGroups
from headstart.studies.compare.methods import BASELINE, FEDAVG
from headstart.studies.compare.protocol import LOCAL_EPOCHS_FACTOR, Protocol
from headstart.studies.compare.words import Speech
from headstart.studies.evidence import Table


def values_table(rows: Sequence[Row], speech: Speech) -> Table:
    """Values, differences and harm."""
    metric = speech.metric

    def value(found: TwoWay) -> str:
        return f"{shown_value(metric, found.mean)} {shown_interval(metric, Estimate(found.mean, *found.interval()))}"

    def against(found: TwoWay, decided: int, *, itself: bool) -> str:
        mark = {1: " better", -1: " worse", 0: ""}[decided]
        return "–" if itself else f"{speech.change(found.mean)} {speech.interval(*found.interval())}{mark}"

    head = (
        "method",
        "initial",
        "personalized",
        "against FedAvg + fine-tuning",
        "against FedAvg as it is",
        "worse off / by chance",
        "worse than FedAvg",
        "worst tenth",
    )
    lines = tuple(
        (
            row.name,
            value(row.initial),
            value(row.personalized),
            against(row.versus, row.decided, itself=row.name == BASELINE),
            against(row.over_fedavg, row.over_fedavg_decided, itself=row.name == FEDAVG),
            "–" if row.beyond_chance is None else _hurt(row),
            "–" if row.name == FEDAVG else f"{100 * row.below_fedavg:.1f} %",
            shown_value(metric, row.worst_tenth),
        )
        for row in rows
    )
    sign = "" if metric.higher_is_better else ", of which less is better"
    return Table(
        "Leaderboard",
        head,
        lines,
        f"{metric.name.capitalize()}, means over seeds and test clients, with 95 % intervals that take both as drawn:"
        f" other runs, other clients. Differences in {speech.unit}{sign}; better and worse: decided, corrected for the"
        " number of methods (Holm), while intervals are not. Worse off: clients whose own value falls by"
        " personalizing; by chance: those for whom it would if every client's true gain were the mean one and test"
        " items independent; * more than that in most seeds. Worse than FedAvg: clients whose value is lower than with"
        " its best model as it is, by chance or not. A client whose value is not finite counts as both. Worst tenth:"
        " the mean of the tenth of clients that ends worst.",
    )


def _hurt(row: Row) -> str:
    return f"{100 * row.harmed:.1f}{'*' if row.beyond_chance else ''} / {100 * row.by_chance:.1f} %"


def cost_table(rows: Sequence[Row], protocol: Protocol, adapt_sizes: np.ndarray) -> Table:
    """What training and personalization cost.

    adapt_sizes: `[clients]`: how many examples each test client has to adapt on.
    """
    lines = tuple(
        (
            each.name,
            f"{each.rounds:,}",
            f"{each.gradients:,.0f}",
            f"{each.sent / 1e6:,.1f}",
            f"{each.seconds:.1f}",
            f"{each.epochs * adapt_sizes.mean():,.0f}",
            _recipe(each),
        )
        for each in rows
    )
    head = "method", "rounds", "gradients", "megabytes sent", "seconds", "gradients to personalize", "personalization"
    return Table(
        "What it costs",
        head,
        lines,
        "Of one run in training: rounds; gradients of single examples that clients compute, with second derivatives,"
        " looks at further models and the cheaper steps on a head reckoned in; bytes between server and clients, both"
        " ways, parameters that nobody trains left out; seconds, the median of the seeds, with other runs beside and"
        " compilation in them. Then what a test client computes to personalize, in the mean, which no budget bounds:"
        f" of epochs {protocol.epochs} at most, {LOCAL_EPOCHS_FACTOR} times that for local training alone, at a rate;"
        " both are chosen on validation clients in every seed.",
    )


def _recipe(row: Row) -> str:
    if not row.epochs:
        return "–"
    rates = " to ".join(f"{rate:g}" for rate in dict.fromkeys(row.rates))
    return f"{row.epochs:.1f} epochs at {rates}"


def amounts_table(gains: Mapping[str, np.ndarray], groups: SizeGroups, speech: Speech) -> Table:
    """Who gains, by what there is to adapt on. gains: by method, `[seeds, groups]`."""
    head = (
        "method",
        *(f"{size:.0f} examples ({count} clients)" for size, count in zip(groups.sizes, groups.clients, strict=True)),
    )
    lines = tuple((name, *map(speech.change, gain.mean(axis=0).tolist())) for name, gain in gains.items())
    note = (
        f"What each makes over FedAvg, not personalized, in {speech.unit}, for clients in groups, with their mean"
        " examples. It compares clients with each other, who differ in more than that."
    )
    return Table("The gain against what there is to adapt on", head, lines, note)
