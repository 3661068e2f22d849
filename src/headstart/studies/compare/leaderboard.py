"""The leaderboard: every method beside FedAvg + fine-tuning, client by client."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from headstart.learning.tasks import Metric
from headstart.statistics.two_way import TwoWay, two_way
from headstart.statistics.verdicts import Difference, difference
from headstart.studies.compare.decisions import Reason, Verdict, verdicts
from headstart.studies.compare.methods import BASELINE, FEDAVG
from headstart.studies.compare.protocol import Entry


class Row(NamedTuple):
    """A method on the leaderboard; values are those of the metric, differences positive where the method is better.

    initial, personalized: over seeds and clients. gain: personalized less initial, of the same model.
    versus, over_fedavg: its personalized value less that of FedAvg + fine-tuning, and of FedAvg's global model.
    decided, over_fedavg_decided: of these, 1 better, -1 worse, corrected for the number of methods (Holm) but for
        the two of fine-tuning against FedAvg's global model; 0 is inconclusive. Lost clients never count in favour of
        the method that lost them. doubt, over_fedavg_doubt: why, where the interval alone would decide.
    operations: floating-point operations that clients compute in a run's training.
    by_seeds_and_clients: `versus` with its interval over seeds and that over clients.
    lost: the share of clients without a finite value in the end, which count as harmed and as below FedAvg.
    harmed, by_chance: the share of clients whose own value gets worse, and the share expected from test noise, at most.
        beyond_chance: whether the first is larger in most seeds; None where nothing is personalized.
    below_fedavg: the share of clients with a worse value than that of FedAvg's global model.
    worst_tenth: the mean of the bottom 10 % of clients.
    rounds, examples, sent, seconds: a run's rounds, examples that clients train on, bytes and time of training.
    epochs: of personalization. rates: of personalization, the least and the greatest that a seed chose.
    grid: what is counted in place of epochs, and how many there are; None for epochs.
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
    examples: float
    sent: float
    seconds: float
    epochs: float
    learning_rates: tuple[float, float]
    doubt: Reason = ""
    over_fedavg_doubt: Reason = ""
    operations: float = 0.0
    grid: tuple[str, int] | None = None

    @property
    def verdict(self) -> Verdict:
        """The decision against FedAvg + fine-tuning."""
        return Verdict(self.decided, self.doubt)

    @property
    def over_fedavg_verdict(self) -> Verdict:
        """The decision against FedAvg (global model)."""
        return Verdict(self.over_fedavg_decided, self.over_fedavg_doubt)

    @property
    def seeds(self) -> int:
        """The number of runs."""
        return self.by_seeds_and_clients.seeds


def values_of(entry: Entry) -> np.ndarray:
    """`[seeds, clients]`: the value of the model that a client uses in the end."""
    return entry.result.personalized if entry.method.personalizes else entry.result.initial


def of_participants(entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """The entries with the results on clients that took part; empty unless all were measured on such clients."""
    found = {name: entry._replace(result=entry.participants) for name, entry in entries.items() if entry.participants}
    return found if len(found) == len(entries) else {}


def leaderboard(entries: Mapping[str, Entry], metric: Metric) -> list[Row]:
    """A row for each method, the best first."""
    versus, decided = _compared(entries, BASELINE, metric.sign)
    over_fedavg, over_fedavg_decided = _compared(entries, FEDAVG, metric.sign)
    rows = []
    for name, entry in entries.items():
        by_two = difference(metric.sign * (values_of(entry) - values_of(entries[BASELINE])))
        against = versus[name], decided[name].side, over_fedavg[name], over_fedavg_decided[name].side, by_two
        row = _row(entry, against, values_of(entries[FEDAVG]), metric.sign)
        reasons = decided[name].reason, over_fedavg_decided[name].reason
        rows.append(row._replace(doubt=reasons[0], over_fedavg_doubt=reasons[1], operations=entry.operations))
    # One that lost all clients has no mean, and is last.
    return sorted(rows, key=lambda row: np.nan_to_num(-metric.sign * row.personalized.mean, nan=np.inf))


def _compared(entries: Mapping[str, Entry], reference: str, sign: int) -> tuple[dict[str, TwoWay], dict[str, Verdict]]:
    """How much better each method is than the reference, and the decisions."""
    final = {name: values_of(entry) for name, entry in entries.items()}
    found = {name: two_way(sign * (values - final[reference])) for name, values in final.items()}
    lost = {name: not np.isfinite(values).all() for name, values in final.items()}
    return found, verdicts(found, lost, reference=reference, primary=primary_of(reference), seeds=len(final[reference]))


def primary_of(reference: str) -> str:
    """The method whose comparison with a reference is the primary question: each of the two is the other's."""
    return FEDAVG if reference == BASELINE else BASELINE


def _row(entry: Entry, against: tuple[TwoWay, int, TwoWay, int, Difference], fedavg: np.ndarray, sign: int) -> Row:
    result, final = entry.result, values_of(entry)
    gains, lost = sign * (final - result.initial), ~np.isfinite(final)
    personalizes = entry.method.personalizes
    return Row(
        entry.method.name,
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
        entry.examples,
        entry.sent,
        float(np.median(result.seconds)),
        float(np.mean(result.epochs)) if personalizes else 0.0,
        (float(result.personal_rates.min()), float(result.personal_rates.max())),
        grid=entry.method.personal_grid,
    )


def _worst_tenth(values: np.ndarray, sign: int) -> float:
    """The mean over seeds of the mean of the bottom 10 % of clients, one at least."""
    count = max(1, values.shape[1] // 10)
    ordered = np.sort(np.where(np.isfinite(values), sign * values, -np.inf), axis=1)
    return float(sign * ordered[:, :count].mean())


class SizeGroups(NamedTuple):
    """Clients grouped by their number of local training (support) examples.

    sizes: `[groups]`: the mean number of examples. clients: `[groups]`: how many. group: `[clients]`: the index of its
    group.
    """

    sizes: np.ndarray
    clients: np.ndarray
    group: np.ndarray


def size_groups(sizes: np.ndarray, *, most: int = 4) -> SizeGroups:
    """At most `most` groups of about as many clients; clients with equally many examples are in one group."""
    edges = np.unique(np.quantile(sizes, np.linspace(0, 1, most + 1)[1:-1], method="higher"))
    group = np.searchsorted(edges, sizes, side="right")
    present, group = np.unique(group, return_inverse=True)
    indices = range(len(present))
    return SizeGroups(
        np.array([sizes[group == index].mean() for index in indices]),
        np.array([int((group == index).sum()) for index in indices]),
        group,
    )


class GroupGain(NamedTuple):
    """The gain from fine-tuning in a group of clients: their mean number of examples, their number, and the gain."""

    size: float
    clients: int
    gain: TwoWay


def gain_by_data_size(entries: Mapping[str, Entry], sizes: np.ndarray, metric: Metric) -> list[GroupGain]:
    """The gain from fine-tuning FedAvg, over the model that it starts from, for clients grouped by size.

    sizes: `[clients]`: the number of local training examples of each.
    """
    tuned, groups = entries[BASELINE], size_groups(sizes)
    gain = metric.sign * (values_of(tuned) - tuned.result.initial)
    return [
        GroupGain(float(size), int(clients), two_way(gain[:, groups.group == index]))
        for index, (size, clients) in enumerate(zip(groups.sizes, groups.clients, strict=True))
    ]


def group_means(values: np.ndarray, groups: SizeGroups) -> np.ndarray:
    """`[seeds, groups]`: means of values `[seeds, clients]`."""
    indices = range(len(groups.sizes))
    return np.stack([np.nanmean(values[:, groups.group == index], axis=1) for index in indices], axis=1)
