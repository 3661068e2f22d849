"""Verdicts of comparisons, by a rule that is fixed before anything is measured.

A difference is decided only if its two-way interval excludes zero: the one that takes both seeds and clients for
samples, and so asks whether another training run, measured on other clients, would say the same. An interval over
seeds and one over clients stand beside it, to show where the doubt comes from, and decide nothing: where seeds and
clients vary alike, both of them exclude zero for up to 11 % of true ties (tests/test_false_positives.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from headstart.statistics.clients import bootstrap
from headstart.statistics.distributions import t_quantile
from headstart.statistics.two_way import UNBOUNDED, Interval, freedom, square_and_add, two_way, variances

Decision = Literal["holds", "does not hold", "inconclusive"]
LEAST_SEEDS = 5
LEAST_SEEDS_FOR_SPREAD = 10
POWER = 0.8
_ALMOST_ONE = 1 - 1e-12


class Difference(NamedTuple):
    """The mean of a paired difference and its 95 % intervals.

    interval: two-way, by which it is decided. over_seeds: by t, of the clients' mean in each seed. over_clients: by
    bootstrap, of the seeds' mean in each client.
    """

    mean: float
    interval: Interval
    over_seeds: Interval
    over_clients: Interval
    seeds: int
    clients: int

    @property
    def is_two_way(self) -> bool:
        """Whether the seeds are enough to decide by the two-way interval."""
        return self.seeds >= LEAST_SEEDS

    @property
    def sign(self) -> int:
        """1 or -1 where the two-way interval lies on one side of zero and the seeds are enough; 0 is inconclusive."""
        return _side(self.interval) if self.is_two_way else 0

    @property
    def interval_to_report(self) -> Interval:
        """The two-way interval; with too few seeds the one over clients, which speaks of these trained models alone."""
        return self.interval if self.is_two_way else self.over_clients


def _side(interval: Interval) -> int:
    """The side of zero on which an interval lies; 0 without one."""
    low, high = interval
    return 1 if low > 0 else -1 if high < 0 else 0


def difference(values: np.ndarray) -> Difference:
    """The mean and intervals of paired differences `[seeds, clients]`.

    Clients without a value in every seed (NaN) are left out. A single client gives no interval over clients: however
    often it is drawn, its mean is the same.
    """
    values = values[:, np.isfinite(values).all(axis=0)]
    seeds, clients = values.shape
    if not clients:
        return Difference(math.nan, UNBOUNDED, UNBOUNDED, UNBOUNDED, seeds, 0)
    over_clients = bootstrap(values.mean(axis=0)) if clients > 1 else UNBOUNDED
    found = two_way(values)
    return Difference(found.mean, found.interval(), t_interval(values.mean(axis=1)), over_clients, seeds, clients)


def t_interval(values: np.ndarray, *, level: float = 0.95) -> Interval:
    """The t-interval of the mean of `values` `[n]`; without bounds for a single one."""
    if len(values) < 2:
        return UNBOUNDED
    half = t_quantile((1 + level) / 2, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
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

    ratio: of the first over the second. interval, over_seeds, over_clients: 95 % intervals of the correlation of sum
        and difference of the pairs, which is zero if the two are as wide and positive if the first is wider; the first
        of them takes both seeds and clients for samples.
    """

    ratio: float
    interval: Interval
    over_seeds: Interval
    over_clients: Interval
    seeds: int

    @property
    def sign(self) -> int:
        """1 if the first is decidedly wider, -1 if the second is; 0 is inconclusive, as with fewer than ten seeds."""
        return _side(self.interval) if self.seeds >= LEAST_SEEDS_FOR_SPREAD else 0


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
    over_seeds = _by_seeds(*means)
    return Spread(ratio, correlation_interval(over_seeds, over_clients), over_seeds, over_clients, len(first))


def correlation_interval(over_seeds: Interval, over_clients: Interval) -> Interval:
    """The interval of a correlation that takes both for samples, from that over seeds and that over clients.

    They are squared and added where a correlation is nearly normal (Fisher's transformation), in which the interval
    over seeds is symmetric.
    """
    # A correlation of 1 or -1 has no atanh.
    seeds, clients = np.arctanh(np.clip((over_seeds, over_clients), -_ALMOST_ONE, _ALMOST_ONE))
    low, high = square_and_add(float(seeds.mean()), tuple(seeds), tuple(clients))
    return math.tanh(low), math.tanh(high)


def _tilt(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The correlation of sum and difference of pairs `[..., seeds]`; zero where one of both is constant."""
    total, change = first + second, first - second
    # Not the standard deviation: rounding makes that of equal numbers a little more than zero.
    varies = (np.ptp(total, axis=-1) > 0) & (np.ptp(change, axis=-1) > 0)
    total, change = (each - each.mean(axis=-1, keepdims=True) for each in (total, change))
    length = np.sqrt((total**2).sum(axis=-1) * (change**2).sum(axis=-1))
    return np.where(varies, (total * change).sum(axis=-1) / np.where(varies, length, 1.0), 0.0)


def _by_seeds(first: np.ndarray, second: np.ndarray) -> Interval:
    if len(first) < 4 or not (np.ptp(first + second) > 0 and np.ptp(first - second) > 0):
        return -1.0, 1.0
    # Where one is constant, or a multiple of the other, the correlation is 1 or -1.
    middle = math.atanh(np.clip(_tilt(first, second), -_ALMOST_ONE, _ALMOST_ONE))
    half = 1.96 / math.sqrt(len(first) - 3)
    return math.tanh(middle - half), math.tanh(middle + half)


class Power(NamedTuple):
    """The smallest difference that would be decided four times in five.

    by_seeds, by_clients: by the interval over seeds and that over clients alone. seeds, clients: the size it is asked
    for.
    """

    smallest: float
    by_seeds: float
    by_clients: float
    seeds: int
    clients: int


def power(pilot: np.ndarray, *, seeds: int, clients: int) -> Power:
    """The power of n seeds and clients, from paired differences `[pilot seeds, pilot clients]` seen beforehand.

    The variance is taken apart, as in a two-way table without repetition, into that of seeds, of clients and the rest.
    Without two seeds and two clients with values in the pilot, or two of each asked for, no difference is small enough.
    """
    pilot = pilot[:, np.isfinite(pilot).all(axis=0)]
    count, width = pilot.shape
    if min(count, width, seeds, clients) < 2:
        return Power(math.inf, math.inf, math.inf, seeds, clients)
    by_seed, by_client, noise = variances(pilot)
    of_seeds = (max(by_seed - noise / width, 0.0) + noise / clients) / seeds
    of_clients = (max(by_client - noise / count, 0.0) + noise / seeds) / clients
    both = of_seeds + of_clients - noise / (seeds * clients)
    smallest = _reach(float(freedom(both, of_seeds, seeds, clients))) * math.sqrt(both)
    by_seeds, by_clients = _reach(seeds - 1) * math.sqrt(of_seeds), _reach(math.inf) * math.sqrt(of_clients)
    return Power(smallest, by_seeds, by_clients, seeds, clients)


def _reach(degrees: float) -> float:
    """Standard errors that a mean must be from zero for its interval to exclude it four times in five."""
    return t_quantile(0.975, degrees) + t_quantile(POWER, degrees)


def holm(p_values: Sequence[float], *, level: float = 0.05) -> list[bool]:
    """Which are decided, with the probability of any mistake among all below `level` (Holm 1979)."""
    order = np.argsort(p_values, kind="stable")
    decided = [False] * len(p_values)
    for rank, number in enumerate(order):
        if p_values[number] > level / (len(p_values) - rank):
            break
        decided[number] = True
    return decided
