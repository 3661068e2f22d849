"""Baselines beside a run: right on a federation that can be counted by hand, kept, and put into words."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import headstart as hs
from headstart.data.load import load
from headstart.learning.tasks import Classification, Regression
from headstart.reports.baselines import Beside, _beside, _sentence, beside_baselines, conclusions
from headstart.runs.baselines import BASELINES
from headstart.runs.run import Run
from small import EVERY_ROUND, first_stage_only
from small import experiment as small_experiment
from small import run as run_small

OPTIONS = replace(EVERY_ROUND, baselines=True)


def plan(data: Path) -> hs.Experiment:
    """Two rounds of logistic regression, personalized to its optimum."""
    whole = first_stage_only(small_experiment(data, rounds=(2, 1)))
    return replace(whole, model=hs.ModelSpec("logistic"), personalization=hs.Personalization(pulls=(30.0, 1.0, 0.1)))


@pytest.fixture(scope="module")
def measured(tmp_path_factory, small_data) -> Run:
    """A run with its baselines."""
    return run_small(plan(small_data), tmp_path_factory.mktemp("baselines") / "run", options=OPTIONS)


def parts(run: Run, client: str) -> list[np.ndarray]:
    """The support and query targets of a client."""
    federation = load(run.experiment.data.source)
    number = list(federation.ids).index(client)
    return np.split(federation.fetch(np.array([number]))[1], [int(federation.sizes[number, 0])])


def test_constants_are_the_most_frequent_classes(measured):
    assert measured.members is not None
    trained = np.concatenate([np.concatenate(parts(measured, client)) for client in measured.members["train"]])
    clients = measured.clients()["id"]
    whole, own = np.bincount(trained, minlength=3), []
    for client in clients:
        support, _ = parts(measured, client)
        own.append(np.argmax(np.bincount(support, minlength=3) + whole / (whole.sum() + 1)))
    found = {name: each.values["accuracy"] for name, each in measured.baselines.items()}
    queries = [parts(measured, client)[1] for client in clients]
    np.testing.assert_allclose(found["federation constant"], [np.mean(q == whole.argmax()) for q in queries])
    np.testing.assert_allclose(found["own constant"], [np.mean(q == c) for q, c in zip(queries, own, strict=True)])


def test_models_alone_and_of_pooled_examples_learn(measured):
    found = {name: each.values["loss"].mean() for name, each in measured.baselines.items()}
    assert max(found["alone"], found["centralized"]) < found["own constant"]
    assert "pull" in measured.baselines["alone"].how and "ridge" in measured.baselines["centralized"].how


def test_a_run_that_is_there_measures_its_baselines_no_second_time(measured, small_data):
    before = (measured.path / BASELINES).stat()
    again = run_small(plan(small_data), measured.path, options=OPTIONS)
    assert (measured.path / BASELINES).stat().st_mtime_ns == before.st_mtime_ns
    assert [each.title for each in beside_baselines(again)] == [each.title for each in beside_baselines(measured)]


def test_the_report_and_the_last_lines_say_whether_federating_helped(measured, no_figures, tmp_path):
    from headstart.reports.page import write

    first, second = conclusions(measured)
    assert first.startswith("Federating ") and second.startswith("Personalization ") and "3 test clients" in first
    page = write([measured], tmp_path / "page.html").read_text()
    assert "Beside other predictions" in page and "every client trained alone" in page


@pytest.mark.parametrize(
    ("task", "change", "words"),
    [
        (Classification(), 0.1, "Federating helped: personalized accuracy 60.0 %"),
        (Classification(), -0.1, "Federating did not help, it made worse"),
        (Classification(), 0.0, "Federating did not help measurably"),
        (Regression(), -0.1, "Federating helped: personalized mean squared error 0.4"),
        (Regression(), 0.1, "Federating did not help, it made worse"),
    ],
)
def test_a_difference_in_words(task, change, words):
    other = np.array([0.4, 0.5, 0.6, np.nan])
    each: Beside = _beside("", "", other, other + change + np.array([0.01, 0, -0.01, 0]), task.metrics[0])
    sentence = _sentence(each, "Federating", "with every client trained alone")
    assert sentence.startswith(words) and "of 3 test clients" in sentence
    assert ("inconclusive" in sentence) == (change == 0)


def test_rounding_of_equal_values_decides_nothing():
    other = np.array([0.1, 0.3, 0.7], np.float32).astype(np.float64)
    assert _beside("", "", other, np.array([0.1, 0.3, 0.7]), Classification().metrics[0]).sign == 0
    assert _beside("", "", other, np.array([0.0, 0.2, 0.7]), Classification().metrics[0]).sign == 0


def test_baselines_are_of_tables_unless_asked_for(small_run):
    assert hs.open_run(small_run).baselines == {} and conclusions(hs.open_run(small_run)) == []
