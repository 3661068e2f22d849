"""The five updates: closed forms, the central identity, and finite differences through real models."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny
from headstart.data.federation import from_arrays
from headstart.learning.local_sgd import mean_loss, step_keys
from headstart.learning.tasks import Classification, NextCharacter
from headstart.methods.paper import FOMAML, MAML, FedAvg, FedSGD, Reptile, support_and_query
from headstart.models.zoo import CNN, CharLSTM, as_model

RATE = 0.1
CENTRE = np.array([1.0, -2.0, 0.5])
CURVATURE, IDENTITY = tiny.CURVATURE, np.eye(3)
SHRINK = IDENTITY - RATE * CURVATURE
KEY = jax.random.key(3)


def power(matrix, exponent):
    return np.linalg.matrix_power(matrix, exponent)


# A client of 7 examples in batches of 3 takes 3 steps per epoch.
CLOSED_FORMS = {
    "FedSGD": (lambda length: FedSGD(RATE), [1], lambda length: RATE * CURVATURE),
    "FedSGD on one batch": (lambda length: FedSGD(RATE, batch_size=3), [1], lambda length: RATE * CURVATURE),
    "FedAvg": (lambda epochs: FedAvg(epochs, RATE, 3), [1, 4], lambda epochs: IDENTITY - power(SHRINK, 3 * epochs)),
    "Reptile": (lambda steps: Reptile(steps, RATE, 3), [1, 10], lambda steps: IDENTITY - power(SHRINK, steps)),
    "FOMAML": (lambda steps: FOMAML(steps, RATE, 3), [1, 5], lambda steps: RATE * CURVATURE @ power(SHRINK, steps)),
    "FOMAML, query held out": (
        lambda steps: FOMAML(steps, RATE, 3, query_share=0.4),
        [5],
        lambda steps: RATE * CURVATURE @ power(SHRINK, steps),
    ),
    "MAML(1)": (lambda _: MAML(1, RATE, 3), [1], lambda _: RATE * CURVATURE @ power(SHRINK, 2)),
    "MAML(5), query held out": (
        lambda _: MAML(5, RATE, 3, query_share=0.4),
        [5],
        lambda _: RATE * CURVATURE @ power(SHRINK, 10),
    ),
}


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_on_a_quadratic_an_update_is_its_closed_form(float64, name):
    update, lengths, matrix = CLOSED_FORMS[name]
    client = tiny.one(tiny.quadratic_federation(CENTRE[None], [7]), 0)
    start = np.array([0.3, 0.7, -1.1])

    @jax.jit
    def reply(params, client, length):
        return update(length)(tiny.Quadratic(), tiny.POINT, params, client, None, KEY)

    for length in lengths:
        delta, weight, *_ = reply({"theta": jnp.asarray(start)}, client, length)
        np.testing.assert_allclose(delta["theta"], matrix(length) @ (start - CENTRE), rtol=0, atol=1e-10)
        assert float(weight) == 7


def images(classes=4, size=8):
    generator = np.random.default_rng(0)
    x = generator.random((13, size, size, 1))
    y = generator.integers(0, classes, 13).astype(np.int32)
    return tiny.one(from_arrays("images", ["i"], np.array([[13, 0]]), x, y), 0)


def small_cnn(client):
    thing = CNN(classes=4, filters=(3,), hidden=5, dropout=None)
    return as_model(thing, client.block.x[:1])


def generic(model, seed=0):
    """Parameters in float64 away from the zeros that initial biases are, where a relu has no derivative."""
    generator = np.random.default_rng(seed)
    shapes = jax.eval_shape(model.init, KEY)
    return jax.tree.map(lambda leaf: jnp.asarray(generator.normal(0, 0.5, leaf.shape)), shapes)


def plain_gradients(model, client, params, count, batch_size):
    """g_1 … g_count by an ordinary loop of SGD, each at its own iterate, and the iterates."""
    order_key, _ = step_keys(KEY, 0)
    gradient = jax.jit(jax.grad(lambda p, e: mean_loss(Classification(), model, p, e, None)[0]))
    visited, gradients = [params], []
    for number in range(count):
        gradients.append(gradient(visited[-1], tiny.gather_batch(client, number, order_key, batch_size=batch_size)))
        visited.append(jax.tree.map(lambda p, g: p - RATE * g, visited[-1], gradients[-1]))
    return visited, gradients


def test_fedavg_is_fedsgd_plus_fomaml_of_every_length_on_a_convolutional_network(float64):
    client = images()
    model = small_cnn(client)
    params = generic(model)
    batch_size = 3
    visited, gradients = plain_gradients(model, client, params, 5, batch_size)
    assert max(np.abs(tiny.flat(g)).max() for g in gradients) > 1e-3

    def delta_of(update):
        run = jax.jit(
            lambda params, client, steps: update(steps)(Classification(), model, params, client, None, KEY).delta
        )
        return lambda steps: tiny.flat(run(params, client, steps))

    fedsgd = delta_of(lambda _: FedSGD(RATE, batch_size))
    reptile, fomaml = (
        delta_of(partial(update, learning_rate=RATE, batch_size=batch_size)) for update in (Reptile, FOMAML)
    )
    exactly = {"rtol": 1e-9, "atol": 1e-13}
    np.testing.assert_allclose(fedsgd(1), RATE * tiny.flat(gradients[0]), **exactly)
    total = fedsgd(1)
    for steps in range(1, 6):
        walked = tiny.flat(visited[0]) - tiny.flat(visited[steps])
        np.testing.assert_allclose(walked, total, **exactly)
        np.testing.assert_allclose(reptile(steps), walked, **exactly)
        if steps < 5:
            next_term = fomaml(steps)
            np.testing.assert_allclose(next_term, RATE * tiny.flat(gradients[steps]), **exactly)
            total = total + next_term


def sentences():
    generator = np.random.default_rng(1)
    text = generator.integers(1, 7, (6, 6)).astype(np.int32)
    text[::2, 4:] = 0
    return tiny.one(from_arrays("text", ["t"], np.array([[6, 0]]), text[:, :-1], text[:, 1:]), 0)


def small_lstm(client):
    return as_model(CharLSTM(vocabulary=8, embedding=2, width=3, layers=1), client.block.x[:1])


THROUGH = {
    "a convolutional network, query held out": (images, small_cnn, Classification(), 0.4),
    "an LSTM": (sentences, small_lstm, NextCharacter(not_counted=(0,)), 0.0),
}


@pytest.mark.parametrize("name", THROUGH)
def test_maml_is_the_derivative_of_the_loss_after_the_steps(float64, name):
    examples, build, task, share = THROUGH[name]
    client = examples()
    model = build(client)
    params = generic(model, seed=4)
    steps, learning_rate, batch_size = 2, 0.5, 3
    support, query = jax.jit(support_and_query, static_argnums=1)(client, share, KEY)
    order_key, _ = step_keys(KEY, 0)
    path = [tiny.gather_batch(support, number, order_key, batch_size=batch_size) for number in range(steps)]
    if share:
        # A query held out is the first rows of its part, at most a batch of them.
        query = query._replace(size=jnp.minimum(query.size, batch_size))
    last = tiny.gather_batch(query, steps, order_key, batch_size=batch_size)
    loss = jax.jit(lambda p, e: mean_loss(task, model, p, e, None)[0])
    descend = jax.jit(lambda p, e: jax.tree.map(lambda p, g: p - learning_rate * g, p, jax.grad(loss)(p, e)))

    def loss_after_steps(params):
        for examples in path:
            params = descend(params, examples)
        return loss(params, last)

    update = MAML(steps, learning_rate, batch_size, share)
    reply = jax.jit(lambda params, client: update(task, model, params, client, None, KEY))(params, client)
    leaves, structure = jax.tree.flatten(params)
    generator = np.random.default_rng(5)
    for _ in range(4):
        direction = [generator.normal(size=leaf.shape) for leaf in leaves]
        along = lambda t, d=direction: jax.tree.unflatten(  # noqa: E731
            structure, [leaf + t * part for leaf, part in zip(leaves, d, strict=True)]
        )
        # Small enough a step that no unit of a relu changes sides: there the gradients of the inner steps jump.
        slope = (loss_after_steps(along(1e-6)) - loss_after_steps(along(-1e-6))) / 2e-6
        found = sum(np.vdot(g, d) for g, d in zip(jax.tree.leaves(reply.delta), direction, strict=True))
        assert abs(slope) > 1e-4
        np.testing.assert_allclose(found, learning_rate * slope, rtol=1e-6)
