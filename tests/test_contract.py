"""Methods written outside the package against its public contract, and one table over all updates."""

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import tiny
from headstart import UserError
from headstart.data.device_data import on_device
from headstart.data.federation import from_arrays
from headstart.learning.local_sgd import LocalSGD, mean_loss
from headstart.learning.method import ClientUpdate, Reply
from headstart.learning.parallel import Parallel
from headstart.learning.rounds import Cohort, client_key, federated
from headstart.learning.tasks import Classification, Regression
from headstart.methods import Ditto, Scaffold
from headstart.methods.paper import FOMAML, MAML, FedAvg, FedSGD, Reptile
from headstart.models.zoo import as_model

RATE, STEPS, BATCH = 0.2, 3, 3
TASK, MODEL = Classification(), tiny.SOFTMAX
KEY = jax.random.key(11)


class Normalized(nn.Module):
    """A dense layer on normalized features."""

    @nn.compact
    def __call__(self, x, *, train: bool = False):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.75)(x)
        return nn.Dense(tiny.CLASSES)(x)


def test_batch_statistics_are_averaged_like_parameters():
    # Every batch is a client's whole data, so after one step its statistics are known.
    federation = tiny.federation(((6, 0), (6, 0), (6, 0)), shift=2.0)
    x, _ = federation.fetch(np.arange(3))
    model = as_model(Normalized(), x[:1].astype(np.float32))
    algorithm = federated(TASK, model, Reptile(1, 0.1, 6), optax.sgd(1.0))
    start = algorithm.init(model.init(jax.random.key(0)))
    state, info = jax.jit(algorithm.step)(start, Cohort(on_device(federation)(np.arange(3))), KEY)
    found = state.params["batch_stats"]["BatchNorm_0"]
    groups = x.reshape(3, 6, tiny.FEATURES)
    np.testing.assert_allclose(found["mean"], 0.25 * groups.mean(axis=1).mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(found["var"], 0.75 + 0.25 * groups.var(axis=1).mean(axis=0), rtol=1e-5)
    kernels = (s.params["params"]["Dense_0"]["kernel"] for s in (state, start))
    assert np.abs(np.subtract(*kernels)).max() > 1e-3 and int(info.clients) == 3


def affine(variables, x, *, key=None):
    return x @ variables["body"] + variables["head"], variables


@dataclass(frozen=True)
class LocalHead(ClientUpdate):
    """FedPer (Arivazhagan et al. 2019): the body is averaged, the head stays with the client."""

    steps: int = STEPS
    learning_rate: float = 0.05
    batch_size: int = BATCH

    def __call__(self, task, model, broadcast, client, client_state, key):
        local_sgd = LocalSGD(task, model, optax.sgd(self.learning_rate), self.batch_size)
        start = local_sgd.init({"body": broadcast, "head": client_state})
        end = local_sgd.run(start, client, key, steps=self.steps)
        delta = jax.tree.map(jnp.subtract, broadcast, end.params["body"])
        return Reply(delta, client.size.astype(jnp.float32), end.metrics, end.params["head"])


def numbers_federation(slopes, offsets):
    """Clients with targets `x @ slope + offset` of their own."""
    generator = np.random.default_rng(3)
    x = generator.normal(size=(len(slopes), 8, 2))
    y = np.einsum("cnd,cd->cn", x, np.array(slopes)) + np.array(offsets)[:, None]
    sizes = np.tile([8, 0], (len(slopes), 1))
    return from_arrays("numbers", [str(i) for i in range(len(slopes))], sizes, x.reshape(-1, 2), y.ravel())


def test_parameters_can_stay_with_the_client(float64):
    federation = numbers_federation([[1.0, -1.0]] * 3, [-4.0, 0.0, 4.0])
    model = as_model(
        (lambda key: {"body": jnp.zeros(2), "head": jnp.zeros(())}, lambda v, x: affine(v, x)[0]), np.zeros((1, 2))
    )
    algorithm = federated(Regression(), model, LocalHead(), optax.sgd(1.0))
    step, state, heads = jax.jit(algorithm.step), algorithm.init(jnp.zeros(2)), jnp.zeros(3)
    clients, gather = [tiny.one(federation, i) for i in range(3)], on_device(federation)
    body, own = np.zeros(2), np.zeros(3)
    for number in range(40):
        key = jax.random.fold_in(KEY, number)
        state, info = step(state, Cohort(gather(np.arange(3)), heads), key)
        heads = info.client_state
        if number < 2:
            ends = []
            for i, client in enumerate(clients):
                b = body
                for x, y in tiny.drawn(client, client_key(key, client), range(STEPS), BATCH):
                    error = 2 * (x @ b + own[i] - y) / len(y)
                    b, own[i] = b - 0.05 * x.T @ error, own[i] - 0.05 * error.sum()
                ends.append(b)
            body = np.mean(ends, axis=0)
            np.testing.assert_allclose(state.params, body, rtol=1e-10)
            np.testing.assert_allclose(heads, own, rtol=1e-10)
    np.testing.assert_allclose(state.params, [1, -1], atol=1e-3)
    np.testing.assert_allclose(heads, [-4, 0, 4], atol=1e-3)


@dataclass(frozen=True)
class PickOne(ClientUpdate):
    """IFCA (Ghosh et al. 2020): models are broadcast, `[models, ...]`; a client trains the one that suits it."""

    inner: Any

    def __call__(self, task, model, broadcast, client, client_state, key):
        positions = jnp.arange(client.rows.shape[0])
        examples = client.examples(positions, positions < client.size)
        losses = jax.vmap(lambda params: mean_loss(task, model, params, examples, None)[0])(broadcast)
        best = losses.argmin()
        reply = self.inner(task, model, jax.tree.map(lambda leaf: leaf[best], broadcast), client, client_state, key)
        spread = jax.tree.map(lambda all, one: jnp.zeros_like(all).at[best].set(one), broadcast, reply.delta)
        return reply._replace(delta=spread, client_state=best)


def test_several_global_models_go_out_in_one_tree_and_find_their_clients(float64):
    federation = numbers_federation([[2.0, 0.0], [-2.0, 1.0], [2.0, 0.0], [-2.0, 1.0]], [0.0] * 4)
    model = as_model((lambda key: jnp.zeros(2), lambda theta, x: x @ theta), np.zeros((1, 2)))
    algorithm = federated(Regression(), model, PickOne(FedSGD(0.2)), optax.sgd(1.0))
    step, cohort = jax.jit(algorithm.step), Cohort(on_device(federation)(np.arange(4)))
    start = np.array([[0.3, 0.1], [-0.3, 0.1]])
    state, info = step(algorithm.init(jnp.asarray(start)), cohort, KEY)
    np.testing.assert_array_equal(info.client_state, [0, 1, 0, 1])
    x, y = federation.fetch(np.arange(4))
    by_hand = start.copy()
    for i, (own_x, own_y) in enumerate(zip(x.reshape(4, 8, 2), y.reshape(4, 8), strict=True)):
        by_hand[i % 2] -= 0.2 * (2 * own_x.T @ (own_x @ start[i % 2] - own_y) / 8) / 4
    np.testing.assert_allclose(state.params, by_hand, rtol=1e-12)
    for _ in range(150):
        state, _ = step(state, cohort, KEY)
    np.testing.assert_allclose(state.params, [[2, 0], [-2, 1]], atol=1e-3)


UPDATES = {
    "FedSGD": FedSGD(RATE),
    "FedSGD on one batch": FedSGD(RATE, BATCH),
    "FedAvg": FedAvg(2, RATE, BATCH),
    "Reptile": Reptile(STEPS, RATE, BATCH),
    "FOMAML": FOMAML(STEPS, RATE, BATCH),
    "FOMAML, query held out": FOMAML(STEPS, RATE, BATCH, query_share=0.3),
    "MAML": MAML(2, RATE, BATCH),
    "MAML, query held out": MAML(2, RATE, BATCH, query_share=0.3),
}


def shapes(tree):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


@pytest.mark.parametrize("name", UPDATES)
def test_every_update_keeps_the_contract_and_is_traced_once_for_cohorts_of_one_shape(name):
    update, traces, federation = UPDATES[name], [], tiny.federation()
    broadcast = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tiny.theta())

    @jax.jit
    def reply_of(broadcast, client, client_state, key):
        traces.append(name)
        return update(TASK, MODEL, broadcast, client, client_state, key)

    for i in range(5):
        client = tiny.one(federation, i)
        reply = reply_of(broadcast, client, None, jax.random.key(i))
        assert shapes(reply.delta) == shapes(broadcast) and reply.client_state is None
        # A client of one example has none to hold out for the query, so it says nothing.
        says_nothing = getattr(update, "query_share", 0) and int(client.size) < 2
        assert reply.weight.shape == () and float(reply.weight) == (0 if says_nothing else int(client.size))
        assert set(reply.metrics) == {metric.name for metric in TASK.metrics}
        assert np.isfinite(tiny.flat(reply.delta)).all()
        assert (np.abs(tiny.flat(reply.delta)).max() > 0) == (int(client.size) > ("held out" in name))
    assert len(traces) == 1


def test_a_round_is_compiled_once_for_cohorts_of_one_shape():
    algorithm = federated(TASK, MODEL, Reptile(2, RATE, BATCH), optax.adam(0.1), parallel=Parallel(2))
    step, state, gather = jax.jit(algorithm.step), algorithm.init(tiny.theta()), on_device(tiny.federation())
    for number, clients in enumerate([[0, 1, 2], [4, 3, 0], [2, 1, 4]]):
        state, _ = step(state, Cohort(gather(np.array(clients))), jax.random.fold_in(KEY, number))
    assert step._cache_size() == 1


def call(self, task, model, broadcast, client, client_state, key): ...


@pytest.mark.parametrize(
    ("parts", "complaint"),
    [
        (
            {"personal_gradeint": lambda self, start: None},
            r"Mine\.personal_gradeint is no part of a method: a method may",
        ),
        ({"personal_gradient": lambda self: None}, r"Mine\.personal_gradient must be a function of \(self, start\)"),
        ({"personal_init": 3}, r"Mine\.personal_init must be a function of \(self, task, model"),
        ({"__annotations__": {"init_server": "int"}}, r"Mine\.init_server must be a function of \(self, params\)"),
        ({"__annotations__": {"serch_space": "ClassVar[dict]"}}, r"Mine\.serch_space .* did you mean search_space\?"),
        ({"__call__": lambda self, task, model: None}, r"Mine\.__call__ must be a function of \(self, task, model"),
    ],
)
def test_a_hook_that_would_never_be_called_is_refused(parts, complaint):
    with pytest.raises(UserError, match=complaint):
        type("Mine", (ClientUpdate,), {"__call__": call, **parts})


def test_what_is_not_of_the_contract_is_no_method():
    class Duck:
        __call__ = call

    with pytest.raises(UserError, match=r"Duck is no method; let the class derive from headstart\.ClientUpdate"):
        federated(TASK, MODEL, Duck(), optax.sgd(1.0))  # pyright: ignore[reportArgumentType]


def test_a_method_says_what_it_brings():
    assert Reptile().is_plain and not Reptile().is_stateful and Reptile().is_single_model
    assert Scaffold().is_stateful and not Scaffold().is_single_model
    assert Ditto().for_personalization == Ditto() and not Ditto().is_plain
    assert FedAvg(2).for_personalization is Reptile().for_personalization
