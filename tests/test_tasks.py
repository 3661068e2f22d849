"""Tasks: losses and metrics against plain numpy."""

import jax.numpy as jnp
import numpy as np
import pytest

from headstart.data.federation import Examples
from headstart.learning.tasks import (
    Classification,
    NextCharacter,
    Regression,
    masked,
    mean,
    measure,
    no_sums,
    weighted_sum,
)

GENERATOR = np.random.default_rng(0)


def negative_log_likelihood(logits, y):
    shifted = logits - logits.max(axis=-1, keepdims=True)
    log_probabilities = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return -np.take_along_axis(log_probabilities, y[..., None], axis=-1)[..., 0]


def report(task, output, y, mask):
    sums = measure(task, jnp.asarray(output), Examples(None, jnp.asarray(y), jnp.asarray(mask)))
    return {m.name: float(m.finish(np.asarray(mean(*sums[m.name])))) for m in task.metrics}, sums


def test_classification_counts_the_real_rows_of_a_batch():
    logits, y = GENERATOR.normal(size=(6, 4)).astype(np.float32), np.array([0, 3, 1, 1, 2, 0], np.int32)
    mask = np.array([1, 1, 0, 1, 1, 0], bool)
    found, sums = report(Classification(), logits, y, mask)
    np.testing.assert_allclose(found["loss"], negative_log_likelihood(logits, y)[mask].mean(), rtol=1e-5)
    assert found["accuracy"] == pytest.approx((logits.argmax(axis=1) == y)[mask].mean())
    assert float(sums["loss"][1]) == 4


def test_the_next_character_is_not_scored_on_padding_nor_its_accuracy_on_special_tokens():
    task = NextCharacter(padding=0, not_counted=(0, 5, 6))
    logits = GENERATOR.normal(size=(3, 5, 7)).astype(np.float32)
    y = np.array([[1, 2, 5, 0, 0], [3, 6, 4, 1, 0], [2, 2, 2, 2, 2]], np.int32)
    mask = np.array([True, True, False])
    found, sums = report(task, logits, y, mask)
    losses, real = negative_log_likelihood(logits, y), (y != 0) & mask[:, None]
    np.testing.assert_allclose(found["loss"], losses[real].mean(), rtol=1e-5)
    np.testing.assert_allclose(found["perplexity"], np.exp(losses[real].mean()), rtol=1e-5)
    scored = real & ~np.isin(y, [5, 6])
    assert found["accuracy"] == pytest.approx((logits.argmax(axis=-1) == y)[scored].mean())
    assert float(sums["loss"][1]) == 7 and float(sums["accuracy"][1]) == 5


@pytest.mark.parametrize(("output_shape", "y_shape"), [((4,), (4,)), ((4, 1), (4,)), ((4,), (4, 1)), ((4, 3), (4, 3))])
def test_regression_takes_targets_with_and_without_a_last_axis(output_shape, y_shape):
    output, y = GENERATOR.normal(size=output_shape), GENERATOR.normal(size=y_shape)
    mask = np.array([True, False, True, True])
    found, _ = report(Regression(), output, y, mask)
    errors = (output.reshape(4, -1) - y.reshape(4, -1))[mask]
    assert found["mean squared error"] == pytest.approx((errors**2).mean(), rel=1e-5)
    assert found["mean absolute error"] == pytest.approx(np.abs(errors).mean(), rel=1e-5)


def test_regression_refuses_targets_of_another_size():
    with pytest.raises(TypeError):
        Regression().loss(jnp.zeros((4, 1)), jnp.zeros((4, 2)))


def test_a_value_of_weight_zero_does_not_count_even_if_it_is_no_number():
    items = jnp.array([1.0, jnp.nan, 3.0]), jnp.ones(3)
    total, count = weighted_sum(masked(items, jnp.array([True, False, True])))
    assert (float(total), float(count)) == (4, 2)
    assert float(mean(jnp.zeros(()), jnp.zeros(()))) == 0


@pytest.mark.parametrize("task", [Classification(), NextCharacter(), Regression()])
def test_every_metric_has_a_name_a_unit_and_a_direction(task):
    names = [metric.name for metric in task.metrics]
    assert len(set(names)) == len(names) and set(no_sums(task)) == set(names)
    assert all(metric.unit and isinstance(metric.higher_is_better, bool) for metric in task.metrics)
    assert all(metric.zero_one == (metric.name == "accuracy") for metric in task.metrics)
    assert all(metric.higher_is_better == (metric.name == "accuracy") for metric in task.metrics)
