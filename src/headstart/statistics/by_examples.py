"""Gain against the number of local examples: where it is shown to be positive, and where it is half of its end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from headstart.statistics.two_way import Interval
from headstart.statistics.verdicts import Difference, difference

RESAMPLES = 2000


class GainByExamples(NamedTuple):
    """The gain of the same clients with at most n local training (support) examples each.

    numbers: ascending; the last is the largest client's, with which everybody has all. clients: `[numbers]`: how many
        have at least n.
    gains: `[numbers]`: with their intervals.
    positive_from: the smallest number from which on the gain is shown to be positive; None if not even that with all
        examples is.
    half_at: the number from which on the gain is at least half of that with all examples, between numbers by the
        logarithm of 1 + n; NaN without a gain. half_interval: 95 %, by a bootstrap over clients; its upper end is
        infinite where too many resamples have no gain.
    left_out: how many clients are not in it, for they have no finite gain somewhere; then no gain is shown to be
        positive, as it may be positive for want of them.
    """

    numbers: tuple[int, ...]
    clients: tuple[int, ...]
    gains: tuple[Difference, ...]
    positive_from: int | None
    half_at: float
    half_interval: Interval
    left_out: int = 0

    @property
    def is_two_way(self) -> bool:
        """Whether decisions take seeds and clients for samples; with too few seeds, clients alone."""
        return self.gains[-1].is_two_way

    def intervals(self) -> np.ndarray:
        """float64 `[numbers, 2]`: the intervals that decide."""
        return np.array([each.interval_to_report for each in self.gains])


def gain_by_examples(gains: np.ndarray, support: np.ndarray, numbers: Sequence[int]) -> GainByExamples:
    """The curve of gains `[seeds, clients, numbers]`, positive where personalized models are better.

    support: int `[clients]`: how many examples each client has. Clients without a finite gain everywhere are left out.

    Whether a gain is positive is asked in a fixed order, from all examples to few, and no further after the first that
    is inconclusive: so the probability of any mistake among them is below that of one (Maurer, Hothorn and Lehmacher
    1995). With fewer than `LEAST_SEEDS` seeds it is decided by the interval over clients, of these trained models.
    """
    finite = np.isfinite(gains).all(axis=(0, 2))
    gains, support = gains[:, finite], support[finite]
    found = tuple(difference(gains[:, :, index]) for index in range(len(numbers)))
    made = GainByExamples(
        tuple(map(int, numbers)),
        tuple(int((support >= number).sum()) for number in numbers),
        found,
        None,
        math.nan,
        (math.nan, math.nan),
    )
    lows = made.intervals()[:, 0]
    means = gains.mean(axis=0) if len(support) else np.zeros((0, len(numbers)))
    return made._replace(
        positive_from=first_positive(lows, numbers) if finite.all() else None,
        left_out=int((~finite).sum()),
        half_at=float(half_of(means.mean(axis=0), numbers)) if len(support) else math.nan,
        half_interval=_half_interval(means, numbers),
    )


def first_positive(lows: np.ndarray, numbers: Sequence[int]) -> int | None:
    """The smallest number down to which all lower ends `[numbers]`, from the last one on, are above zero."""
    first = None
    for low, number in zip(lows[::-1], list(numbers)[::-1], strict=True):
        if not low > 0:
            break
        first = int(number)
    return first


def half_of(means: np.ndarray, numbers: Sequence[int]) -> np.ndarray:
    """float64 `[...]`: from which number on curves `[..., numbers]` are at least half of their end; NaN without one.

    Between two numbers a curve is a line over the logarithm of 1 + n.
    """
    means = np.asarray(means, np.float64)
    half, x = means[..., -1:] / 2, np.log1p(np.asarray(numbers, np.float64))
    below = means < half
    # The last number below half, and the one after it; -1 where all are above.
    last = np.where(below.any(axis=-1), below.shape[-1] - 1 - np.argmax(below[..., ::-1], axis=-1), -1)[..., None]
    before, after = np.maximum(last, 0), np.minimum(last + 1, below.shape[-1] - 1)
    low, high = (np.take_along_axis(means, index, axis=-1) for index in (before, after))
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.where(last < 0, 0.0, (half - low) / (high - low))
        found = np.expm1(x[before] + share * (x[after] - x[before]))
    return np.where(half > 0, found, np.nan)[..., 0]


def _half_interval(means: np.ndarray, numbers: Sequence[int]) -> Interval:
    """The percentile interval of `half_of` the mean of means over seeds `[clients, numbers]`, over clients."""
    count = len(means)
    if count < 2:
        return math.nan, math.nan
    drawn = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), RESAMPLES)
    found = half_of(drawn @ means / count, numbers)
    low, high = np.quantile(np.where(np.isnan(found), np.inf, found), [0.025, 0.975], method="nearest")
    return float(low), float(high)
