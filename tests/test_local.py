"""Local SGD: order, wrapping, padding, keys, and the mean of a partial batch."""

from itertools import chain

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import reference
import tiny
from headstart.data.federation import as_input
from headstart.learning.local_sgd import LocalSGD, batches_per_epoch, gradient_at, shuffled, step_keys, whole_gradient
from headstart.learning.rounds import client_key
from headstart.learning.tasks import Classification
from headstart.methods.paper import support_and_query
from headstart.models.zoo import Model

KEY = jax.random.key(7)
PARTS = jax.jit(support_and_query, static_argnums=1)


def positions(client, numbers, batch_size, key=KEY):
    """The block rows of each batch, the padding left out."""
    found = []
    for number in numbers:
        marked = client._replace(block=client.block._replace(y=jnp.arange(len(client.block.y))))
        examples = tiny.gather_batch(marked, number, key, batch_size=batch_size)
        found.append(np.asarray(examples.y)[np.asarray(examples.mask)].tolist())
    return found


@pytest.mark.parametrize(("client", "batch_size"), [(0, 3), (2, 5), (2, 3), (4, 5), (1, 3)])
def test_every_epoch_sees_each_example_once_in_an_order_of_its_own(client, batch_size):
    adapt = tiny.one(tiny.federation(), client)
    size = int(adapt.size)
    per_epoch = int(batches_per_epoch(adapt, batch_size))
    assert per_epoch == -(-size // batch_size)
    epochs = [positions(adapt, range(e * per_epoch, (e + 1) * per_epoch), batch_size) for e in range(3)]
    own = sorted(np.asarray(adapt.rows)[:size].tolist())
    for batches in epochs:
        assert [len(b) for b in batches] == [batch_size] * (size // batch_size) + [size % batch_size] * (
            size % batch_size > 0
        )
        assert sorted(chain(*batches)) == own
    if size > 5:
        assert epochs[0] != epochs[1] != epochs[2]


def test_a_client_without_examples_gets_batches_of_padding():
    examples = tiny.gather_batch(tiny.one(tiny.federation(), 3), 2, KEY, batch_size=5)
    assert not np.asarray(examples.mask).any()
    assert np.isfinite(np.asarray(examples.x)).all()


def test_the_order_of_a_client_does_not_change_with_the_padding():
    adapt = tiny.one(tiny.federation(), 2)
    wide = adapt._replace(rows=jnp.concatenate([adapt.rows, jnp.full(117, 3, jnp.int32)]))
    np.testing.assert_array_equal(shuffled(adapt, KEY)[:12], shuffled(wide, KEY)[:12])
    assert positions(adapt, range(7), 5) == positions(wide, range(7), 5)


def test_uint8_images_arrive_between_zero_and_one_and_other_arrays_as_they_are():
    x = as_input(jnp.array([0, 51, 255], jnp.uint8))
    assert x.dtype == jnp.float32
    np.testing.assert_allclose(x, [0, 0.2, 1], rtol=1e-6)
    assert as_input(jnp.array([0, 255], jnp.int32)).dtype == jnp.int32


def test_a_partial_batch_is_averaged_over_its_real_rows(float64):
    adapt, params = tiny.one(tiny.federation(), 0), tiny.theta()
    examples = tiny.gather_batch(adapt, 2, KEY, batch_size=3)
    mask = np.asarray(examples.mask)
    assert mask.sum() == 1
    gradient, (_, metrics) = jax.jit(gradient_at, static_argnums=(0, 1))(
        Classification(), tiny.SOFTMAX, params, examples, None
    )
    real = np.asarray(examples.x)[mask], np.asarray(examples.y)[mask]
    problem = reference.softmax_regression(tiny.FEATURES, tiny.CLASSES)
    np.testing.assert_allclose(gradient["theta"], problem.gradient(tiny.flat(params), real), rtol=1e-12)
    assert float(metrics["accuracy"][1]) == 1


def test_the_gradient_on_all_examples_does_not_depend_on_how_they_are_batched(float64):
    federation, params = tiny.federation(), tiny.theta()
    adapt = tiny.one(federation, 2)
    everything = adapt.block.x[adapt.rows[:12]], adapt.block.y[adapt.rows[:12]]
    problem = reference.softmax_regression(tiny.FEATURES, tiny.CLASSES)
    expected = problem.gradient(tiny.flat(params), jax.tree.map(np.asarray, everything))
    for batch_size in (5, 32):
        gradient, metrics = jax.jit(whole_gradient, static_argnums=(0, 1), static_argnames="batch_size")(
            Classification(), tiny.SOFTMAX, params, adapt, KEY, batch_size=batch_size
        )
        np.testing.assert_allclose(gradient["theta"], expected, rtol=1e-12)
        assert float(metrics["loss"][1]) == 12


def test_a_small_client_takes_all_steps_and_wraps_at_its_own_epoch_length(float64):
    # Five examples in batches of 2: an epoch is 3 steps, of which the last has one example.
    adapt, params, rate = tiny.one(tiny.federation(), 4), tiny.theta(), 0.3
    local_sgd = LocalSGD(Classification(), tiny.SOFTMAX, optax.sgd(rate), 2)
    local_state = tiny.descend(local_sgd, local_sgd.init(params), adapt, KEY, 10)
    assert int(local_state.step) == 10
    path = tiny.drawn(adapt, KEY, range(10), 2)
    assert [len(y) for _, y in path] == [2, 2, 1, 2, 2, 1, 2, 2, 1, 2]
    problem = reference.softmax_regression(tiny.FEATURES, tiny.CLASSES)
    expected = reference.iterates(problem, tiny.flat(params), path, rate)[-1]
    np.testing.assert_allclose(tiny.flat(local_state.params), expected, rtol=1e-12)
    assert float(local_state.metrics["loss"][1]) == sum(len(y) for _, y in path)


def test_a_path_may_be_walked_in_pieces(float64):
    adapt, params = tiny.one(tiny.federation(), 0), tiny.theta()
    local_sgd = LocalSGD(Classification(), tiny.SOFTMAX, optax.adam(0.1), 3)
    whole = tiny.descend(local_sgd, local_sgd.init(params), adapt, KEY, 7)
    start = tiny.descend(local_sgd, local_sgd.init(params), adapt, KEY, 4)
    piece = tiny.descend(local_sgd, start, adapt, KEY, 3)
    jax.tree.map(np.testing.assert_array_equal, whole, piece)


def test_a_gradient_transform_changes_the_gradient_that_the_optimizer_gets(float64):
    adapt, params = tiny.one(tiny.federation(), 0), tiny.theta()
    start = params["theta"]
    transform = lambda gradient, at: {"theta": gradient["theta"] + 0.5 * (at["theta"] - start) + 1}  # noqa: E731
    local_sgd = LocalSGD(Classification(), tiny.SOFTMAX, optax.sgd(0.1), 3, gradient_transform=transform)
    found = tiny.descend(local_sgd, local_sgd.init(params), adapt, KEY, 4).params
    problem = reference.softmax_regression(tiny.FEATURES, tiny.CLASSES)
    expected = tiny.flat(params)
    for examples in tiny.drawn(adapt, KEY, range(4), 3):
        expected = expected - 0.1 * (problem.gradient(expected, examples) + 0.5 * (expected - start) + 1)
    np.testing.assert_allclose(found["theta"], expected, rtol=1e-12)


def noting(length):
    """A model that writes down a draw from every key it gets, as a model with dropout would use it."""

    def apply(variables, x, *, key=None):
        output, _ = tiny.SOFTMAX.apply(variables, x)
        if key is None:
            return output, variables
        position = (jnp.arange(length) == variables["count"]).astype(output.dtype)
        draws = variables["draws"] + position * jax.random.uniform(key, dtype=output.dtype)
        return output, {**variables, "draws": draws, "count": variables["count"] + 1}

    start = {"draws": jnp.zeros(length), "count": jnp.zeros(())}
    return Model(lambda key: {**tiny.theta(), **start}, apply)


NOTING = noting(6)
NOTING_SGD = LocalSGD(Classification(), NOTING, optax.sgd(0.1), 3)


def draws_of(federation, client, key):
    adapt, start = tiny.one(federation, client), NOTING.init(KEY)
    local_state = tiny.descend(NOTING_SGD, NOTING_SGD.init(start), adapt, client_key(key, adapt), 6)
    return np.asarray(local_state.params["draws"])


def test_the_keys_of_a_model_differ_by_client_step_and_round_and_follow_the_id_not_the_position():
    federation = tiny.federation()
    a, c = draws_of(federation, 0, KEY), draws_of(federation, 2, KEY)
    other_round = draws_of(federation, 0, jax.random.key(8))
    everything = np.concatenate([a, c, other_round])
    assert len(np.unique(everything)) == everything.size
    assert (everything > 0).all()
    np.testing.assert_array_equal(draws_of(federation.select(np.array([4, 2, 1, 0, 3])), 3, KEY), a)


def test_the_order_key_stays_and_the_model_key_changes_along_a_path():
    first, later = step_keys(KEY, 0), step_keys(KEY, 5)
    assert (jax.random.key_data(first[0]) == jax.random.key_data(later[0])).all()
    assert (jax.random.key_data(first[1]) != jax.random.key_data(later[1])).any()


@pytest.mark.parametrize("share", [0.05, 0.3, 0.9])
def test_support_and_query_are_disjoint_and_cover_the_client(share):
    for client in range(5):
        adapt = tiny.one(tiny.federation(), client)
        size = int(adapt.size)
        support, query = PARTS(adapt, share, KEY)
        parts = [np.asarray(part.rows)[: int(part.size)].tolist() for part in (support, query)]
        assert sorted(chain(*parts)) == np.asarray(adapt.rows)[:size].tolist()
        assert int(support.size) >= min(size, 1)
        if size > 1:
            assert int(query.size) == min(max(round(size * share), 1), size - 1)


def test_support_and_query_are_drawn_anew_from_each_key_and_do_not_change_with_the_padding():
    adapt = tiny.one(tiny.federation(), 2)
    wide = adapt._replace(rows=jnp.concatenate([adapt.rows, jnp.full(50, 2, jnp.int32)]))
    queries = [PARTS(adapt, 0.3, jax.random.key(seed))[1] for seed in range(4)]
    held_out = {tuple(sorted(np.asarray(q.rows)[: int(q.size)].tolist())) for q in queries}
    assert len(held_out) > 1
    narrow, padded = (PARTS(client, 0.3, KEY) for client in (adapt, wide))
    for a, b in zip(narrow, padded, strict=True):
        np.testing.assert_array_equal(a.rows[: int(a.size)], b.rows[: int(b.size)])


def test_without_a_query_share_both_are_the_client():
    adapt = tiny.one(tiny.federation(), 0)
    assert support_and_query(adapt, 0.0, KEY) == (adapt, adapt)
