"""Verdicts: intervals and powers against scipy and simulation, decisions against their truth tables."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from scipy import stats

from headstart.statistics.clients import bootstrap
from headstart.statistics.two_way import two_way
from headstart.statistics.verdicts import (
    LEAST_SEEDS,
    LEAST_SEEDS_FOR_SPREAD,
    Difference,
    Power,
    decide,
    decide_most,
    difference,
    holm,
    power,
    spread,
    t_interval,
)

EVERYWHERE = (-math.inf, math.inf)


def made(generator: np.random.Generator, shape: tuple[int, ...], parts: tuple[float, float, float]) -> np.ndarray:
    """`[..., seeds, clients]` with standard deviations of seeds, of clients and of the rest."""
    *many, seeds, clients = shape
    of_seeds = generator.normal(0, parts[0], (*many, seeds, 1))
    of_clients = generator.normal(0, parts[1], (*many, 1, clients))
    return of_seeds + of_clients + generator.normal(0, parts[2], shape)


@pytest.mark.parametrize("count", [2, 3, 5, 20])
@pytest.mark.parametrize("level", [0.8, 0.95])
def test_the_t_interval_is_that_of_scipy(count: int, level: float) -> None:
    values = np.random.default_rng(count).normal(0.3, 2.0, count)
    expected = stats.ttest_1samp(values, 0).confidence_interval(level)
    np.testing.assert_allclose(t_interval(values, level=level), expected)


def test_a_single_value_has_no_bounds() -> None:
    assert t_interval(np.array([0.7])) == EVERYWHERE


def test_a_difference_has_a_two_way_interval_and_one_over_seeds_and_one_over_clients() -> None:
    values = made(np.random.default_rng(0), (6, 40), (0.1, 0.3, 0.2)) + 0.05
    found = difference(values)
    assert found.mean == pytest.approx(values.mean())
    np.testing.assert_allclose(found.over_seeds, stats.ttest_1samp(values.mean(axis=1), 0).confidence_interval())
    assert found.over_clients == bootstrap(values.mean(axis=0))
    assert found.interval == two_way(values).interval()
    assert (found.seeds, found.clients) == (6, 40)


@pytest.mark.parametrize("lost", [math.nan, math.inf])
def test_clients_without_a_value_in_every_seed_are_left_out(lost: float) -> None:
    values = made(np.random.default_rng(1), (5, 12), (0.1, 0.1, 0.1))
    damaged = values.copy()
    damaged[2, 3] = damaged[:, 7] = lost
    assert difference(damaged) == difference(np.delete(values, [3, 7], axis=1))
    assert difference(damaged).clients == 10


def test_without_clients_and_with_a_single_one_nothing_is_decided() -> None:
    nobody = difference(np.full((8, 3), np.nan))
    assert math.isnan(nobody.mean) and set(nobody[1:4]) == {EVERYWHERE}
    assert (nobody.sign, nobody.clients) == (0, 0)
    alone = difference(1 + 1e-3 * np.random.default_rng(0).normal(size=(8, 1)))
    assert alone.over_seeds[0] > 0 and alone.over_clients == EVERYWHERE and alone.sign == 0


@pytest.mark.parametrize("seeds", range(1, 8))
@pytest.mark.parametrize("side", [1, -1])
def test_fewer_than_five_seeds_never_decide(seeds: int, side: int) -> None:
    values = side * (1 + 1e-6 * np.random.default_rng(2).normal(size=(seeds, 30)))
    assert difference(values).sign == (side if seeds >= LEAST_SEEDS == 5 else 0)


INTERVALS = {1: (0.1, 0.3), 0: (-0.1, 0.2), -1: (-0.4, -0.2)}


@pytest.mark.parametrize(("both", "over_seeds", "over_clients"), list(product(INTERVALS, repeat=3)))
def test_the_two_way_interval_alone_decides(both: int, over_seeds: int, over_clients: int) -> None:
    found = Difference(0.0, INTERVALS[both], INTERVALS[over_seeds], INTERVALS[over_clients], 5, 10)
    assert found.sign == both


def test_where_seeds_and_clients_are_in_doubt_alike_two_intervals_are_not_enough() -> None:
    """Each of them excludes zero, and what both doubts leave together does not."""
    generator = np.random.default_rng(11)
    values = generator.normal(0, 1, (10, 1)) * math.sqrt(10) + generator.normal(0, 1, (1, 150)) * math.sqrt(150)
    values += 2.6 - values.mean()
    found = difference(values)
    assert found.over_seeds[0] > 0 and found.over_clients[0] > 0 and found.sign == 0


def test_an_interval_that_touches_zero_does_not_exclude_it() -> None:
    assert Difference(0.1, (0.0, 0.2), (0.1, 0.2), (0.1, 0.2), 5, 10).sign == 0
    assert Difference(-0.1, (-0.2, 0.0), (-0.2, -0.1), (-0.2, -0.1), 5, 10).sign == 0


@pytest.mark.parametrize(
    ("signs", "all_of_them", "most_of_them"),
    [
        ([], "inconclusive", "inconclusive"),
        ([1], "holds", "holds"),
        ([0], "inconclusive", "inconclusive"),
        ([-1], "does not hold", "does not hold"),
        ([1, 1, 1], "holds", "holds"),
        ([1, 0], "inconclusive", "holds"),
        ([1, 0, 0], "inconclusive", "inconclusive"),
        ([1, 1, 0, 0], "inconclusive", "holds"),
        ([1, -1], "does not hold", "inconclusive"),
        ([1, 1, 1, -1], "does not hold", "inconclusive"),
        ([0, -1], "does not hold", "does not hold"),
        ([0, 0, -1], "does not hold", "inconclusive"),
        ([-1, -1], "does not hold", "does not hold"),
    ],
)
def test_what_signs_decide(signs: list[int], all_of_them: str, most_of_them: str) -> None:
    for order in (signs, signs[::-1]):
        assert (decide(order), decide_most(order)) == (all_of_them, most_of_them)


def test_the_wider_of_two_is_told_by_the_correlation_of_sum_and_difference() -> None:
    """Pitman and Morgan: cov(x + y, x - y) = var x - var y, and the correlation is tested with n - 2 degrees."""
    generator = np.random.default_rng(3)
    wide, narrow = generator.normal(0, 3, 20), generator.normal(0, 1, 20)
    found = spread(alike(wide), alike(narrow))
    assert found.sign == 1 and found.seeds == 20
    assert found.ratio == pytest.approx(math.sqrt(wide.var(ddof=1) / narrow.var(ddof=1)))
    fisher = stats.pearsonr(wide + narrow, wide - narrow).confidence_interval(0.95)
    np.testing.assert_allclose(found.over_seeds, fisher, rtol=1e-4)


def alike(values: np.ndarray) -> np.ndarray:
    """Two clients of the same values, which leave all doubt to the seeds."""
    return np.stack([values, values], axis=1)


def test_a_spread_that_one_client_makes_is_not_decided() -> None:
    generator = np.random.default_rng(7)
    first, second = generator.normal(0, 0.1, (2, 20, 8))
    assert spread(3 * first, second).sign == 1
    first[:, 0] += generator.normal(0, 3, 20)
    found = spread(first, 2 * second)
    assert found.over_seeds[0] > 0 > found.over_clients[0] and found.sign == 0
    assert spread(first[:, :1], second[:, :1]).sign == 0


def test_swapping_the_two_turns_the_comparison_around() -> None:
    generator = np.random.default_rng(4)
    first, second = generator.normal(0, 1, (2, 15))
    first, second = alike(first), alike(second)
    one, other = spread(first, 2.5 * second), spread(2.5 * second, first)
    np.testing.assert_allclose(one.over_seeds, [-end for end in reversed(other.over_seeds)])
    assert one.sign == -other.sign == -1 and one.ratio * other.ratio == pytest.approx(1)


@pytest.mark.parametrize("seeds", range(2, 13))
def test_fewer_than_ten_seeds_do_not_tell_spreads_apart(seeds: int) -> None:
    generator = np.random.default_rng(seeds)
    found = spread(alike(generator.normal(0, 1000, seeds)), alike(generator.normal(0, 0.01, seeds)))
    assert found.sign == (1 if seeds >= LEAST_SEEDS_FOR_SPREAD == 10 else 0)


def test_equal_spreads_are_told_apart_as_seldom_as_the_interval_says() -> None:
    pairs = np.random.default_rng(5).normal(0, 1, (1000, 2, 12))
    wrong = np.mean([spread(alike(one), alike(other), resamples=2).sign != 0 for one, other in pairs])
    assert 0.02 < wrong < 0.08


@pytest.mark.parametrize("level", [0.0, 0.1, 0.7])
def test_constants_and_multiples_have_a_spread_too(level: float) -> None:
    values, constant = alike(np.random.default_rng(6).normal(0, 1, 12)), np.full((12, 2), level)
    assert spread(values, constant).sign == 1 and spread(constant, values).sign == -1
    assert spread(2 * values, values).sign == 1 and spread(2 * values, values).ratio == pytest.approx(2)
    same = spread(values, values)
    assert (same.ratio, same.over_seeds, same.over_clients, same.seeds) == (1.0, (-1.0, 1.0), (0.0, 0.0), 12)
    assert same.interval == pytest.approx((-1.0, 1.0)) and same.sign == 0
    assert spread(constant, constant + 0.2).sign == 0


PARTS = (0.02, 0.05, 0.2)


def test_the_predicted_errors_are_those_of_the_variance_components() -> None:
    """From many pilots: by seeds sqrt((s² + r²/clients)/seeds), by clients sqrt((c² + r²/seeds)/clients)."""
    seeds, clients = 7, 50
    pilots = made(np.random.default_rng(7), (300, 4, 60), PARTS)
    found = [power(pilot, seeds=seeds, clients=clients) for pilot in pilots]
    by_seeds = math.sqrt((PARTS[0] ** 2 + PARTS[2] ** 2 / clients) / seeds)
    by_clients = math.sqrt((PARTS[1] ** 2 + PARTS[2] ** 2 / seeds) / clients)
    reach = stats.t.ppf(0.975, seeds - 1) + stats.t.ppf(0.8, seeds - 1), stats.norm.ppf(0.975) + stats.norm.ppf(0.8)
    squares = np.square([(each.by_seeds / reach[0], each.by_clients / reach[1]) for each in found])
    np.testing.assert_allclose(np.sqrt(squares.mean(axis=0)), (by_seeds, by_clients), rtol=0.08)


def test_the_predicted_errors_are_those_of_simulated_means() -> None:
    """Over seeds clients stay the same ones, and over clients seeds do."""
    generator = np.random.default_rng(8)
    found = power(made(generator, (40, 400), PARTS), seeds=6, clients=30)
    reach = stats.t.ppf(0.975, 5) + stats.t.ppf(0.8, 5), stats.norm.ppf(0.975) + stats.norm.ppf(0.8)
    other_seeds = made(generator, (4000, 6, 30), (PARTS[0], 0.0, PARTS[2])).mean(axis=(1, 2)).std()
    other_clients = made(generator, (4000, 6, 30), (0.0, PARTS[1], PARTS[2])).mean(axis=(1, 2)).std()
    assert found.by_seeds / reach[0] == pytest.approx(other_seeds, rel=0.15)
    assert found.by_clients / reach[1] == pytest.approx(other_clients, rel=0.15)


@pytest.mark.parametrize("seeds", [5, 12])
def test_a_difference_as_small_as_predicted_is_decided_four_times_in_five(seeds: int) -> None:
    generator = np.random.default_rng(12)
    found = power(made(generator, (60, 300), PARTS), seeds=seeds, clients=60)
    values = made(generator, (400, seeds, 60), PARTS) + found.smallest
    decided = [two_way(each).interval()[0] > 0 for each in values]
    assert np.mean(decided) == pytest.approx(0.8, abs=0.07)


@pytest.mark.parametrize("seeds", [5, 12])
def test_either_interval_alone_decides_as_it_is_predicted(seeds: int) -> None:
    generator = np.random.default_rng(9)
    clients = 60
    found = power(made(generator, (60, 300), PARTS), seeds=seeds, clients=clients)
    values = made(generator, (3000, seeds, clients), (PARTS[0], 0.0, PARTS[2])) + found.by_seeds
    statistic, chance = map(np.asarray, stats.ttest_1samp(values.mean(axis=2), 0, axis=1))
    assert np.mean((chance < 0.05) & (statistic > 0)) == pytest.approx(0.8, abs=0.07)
    values = made(generator, (150, seeds, clients), (0.0, PARTS[1], PARTS[2])) + found.by_clients
    decided = np.mean([bootstrap(each, resamples=300)[0] > 0 for each in values.mean(axis=1)])
    assert decided == pytest.approx(0.8, abs=0.1)


def test_both_doubts_need_more_than_either_and_clients_without_values_do_not_count() -> None:
    pilot = made(np.random.default_rng(10), (4, 30), PARTS)
    damaged = np.concatenate([pilot, np.full((4, 2), np.nan)], axis=1)
    found = power(damaged, seeds=5, clients=30)
    assert found == power(pilot, seeds=5, clients=30)
    assert max(found.by_seeds, found.by_clients) <= found.smallest < math.hypot(found.by_seeds, found.by_clients)


@pytest.mark.parametrize("pilot", [np.zeros((1, 9)), np.zeros((4, 1)), np.full((4, 9), np.nan)])
def test_a_pilot_without_seeds_or_clients_promises_nothing(pilot: np.ndarray) -> None:
    assert power(pilot, seeds=5, clients=30) == Power(math.inf, math.inf, math.inf, 5, 30)


def test_an_interval_over_seeds_and_clients_holds_the_truth_as_often_as_it_says() -> None:
    """Where both vary, intervals over either alone do not: another run is of other clients too."""
    generator = np.random.default_rng(2)
    held: dict[str, list[bool]] = {"both": [], "seeds": [], "clients": []}
    for number in range(600):
        values = generator.normal(0, 1, (6, 1)) + generator.normal(0, 2.5, (1, 40)) + generator.normal(0, 3, (6, 40))
        low, high = two_way(values).interval()
        held["both"].append(low < 0 < high)
        # These take their time, and are off by more than a hundred of them can miss.
        if number < 100:
            found = difference(values)
            held["seeds"].append(found.over_seeds[0] < 0 < found.over_seeds[1])
            held["clients"].append(found.over_clients[0] < 0 < found.over_clients[1])
    both, seeds, clients = (np.mean(each) for each in held.values())
    assert 0.93 < both < 0.99
    assert clients < seeds < both


def test_where_only_seeds_or_only_clients_vary_it_is_an_ordinary_t_test() -> None:
    generator = np.random.default_rng(4)
    column = generator.normal(0.4, 1, 7)
    for values in (np.tile(column[:, None], (1, 9)), np.tile(column, (9, 1))):
        found, plain = two_way(values), stats.ttest_1samp(column, 0)
        assert found.p == pytest.approx(plain.pvalue)
        assert found.interval() == pytest.approx(tuple(plain.confidence_interval(0.95)))


def test_one_seed_or_one_client_bounds_nothing() -> None:
    for values in (np.ones((1, 5)), np.ones((5, 1))):
        found = two_way(values)
        assert found.mean == 1 and found.interval() == (-math.inf, math.inf) and found.p == 1.0
    assert two_way(np.zeros((5, 5))).p == 1.0 and two_way(np.ones((5, 5))).p == 0.0
    nothing = two_way(np.full((5, 5), np.nan))
    assert math.isnan(nothing.mean) and nothing.p == 1.0


@pytest.mark.parametrize(
    ("p_values", "expected"),
    [
        ([0.01, 0.04, 0.03, 0.005], [True, False, False, True]),
        ([0.04], [True]),
        ([0.02, 0.02], [True, True]),
        ([0.03, 0.03], [False, False]),
        ([], []),
    ],
)
def test_holm_stops_at_the_first_that_is_too_large(p_values: list[float], expected: list[bool]) -> None:
    assert holm(p_values) == expected
