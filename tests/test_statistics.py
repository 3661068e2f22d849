"""Statistics: against plain numpy, the normal approximation and brute-force simulation."""

import json

import numpy as np
import pytest

from headstart.learning.personalization import Curves
from headstart.learning.tasks import Classification, NextCharacter, Regression
from headstart.runs.log import means
from headstart.statistics.clients import bootstrap, chance_of_harm, describe, harmed, rounds_to_target, summarize

ACCURACY, LOSS = Classification().metrics


def test_the_bootstrap_interval_of_many_clients_is_the_normal_one():
    values = np.random.default_rng(0).beta(6, 2, 400)
    low, high = bootstrap(values, resamples=4000)
    margin = 1.96 * values.std() / np.sqrt(400)
    np.testing.assert_allclose([low, high], [values.mean() - margin, values.mean() + margin], atol=0.08 * margin)
    assert bootstrap(values, seed=1) == bootstrap(values, seed=1) != bootstrap(values, seed=2)


def test_the_bootstrap_interval_is_that_of_a_plain_loop():
    values = np.random.default_rng(1).exponential(size=12)
    generator = np.random.default_rng(3)
    means = sorted(float(np.mean([values[i] for i in generator.integers(0, 12, 12)])) for _ in range(1001))
    np.testing.assert_allclose(bootstrap(values, seed=3, resamples=1001), [means[25], means[975]], rtol=1e-12)


def test_the_bootstrap_interval_covers_the_truth_about_as_often_as_it_says():
    generator = np.random.default_rng(4)
    intervals = [bootstrap(generator.beta(6, 2, 40), seed=i, resamples=400) for i in range(300)]
    covered = np.mean([low <= 0.75 <= high for low, high in intervals])
    assert 0.90 <= covered <= 0.98


def test_intervals_of_the_same_clients_are_paired():
    before = np.random.default_rng(5).normal(size=30)
    low, high = bootstrap(before)
    np.testing.assert_allclose(bootstrap(before + 0.25), (low + 0.25, high + 0.25))


def test_a_description_has_both_means_spread_and_percentiles():
    values, weights = np.array([0.2, 0.8, 0.5]), np.array([1, 8, 1])
    report = describe(values, weights)
    np.testing.assert_allclose(report["mean"], 0.5)
    np.testing.assert_allclose(report["weighted_mean"], 0.71)
    np.testing.assert_allclose(report["spread"], 0.3)
    assert report["percentiles"]["50"] == 0.5
    assert report["interval"][0] < 0.5 < report["interval"][1]
    assert describe(values[:0], weights[:0]) == {}
    assert describe(values[:1], weights[:1])["spread"] == 0.0


def simulated_harm(gather, counts, repetitions=20_000):
    generator = np.random.default_rng(6)
    return np.array([(gather(generator, (repetitions, n)).sum(axis=1) < 0).mean() for n in counts])


def test_the_chance_of_harm_to_a_share_of_right_answers_is_that_of_a_simulation():
    # An item gets better with probability 0.2, worse with 0.1.
    counts = np.array([1, 2, 7, 40])
    gain, squared = 0.1 * counts * 100.0, 0.3 * counts * 100.0

    def gather(generator, shape):
        u = generator.random(shape)
        return np.where(u < 0.2, 1, np.where(u < 0.3, -1, 0))

    pooled = chance_of_harm(np.append(gain, np.zeros(0)) / 100, squared / 100, counts.astype(float), discrete=True)
    np.testing.assert_allclose(pooled, simulated_harm(gather, counts), atol=0.012)
    np.testing.assert_allclose(pooled[0], 0.1, atol=1e-12)


def test_the_chance_of_harm_to_an_error_is_that_of_a_simulation():
    counts = np.array([2, 5, 30])
    chances = chance_of_harm(0.3 * counts, (0.3**2 + 1.5**2) * counts, counts.astype(float), discrete=False)
    simulated = simulated_harm(lambda generator, shape: generator.normal(0.3, 1.5, shape), counts)
    np.testing.assert_allclose(chances, simulated, atol=0.012)


def test_no_change_hurts_nobody_and_an_equal_loss_hurts_everybody():
    counts = np.array([3.0, 5.0])
    nothing = np.zeros(2)
    for discrete in (True, False):
        np.testing.assert_array_equal(chance_of_harm(nothing, nothing, counts, discrete=discrete), [0, 0])
        np.testing.assert_allclose(chance_of_harm(-counts, counts, counts, discrete=discrete), [1, 1])


def curves(metric, sums, counts):
    sums, counts = np.array(sums, float), np.array(counts, float)
    sign = 1 if metric.higher_is_better else -1
    gain = sign * (sums - sums[:, :1])
    return Curves({metric.name: (sums, counts)}, gain, np.abs(gain))


def test_the_share_of_hurt_clients_leaves_out_those_without_test_items():
    found = harmed(curves(ACCURACY, [[5, 4], [5, 6], [3, 3], [0, 0], [2, 1]], [10, 10, 5, 0, 4]), ACCURACY, epochs=1)
    assert found["share"] == 0.5
    assert found["chance_interval"][0] <= found["by_chance"] <= found["chance_interval"][1]
    assert harmed(curves(ACCURACY, [[0, 0]], [0]), ACCURACY, epochs=1) == {}


def test_harm_beyond_chance_is_told_from_harm_by_chance():
    generator = np.random.default_rng(7)

    def of(means):
        changes = [generator.choice([-1, 0, 1], 30, p=[0.2 - m / 2, 0.6, 0.2 + m / 2]) for m in means]
        gain = np.array([[0, c.sum()] for c in changes], float)
        squared = np.array([[0, (c**2).sum()] for c in changes], float)
        counts = np.full(len(means), 30.0)
        return harmed(Curves({"accuracy": (gain, counts)}, gain, squared), ACCURACY, epochs=1)

    alike, unlike = of([0.1] * 300), of([-0.3] * 100 + [0.3] * 200)
    assert not alike["beyond_chance"] and alike["share"] > 0.05
    assert abs(alike["share"] - alike["by_chance"]) < 0.05
    assert unlike["beyond_chance"] and unlike["share"] > unlike["by_chance"] + 0.1


def test_a_summary_reports_initial_personalized_and_their_paired_difference_as_json():
    sums = {"accuracy": [[5, 6, 7], [1, 2, 2], [0, 0, 0]], "loss": [[20, 10, 5], [4, 3, 3], [0, 0, 0]]}
    counts = np.array([10.0, 4.0, 0.0])
    gain = np.array(sums["accuracy"], float) - np.array(sums["accuracy"], float)[:, :1]
    measured = Curves({name: (np.array(s, float), counts) for name, s in sums.items()}, gain, np.abs(gain))
    report = json.loads(json.dumps(summarize(measured, Classification(), epochs=1)))
    assert (report["clients"], report["untested"], report["length"]) == (2, 1, 1)
    assert report["accuracy"]["curve"] == pytest.approx([0.375, 0.55, 0.6])
    assert report["accuracy"]["initial"]["mean"] == pytest.approx((0.5 + 0.25) / 2)
    assert report["accuracy"]["personalized"]["weighted_mean"] == pytest.approx(8 / 14)
    assert report["loss"]["difference"]["mean"] == pytest.approx((-1.0 - 0.25) / 2)
    assert report["hurt"]["share"] == 0


def test_a_perplexity_is_the_exponential_of_a_clients_mean_loss():
    perplexity = NextCharacter().metrics[2]
    values = curves(perplexity, [[0, 10 * np.log(7)]], [10]).means(perplexity)
    np.testing.assert_allclose(values, [[1, 7]])


def test_the_rounds_to_a_target_are_the_first_that_reach_it_or_none():
    rounds, values = [0, 10, 20, 30], [0.1, 0.8, 0.7, 0.9]
    assert rounds_to_target(rounds, values, 0.75, metric=ACCURACY) == 10
    assert rounds_to_target(rounds, values, 0.95, metric=ACCURACY) is None
    assert rounds_to_target(rounds, [3, 2, 1, 2], 1.5, metric=Regression().metrics[0]) == 20


def test_what_diverges_overflows_in_silence():
    task = NextCharacter()
    sums = np.array([[8.0, 4000.0], [12.0, np.inf]], np.float32)
    counts, nothing = np.array([4.0, 4.0], np.float32), np.zeros((2, 2))
    curves = Curves({metric.name: (sums, counts) for metric in task.metrics}, nothing, nothing)
    report = summarize(curves, task, epochs=1)
    assert report["perplexity"]["initial"]["mean"] == pytest.approx((np.exp(2) + np.exp(3)) / 2, rel=1e-6)
    assert report["perplexity"]["personalized"]["mean"] == np.inf
    assert (
        means(task, {metric.name: (np.float32(4000), np.float32(4)) for metric in task.metrics})["perplexity"] == np.inf
    )


def noisy(generator, gains, *, differ, items=14):
    """Clients of these true gains, of whose answers three in ten change in the mean, more of some than of others."""
    spread = (differ * 0.3) ** 2
    size = 0.3 * 0.7 / spread - 1 if differ else 0
    changed = generator.beta(0.3 * size, 0.7 * size, len(gains)) if differ else np.full(len(gains), 0.3)
    changed = np.maximum(changed, np.abs(gains))
    better = generator.binomial(items, (changed + gains) / 2)
    worse = generator.binomial(items - better, (changed - gains) / 2 / (1 - (changed + gains) / 2))
    gain, squared = (np.stack([np.zeros(len(gains)), each], axis=1) for each in (better - worse, better + worse))
    counts = np.full(len(gains), float(items))
    return harmed(Curves({"accuracy": (gain, counts)}, gain, squared), ACCURACY, epochs=1)


def test_what_test_noise_gives_is_estimated_too_high_where_clients_differ_in_how_much_changes():
    generator = np.random.default_rng(0)

    def over(differ):
        found = noisy(generator, np.full(8000, 0.05), differ=differ)
        return found["by_chance"] - found["share"]

    alike, unlike, far = over(0.0), over(0.5), over(0.8)
    assert abs(alike) < 0.01
    assert 0.015 < unlike < 0.035 and 0.045 < far < 0.075


def test_harm_is_hardly_ever_noticed():
    """A fifth of the clients truly lose 20 points, and the others gain three."""
    generator = np.random.default_rng(1)
    gains = np.where(np.arange(149) < 30, -0.2, 0.03)
    found = [noisy(generator, gains, differ=0.6) for _ in range(20)]
    assert not any(each["beyond_chance"] for each in found)
