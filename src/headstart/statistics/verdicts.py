"""Verdicts of comparisons, by a rule that is fixed before anything is measured.

A difference is decided only if two intervals exclude zero on the same side: a t-interval over seeds of the clients'
mean, and a bootstrap over clients of the seeds' mean. The first asks whether another training run would say the same,
the second whether other clients would.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from scipy import stats

from headstart.statistics.clients import bootstrap

Decision = Literal["holds", "does not hold", "inconclusive"]
LEAST_SEEDS = 5
LEAST_SEEDS_FOR_SPREAD = 10
POWER = 0.8


class Difference(NamedTuple):
    """The mean of a paired difference and its two 95 % intervals.

    over_seeds: by t, of the clients' mean in each seed. over_clients: by bootstrap, of the seeds' mean in each client.
    """

    mean: float
    over_seeds: tuple[float, float]
    over_clients: tuple[float, float]
    seeds: int
    clients: int

    @property
    def sign(self) -> int:
        """1 or -1 where both intervals lie on one side of zero and the seeds are enough; 0 is inconclusive."""
        if self.seeds < LEAST_SEEDS:
            return 0
        return _side(self.over_seeds, self.over_clients)


def _side(*intervals: tuple[float, float]) -> int:
    """The side of zero on which all intervals lie; 0 without one."""
    lows, highs = zip(*intervals, strict=True)
    return 1 if min(lows) > 0 else -1 if max(highs) < 0 else 0


def difference(values: np.ndarray) -> Difference:
    """The mean and intervals of paired differences `[seeds, clients]`.

    Clients without a value in every seed (NaN) are left out. A single client gives no interval over clients: however
    often it is drawn, its mean is the same.
    """
    values = values[:, np.isfinite(values).all(axis=0)]
    seeds, clients = values.shape
    if not clients:
        return Difference(math.nan, (-math.inf, math.inf), (-math.inf, math.inf), seeds, 0)
    over_clients = bootstrap(values.mean(axis=0)) if clients > 1 else (-math.inf, math.inf)
    return Difference(float(values.mean()), t_interval(values.mean(axis=1)), over_clients, seeds, clients)


def t_interval(values: np.ndarray, *, level: float = 0.95) -> tuple[float, float]:
    """The t-interval of the mean of `values` `[n]`; without bounds for a single one."""
    if len(values) < 2:
        return -math.inf, math.inf
    half = stats.t.ppf((1 + level) / 2, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    return float(values.mean() - half), float(values.mean() + half)


def decide(signs: Sequence[int]) -> Decision:
    """The decision on a claim that needs all comparisons positive, which one decidedly negative refutes."""
    if any(sign < 0 for sign in signs):
        return "does not hold"
    return "holds" if signs and all(sign > 0 for sign in signs) else "inconclusive"


def decide_most(signs: Sequence[int]) -> Decision:
    """The decision on a claim about a tendency: half of the comparisons for it and none against, or the reverse."""
    positive, negative = sum(sign > 0 for sign in signs), sum(sign < 0 for sign in signs)
    if positive and not negative and 2 * positive >= len(signs):
        return "holds"
    return "does not hold" if negative and not positive and 2 * negative >= len(signs) else "inconclusive"


class Spread(NamedTuple):
    """Two standard deviations over seeds, and the correlation that tells them apart (Pitman 1939, Morgan 1939).

    ratio: of the first over the second. over_seeds, over_clients: 95 % intervals of the correlation of sum and
        difference of the pairs, which is zero if the two are as wide and positive if the first is wider.
    """

    ratio: float
    over_seeds: tuple[float, float]
    over_clients: tuple[float, float]
    seeds: int

    @property
    def sign(self) -> int:
        """1 if the first is decidedly wider, -1 if the second is; 0 is inconclusive, as with fewer than ten seeds."""
        if self.seeds < LEAST_SEEDS_FOR_SPREAD:
            return 0
        return _side(self.over_seeds, self.over_clients)


def spread(first: np.ndarray, second: np.ndarray, *, resamples: int = 2000) -> Spread:
    """Compare how widely the clients' mean of two quantities, `[seeds, clients]` each, varies over seeds.

    As of a difference, a single client gives no interval over clients.
    """
    means, clients = (first.mean(axis=1), second.mean(axis=1)), first.shape[1]
    widths = [each.std(ddof=1) for each in means]
    ratio, over_clients = float(widths[0] / widths[1]) if widths[1] > 0 else math.inf, (-1.0, 1.0)
    if clients > 1:
        drawn = np.random.default_rng(0).integers(0, clients, (resamples, clients))
        anew = [np.array([each[:, chosen].mean(axis=1) for chosen in drawn]) for each in (first, second)]
        low, high = np.quantile(_tilt(*anew), [0.025, 0.975])
        over_clients = float(low), float(high)
    return Spread(ratio, _by_seeds(*means), over_clients, len(first))


def _tilt(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The correlation of sum and difference of pairs `[..., seeds]`; zero where one of both is constant."""
    total, change = first + second, first - second
    # Not the standard deviation: rounding makes that of equal numbers a little more than zero.
    varies = (np.ptp(total, axis=-1) > 0) & (np.ptp(change, axis=-1) > 0)
    total, change = (each - each.mean(axis=-1, keepdims=True) for each in (total, change))
    length = np.sqrt((total**2).sum(axis=-1) * (change**2).sum(axis=-1))
    return np.where(varies, (total * change).sum(axis=-1) / np.where(varies, length, 1.0), 0.0)


def _by_seeds(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    if len(first) < 4 or not (np.ptp(first + second) > 0 and np.ptp(first - second) > 0):
        return -1.0, 1.0
    # Where one is constant, or a multiple of the other, the correlation is 1 or -1, and that has no atanh.
    middle = math.atanh(np.clip(_tilt(first, second), -1 + 1e-12, 1 - 1e-12))
    half = 1.96 / math.sqrt(len(first) - 3)
    return math.tanh(middle - half), math.tanh(middle + half)


class Power(NamedTuple):
    """The smallest difference that would be decided four times in five.

    by_seeds, by_clients: by each of the two intervals alone. seeds, clients: the size it is asked for.
    """

    by_seeds: float
    by_clients: float
    seeds: int
    clients: int

    @property
    def smallest(self) -> float:
        """The larger of the two."""
        return max(self.by_seeds, self.by_clients)


def power(pilot: np.ndarray, *, seeds: int, clients: int) -> Power:
    """The power of n seeds and clients, from paired differences `[pilot seeds, pilot clients]` seen beforehand.

    The variance is taken apart, as in a two-way table without repetition, into that of seeds, of clients and the rest.
    Without two seeds and two clients with values in the pilot, or two seeds asked for, no difference is small enough.
    """
    pilot = pilot[:, np.isfinite(pilot).all(axis=0)]
    count, width = pilot.shape
    if min(count, width, seeds) < 2:
        return Power(math.inf, math.inf, seeds, clients)
    by_seed, by_client, noise = _variances(pilot)
    between_seeds = max(by_seed - noise / width, 0.0)
    between_clients = max(by_client - noise / count, 0.0)
    errors = (
        math.sqrt((between_seeds + noise / clients) / seeds),
        math.sqrt((between_clients + noise / seeds) / clients),
    )
    reach = stats.t.ppf(0.975, seeds - 1) + stats.t.ppf(POWER, seeds - 1), 1.96 + stats.norm.ppf(POWER)
    return Power(float(reach[0] * errors[0]), float(reach[1] * errors[1]), seeds, clients)


class TwoWay(NamedTuple):
    """Two-way mean over seeds × clients, which are both samples: of other runs, and of other clients.

    error: its standard error. freedom: degrees of freedom of the t-distribution that it is held against.
    """

    mean: float
    error: float
    freedom: float

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """The interval of the mean; without bounds where there are not two seeds and two clients."""
        half = stats.t.ppf((1 + level) / 2, self.freedom) * self.error if self.error else 0.0
        return float(self.mean - half), float(self.mean + half)

    @property
    def p(self) -> float:
        """The p-value of a mean of zero."""
        if not math.isfinite(self.error):
            return 1.0
        if not self.error:
            return float(self.mean == 0)
        return float(2 * stats.t.sf(abs(self.mean) / self.error, self.freedom))


def two_way(values: np.ndarray) -> TwoWay:
    """The two-way mean of values `[seeds, clients]`, every seed with every client.

    Clients without a value in some seed are left out. The variance of the mean is that of the seeds' means plus that of
    the clients' means, less the noise that both hold (a two-way table without repetition); its degrees of freedom are
    Satterthwaite's.
    """
    values = values[:, np.isfinite(values).all(axis=0)]
    seeds, clients = values.shape
    if not clients:
        return TwoWay(math.nan, math.inf, 1.0)
    if min(seeds, clients) < 2:
        return TwoWay(float(values.mean()), math.inf, 1.0)
    by_seed, by_client, noise = _variances(values)
    parts = by_seed / seeds, by_client / clients, noise / (seeds * clients)
    # Estimates of the parts are noisy too: the whole is never less than one of them.
    variance = max(parts[0] + parts[1] - parts[2], parts[0], parts[1])
    doubt = sum(
        part**2 / freedom
        for part, freedom in zip(parts, (seeds - 1, clients - 1, (seeds - 1) * (clients - 1)), strict=True)
    )
    return TwoWay(float(values.mean()), math.sqrt(variance), variance**2 / doubt if doubt else 1.0)


def _variances(values: np.ndarray) -> tuple[float, float, float]:
    """The variances of the seeds' means, of the clients' means, and of the rest, in a table `[seeds, clients]`."""
    of_seeds, of_clients = values.mean(axis=1), values.mean(axis=0)
    rest = values - of_seeds[:, None] - of_clients + values.mean()
    noise = (rest**2).sum() / ((len(of_seeds) - 1) * (len(of_clients) - 1))
    return float(of_seeds.var(ddof=1)), float(of_clients.var(ddof=1)), float(noise)


def holm(p_values: Sequence[float], *, level: float = 0.05) -> list[bool]:
    """Which are decided, with the probability of any mistake among all below `level` (Holm 1979)."""
    order = np.argsort(p_values, kind="stable")
    decided = [False] * len(p_values)
    for rank, number in enumerate(order):
        if p_values[number] > level / (len(p_values) - rank):
            break
        decided[number] = True
    return decided
