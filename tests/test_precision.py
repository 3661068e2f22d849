"""Half precision: a model may compute or hold its parameters in it, but nothing is summed in it."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import headstart as hs
import headstart.methods
import tiny
from headstart.data.device_data import on_device
from headstart.learning.rounds import Cohort, centralized, federated
from headstart.learning.tasks import Metric, measure, weighted_sum
from headstart.methods.paper import FOMAML, MAML, FedAvg, FedSGD, Reptile
from headstart.models.zoo import Model

HALVES = [jnp.bfloat16, jnp.float16]
KEY = jax.random.key(3)
EVERYONE = np.arange(5)


def in_type(dtype):
    """Softmax regression whose parameters, and so its outputs, are of this type."""

    def apply(variables, x, *, key=None):
        theta = variables["theta"].reshape(tiny.FEATURES + 1, -1)
        return x.astype(dtype) @ theta[:-1] + theta[-1], variables

    return Model(lambda key: {"theta": tiny.SOFTMAX.init(key)["theta"].astype(dtype)}, apply)


def large(sizes):
    """Clients with three features and one of four classes, in float32."""
    federation = tiny.federation(sizes)
    x, y = federation.fetch(np.arange(len(sizes)))
    return hs.from_arrays("large", federation.ids, sizes, x.astype(np.float32), y, metadata=federation.metadata)


@pytest.mark.parametrize("dtype", HALVES)
def test_a_half_precision_model_is_told_its_true_accuracy_and_loss(dtype):
    sizes = np.array([[3, 70_000], [3, 999]])
    federation, model = large(sizes), in_type(dtype)
    logits = np.array([0.5, 2.0, -1.0, 0.25])  # of every example, and exact in half precision
    params = {"theta": jnp.asarray(np.concatenate([np.zeros(12), logits]), dtype)}
    curves = hs.personalize(hs.Classification(), model, params, federation, hs.Personalization(epochs=0), key=KEY)
    for client, (adapt, test) in enumerate(sizes):
        y = federation.fetch(np.array([client]))[1][adapt:]
        sums, counts = curves.metrics["accuracy"]
        assert counts[client] == test and sums[client, 0] == (y == 1).sum()
        sums, counts = curves.metrics["loss"]
        expected = (np.log(np.exp(logits).sum()) - logits[y]).mean()
        np.testing.assert_allclose(sums[client, 0] / counts[client], expected, rtol=1e-4)


@dataclass(frozen=True)
class Coarse:
    """A user's task, whose values and weights have the type of the model's output, or none of a number."""

    def loss(self, output, y):
        values = -jax.nn.log_softmax(output)[jnp.arange(len(y)), y]
        return values, jnp.ones_like(values)

    @property
    def metrics(self):
        def right(output, y):
            return output.argmax(axis=-1) == y, jnp.ones(len(y), bool)

        return Metric("loss", "nats", False, self.loss), Metric("right", "share", True, right)


@pytest.mark.parametrize("dtype", HALVES)
def test_a_users_own_metrics_are_summed_in_float32(dtype):
    output, y = jnp.tile(jnp.array([[2.0, 0.0]], dtype), (1000, 1)), jnp.arange(1000) % 2
    sums = measure(Coarse(), output, hs.Examples(None, y, jnp.ones(1000, bool)))
    assert sums["right"] == (500, 1000) and sums["loss"][1] == 1000
    expected = 500 * (np.log1p(np.exp(-2)) + np.log1p(np.exp(2)))
    np.testing.assert_allclose(sums["loss"][0], expected, rtol=1e-5)


def test_sums_are_float64_where_jax_computes_in_64_bits(float64):
    total, count = weighted_sum((jnp.ones(3, jnp.bfloat16), jnp.ones(3, jnp.float32)))
    assert total.dtype == count.dtype == jnp.float64


@pytest.mark.parametrize("dtype", HALVES)
def test_a_round_over_more_examples_than_half_precision_counts_is_that_of_float32(dtype):
    gather, task = on_device(large([[70_000, 0], [50, 0]])), hs.Classification()
    stepped = []
    for each in (dtype, jnp.float32):
        algorithm = federated(task, in_type(each), FedSGD(0.5), optax.sgd(1.0))
        start = algorithm.init({"theta": tiny.theta()["theta"].astype(dtype).astype(each)})
        state, info = jax.jit(algorithm.step)(start, Cohort(gather(np.arange(2))), KEY)
        assert info.metrics["accuracy"][1] == 70_050 and state.params["theta"].dtype == each
        stepped.append(tiny.flat(state.params).astype(np.float32) - tiny.flat(start.params).astype(np.float32))
    assert np.abs(stepped[1]).max() > 0.01
    np.testing.assert_allclose(stepped[0], stepped[1], atol=0.01)


UPDATES = [FedSGD(), FedAvg(), Reptile(), FOMAML(), MAML()]
OTHERS = [getattr(headstart.methods, name)() for name in headstart.methods.__all__]


@pytest.mark.parametrize("method", [*UPDATES, *OTHERS], ids=lambda method: type(method).__name__)
@pytest.mark.parametrize("dtype", HALVES)
def test_every_method_replies_to_half_precision_in_float32_and_keeps_the_parameters_type(method, dtype):
    if hasattr(method, "head"):
        method = replace(method, head=("theta",))
    if hasattr(method, "layers"):
        method = replace(method, layers=("theta",))
    model, task = in_type(dtype), hs.Classification()
    params = model.init(jax.random.key(0))
    state = method.init_client_state(params)
    states = None if state is None else jax.tree.map(lambda leaf: jnp.stack([leaf] * 5), state)
    cohort, algorithm = (
        Cohort(on_device(tiny.federation())(EVERYONE), states),
        federated(task, model, method, optax.adam(0.1)),
    )
    before = algorithm.init(params)
    after, info = jax.eval_shape(algorithm.step, before, cohort, KEY)
    jax.tree.map(lambda new, old: (new.dtype, new.shape) == (old.dtype, old.shape) or pytest.fail(), after, before)
    assert {leaf.dtype for leaf in jax.tree.leaves(info.metrics)} == {jnp.dtype(jnp.float32)}
    moments = [leaf.dtype for leaf in jax.tree.leaves(after.optimizer) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    assert set(moments) == {jnp.dtype(jnp.float32)}


def test_the_servers_moments_are_not_those_of_half_precision():
    # 0.999 is 1 in bfloat16: Adam's second moment would never decay.
    federation, task = tiny.federation(), hs.Classification()
    found = []
    for dtype in (jnp.bfloat16, jnp.float32):
        algorithm = federated(task, in_type(dtype), Reptile(2, 0.1, 3), optax.adam(0.1))
        state, step = algorithm.init({"theta": jnp.zeros(16, dtype)}), jax.jit(algorithm.step)
        for number in range(5):
            state, _ = step(state, Cohort(on_device(federation)(EVERYONE)), jax.random.key(number))
        found.append(tiny.flat(state.params).astype(np.float32))
    np.testing.assert_allclose(found[0], found[1], atol=0.05)


@pytest.mark.parametrize("dtype", HALVES)
def test_a_datacenter_in_half_precision_counts_every_example(dtype):
    gather, size = on_device(large([[3000, 0]])), 3000
    algorithm = centralized(hs.Classification(), in_type(dtype), optax.sgd(0.1), batch_size=20)
    state, info = jax.jit(algorithm.step)(
        algorithm.init({"theta": jnp.zeros(16, dtype)}), Cohort(gather(np.array([0]))), KEY
    )
    assert info.metrics["accuracy"][1] == size and state.params["theta"].dtype == dtype
