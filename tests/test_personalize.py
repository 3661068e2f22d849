"""Personalization: its curves are those of an ordinary loop of local training and evaluation."""

from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import reference
import tiny
from headstart.data.device_data import on_device
from headstart.learning.optimizers import Optimizer
from headstart.learning.parallel import Parallel
from headstart.learning.personalization import (
    Curves,
    Personalization,
    adapt_client,
    choose_epochs,
    choose_recipe,
    personalize,
    personalizer,
)
from headstart.learning.rounds import client_key
from headstart.learning.tasks import Classification, Regression

TASK, MODEL, BATCH = Classification(), tiny.SOFTMAX, 3
ACCURACY, LOSS = TASK.metrics
PROBLEM = reference.softmax_regression(tiny.FEATURES, tiny.CLASSES)
KEY = jax.random.key(9)
# The third client has more test items than fit a batch of evaluation; the last two lack query and support examples.
FEDERATION = tiny.federation(((7, 3), (1, 2), (5, 40), (5, 0), (0, 4)))
EVERYONE = np.arange(5)


class Measured(NamedTuple):
    """By numpy, over the test items: `[epochs + 1]`."""

    correct: np.ndarray
    loss: np.ndarray
    gain: np.ndarray
    gain_squared: np.ndarray


RECIPES = {
    "epochs of sgd": (Personalization(Optimizer("sgd", 0.3), BATCH, 3), lambda: reference.Sgd(0.3)),
    "steps of adam": (Personalization(Optimizer("adam", 0.1), BATCH, steps=4), lambda: reference.Adam(0.1)),
}


def by_hand(recipe, server, start, number):
    """One client, in a plain loop with a fresh optimizer."""
    adapt, test = (tiny.one(FEDERATION, number, part) for part in ("adapt", "test"))
    rows = np.asarray(test.rows)[: int(test.size)]
    x, y = np.asarray(test.block.x)[rows], np.asarray(test.block.y)[rows]
    per_unit = -(-int(adapt.size) // BATCH) if recipe.unit == "epochs" else 1
    batches = tiny.drawn(adapt, client_key(KEY, adapt), range(recipe.most * per_unit), BATCH)
    theta, optimizer, columns = start, server(), [start]
    for unit in range(recipe.most):
        for batch in batches[unit * per_unit : (unit + 1) * per_unit]:
            if len(batch[1]):
                theta = optimizer.step(theta, PROBLEM.gradient(theta, batch))
        columns.append(theta)
    correct = np.array([reference.softmax_correct(t, x, y, tiny.CLASSES) for t in columns])
    loss = np.array([reference.softmax_loss(t, x, y, tiny.CLASSES) for t in columns])
    gain = correct - correct[0]
    return Measured(correct.sum(axis=1), loss.sum(axis=1), gain.sum(axis=1), (gain**2).sum(axis=1)), columns


@pytest.mark.parametrize("name", RECIPES)
def test_the_curves_are_those_of_a_plain_loop_with_a_fresh_optimizer_for_every_client(float64, name):
    recipe, server = RECIPES[name]
    start = tiny.theta()
    run = personalizer(TASK, MODEL, recipe, clients_at_once=5)
    curves = run(start, EVERYONE, on_device(FEDERATION), KEY)
    correct, counts = curves.metrics["accuracy"]
    np.testing.assert_array_equal(counts, [3, 2, 40, 0, 4])
    for number in range(5):
        expected, _ = by_hand(recipe, server, tiny.flat(start), number)
        np.testing.assert_array_equal(correct[number], expected.correct)
        np.testing.assert_allclose(curves.metrics["loss"][0][number], expected.loss, rtol=1e-9)
        np.testing.assert_array_equal(curves.gain[number], expected.gain)
        np.testing.assert_array_equal(curves.gain_squared[number], expected.gain_squared)
    assert np.abs(curves.gain).max() > 0
    means = curves.means(ACCURACY)
    assert np.isnan(means[3]).all() and np.isfinite(means[[0, 1, 2, 4]]).all()
    np.testing.assert_allclose(means[2], correct[2] / 40)


def test_lanes_and_the_number_of_clients_at_once_change_nothing_and_progress_is_reported(float64):
    recipe, start, gather, reported = RECIPES["steps of adam"][0], tiny.theta(), on_device(FEDERATION), []
    one_by_one = personalizer(TASK, MODEL, recipe, clients_at_once=2)(start, EVERYONE, gather, KEY, reported.append)
    assert reported == [2, 2, 1]
    beside = personalizer(TASK, MODEL, recipe, parallel=Parallel(3), clients_at_once=7)(start, EVERYONE, gather, KEY)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), one_by_one, beside)


def test_the_adapted_parameters_are_those_that_were_measured(float64):
    recipe, server = RECIPES["epochs of sgd"]
    start, client = tiny.theta(), tiny.one(FEDERATION, 0)
    adapt = jax.jit(partial(adapt_client, TASK, MODEL, recipe))
    _, columns = by_hand(recipe, server, tiny.flat(start), 0)
    for epochs in range(recipe.epochs + 1):
        found = adapt(start, client, client_key(KEY, client), epochs)
        np.testing.assert_allclose(tiny.flat(found), columns[epochs], rtol=1e-10)


def test_a_gain_is_positive_where_the_error_of_a_regression_falls(float64):
    model = tiny.Model(
        lambda key: {"theta": jnp.zeros(4)}, lambda v, x, *, key=None: (x @ v["theta"][:-1] + v["theta"][-1], v)
    )
    labelled = tiny.federation(((20, 6), (20, 6)), shift=1.0)
    federation = replace(labelled, fetch=lambda clients: (x := labelled.fetch(clients)[0], x.sum(axis=1)))
    recipe = Personalization(Optimizer("sgd", 0.05), 10, 2)
    curves = personalize(Regression(), model, model.init(KEY), federation, recipe, key=KEY)
    sums, counts = curves.metrics["mean squared error"]
    assert (sums[:, -1] < sums[:, 0]).all() and (counts == 6).all()
    np.testing.assert_allclose(curves.gain, sums[:, :1] - sums, rtol=1e-9, atol=1e-12)


def curves_of(metric, sums):
    sums = np.array(sums, float)
    nothing = np.zeros_like(sums)
    return Curves({metric.name: (sums, np.array([2.0, 4.0, 0.0]))}, nothing, nothing)


def test_the_number_of_epochs_chosen_is_the_best_of_the_uniform_mean_in_the_direction_of_the_metric():
    # Means over the two tested clients: 0.375, 0.75, 0.625; pooled over items the last would win.
    curves = curves_of(ACCURACY, [[1, 2, 1], [1, 2, 3], [0, 0, 0]])
    assert choose_epochs(curves, TASK) == 1
    error = Regression().metrics[0]
    assert choose_epochs(curves_of(error, [[1, 2, 1], [1, 2, 3], [0, 0, 0]]), Regression()) == 0
    assert choose_epochs(curves_of(error, [[4, 2, 1], [4, 2, 3], [0, 0, 0]]), Regression()) == 2


def test_of_several_rates_the_best_is_chosen_with_its_epochs():
    recipe = Personalization(Optimizer("sgd", 9.0, {"momentum": 0.5}), 4, 2, learning_rates=(0.1, 0.3))
    assert recipe.candidate_rates == (0.1, 0.3) and Personalization(Optimizer("sgd", 9.0)).candidate_rates == (9.0,)
    at = recipe.with_learning_rate(0.3)
    assert (at.optimizer, at.epochs, at.learning_rates) == (Optimizer("sgd", 0.3, {"momentum": 0.5}), 2, ())
    low, high = [[1, 2, 1], [1, 2, 3], [0, 0, 0]], [[1, 2, 2], [1, 2, np.nan], [0, 0, 0]]
    assert choose_recipe([curves_of(ACCURACY, each) for each in (low, high)], TASK) == (0, 1)
    assert choose_recipe([curves_of(ACCURACY, each) for each in (high[::-1], low)], TASK) == (1, 1)
    error = Regression().metrics[0]
    assert choose_recipe(
        [curves_of(error, each) for each in (low, [[1, 2, 0.5], [1, 2, 1], low[2]])], Regression()
    ) == (1, 2)


def test_rates_share_a_program_and_differ_in_nothing_else(float64):
    recipe, start, gather = RECIPES["epochs of sgd"][0], tiny.theta(), on_device(FEDERATION)
    traces = []

    def apply(variables, x, *, key=None):
        traces.append(1)
        return MODEL.apply(variables, x, key=key)

    several = personalizer(
        TASK, MODEL._replace(apply=apply), replace(recipe, learning_rates=(0.1, 0.3)), clients_at_once=5
    )
    found = several(start, EVERYONE, gather, KEY)
    once = len(traces)
    for learning_rate in (0.1, 0.3):
        alone = personalizer(TASK, MODEL, recipe.with_learning_rate(learning_rate), clients_at_once=5)
        found = several(start, EVERYONE, gather, KEY, learning_rate=learning_rate)
        expected = alone(start, EVERYONE, gather, KEY)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-15), found, expected)
    assert len(traces) == once
