"""The leaderboard: every method beside FedAvg + fine-tuning, client by client."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from headstart.compare.contenders import BASELINE, FEDAVG
from headstart.compare.protocol import Entry
from headstart.recorded import Estimate, estimate
from headstart.tasks import Metric
from headstart.verdicts import LEAST_SEEDS, Difference, difference, holm, p_value


class Row(NamedTuple):
    """What is told of a method; values are those of the metric, differences positive where the method is better.

    initial, personalized: means over seeds and clients, with 95 % intervals over clients.
    versus: its personalized value less that of FedAvg + fine-tuning. p: of no difference. decided: 1 better, -1 worse,
        corrected for the number of methods (Holm); 0 is not decided. A method that lost clients is not better.
    lost: the share of clients without a finite value in the end, who count as worse off and worse than FedAvg.
    gain: personalized less initial, of the same model. hurt, by_chance: shares of clients whose own value falls, and
        that chance alone would make fall. beyond_chance: whether it is more in most seeds; None where nothing is
        personalized.
    below_fedavg: the share of clients who would be better off with the model of FedAvg, not personalized.
    worst_tenth: the mean of the tenth of clients that is worst off.
    gradients, sent, seconds: a run's client arithmetic, bytes and time of training. epochs: of personalization.
    rates: of personalization, the least and the greatest that a seed chose.
    """

    name: str
    initial: Estimate
    personalized: Estimate
    versus: Difference
    p: float
    decided: int
    lost: float
    gain: Difference
    hurt: float
    by_chance: float
    beyond_chance: bool | None
    below_fedavg: float
    worst_tenth: float
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
    better = {name: metric.sign * (values_of(each) - values_of(entries[BASELINE])) for name, each in entries.items()}
    others = [name for name in entries if name != BASELINE]
    p_values = {name: p_value(better[name]) for name in others}
    corrected = dict(zip(others, holm(list(p_values.values())), strict=True))
    rows = []
    for name, entry in entries.items():
        versus = difference(better[name])
        enough = versus.seeds >= LEAST_SEEDS and corrected.get(name, False)
        decided = int(np.sign(versus.mean)) if enough else 0
        rows.append(_row(entry, versus, p_values.get(name, 1.0), decided, entries, metric.sign))
    return sorted(rows, key=lambda row: -metric.sign * row.personalized.mean)


def _row(entry: Entry, versus: Difference, p: float, decided: int, entries: Mapping[str, Entry], sign: int) -> Row:
    result, final = entry.result, values_of(entry)
    gains, lost = sign * (final - result.initial), ~np.isfinite(final)
    personalizes = entry.contender.personalizes
    fedavg = values_of(entries[FEDAVG])
    return Row(
        entry.contender.name,
        _estimate(result.initial),
        _estimate(final),
        versus,
        p,
        min(decided, 0) if lost.any() else decided,
        float(lost.mean()),
        difference(gains),
        float(((gains < 0) | lost).mean()),
        float(np.nanmean(result.by_chance)) if personalizes else 0.0,
        bool(np.mean(result.beyond_chance) > 0.5) if personalizes else None,
        float(((sign * (final - fedavg) < 0) | lost).mean()),
        _worst_tenth(final, sign),
        entry.gradients,
        entry.sent,
        float(np.median(result.seconds)),
        float(np.mean(result.lengths)) if personalizes else 0.0,
        (float(result.personal_rates.min()), float(result.personal_rates.max())),
    )


def _estimate(values: np.ndarray) -> Estimate:
    means = values.mean(axis=0)
    return estimate(means[np.isfinite(means)])


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


def by_amount(values: np.ndarray, groups: Amounts) -> np.ndarray:
    """`[seeds, groups]`: means of values `[seeds, clients]`."""
    places = range(len(groups.sizes))
    return np.stack([np.nanmean(values[:, groups.group == place], axis=1) for place in places], axis=1)
