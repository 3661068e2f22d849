"""How often the rule of verdicts decides a tie, at the sizes of the studies, in tables whose truth is known."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from headstart.statistics.by_examples import first_positive, gain_by_examples
from headstart.statistics.two_way import error_parts, freedom, square_and_add, two_way
from headstart.statistics.verdicts import difference, spread, t_interval

CLIENTS: dict[str, Callable[..., np.ndarray]] = {
    "normal": lambda generator, shape: generator.normal(0, 1, shape),
    # Of skewness 2: most clients lose a little, a few gain much.
    "skewed": lambda generator, shape: generator.exponential(1, shape) - 1,
}
RATIOS = (0.0, 0.5, 1.0, 2.0, 4.0)  # of the error that seeds leave in a mean over that of clients; and
NOISES = (0.1, 1.0)  # of what is neither


def ties(
    generator: np.random.Generator, shape: tuple[int, ...], clients: str, ratio: float, noise: float
) -> np.ndarray:
    """Tables `[tables, seeds, clients]` of differences that are zero in truth."""
    tables, n_seeds, n_clients = shape
    of_seeds = math.sqrt(n_seeds) * ratio * generator.normal(0, 1, (tables, n_seeds, 1))
    of_clients = math.sqrt(n_clients) * CLIENTS[clients](generator, (tables, 1, n_clients))
    return of_seeds + of_clients + noise * math.sqrt(n_seeds * n_clients) * generator.normal(0, 1, shape)


def decided(values: np.ndarray) -> np.ndarray:
    """Which of the tables `two_way` decides, all of them at once."""
    variance, of_seeds = error_parts(values)
    reach = stats.t.ppf(0.975, freedom(variance, of_seeds, *values.shape[1:]))
    return np.abs(values.mean(axis=(1, 2))) > reach * np.sqrt(variance)


def decided_by_two_intervals(values: np.ndarray) -> np.ndarray:
    """Which of them a t-interval over seeds and one over clients both decide, as the rule was before."""
    each = (values.mean(axis=2), stats.t.ppf(0.975, values.shape[1] - 1)), (values.mean(axis=1), 1.96)
    mean = np.abs(values.mean(axis=(1, 2)))
    far = [mean > reach * means.std(axis=1, ddof=1) / math.sqrt(means.shape[1]) for means, reach in each]
    return far[0] & far[1]


def test_all_at_once_are_decided_as_one_by_one() -> None:
    values = ties(np.random.default_rng(0), (60, 5, 20), "skewed", 1.0, 0.5)
    one_by_one = [not low < 0 < high for low, high in (two_way(each).interval() for each in values)]
    assert decided(values).tolist() == one_by_one == [difference(each).sign != 0 for each in values]
    assert any(one_by_one)


@pytest.mark.parametrize("clients", CLIENTS)
def test_no_more_ties_are_decided_than_the_interval_says(clients: str) -> None:
    generator = np.random.default_rng(1)
    shares = {
        (ratio, noise): decided(ties(generator, (2000, 5, 149), clients, ratio, noise)).mean()
        for ratio in RATIOS
        for noise in NOISES
    }
    assert max(shares.values()) <= 0.06 + 2 * math.sqrt(0.06 / 2000), shares
    assert shares[1.0, 0.1] > 0.03, "a rule that decides nothing would pass as well"


@pytest.mark.slow
@pytest.mark.parametrize("clients", CLIENTS)
@pytest.mark.parametrize("size", [(5, 149), (5, 398), (5, 504), (5, 800), (8, 149), (8, 504), (10, 149), (10, 504)])
def test_at_most_six_in_a_hundred_ties_are_decided_at_every_size(size: tuple[int, int], clients: str) -> None:
    generator = np.random.default_rng(2)
    for ratio in RATIOS:
        for noise in NOISES:
            tables = (ties(generator, (500, *size), clients, ratio, noise) for _ in range(16))
            assert np.mean([decided(each) for each in tables]) <= 0.06, (ratio, noise)


def test_two_intervals_that_exclude_zero_decide_more_ties_than_either() -> None:
    """Where seeds and clients vary alike, as many as ten in a hundred: the rule of earlier pages."""
    values = ties(np.random.default_rng(3), (4000, 10, 149), "normal", 1.0, 0.1)
    assert decided_by_two_intervals(values).mean() > 0.09
    assert decided(values).mean() <= 0.06


def test_spreads_that_are_equal_are_told_apart_as_seldom() -> None:
    """Where every client answers to a seed in its own way, other clients would find other spreads."""
    generator, wrong = np.random.default_rng(4), []
    for _ in range(400):
        common, *own = generator.normal(0, 1, (3, 10, 1))
        means = [0.9 * common + math.sqrt(1 - 0.9**2) * each for each in own]
        first, second = (each * (1 + 3 * generator.normal(0, 1, (1, 60))) for each in means)
        wrong.append(spread(first, second, resamples=100).sign != 0)
    assert np.mean(wrong) <= 0.06 + 2 * math.sqrt(0.06 / 400)


def test_intervals_squared_and_added_are_no_narrower_than_the_two_way_one() -> None:
    """From them pages are decided that hold no more than these two."""
    generator = np.random.default_rng(5)
    for number in range(60):
        values = ties(generator, (1, 5, 40), "normal", RATIOS[number % 5], NOISES[number % 2])[0] + 1
        low, high = two_way(values).interval()
        of_clients = values.mean(axis=0)
        half = 1.96 * of_clients.std(ddof=1) / math.sqrt(len(of_clients) - 1)
        mean = float(values.mean())
        wide = square_and_add(mean, t_interval(values.mean(axis=1)), (mean - half, mean + half))
        assert wide[0] <= low + 0.02 * (high - low) and high - 0.02 * (high - low) <= wide[1]


@pytest.mark.parametrize("sign", [1, -1], ids=["few gain much", "few lose much"])
@pytest.mark.parametrize("clients", CLIENTS)
def test_a_gain_is_seldom_shown_with_a_number_of_examples_that_gives_none(clients: str, sign: int) -> None:
    """Of four numbers two give none in truth; each is asked for only after all larger ones."""
    generator, numbers, tables = np.random.default_rng(6), (5, 10, 50, 200), 800
    for ratio in RATIOS:
        for noise in NOISES:
            common, lows = ties(generator, (tables, 5, 149), clients, ratio, noise), []
            for gain in (0.0, 0.0, 100.0, 1000.0):
                values = gain + sign * (common + 0.5 * ties(generator, common.shape, clients, ratio, noise))
                variance, of_seeds = error_parts(values)
                reach = stats.t.ppf(0.975, freedom(variance, of_seeds, 5, 149))
                lows.append(values.mean(axis=(1, 2)) - reach * np.sqrt(variance))
            found = [first_positive(each, numbers) for each in np.transpose(lows)]
            wrong = np.mean([number in (5, 10) for number in found])
            assert wrong <= 0.06 + 2 * math.sqrt(0.06 / tables), (ratio, noise)
            assert np.mean([number is not None for number in found]) > 0.9


@pytest.mark.slow
def test_half_of_the_end_is_in_its_interval_as_often_as_it_says() -> None:
    """Of clients alone: the models are the same."""
    generator, numbers = np.random.default_rng(7), (0, 9, 99, 999)
    inside = []
    for _ in range(200):
        client = np.abs(1 + 0.5 * generator.normal(size=(1, 80, 1)))
        gains = client * np.array([0.0, 0.1, 0.3, 0.4]) + 0.1 * generator.normal(size=(2, 80, 4))
        low, high = gain_by_examples(gains, np.full(80, 999), numbers).half_interval
        inside.append(low <= math.sqrt(1000) - 1 <= high)
    assert 0.9 <= np.mean(inside) <= 0.99
