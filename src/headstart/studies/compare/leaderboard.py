"""The leaderboard: every method beside FedAvg + fine-tuning, client by client."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from headstart.learning.tasks import Metric
from headstart.statistics.verdicts import LEAST_SEEDS, Difference, TwoWay, difference, holm, two_way
from headstart.studies.compare.contenders import BASELINE, FEDAVG
from headstart.studies.compare.protocol import Entry


class Row(NamedTuple):
    """What is told of a method; values are those of the metric, differences positive where the method is better.

    initial, personalized: over seeds and clients. gain: personalized less initial, of the same model.
    versus, over_fedavg: its personalized value less that of FedAvg + fine-tuning, and of FedAvg, not personalized.
    decided, over_fedavg_decided: of these, 1 better, -1 worse, corrected for the number of methods (Holm); 0 is not
        decided. Lost clients never speak for the method that lost them.
    by_seeds_and_clients: `versus` with its interval over seeds and that over clients.
    lost: the share of clients without a finite value in the end, who count as worse off and worse than FedAvg.
    hurt, by_chance: shares of clients whose own value falls, and that chance alone would make fall. beyond_chance:
        whether it is more in most seeds; None where nothing is personalized.
    below_fedavg: the share of clients who are measured lower than with the model of FedAvg, not personalized.
    worst_tenth: the mean of the tenth of clients that is worst off.
    rounds, gradients, sent, seconds: a run's rounds, client arithmetic, bytes and time of training.
    epochs: of personalization. rates: of personalization, the least and the greatest that a seed chose.
    """

    name: str
    initial: TwoWay
    personalized: TwoWay
    gain: TwoWay
    versus: TwoWay
    decided: int
    over_fedavg: TwoWay
    over_fedavg_decided: int
    by_seeds_and_clients: Difference
    lost: float
    harmed: float
    by_chance: float
    beyond_chance: bool | None
    below_fedavg: float
    worst_tenth: float
    rounds: int
    gradients: float
    sent: float
    seconds: float
    epochs: float
    rates: tuple[float, float]


def values_of(entry: Entry) -> np.ndarray:
    """`[seeds, clients]`: what a client ends up with."""
    return entry.result.personalized if entry.contender.personalizes else entry.result.initial


def leaderboard(entries: Mapping[str, Entry], metric: Metric) -> list[Row]:
    """A row for each, the best first."""
    versus, decided = _compared(entries, BASELINE, metric.sign)
    over_fedavg, over_fedavg_decided = _compared(entries, FEDAVG, metric.sign)
    rows = []
    for name, entry in entries.items():
        by_two = difference(metric.sign * (values_of(entry) - values_of(entries[BASELINE])))
        against = versus[name], decided[name], over_fedavg[name], over_fedavg_decided[name], by_two
        rows.append(_row(entry, against, values_of(entries[FEDAVG]), metric.sign))
    # One that lost all clients has no mean, and is last.
    return sorted(rows, key=lambda row: np.nan_to_num(-metric.sign * row.personalized.mean, nan=np.inf))


def _compared(entries: Mapping[str, Entry], reference: str, sign: int) -> tuple[dict[str, TwoWay], dict[str, int]]:
    """How much better each is than one of them, and which of that is decided: 1 better, -1 worse."""
    final = {name: values_of(entry) for name, entry in entries.items()}
    found = {name: two_way(sign * (values - final[reference])) for name, values in final.items()}
    lost = {name: not np.isfinite(values).all() for name, values in final.items()}
    others = [name for name in entries if name != reference]
    corrected = dict(zip(others, holm([found[name].p for name in others]), strict=True))
    enough = len(final[reference]) >= LEAST_SEEDS

    def of(name: str) -> int:
        side = int(np.sign(found[name].mean)) if enough and corrected.get(name, False) else 0
        return 0 if lost[name if side > 0 else reference] else side

    return found, {name: of(name) for name in entries}


def _row(entry: Entry, against: tuple[TwoWay, int, TwoWay, int, Difference], fedavg: np.ndarray, sign: int) -> Row:
    result, final = entry.result, values_of(entry)
    gains, lost = sign * (final - result.initial), ~np.isfinite(final)
    personalizes = entry.contender.personalizes
    return Row(
        entry.contender.name,
        two_way(result.initial),
        two_way(final),
        two_way(gains),
        *against,
        float(lost.mean()),
        float(((gains < 0) | lost).mean()),
        float(np.nanmean(result.by_chance)) if personalizes else 0.0,
        bool(np.mean(result.beyond_chance) > 0.5) if personalizes else None,
        float(((sign * (final - fedavg) < 0) | lost).mean()),
        _worst_tenth(final, sign),
        sum(stage.rounds for stage, _ in entry.stages),
        entry.gradients,
        entry.sent,
        float(np.median(result.seconds)),
        float(np.mean(result.epochs)) if personalizes else 0.0,
        (float(result.personal_rates.min()), float(result.personal_rates.max())),
    )


def _worst_tenth(values: np.ndarray, sign: int) -> float:
    """The mean over seeds of that of the worst tenth of clients, one at least."""
    count = max(1, values.shape[1] // 10)
    ordered = np.sort(np.where(np.isfinite(values), sign * values, -np.inf), axis=1)
    return float(sign * ordered[:, :count].mean())


class Amounts(NamedTuple):
    """Clients in groups by how much they have to adapt on.

    sizes: `[groups]`: the mean number of examples. clients: `[groups]`: how many. group: `[clients]`: whose.
    """

    sizes: np.ndarray
    clients: np.ndarray
    group: np.ndarray


def amounts(sizes: np.ndarray, *, most: int = 4) -> Amounts:
    """At most so many groups of about as many clients; clients with equally many examples are in one group."""
    edges = np.unique(np.quantile(sizes, np.linspace(0, 1, most + 1)[1:-1], method="higher"))
    group = np.searchsorted(edges, sizes, side="right")
    present, group = np.unique(group, return_inverse=True)
    places = range(len(present))
    return Amounts(
        np.array([sizes[group == place].mean() for place in places]),
        np.array([int((group == place).sum()) for place in places]),
        group,
    )


class Group(NamedTuple):
    """Clients with about as much to adapt on: their mean examples, how many they are, and what fine-tuning adds."""

    size: float
    clients: int
    gain: TwoWay


def whom(entries: Mapping[str, Entry], sizes: np.ndarray, metric: Metric) -> list[Group]:
    """What FedAvg + fine-tuning makes over FedAvg, not personalized, for clients in groups.

    sizes: `[clients]`: how many examples each has to adapt on.
    """
    gain, groups = metric.sign * (values_of(entries[BASELINE]) - values_of(entries[FEDAVG])), amounts(sizes)
    return [
        Group(float(size), int(clients), two_way(gain[:, groups.group == place]))
        for place, (size, clients) in enumerate(zip(groups.sizes, groups.clients, strict=True))
    ]


def by_amount(values: np.ndarray, groups: Amounts) -> np.ndarray:
    """`[seeds, groups]`: means of values `[seeds, clients]`."""
    places = range(len(groups.sizes))
    return np.stack([np.nanmean(values[:, groups.group == place], axis=1) for place in places], axis=1)
