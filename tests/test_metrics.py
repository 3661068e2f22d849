"""Metrics of many statistics, against plain definitions, item by item and client by client."""

import sys
from dataclasses import dataclass, replace
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny
from headstart import Classification, Examples, Metric, Optimizer, Personalization, Regression, UserError, personalize
from headstart.experiment.serialization import earlier, from_json, to_json
from headstart.experiment.setup import check_fit
from headstart.learning.metrics import CLASSIFICATION, REGRESSION, confusion, evaluated_metrics
from headstart.learning.tasks import measure_each
from headstart.statistics.clients import summarize
from small import experiment, run

GENERATOR = np.random.default_rng(3)
ALL = Classification(tuple(CLASSIFICATION))


def values(task, output, y, mask=None):
    mask = np.ones(len(y), bool) if mask is None else mask
    sums = measure_each(evaluated_metrics(task), jnp.asarray(output), Examples(None, jnp.asarray(y), jnp.asarray(mask)))
    return {
        m.name: float(m.finish(np.asarray(total) / count))
        for m in evaluated_metrics(task)
        for total, count in [sums[m.name]]
    }


def plain_auc(scores, positive):
    pairs = scores[positive][:, None] - scores[~positive][None]
    return ((pairs > 0) + 0.5 * (pairs == 0)).mean()


def test_metrics_of_classes_are_what_their_definitions_say():
    y, mask = GENERATOR.integers(0, 3, 90), GENERATOR.random(90) < 0.8
    logits = (GENERATOR.normal(size=(90, 4)) + 1.5 * np.eye(4)[y]).astype(np.float32)
    found = values(ALL, logits, y, mask)
    y, logits = y[mask], logits[mask]
    predicted, odds = logits.argmax(axis=1), np.exp(logits)
    odds = odds / (odds.sum(axis=1, keepdims=True) - odds)
    recall = [(predicted[y == c] == c).mean() for c in range(3)]
    assert found["balanced accuracy"] == pytest.approx(np.mean(recall))
    f1 = [2 * ((y == c) & (predicted == c)).sum() / ((y == c).sum() + (predicted == c).sum()) for c in range(4)]
    assert found["macro F1"] == pytest.approx(np.mean(f1))
    assert found["AUC"] == pytest.approx(np.mean([plain_auc(odds[:, c], y == c) for c in range(3)]), abs=3e-3)
    confidence, right = (odds / (1 + odds)).max(axis=1), predicted == y
    tenth = np.minimum((confidence * 10).astype(int), 9)
    gaps = [abs((confidence - right)[tenth == t].sum()) for t in range(10)]
    assert found["calibration error"] == pytest.approx(sum(gaps) / len(y), rel=1e-4)


@pytest.mark.parametrize("task", [ALL, Regression(more=tuple(REGRESSION))])
def test_no_client_has_no_value(task):
    y = jnp.zeros((1, 3)) if isinstance(task, Regression) else jnp.zeros(1, int)
    for metric in evaluated_metrics(task):
        found = measure_each([metric], jnp.zeros((1, 3)), Examples(None, y, jnp.ones(1, bool)))
        assert metric.finish(np.zeros((0, 2, *found[metric.name][0].shape))).shape == (0, 2)


def test_a_class_that_is_not_there_is_not_counted_and_one_class_alone_has_no_curve():
    logits = np.array([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0], [1.0, 0.0]], np.float32)
    found = values(ALL, logits, np.array([0, 0, 0, 0]))
    assert found["balanced accuracy"] == 0.75 and np.isnan(found["AUC"])
    assert found["macro F1"] == pytest.approx((6 / 7 + 0) / 2)


@pytest.mark.parametrize("shape", [(40,), (40, 2)])
def test_metrics_of_quantities_are_what_their_definitions_say(shape):
    y = GENERATOR.normal(5, 2, shape).astype(np.float32)
    output = (y + GENERATOR.normal(0, 1, shape)).astype(np.float32)
    found = values(Regression(more=tuple(REGRESSION)), output, y)
    assert found["root mean squared error"] == pytest.approx(np.sqrt(((output - y) ** 2).mean()), rel=1e-5)
    explained = 1 - ((output - y) ** 2).sum(axis=0) / ((y - y.mean(axis=0)) ** 2).sum(axis=0)
    assert found["R squared"] == pytest.approx(np.mean(explained), rel=1e-4)
    assert np.isnan(values(Regression(more=("r2",)), output[:1], y[:1])["R squared"])


@pytest.mark.slow
def test_every_client_has_its_own_value_or_is_left_out_and_all_items_together_have_one():
    federation, recipe = tiny.federation(((7, 30), (6, 1), (5, 0))), Personalization(Optimizer("sgd", 0.1), 4, 1)
    curves = personalize(ALL, tiny.SOFTMAX, tiny.theta(), federation, recipe, key=jax.random.key(0))
    x, y = federation.fetch(np.arange(3))
    parts, start = [], 0
    for adapt, test in federation.sizes:
        parts.append(slice(start + adapt, start + adapt + test))
        start += adapt + test
    logits = np.asarray(tiny.SOFTMAX.apply(tiny.theta(), jnp.asarray(x, jnp.float32))[0])
    metrics = {metric.name: metric for metric in evaluated_metrics(ALL)}
    first = curves.means(metrics["balanced accuracy"])[:, 0]
    expected = [values(ALL, logits[part], y[part])["balanced accuracy"] for part in parts[:2]]
    np.testing.assert_allclose(first[:2], expected, rtol=1e-6)
    assert np.isnan(first[2])
    summary = summarize(curves, ALL, epochs=1, resamples=50)
    together = np.concatenate([np.arange(part.start, part.stop) for part in parts])
    assert summary["AUC"]["pooled"]["initial"] == pytest.approx(values(ALL, logits[together], y[together])["AUC"])
    assert summary["AUC"]["undefined"] == 1 and np.isfinite(summary["AUC"]["initial"]["mean"])
    assert "undefined" not in summary["accuracy"] and summary["clients"] == 2
    cells = confusion(np.nansum(curves.metrics["balanced accuracy"][0][:, 0], axis=0))
    np.testing.assert_array_equal(cells.sum(axis=1), np.bincount(y[together], minlength=4))


@dataclass(frozen=True)
class AmongTheFirst:
    """Whether the target is among the likeliest classes."""

    first: int = 2
    name = "among the first"
    unit = "share"
    higher_is_better = True

    def items(self, output, y):
        better = (output > jnp.take_along_axis(output, y[:, None], axis=1)).sum(axis=1)
        return (better < self.first).astype(jnp.float32), jnp.ones(len(y))


def test_a_metric_of_ones_own_is_saved_by_the_name_of_its_class(monkeypatch):
    module = ModuleType("mymetrics")
    module.AmongTheFirst = AmongTheFirst
    monkeypatch.setitem(sys.modules, "mymetrics", module)
    monkeypatch.setattr(AmongTheFirst, "__module__", "mymetrics")
    task = Classification(more=(AmongTheFirst(2), "auc"))
    document = to_json(task)
    assert document["more"][0] == {"type": "mymetrics.AmongTheFirst", "first": 2}
    assert from_json(document, allowed_modules={"mymetrics"}) == task
    with pytest.raises(UserError, match="--import mymetrics"):
        from_json(document)
    assert earlier(to_json(Classification())) == {"type": "headstart.tasks.Classification"}


@dataclass(frozen=True)
class Within:
    most: float
    name, unit, higher_is_better = "within", "share", True

    def items(self, output, y):
        return (jnp.abs(output.reshape(y.shape) - y) <= self.most).astype(jnp.float32), jnp.ones(len(y))


def test_a_metric_of_ones_own_is_given_quantities_in_their_own_units():
    task = Regression(
        (1000.0,), (50.0,), more=(Within(20.0), Metric("mean target", "", True, lambda output, y: (y, 1 + 0 * y)))
    )
    output, y = np.array([[0.0], [1.0], [2.0], [3.0]], np.float32), np.array([0.1, 1.1, 2.5, 4.0], np.float32)
    found = values(task, output, y)
    assert found["within"] == 0.5 and found["mean target"] == pytest.approx(1000 + 50 * y.mean())


def test_a_run_keeps_more_metrics_of_its_clients_and_says_them(small_data, tmp_path):
    task = Classification(more=("balanced_accuracy", "auc"))
    mine = replace(experiment(small_data), task=task)
    with_more = run(replace(mine, stages=mine.stages[:1]), tmp_path / "run")
    assert [metric.name for metric in with_more.metrics] == ["accuracy", "loss", "balanced accuracy", "AUC"]
    clients = with_more.clients()
    assert {"initial_balanced_accuracy", "personalized_AUC"} <= set(clients)
    low, high = with_more.summary()["balanced accuracy"]["difference"]["interval"]
    assert low <= with_more.summary()["balanced accuracy"]["difference"]["mean"] <= high


@pytest.mark.parametrize(
    ("more", "match"),
    [
        (("accuracies",), "is no metric; give balanced_accuracy, macro_f1, auc"),
        (("auc", "auc"), "measures 'AUC' twice"),
        ((Metric("odd", "", True, lambda output, y: (output, jnp.ones(len(y)))),), "finish of 'odd' maps"),
    ],
)
def test_what_is_no_metric_is_a_sentence(more, match):
    with pytest.raises(UserError, match=match):
        check_fit(Classification(more=more), tiny.SOFTMAX, tiny.federation())
