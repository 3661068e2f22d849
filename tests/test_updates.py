"""The five updates: closed forms, the central identity, and finite differences through real models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from headstart.data import from_arrays
from headstart.local import batch, mean_loss, step_keys
from headstart.models import CNN, CharLSTM, as_model
from headstart.tasks import Classification, NextCharacter
from headstart.updates import FOMAML, MAML, FedAvg, FedSGD, Reptile, support_and_query

RATE = 0.1
CENTRE = np.array([1.0, -2.0, 0.5])
CURVATURE, IDENTITY = tiny.CURVATURE, np.eye(3)
SHRINK = IDENTITY - RATE * CURVATURE
KEY = jax.random.key(3)

# A client of 7 examples in batches of 3 takes 3 steps per epoch.
CLOSED_FORMS = [
    (FedSGD(RATE), RATE * CURVATURE),
    (FedSGD(RATE, batch_size=3), RATE * CURVATURE),
    (FedAvg(epochs=1, learning_rate=RATE, batch_size=3), IDENTITY - np.linalg.matrix_power(SHRINK, 3)),
    (FedAvg(epochs=4, learning_rate=RATE, batch_size=3), IDENTITY - np.linalg.matrix_power(SHRINK, 12)),
    (Reptile(steps=1, learning_rate=RATE, batch_size=3), RATE * CURVATURE),
    (Reptile(steps=10, learning_rate=RATE, batch_size=3), IDENTITY - np.linalg.matrix_power(SHRINK, 10)),
    (FOMAML(steps=5, learning_rate=RATE, batch_size=3), RATE * CURVATURE @ np.linalg.matrix_power(SHRINK, 5)),
    (FOMAML(5, RATE, 3, query_share=0.4), RATE * CURVATURE @ np.linalg.matrix_power(SHRINK, 5)),
    (MAML(steps=1, learning_rate=RATE, batch_size=3), RATE * CURVATURE @ np.linalg.matrix_power(SHRINK, 2)),
    (MAML(steps=5, learning_rate=RATE, batch_size=3), RATE * CURVATURE @ np.linalg.matrix_power(SHRINK, 10)),
    (MAML(5, RATE, 3, query_share=0.4), RATE * CURVATURE @ np.linalg.matrix_power(SHRINK, 10)),
]


@pytest.mark.parametrize(("update", "matrix"), CLOSED_FORMS, ids=lambda value: repr(value) if callable(value) else "")
def test_on_a_quadratic_an_update_is_its_closed_form(float64, update, matrix):
    client = tiny.one(tiny.quadratic_federation(CENTRE[None], [7]), 0)
    start = np.array([0.3, 0.7, -1.1])
    reply = update(tiny.Quadratic(), tiny.POINT, {"theta": jnp.asarray(start)}, client, None, KEY)
    np.testing.assert_allclose(reply.delta["theta"], matrix @ (start - CENTRE), rtol=0, atol=1e-10)
    assert float(reply.weight) == 7


def images(classes=4, size=12):
    generator = np.random.default_rng(0)
    x = generator.random((13, size, size, 1))
    y = generator.integers(0, classes, 13).astype(np.int32)
    return tiny.one(from_arrays("images", ["i"], np.array([[13, 0]]), x, y), 0)


def small_cnn(client):
    thing = CNN(classes=4, filters=(2, 3), hidden=5, dropout=None)
    return as_model(thing, client.block.x[:1])


def in_float64(model, seed=0):
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float64), model.init(jax.random.key(seed)))


def plain_gradients(model, client, params, count, batch_size):
    """g_1 … g_count by an ordinary loop of SGD, each at its own iterate, and the iterates."""
    order_key, _ = step_keys(KEY, 0)
    gradient = jax.jit(jax.grad(lambda p, e: mean_loss(Classification(), model, p, e, None)[0]))
    visited, gradients = [params], []
    for number in range(count):
        gradients.append(gradient(visited[-1], batch(client, number, order_key, batch_size=batch_size)))
        visited.append(jax.tree.map(lambda p, g: p - RATE * g, visited[-1], gradients[-1]))
    return visited, gradients


def test_fedavg_is_fedsgd_plus_fomaml_of_every_length_on_a_convolutional_network(float64):
    client = images()
    model = small_cnn(client)
    params = in_float64(model)
    batch_size, arguments = 3, (params, client, None, KEY)
    visited, gradients = plain_gradients(model, client, params, 5, batch_size)
    assert max(np.abs(tiny.flat(g)).max() for g in gradients) > 1e-3

    @jax.jit
    def reply_of_each(params):
        call = lambda update: update(Classification(), model, params, client, None, KEY).delta  # noqa: E731
        reptiles = [call(Reptile(steps, RATE, batch_size)) for steps in range(1, 6)]
        return call(FedSGD(RATE, batch_size)), reptiles, [call(FOMAML(j, RATE, batch_size)) for j in range(1, 5)]

    fedsgd, reptiles, fomamls = jax.tree.map(np.asarray, reply_of_each(params))
    exactly = {"rtol": 1e-9, "atol": 1e-13}
    np.testing.assert_allclose(tiny.flat(fedsgd), RATE * tiny.flat(gradients[0]), **exactly)
    for j, fomaml in enumerate(fomamls, start=1):
        np.testing.assert_allclose(tiny.flat(fomaml), RATE * tiny.flat(gradients[j]), **exactly)
    for steps in range(1, 6):
        walked = tiny.flat(visited[0]) - tiny.flat(visited[steps])
        np.testing.assert_allclose(tiny.flat(reptiles[steps - 1]), walked, **exactly)
        total = tiny.flat(fedsgd) + sum(tiny.flat(fomaml) for fomaml in fomamls[: steps - 1])
        np.testing.assert_allclose(walked, total, **exactly)
    epoch = FedAvg(1, RATE, batch_size)(Classification(), model, *arguments).delta
    np.testing.assert_allclose(tiny.flat(epoch), tiny.flat(reptiles[4]), **exactly)


def sentences():
    generator = np.random.default_rng(1)
    text = generator.integers(1, 7, (6, 6)).astype(np.int32)
    text[::2, 4:] = 0
    return tiny.one(from_arrays("text", ["t"], np.array([[6, 0]]), text[:, :-1], text[:, 1:]), 0)


def small_lstm(client):
    return as_model(CharLSTM(vocabulary=8, embedding=2, width=3, layers=2), client.block.x[:1])


THROUGH = [
    ("cnn", images, small_cnn, Classification(), 0.0),
    ("cnn with a held-out query", images, small_cnn, Classification(), 0.4),
    ("lstm", sentences, small_lstm, NextCharacter(not_counted=(0,)), 0.0),
]


@pytest.mark.parametrize(("examples", "build", "task", "share"), [c[1:] for c in THROUGH], ids=[c[0] for c in THROUGH])
def test_maml_is_the_derivative_of_the_loss_after_the_steps(float64, examples, build, task, share):
    client = examples()
    model = build(client)
    params = in_float64(model, seed=4)
    steps, rate, batch_size = 2, 0.5, 3
    support, query = support_and_query(client, share, KEY)
    order_key, _ = step_keys(KEY, 0)
    path = [batch(support, number, order_key, batch_size=batch_size) for number in range(steps)]
    last = batch(query, steps, order_key, batch_size=batch_size)
    loss = lambda p, e: mean_loss(task, model, p, e, None)[0]  # noqa: E731

    @jax.jit
    def loss_after_steps(params):
        for examples in path:
            params = jax.tree.map(lambda p, g: p - rate * g, params, jax.grad(loss)(params, examples))
        return loss(params, last)

    reply = jax.jit(lambda p: MAML(steps, rate, batch_size, share)(task, model, p, client, None, KEY))(params)
    leaves, structure = jax.tree.flatten(params)
    generator = np.random.default_rng(5)
    for _ in range(4):
        direction = [generator.normal(size=leaf.shape) for leaf in leaves]
        along = lambda t, d=direction: jax.tree.unflatten(  # noqa: E731
            structure, [leaf + t * part for leaf, part in zip(leaves, d, strict=True)]
        )
        # Richardson's extrapolation of central differences leaves an error of the fourth order.
        wide, narrow = ((loss_after_steps(along(h)) - loss_after_steps(along(-h))) / (2 * h) for h in (2e-4, 1e-4))
        slope = (4 * narrow - wide) / 3
        found = sum(np.vdot(g, d) for g, d in zip(jax.tree.leaves(reply.delta), direction, strict=True))
        assert abs(slope) > 1e-4
        np.testing.assert_allclose(found, rate * slope, rtol=1e-6)


def test_maml_and_fomaml_differ_by_the_second_order_terms_alone(float64):
    client, start = tiny.one(tiny.quadratic_federation(CENTRE[None], [7]), 0), {"theta": jnp.zeros(3)}
    call = lambda update: np.asarray(update(tiny.Quadratic(), tiny.POINT, start, client, None, KEY).delta["theta"])  # noqa: E731
    second, first = call(MAML(2, RATE, 3)), call(FOMAML(2, RATE, 3))
    np.testing.assert_allclose(second, SHRINK @ SHRINK @ first, rtol=1e-12)
    assert np.abs(second - first).max() > 1e-2
