"""Every method beside the paper's: closed forms, limits in which it is another, and numpy; and one table over all."""

import inspect
import json
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import headstart.methods
import reference
import tiny
from headstart import Optimizer, Personalization, UserError
from headstart.data.device_data import on_device
from headstart.data.federation import from_arrays
from headstart.experiment.serialization import from_json, to_json
from headstart.learning.client_state import ClientStates
from headstart.learning.personalization import adapt_client
from headstart.learning.rounds import Cohort, client_key, federated
from headstart.learning.tasks import Classification, Regression
from headstart.methods import (
    ANIL,
    IFCA,
    Ditto,
    FedBABU,
    FedPer,
    FedProx,
    FedRep,
    LocalOnly,
    PerFedAvg,
    PFedMe,
    Scaffold,
)
from headstart.methods.paper import FOMAML, FedAvg, Reptile
from headstart.methods.partial import head_of
from headstart.models.zoo import Model

RATE, BATCH = 0.2, 3
TASK, MODEL = Classification(), tiny.SOFTMAX
PROBLEM = reference.softmax_regression(tiny.FEATURES, tiny.CLASSES)
KEY = jax.random.key(11)
EVERYONE = np.array([0, 1, 2, 4])
CENTRES = np.array([[1.0, -1.0, 0.5], [-2.0, 0.3, 1.0], [0.2, 2.0, -1.0]])
ALL = [getattr(headstart.methods, name)() for name in headstart.methods.__all__]
METHODS = {type(method).__name__: method for method in ALL}


def reply_of(method, client, params, *, task=TASK, model=MODEL, client_state=None, key=KEY):
    """The reply of a client to what the method broadcasts of these parameters."""
    shared = method.init_server(params)
    return jax.jit(partial(method, task, model))(shared, client, client_state, client_key(key, client))


def quadratic(number: int = 0, size: int = 4):
    """A client whose loss is 1/2 (θ − c)' A (θ − c) on any batch, and its c."""
    centre = CENTRES[number]
    return tiny.one(tiny.quadratic_federation(CENTRES, [size] * len(CENTRES)), number), centre


def near(centre, anchor, strength):
    """argmin 1/2 (θ − c)' A (θ − c) + λ/2 ‖θ − w‖²."""
    return np.linalg.solve(tiny.CURVATURE + strength * np.eye(3), tiny.CURVATURE @ centre + strength * anchor)


def personal(method, client, broadcast, *, epochs, learning_rate=RATE, task=TASK, model=MODEL, batch_size=BATCH):
    """A held-out client's own parameters."""
    recipe = Personalization(Optimizer("sgd", learning_rate), batch_size, epochs)
    adapted = jax.jit(partial(adapt_client, task, model, recipe, epochs=epochs, method=method))
    return adapted(method.init_server(broadcast), client, KEY)


@pytest.mark.parametrize(
    ("method", "other"),
    [
        (FedProx(0.0, 2, RATE, BATCH), FedAvg(2, RATE, BATCH)),
        (Ditto(2, RATE, BATCH, 3.0), FedAvg(2, RATE, BATCH)),
        (FedPer(2, RATE, BATCH, head=()), FedAvg(2, RATE, BATCH)),
        (FedRep(0, 2, RATE, BATCH, head=()), FedAvg(2, RATE, BATCH)),
        (FedBABU(2, RATE, BATCH, head=()), FedAvg(2, RATE, BATCH)),
        (ANIL(3, RATE, BATCH, head=("theta",)), FOMAML(3, RATE, BATCH)),
    ],
    ids=lambda method: type(method).__name__,
)
def test_in_the_limit_it_is_another(method, other, float64):
    for number in EVERYONE:
        client, theta = tiny.one(tiny.federation(), number), tiny.theta()
        found = reply_of(method, client, theta, client_state=method.init_client_state(theta))
        expected = reply_of(other, client, theta)
        np.testing.assert_allclose(tiny.flat(found.delta), tiny.flat(expected.delta), rtol=1e-12)
        assert float(found.weight) == float(expected.weight)


def test_fedprox_is_its_numpy_reference(float64):
    client, theta = tiny.one(tiny.federation(), 2), tiny.theta()
    path = tiny.drawn(client, client_key(KEY, client), range(8), BATCH)
    expected = reference.fedprox(PROBLEM, tiny.flat(theta), path, RATE, 0.8)
    np.testing.assert_allclose(tiny.flat(reply_of(FedProx(0.8, 2, RATE, BATCH), client, theta).delta), expected)


@pytest.mark.parametrize("method", [Ditto(strength=0.7), PFedMe(strength=0.7)], ids=["Ditto", "pFedMe"])
def test_a_client_with_a_proximal_term_comes_to_rest_between_its_own_minimum_and_the_model(method, float64):
    (client, centre), start = quadratic(1), np.array([0.5, 0.5, -0.5])
    found = personal(method, client, {"theta": jnp.asarray(start)}, epochs=400, task=tiny.Quadratic(), model=tiny.POINT)
    np.testing.assert_allclose(found["theta"], near(centre, start, 0.7), rtol=1e-10)


def test_a_strong_proximal_term_keeps_the_model(float64):
    (client, _), start = quadratic(1), np.array([0.5, 0.5, -0.5])
    method = Ditto(strength=1e6)
    found = personal(
        method,
        client,
        {"theta": jnp.asarray(start)},
        epochs=50,
        learning_rate=1e-6,
        task=tiny.Quadratic(),
        model=tiny.POINT,
    )
    np.testing.assert_allclose(found["theta"], start, atol=1e-5)


def test_pfedme_follows_the_minima_of_its_envelopes(float64):
    (client, centre), start, strength = quadratic(2), np.array([0.5, 0.5, -0.5]), 0.9
    method = PFedMe(rounds=3, steps=300, strength=strength, learning_rate=RATE, outer_rate=0.4, batch_size=BATCH)
    own = start
    for _ in range(3):
        own = own - 0.4 * strength * (own - near(centre, own, strength))
    reply = reply_of(method, client, {"theta": jnp.asarray(start)}, task=tiny.Quadratic(), model=tiny.POINT)
    np.testing.assert_allclose(reply.delta["theta"], start - own, rtol=1e-10)


def test_per_fedavg_steps_from_where_it_was_not_from_where_it_looked(float64):
    (client, centre), start = quadratic(), np.array([0.5, 0.5, -0.5])
    own = start
    for _ in range(4):
        ahead = own - RATE * tiny.CURVATURE @ (own - centre)
        own = own - 0.05 * tiny.CURVATURE @ (ahead - centre)
    method = PerFedAvg(4, RATE, 0.05, BATCH)
    reply = reply_of(method, client, {"theta": jnp.asarray(start)}, task=tiny.Quadratic(), model=tiny.POINT)
    np.testing.assert_allclose(reply.delta["theta"], start - own, rtol=1e-12)


def test_local_training_learns_nothing_together_and_starts_from_the_untrained_model(float64):
    client, theta = tiny.one(tiny.federation(), 2), tiny.theta()
    assert not tiny.flat(reply_of(LocalOnly(), client, theta).delta).any()
    path = tiny.drawn(client, KEY, range(8), BATCH)
    expected = tiny.flat(theta) - reference.fedavg(PROBLEM, tiny.flat(theta), path, RATE)
    np.testing.assert_allclose(tiny.flat(personal(LocalOnly(), client, theta, epochs=2)), expected, rtol=1e-12)


# A body of two numbers and a head of one: y = x'b + h.
AFFINE = Model(
    lambda key: {"body": jnp.zeros(2), "head": jnp.zeros(())}, lambda v, x, *, key=None: (x @ v["body"] + v["head"], v)
)
HEAD = ("head",)


def affine_client(offset: float = 1.0):
    generator = np.random.default_rng(3)
    x = generator.normal(size=(8, 2))
    federation = from_arrays("numbers", ["a"], np.array([[8, 0]]), x, x @ [1.0, -1.0] + offset)
    return tiny.one(federation, 0)


def affine_step(params, batch, *, body: bool, head: bool):
    (b, h), (x, y) = params, batch
    error = 2 * (x @ b + h - y) / len(y)
    return b - 0.05 * x.T @ error * body, h - 0.05 * error.sum() * head


@pytest.mark.parametrize(
    ("method", "parts"),
    [
        (FedPer(2, 0.05, BATCH, HEAD), [(True, True)] * 6),
        (FedRep(1, 2, 0.05, BATCH, HEAD), [(False, True)] * 3 + [(True, False)] * 6),
        (FedBABU(2, 0.05, BATCH, HEAD), [(True, False)] * 6),
    ],
    ids=["FedPer", "FedRep", "FedBABU"],
)
def test_the_partial_family_moves_its_parts_in_turn(method, parts, float64):
    client, body, own = affine_client(), np.array([0.3, 0.2]), np.array(0.5)
    broadcast = {"body": jnp.asarray(body), "head": jnp.asarray(0.1)}
    stateful = method.is_stateful
    client_state = [jnp.asarray(own)] if stateful else None
    reply = reply_of(method, client, broadcast, task=Regression(), model=AFFINE, client_state=client_state)
    at = body, own if stateful else 0.1
    for (moves_body, moves_head), batch in zip(
        parts, tiny.drawn(client, client_key(KEY, client), range(len(parts)), BATCH), strict=True
    ):
        at = affine_step(at, batch, body=moves_body, head=moves_head)
    np.testing.assert_allclose(reply.delta["body"], body - at[0], rtol=1e-12)
    assert float(reply.delta["head"]) == 0
    if stateful:
        np.testing.assert_allclose(reply.client_state[0], at[1], rtol=1e-12)


def test_anil_takes_inner_steps_on_the_head_and_one_gradient_of_all(float64):
    client, at = affine_client(), (np.array([0.3, 0.2]), np.array(0.1))
    broadcast = {"body": jnp.asarray(at[0]), "head": jnp.asarray(at[1])}
    reply = reply_of(ANIL(4, 0.05, BATCH, HEAD), client, broadcast, task=Regression(), model=AFFINE)
    batches = tiny.drawn(client, client_key(KEY, client), range(5), BATCH)
    for batch in batches[:4]:
        at = affine_step(at, batch, body=False, head=True)
    end = affine_step(at, batches[4], body=True, head=True)
    np.testing.assert_allclose(reply.delta["body"], at[0] - end[0], rtol=1e-12)
    np.testing.assert_allclose(reply.delta["head"], at[1] - end[1], rtol=1e-12)


@pytest.mark.parametrize("method", [FedRep(head=HEAD), FedBABU(head=HEAD), ANIL(head=HEAD)], ids=lambda m: str(type(m)))
def test_a_held_out_client_fits_the_head_alone(method, float64):
    broadcast = {"body": jnp.asarray([1.0, -1.0]), "head": jnp.zeros(())}
    found = personal(
        method, affine_client(4.0), broadcast, epochs=200, learning_rate=0.1, task=Regression(), model=AFFINE
    )
    np.testing.assert_array_equal(found["body"], [1.0, -1.0])
    np.testing.assert_allclose(found["head"], 4.0, rtol=1e-6)


def test_the_head_is_named_or_the_last_dense_layer():
    params = {f"Dense_{i}": {"kernel": jnp.zeros(1)} for i in (1, 2, 10)}
    found = head_of(params, None)
    assert [name for name, part in found.items() if part["kernel"]] == ["Dense_10"]
    found = head_of(params, ["Dense_1"])
    assert [name for name, part in found.items() if part["kernel"]] == ["Dense_1"]
    for wrong, head, sentence in (
        (params, ["decoder"], "no parameter's path has the name 'decoder'"),
        ({"params": {"Dense_0": {"kernel": jnp.zeros(1)}}}, None, "leaves no body to share"),
        ({"Block_0": {"Dense_3": jnp.zeros(1)}}, None, "no dense layer of its own"),
    ):
        with pytest.raises(UserError, match=sentence):
            head_of(wrong, head)


def test_ifca_with_one_model_is_fedavg(float64):
    cohort, rounds = Cohort(on_device(tiny.federation())(EVERYONE)), []
    for method in (IFCA(1, 2, RATE, BATCH), FedAvg(2, RATE, BATCH)):
        algorithm = federated(TASK, MODEL, method, Optimizer("sgd", 1.0, {"momentum": 0.9}).build())
        state, step = algorithm.init(tiny.theta()), jax.jit(algorithm.step)
        for number in range(2):
            state, _ = step(state, cohort, jax.random.fold_in(KEY, number))
        rounds.append(state.params)
    np.testing.assert_allclose(tiny.flat(rounds[0]["models"]), tiny.flat(rounds[1]), rtol=1e-12)


def test_ifca_averages_each_model_over_those_who_chose_it(float64):
    federation = tiny.quadratic_federation(np.array([[3.0, 0, 0], [-3.0, 0, 0], [3.5, 0, 0]]), [4, 4, 12])
    algorithm = federated(tiny.Quadratic(), tiny.POINT, IFCA(2, 1, RATE, 12, spread=0.0), Optimizer("sgd", 1.0).build())
    models = np.array([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]])
    state = algorithm.init({"theta": jnp.zeros(3)})
    state = state._replace(params={**state.params, "models": {"theta": jnp.asarray(models)}})
    found, _ = jax.jit(algorithm.step)(state, Cohort(on_device(federation)(np.arange(3))), KEY)
    moved = [models[i] - RATE * tiny.CURVATURE @ (models[i] - c) for i, c in ((0, [3, 0, 0]), (0, [3.5, 0, 0]))]
    expected = [(4 * moved[0] + 12 * moved[1]) / 16, models[1] - RATE * tiny.CURVATURE @ (models[1] - [-3, 0, 0])]
    np.testing.assert_allclose(found.params["models"]["theta"], expected, rtol=1e-12)
    client = tiny.one(federation, 1)
    begun = IFCA(2).personal_init(tiny.Quadratic(), tiny.POINT, found.params, client, KEY)
    np.testing.assert_array_equal(begun["theta"], found.params["models"]["theta"][1])


def test_ifca_leaves_a_model_that_nobody_chose_and_its_momentum(float64):
    federation = tiny.quadratic_federation(np.array([[3.0, 0, 0], [-9.5, 0, 0]]), [4, 4])
    server = Optimizer("sgd", 1.0, {"momentum": 0.9}).build()
    algorithm = federated(tiny.Quadratic(), tiny.POINT, IFCA(2, 1, RATE, 4), server)
    state, step, gather = algorithm.init({"theta": jnp.zeros(3)}), jax.jit(algorithm.step), on_device(federation)
    state = state._replace(params={**state.params, "models": {"theta": jnp.asarray([[1.0, 0, 0], [-9.0, 0, 0]])}})
    both, _ = step(state, Cohort(gather(np.array([0, 1]))), KEY)
    one, _ = step(both, Cohort(gather(np.array([0, -1]))), jax.random.fold_in(KEY, 1))
    models = [each.params["models"]["theta"] for each in (state, both, one)]
    assert np.abs(models[1] - models[0]).max(axis=1).min() > 1e-3 and np.abs(models[2][0] - models[1][0]).max() > 1e-3
    np.testing.assert_array_equal(models[2][1], models[1][1])
    for after, before in zip(jax.tree.leaves(one.optimizer), jax.tree.leaves(both.optimizer), strict=True):
        np.testing.assert_array_equal(after[1], before[1])
        assert np.abs(after[0] - before[0]).max() > 1e-3


def test_ifca_passes_over_a_broken_model_and_begins_apart_in_every_seed(float64):
    client, centre = quadratic()
    models = {"theta": jnp.asarray([[np.nan] * 3, list(centre), [9.0] * 3])}
    begun = IFCA().personal_init(tiny.Quadratic(), tiny.POINT, {"models": models}, client, KEY)
    np.testing.assert_array_equal(begun["theta"], centre)
    shared = [IFCA(2).init_server({"theta": jnp.asarray(c)})["models"]["theta"] for c in CENTRES[:2]]
    noises = [each[1] - each[0] for each in shared]
    assert np.abs(noises[0] / np.linalg.norm(noises[0]) - noises[1] / np.linalg.norm(noises[1])).max() > 0.1


def test_batch_statistics_are_not_transformed():
    def init(key):
        return {"params": {"w": jnp.ones(3)}, "batch_stats": {"mean": jnp.full(3, 5.0)}}

    def apply(variables, x, *, key=None):
        mean = variables["batch_stats"]["mean"] if key is None else x.mean(axis=0)
        output = jnp.stack([(x - mean) @ variables["params"]["w"]] * tiny.CLASSES, axis=1)
        return output, variables if key is None else {**variables, "batch_stats": {"mean": mean}}

    model, client = Model(init, apply), tiny.one(tiny.federation(), 2)
    params = init(None)
    plain, proximal = (reply_of(m, client, params, model=model).delta for m in (FedAvg(2), FedProx(30.0, 2)))
    np.testing.assert_allclose(proximal["batch_stats"]["mean"], plain["batch_stats"]["mean"], rtol=1e-6)
    assert np.abs(plain["batch_stats"]["mean"]).min() > 1
    np.testing.assert_array_equal(
        IFCA(2).init_server(params)["models"]["batch_stats"]["mean"], np.full((2, 3), 5.0, np.float32)
    )


def test_scaffold_is_its_numpy_reference_over_three_rounds(float64):
    method, theta, server = Scaffold(3, RATE, BATCH), tiny.theta(), Optimizer("sgd", 1.0).build()
    algorithm = federated(TASK, MODEL, method, server, weighting="uniform", participation=0.5)
    step, state, gather = jax.jit(algorithm.step), algorithm.init(theta), on_device(tiny.federation())
    states = ClientStates(method.init_client_state(theta))
    clients = {i: tiny.one(tiny.federation(), i) for i in EVERYONE}
    at, control, own = tiny.flat(theta), 0.0, dict.fromkeys(EVERYONE, 0.0)
    for number, chosen in enumerate(np.array([[0, 2], [2, 4], [0, 1]])):
        key = jax.random.fold_in(KEY, number)
        state, info = step(state, Cohort(gather(chosen), states.of(chosen)), key)
        states.put(chosen, info.client_state)
        moves, changes = [], []
        for i in chosen:
            current = at
            for batch in tiny.drawn(clients[i], client_key(key, clients[i]), range(3), BATCH):
                current = current - RATE * (PROBLEM.gradient(current, batch) - own[i] + control)
            new_control = own[i] - control + (at - current) / (3 * RATE)
            moves.append(current - at)
            changes.append(new_control - own[i])
            own[i] = new_control
        at, control = at + np.mean(moves, axis=0), control + 0.5 * np.mean(changes, axis=0)
        np.testing.assert_allclose(tiny.flat(state.params["params"]), at, rtol=1e-10)
        np.testing.assert_allclose(tiny.flat(state.params["control"]), control, rtol=1e-9, atol=1e-12)


def shapes(tree):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


@dataclass(frozen=True)
class Layers:
    """A network with a layer that Flax would call dense."""

    def __call__(self):
        def init(key):
            keys = jax.random.split(key)
            kernels = (0.3 * jax.random.normal(k, s) for k, s in zip(keys, [(3, 5), (5, 4)], strict=True))
            return {f"Dense_{i}": {"kernel": kernel} for i, kernel in enumerate(kernels)}

        def apply(params, x, *, key=None):
            return jnp.tanh(x @ params["Dense_0"]["kernel"]) @ params["Dense_1"]["kernel"], params

        return Model(init, apply)


def test_no_file_of_a_method_is_forgotten():
    files = {path.stem for path in Path(headstart.methods.__file__).parent.glob("[!_]*.py")}
    shared = {"as_fedavg", "paper", "partial"}
    assert files - shared == {inspect.getmodule(type(method)).__name__.rpartition(".")[2] for method in ALL}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_keeps_the_contract(name):
    method, model, traces = METHODS[name], Layers()(), []
    if name == "FedBN":  # without normalization, what stays with the client is named
        method = replace(method, layers=("Dense_0",))
    params = jax.tree.map(jnp.float32, model.init(jax.random.key(0)))
    broadcast, client_state = method.init_server(params), method.init_client_state(params)

    @jax.jit
    def reply(broadcast, client, client_state, key):
        traces.append(name)
        return method(TASK, model, broadcast, client, client_state, key)

    @jax.jit
    def own(broadcast, client, key, epochs):
        recipe = Personalization(Optimizer("sgd", 0.1), BATCH, 1)
        return adapt_client(TASK, model, recipe, broadcast, client, key, epochs, method)

    for i in range(5):
        client = tiny.one(tiny.federation(), i)
        found = reply(broadcast, client, client_state, jax.random.key(i))
        assert shapes(found.delta) == shapes(broadcast) and shapes(found.client_state) == shapes(client_state)
        assert float(found.weight) == int(client.size) and set(found.metrics) == {m.name for m in TASK.metrics}
        assert np.isfinite(tiny.flat(found.delta)).all()
        # The client without examples says nothing, and learns nothing of its own.
        weightless = {k: v for k, v in found.delta.items() if k != "members"} if name == "IFCA" else found.delta
        assert name == "LocalOnly" or (np.abs(tiny.flat(weightless)).max() > 0) == (int(client.size) > 0)
        start, mine = (own(broadcast, client, jax.random.key(i), epochs) for epochs in (0, 1))
        assert shapes(mine) == shapes(start) and (shapes(mine) == shapes(params) or method.has_own_predictions)
        assert (np.abs(tiny.flat(mine) - tiny.flat(start)).max() > 0) == (int(client.size) > 0)
    assert len(traces) == 1
    named = replace(method, head=("Dense_1",)) if hasattr(method, "head") else method
    assert from_json(json.loads(json.dumps(to_json(named)))) == named
    assert inspect.getdoc(type(method)) and (inspect.getmodule(type(method)).__doc__ or "").strip()


def test_reptile_is_the_first_round_of_scaffold(float64):
    theta, client = tiny.theta(), tiny.one(tiny.federation(), 2)
    method = Scaffold(3, RATE, BATCH)
    found = reply_of(method, client, theta, client_state=method.init_client_state(theta)).delta["params"]
    np.testing.assert_allclose(
        tiny.flat(found), tiny.flat(reply_of(Reptile(3, RATE, BATCH), client, theta).delta), rtol=1e-12
    )
