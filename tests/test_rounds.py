"""Rounds: every update, weighting and server optimizer against numpy; what must not matter; what is left out."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import reference
import tiny
from headstart.data.device_data import on_device
from headstart.learning.local_sgd import gradient_at
from headstart.learning.method import Reply
from headstart.learning.optimizers import Optimizer
from headstart.learning.parallel import Parallel
from headstart.learning.rounds import Cohort, all_finite, centralized, client_key, federated, to_totals
from headstart.learning.tasks import Classification, no_sums
from headstart.methods.paper import FOMAML, MAML, FedAvg, FedSGD, Reptile

RATE, BATCH = 0.2, 3
TASK, MODEL = Classification(), tiny.SOFTMAX
PROBLEM = reference.softmax_regression(tiny.FEATURES, tiny.CLASSES)
EVERYONE = np.arange(5)


class Case(NamedTuple):
    """An update of the library, and the same by hand: `(theta, client, key) -> Δ`."""

    update: Any
    by_hand: Callable[..., np.ndarray]


def all_rows(client):
    rows = np.asarray(client.rows)[: int(client.size)]
    return np.asarray(client.block.x)[rows], np.asarray(client.block.y)[rows]


def path(client, key, steps):
    return tiny.drawn(client, key, range(steps), BATCH)


def by_fedsgd(theta, client, key):
    return reference.fedsgd(PROBLEM, theta, all_rows(client), RATE)


def by_fedavg(theta, client, key):
    steps = 2 * -(-int(client.size) // BATCH)
    return reference.fedavg(PROBLEM, theta, path(client, key, steps), RATE)


def by_reptile(theta, client, key):
    return reference.fedavg(PROBLEM, theta, path(client, key, 4), RATE)


def by_fomaml(theta, client, key):
    *steps, query = path(client, key, 4)
    return reference.fomaml(PROBLEM, theta, steps, query, RATE)


def by_maml(theta, client, key):
    *steps, query = path(client, key, 4)
    return reference.maml(PROBLEM, theta, steps, query, RATE)


CASES = {
    "FedSGD": Case(FedSGD(RATE), by_fedsgd),
    "FedAvg": Case(FedAvg(2, RATE, BATCH), by_fedavg),
    "Reptile": Case(Reptile(4, RATE, BATCH), by_reptile),
    "FOMAML": Case(FOMAML(3, RATE, BATCH), by_fomaml),
    "MAML": Case(MAML(3, RATE, BATCH), by_maml),
}
SERVERS = [
    (Optimizer("sgd", 0.7).build(), lambda: reference.Sgd(0.7)),
    (Optimizer("sgd", 0.5, {"momentum": 0.9}).build(), lambda: reference.Sgd(0.5, 0.9)),
    (Optimizer("adam", 0.03).build(), lambda: reference.Adam(0.03)),
    (Optimizer("yogi", 0.03).build(), lambda: reference.Yogi(0.03)),
    (Optimizer("adagrad", 0.1).build(), lambda: reference.Adagrad(0.1)),
]


def selected(*servers):
    """The optimizer whose number the state holds: one program for all of them."""

    def init(params):
        return jnp.zeros((), jnp.int32), tuple(server.init(params) for server in servers)

    def update(gradient, state, params):
        number, states = state
        steps, states = zip(
            *(s.update(gradient, old, params) for s, old in zip(servers, states, strict=True)), strict=True
        )
        return jax.tree.map(lambda *leaves: jnp.stack(leaves)[number], *steps), (number, states)

    return optax.GradientTransformation(init, update)


# How replies are weighted is no matter of the update.
@pytest.mark.parametrize(("name", "weighting"), [*((name, "examples") for name in CASES), ("FedAvg", "uniform")])
def test_three_rounds_with_every_server_optimizer_are_those_of_numpy(float64, name, weighting):
    update, by_hand = CASES[name]
    federation, start = tiny.federation(), tiny.theta()
    cohort, singles = Cohort(on_device(federation)(EVERYONE)), [tiny.one(federation, i) for i in EVERYONE]
    server = selected(*(optimizer for optimizer, _ in SERVERS))
    algorithm = federated(TASK, MODEL, update, server, weighting=weighting)
    step = jax.jit(algorithm.step)
    for number, (_, numpy_server) in enumerate(SERVERS):
        state, theta, by_numpy = algorithm.init(start), tiny.flat(start), numpy_server()
        state = state._replace(optimizer=(jnp.array(number), state.optimizer[1]))
        for round_number in range(3):
            key = jax.random.fold_in(jax.random.key(0), round_number)
            state, info = step(state, cohort, key)
            replies = [reply_by_hand(by_hand, theta, client, key) for client in singles]
            theta = by_numpy.step(theta, reference.mean_delta(replies, weighting))
            np.testing.assert_allclose(tiny.flat(state.params), theta, rtol=1e-9, atol=1e-12)
        assert int(info.clients) == 4 and int(info.dropped) == 0 and bool(info.finite)


def reply_by_hand(by_hand, theta, client, key):
    size = int(client.size)
    return (by_hand(theta, client, client_key(key, client)) if size else np.zeros_like(theta)), size


@pytest.mark.parametrize(("update", "weighting"), [(Reptile(1, RATE, BATCH), "uniform"), (FedSGD(RATE), "examples")])
def test_replies_are_weighted_as_the_methods_paper_does_where_nobody_says(update, weighting):
    cohort, found = Cohort(on_device(tiny.federation())(EVERYONE)), {}
    for said in (None, "uniform", "examples"):
        algorithm = federated(TASK, MODEL, update, optax.sgd(1.0), weighting=said)
        state, _ = jax.jit(algorithm.step)(algorithm.init(tiny.theta()), cohort, jax.random.key(5))
        found[said] = tiny.flat(state.params)
    np.testing.assert_array_equal(found[None], found[weighting])
    assert (found["uniform"] != found["examples"]).any()


ALGORITHM = federated(TASK, MODEL, FedAvg(1, RATE, BATCH), optax.adam(0.1))
STEP, KEY = jax.jit(ALGORITHM.step), jax.random.key(5)


def assert_same(found, expected, rtol=1e-12):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-15), found, expected)


def in_order(task, model, broadcast, client, client_state, key):
    """As many steps as the client has examples, on one after the other: a path that costs little to compile."""

    def step(number, params):
        examples = client.examples(number[None], number[None] < client.size)
        gradient, _ = gradient_at(task, model, params, examples, None)
        return jax.tree.map(lambda p, g: p - RATE * g, params, gradient)

    end = jax.lax.fori_loop(0, client.size, step, broadcast)
    gather = jax.random.uniform(key)
    delta = jax.tree.map(jnp.subtract, broadcast, end)
    return Reply(delta, client.size.astype(jnp.float32), {name: (gather, gather) for name in no_sums(task)}, gather)


def test_the_number_of_lanes_changes_nothing(float64):
    cohort, start = Cohort(on_device(tiny.federation())(EVERYONE)), ALGORITHM.init(tiny.theta())

    def lanes_of(update, lanes):
        return federated(TASK, MODEL, update, optax.adam(0.1), parallel=Parallel(lanes))

    assert_same(jax.jit(lanes_of(FedAvg(1, RATE, BATCH), 2).step)(start, cohort, KEY), STEP(start, cohort, KEY))
    alone, *beside = (jax.jit(lanes_of(in_order, lanes).step)(start, cohort, KEY) for lanes in (1, 2, 8))
    assert alone[1].client_state.shape == (5,) and len(np.unique(alone[1].client_state)) == 5
    for found in beside:
        assert_same(found, alone)


def test_the_order_of_the_clients_changes_nothing_and_padding_not_even_a_bit(float64):
    gather, start = on_device(tiny.federation()), ALGORITHM.init(tiny.theta())
    clients = gather(EVERYONE)
    expected = STEP(start, Cohort(clients), KEY)
    assert_same(STEP(start, Cohort(gather(EVERYONE[::-1])), KEY), expected)
    wide = clients._replace(rows=jnp.concatenate([clients.rows, jnp.full((5, 50), 2, jnp.int32)], axis=1))
    jax.tree.map(np.testing.assert_array_equal, STEP(start, Cohort(wide), KEY), expected)


def test_an_empty_client_weighs_nothing(float64):
    # Number 3 has nothing to train on; of the three that are drawn in its stead, two only fill up the cohort.
    gather, start = on_device(tiny.federation()), ALGORITHM.init(tiny.theta())
    with_one_of_its_own, filled_up = (
        STEP(start, Cohort(gather(np.array(c))), KEY) for c in ([3, 0, 2, 4, -1], [0, 2, 4, -1, -1])
    )
    assert_same(with_one_of_its_own, filled_up)
    assert int(filled_up[1].clients) == 3 and int(filled_up[1].dropped) == 0


def with_nan(federation, clients):
    x, y = federation.fetch(EVERYONE)
    x = x.copy()
    starts = np.cumsum(federation.sizes.sum(axis=1)) - federation.sizes.sum(axis=1)
    for client in clients:
        x[starts[client]] = np.nan
    return replace(federation, fetch=lambda clients: (x, y))


def test_a_reply_that_is_not_finite_is_left_out_and_counted_and_a_round_of_only_such_changes_nothing(float64):
    federation = tiny.federation()
    healthy = Cohort(on_device(federation)(EVERYONE))
    state, _ = STEP(ALGORITHM.init(tiny.theta()), healthy, KEY)
    empty = healthy.clients.size * jnp.array([0, 1, 0, 1, 1])
    expected = STEP(state, Cohort(healthy.clients._replace(size=empty)), KEY)
    found = STEP(state, Cohort(on_device(with_nan(federation, [0, 2]))(EVERYONE)), KEY)
    assert int(found[1].dropped) == 2 and int(found[1].clients) == 2 and bool(found[1].finite)
    assert_same((found[0], found[1].metrics), (expected[0], expected[1].metrics))
    unchanged, info = STEP(state, Cohort(on_device(with_nan(federation, EVERYONE))(EVERYONE)), KEY)
    assert int(info.clients) == 0 and int(info.dropped) == 4
    jax.tree.map(np.testing.assert_array_equal, unchanged, state)


def counting(task, model, broadcast, client, client_state, key):
    """An update that asks nothing of the examples."""
    delta = jax.tree.map(lambda leaf: jnp.full_like(leaf, client.size), broadcast)
    return Reply(delta, client.size.astype(jnp.float32), no_sums(task))


@pytest.mark.parametrize("weighting", ["examples", "uniform"])
def test_a_transform_changes_each_reply_before_it_is_aggregated(weighting):
    def doubled_without_the_large(reply):
        return reply._replace(
            delta=jax.tree.map(lambda d: 2 * d, reply.delta), weight=reply.weight * (reply.weight < 7)
        )

    cohort = Cohort(on_device(tiny.federation())(EVERYONE))
    algorithm = federated(
        TASK, MODEL, counting, optax.sgd(1.0), weighting=weighting, transform=doubled_without_the_large
    )
    state, info = jax.jit(algorithm.step)(algorithm.init({"theta": jnp.zeros(2)}), cohort, KEY)
    # Of the sizes 7, 1, 12, 0 and 5 there remain 1 and 5.
    mean = {"examples": (1 * 2 + 5 * 10) / 6, "uniform": (2 + 10) / 2}[weighting]
    np.testing.assert_allclose(state.params["theta"], -mean, rtol=1e-6)
    assert int(info.clients) == 2


def test_a_reply_weighs_its_delta_and_not_its_metrics():
    reply = Reply({"a": jnp.array([1.0, 2.0])}, jnp.array(3.0), {"loss": (jnp.array(4.0), jnp.array(5.0))})
    totals = to_totals(reply)
    np.testing.assert_array_equal(totals.delta["a"], [3, 6])
    assert totals.metrics == {"loss": (4, 5)} and totals.clients == 1 and totals.dropped == 0
    broken = to_totals(reply._replace(delta={"a": jnp.array([1.0, jnp.inf])}))
    assert not np.asarray(broken.delta["a"]).any()
    assert (broken.weight, broken.clients, broken.dropped) == (0, 0, 1)
    assert not all_finite({"a": jnp.zeros(2), "b": jnp.array(jnp.nan)})


@pytest.mark.parametrize("padding", [0, 9])
def test_a_pass_over_the_pool_is_a_numpy_loop_of_sgd(float64, padding):
    federation, start = tiny.federation(), tiny.theta()
    clients = on_device(federation)(np.array([0]))
    order = np.random.default_rng(2).permutation(14)
    rows = jnp.asarray(np.concatenate([order, np.zeros(padding)])[None], jnp.int32)
    pool = clients._replace(rows=rows, size=jnp.array([14], jnp.int32))
    algorithm = centralized(TASK, MODEL, optax.sgd(0.2, momentum=0.9), batch_size=4)
    state, info = jax.jit(algorithm.step)(algorithm.init(start), Cohort(pool), jax.random.key(0))
    x, y = federation.fetch(EVERYONE)
    theta, server = tiny.flat(start), reference.Sgd(0.2, 0.9)
    for first in range(0, 14, 4):
        chosen = order[first : first + 4]
        theta = server.step(theta, PROBLEM.gradient(theta, (x[chosen], y[chosen])))
    np.testing.assert_allclose(tiny.flat(state.params), theta, rtol=1e-12)
    assert float(info.metrics["loss"][1]) == 14 and int(info.clients) == 1
