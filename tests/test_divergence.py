"""A run that has diverged ends with a sentence; a personalization that has is not chosen, and is counted."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import headstart as hs
import tiny
from headstart.data.device_data import on_device
from headstart.learning.parallel import Parallel
from headstart.learning.personalization import Curves, choose_recipe, diverged
from headstart.learning.rounds import Cohort, Info
from headstart.learning.tasks import Classification, Regression
from headstart.runs.results import stage_notes
from headstart.statistics.clients import summarize
from headstart.training.divergence import DivergedError, RoundMonitor, check_evaluation, metrics_at_start
from headstart.training.sampling import CohortBatch

CLASSES, ERRORS = Classification(), Regression()
SQUARED, ABSOLUTE = (metric.name for metric in ERRORS.metrics)


def curves_of(**metrics):
    """Curves of clients with one test item each. metrics: values `[clients, epochs + 1]` by name."""
    sums = {name.replace("_", " "): np.array(values, float) for name, values in metrics.items()}
    first = next(iter(sums.values()))
    return Curves(
        {name: (values, np.ones(len(values))) for name, values in sums.items()},
        np.zeros_like(first),
        np.zeros_like(first),
    )


def test_a_diverged_candidate_is_not_chosen_however_accurate_it_looks():
    # Where parameters are NaN, every example is said to be of class 0: an accuracy like any other.
    fast = curves_of(accuracy=[[0.4, 0.9, 0.9], [0.4, 0.9, 0.9]], loss=[[1, 2, np.nan], [1, 5e3, np.nan]])
    slow = curves_of(accuracy=[[0.4, 0.5, 0.6], [0.4, 0.5, 0.5]], loss=[[1, 0.9, 0.8], [1, 0.9, 0.8]])
    assert choose_recipe([fast, slow], CLASSES) == (1, 2)
    assert choose_recipe([fast], CLASSES) == (0, 0)
    np.testing.assert_array_equal(diverged(fast, CLASSES), [[False, False, True], [False, True, True]])


def test_an_error_in_large_units_has_not_diverged():
    large = curves_of(mean_squared_error=[[1e12, 9e11]], mean_absolute_error=[[1e6, 9e5]])
    assert not diverged(large, ERRORS).any() and choose_recipe([large], ERRORS) == (0, 1)


def test_where_nobody_has_test_items_nothing_is_chosen_but_the_most_is_taken():
    nobody = curves_of(accuracy=[[0, 0, 0]], loss=[[0, 0, 0]])
    nobody = nobody._replace(metrics={name: (sums, np.zeros(1)) for name, (sums, _) in nobody.metrics.items()})
    assert choose_recipe([nobody, nobody], CLASSES) == (0, 2)


def test_a_summary_counts_the_clients_that_diverged_and_says_so():
    curves = curves_of(accuracy=[[0.4, 0.0], [0.5, 0.5]], loss=[[1.0, np.inf], [1.0, 0.9]])
    report = {"test": summarize(curves, CLASSES, epochs=1), "left_out": {"dropped": 2, "replies": 60, "devices": False}}
    assert report["test"]["diverged"] == 1 and "diverged" not in summarize(curves, CLASSES, epochs=0)
    left_out, lost = stage_notes(report)
    assert left_out == "2 of 60 replies were not finite and left out"
    assert lost.startswith("personalization diverged for 1 of 2 test clients")


def info_of(squared, *, clients=3, dropped=0, finite=True):
    metrics = {SQUARED: (np.float32(squared), np.float32(1)), ABSOLUTE: (np.float32(1), np.float32(1))}
    given: Any = metrics, np.int32(clients), np.int32(dropped), np.bool_(finite)
    return Info(*given)


def monitor_of(start, asked):
    def at(number):
        asked.append(number)
        return {SQUARED: start, ABSOLUTE: start}

    return RoundMonitor(ERRORS, at)


@pytest.mark.parametrize(
    ("start", "sound", "lost"),
    [(3.0, [900, 2900], 1e22), (1e8, [2e7, 1e10], 1e12), (3.0, [1], np.inf), (3.0, [1], np.nan), (np.nan, [1], np.inf)],
)
def test_a_rounds_loss_is_judged_beside_that_before_training(start, sound, lost):
    asked = []
    monitor = monitor_of(start, asked)
    for number, value in enumerate(sound):
        monitor.check("stage 'S', round 1 of seed 0", number, info_of(value))
    with pytest.raises(DivergedError, match=r"diverged in stage 'S', round 9 of seed 0: the training mean squared err"):
        monitor.check("stage 'S', round 9 of seed 0", 9, info_of(lost))
    assert asked[-1] == 9 and (0 in asked) == (sound[0] > 1000)


def test_a_round_without_a_usable_reply_or_with_broken_parameters_ends_the_run():
    for info in (info_of(1, clients=0, dropped=3), info_of(1, finite=False)):
        with pytest.raises(DivergedError, match="no longer finite; lower the learning rates"):
            monitor_of(1.0, []).check("stage 'S', round 1", 1, info)
    monitor_of(1.0, []).check("stage 'S', round 1", 1, info_of(1, clients=2, dropped=1))


@pytest.mark.parametrize(
    ("values", "group", "stops"),
    [
        ([2.0, 3.0, 1e9], "validation", False),  # one client is unlike those that train
        ([2.0, 1e9, 1e9], "validation", True),
        ([2.0, 3.0, np.inf], "validation", True),
        ([2.0, 3.0, np.inf], "test", False),
        ([np.nan, np.nan, 3.0], "test", True),
    ],
)
def test_an_evaluation_is_judged_beside_the_same_clients_before_training(values, group, stops):
    def of(each):
        column = [[value] for value in each]
        return curves_of(mean_squared_error=column, mean_absolute_error=[[1.0]] * 3)

    def check():
        check_evaluation(ERRORS, "stage 'S', round 4 of seed 0", group, of(values), lambda: of([2.0, 2.0, 2.0]))

    if stops:
        with pytest.raises(DivergedError, match=rf"round 4 of seed 0: the {group} clients' mean squared error"):
            check()
    else:
        check()


def test_the_metrics_before_training_are_those_of_the_rounds_clients():
    federation, model = tiny.federation(), tiny.SOFTMAX
    theta = {"theta": tiny.theta()["theta"].astype(jnp.float32)}
    gather, clients = on_device(federation), np.array([[0, 3, 4]])

    def cohorts(first, count, capacity):
        return CohortBatch(Cohort(gather(clients)), clients)

    found = metrics_at_start(CLASSES, model, lambda: theta, cohorts, Parallel())(1)
    losses = []
    for client in (0, 4):
        x, y = federation.fetch(np.array([client]))
        size = federation.sizes[client, 0]
        logits, _ = model.apply(theta, x[:size].astype(np.float32))
        losses.append(-np.asarray(jax.nn.log_softmax(logits))[np.arange(size), y[:size]].mean())
    np.testing.assert_allclose(found["loss"], max(losses), rtol=1e-5)


def regression(scale=1.0):
    generator, sizes = np.random.default_rng(0), np.array([[8, 2]] * 8)
    x = generator.normal(size=(80, 3)).astype(np.float32)
    y = (scale * (x.sum(axis=1) + generator.normal(size=80))).astype(np.float32)
    return hs.from_arrays("reg", [f"c{i}" for i in range(8)], sizes, x, y, metadata={"kind": "features"})


PLAN = hs.Experiment(
    "plan",
    (hs.Stage("FedAvg", hs.FedAvg(1, 0.02, 4), hs.Optimizer("sgd", 1.0), 4, 3),),
    data=hs.Data(train=0.5, validation=0.25),
    personalization=hs.Personalization(hs.Optimizer("sgd", 0.02), 4, 1),
    evaluate_every=0,
)


def test_a_run_that_blows_up_with_finite_parameters_is_no_result(tmp_path):
    # One step of the server that is a million times too long: all parameters stay finite.
    wild = replace(PLAN, stages=(replace(PLAN.stages[0], server=hs.Optimizer("sgd", 1e6), rounds=1),))
    with pytest.raises(DivergedError, match=r"stage 'FedAvg', round 1 of seed 0: the validation clients' mean squared"):
        hs.run(wild, tmp_path / "out", federation=regression(), progress=False)
    assert not (tmp_path / "out" / "seed-0" / "stage-0.json").exists()


def test_a_personalization_that_diverges_is_left_for_the_initial_model_and_large_units_are_sound(tmp_path):
    recipe = hs.Personalization(hs.Optimizer("sgd", 50.0), 4, 3)
    run = hs.run(replace(PLAN, personalization=recipe), tmp_path / "out", federation=regression(1e4), progress=False)
    assert run.finished and run.chosen_epochs() == 0 and "diverged" not in run.summary()
