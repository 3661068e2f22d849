"""Counted operations: beside counts by hand, beside those of XLA, and of whole methods."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from headstart import Data, Experiment, ModelSpec, Optimizer, Stage
from headstart.data.federation import Examples
from headstart.experiment.setup import prepare
from headstart.learning.local_sgd import LocalSGD
from headstart.learning.tasks import Classification
from headstart.methods import ANIL, IFCA, FedBABU, FedPer, FedProx, FedRep, LocalOnly, PFedMe, Scaffold
from headstart.methods.paper import FOMAML, MAML, FedAvg, Reptile
from headstart.models.operations import operations
from headstart.studies.compare.arithmetic import cost, counting_of, sampled

X, W = jnp.ones((5, 7)), jnp.ones((7, 7))
PRODUCT = 2 * 5 * 7 * 7


def turns(x, w, count):
    """`count` turns, each a product and a function of 35 numbers."""
    return jax.lax.fori_loop(0, count, lambda _, x: jnp.tanh(x @ w), x)


def every_third(x, w, count):
    def one(_, carry):
        x, k = carry
        return jax.lax.cond(k % 3 == 0, lambda: x @ w, lambda: x + 1.0), k + 1

    return jax.lax.fori_loop(0, count, one, (x, 0))


def growing(x, w, counts):
    def one(x, count):
        return turns(x, w, count), x.sum()

    return jax.lax.scan(one, x, counts)


def until(x, w, bound):
    """Doubles until a sum passes a bound: as many turns as values say."""
    return jax.lax.while_loop(lambda x: x.sum() < bound, lambda x: 2 * x, x)


@pytest.mark.parametrize(
    ("function", "given", "expected"),
    [
        (lambda x, w, b: jnp.tanh(x @ w + b).sum(), jnp.ones(7), PRODUCT + 35 + 35 + 35),
        (lambda x, w, b: x.reshape(7, 5)[2:, ::-1] > 0.5, 0, 0),
        (turns, 9, 9 * (PRODUCT + 35)),
        (jax.jit(turns), 9, 9 * (PRODUCT + 35)),
        (every_third, 9, 3 * PRODUCT + 6 * 35),
        (growing, jnp.arange(5), 10 * (PRODUCT + 35) + 5 * 35),
        # 35, 70, …, 560: four turns, each with the condition's sum.
        (until, 500.0, 4 * (35 + 35)),
        # Known beforehand, and differentiated.
        (lambda x, w, _: jax.lax.fori_loop(0, 6, lambda _, x: jnp.tanh(x @ w), x), 0, 6 * (PRODUCT + 35)),
    ],
)
def test_operations_are_those_that_a_hand_counts(function, given, expected):
    assert operations(function, X, W, given) == expected


def test_what_nobody_needs_is_not_counted_in_a_loop_either():
    def descend(x, w, count, *, moves):
        def one(_, carry):
            a, b = carry
            of_a, of_b = jax.grad(lambda a, b: jnp.sum((a @ w) @ b), (0, 1))(a, b)
            return a - of_a if moves else a, b - of_b

        return jax.lax.fori_loop(0, count, one, (x, w))

    both, one = (operations(lambda x, w, n, m=m: descend(x, w, n, moves=m), X, W, 4) for m in (True, False))
    # Forwards one product (the sum's value is not needed), backwards one for b, and two for a, and its step.
    assert one == 4 * (2 * PRODUCT + 49) and both == one + 4 * (2 * PRODUCT + 35)


IMAGES, CLASSES, HIDDEN, BATCH = 784, 62, 100, 11


@pytest.fixture(scope="module")
def prepared():
    """Ten writers who train on 22 examples each: two batches of 11."""
    data = Data("glyphs", {"writers": 10, "examples": 25}, train=0.5, validation=0.2)
    plan = Experiment(
        "operations", (Stage("plain", FedAvg(), Optimizer(), 1, 3),), data, ModelSpec("mlp", {"widths": (HIDDEN,)})
    )
    found = prepare(plan)
    assert set(found.federation.sizes[:, 0]) == {22}
    return found


BODY, HEAD = IMAGES * HIDDEN, HIDDEN * CLASSES
# Two operations for every multiplication and addition. The data need no gradient; the hidden layer does.
FORWARD, WHOLE = 2 * (BODY + HEAD), 2 * (2 * BODY + 3 * HEAD)
ON_HEAD, ON_BODY = FORWARD + 2 * HEAD, FORWARD + 2 * HEAD + 2 * BODY
METHODS = {
    "FedAvg": (FedAvg(3, batch_size=BATCH), 66 * WHOLE),
    "Reptile": (Reptile(5, batch_size=BATCH), 55 * WHOLE),
    "FOMAML": (FOMAML(4, batch_size=BATCH), 55 * WHOLE),
    "FedProx": (FedProx(epochs=2, batch_size=BATCH), 44 * WHOLE),
    "FedPer": (FedPer(2, batch_size=BATCH), 44 * WHOLE),
    "FedBABU": (FedBABU(2, batch_size=BATCH), 44 * ON_BODY),
    "FedRep": (FedRep(2, 1, batch_size=BATCH), 44 * ON_HEAD + 22 * ON_BODY),
    "ANIL": (ANIL(4, batch_size=BATCH), 44 * ON_HEAD + 11 * WHOLE),
    # Each of three models is evaluated on a batch of 32, of which 22 are examples.
    "IFCA": (IFCA(3, 2, batch_size=BATCH), 3 * 32 * FORWARD + 44 * WHOLE),
    "pFedMe": (PFedMe(3, 5, batch_size=BATCH), 15 * BATCH * WHOLE),
    "SCAFFOLD": (Scaffold(4, batch_size=BATCH), 4 * BATCH * WHOLE),
    "LocalOnly": (LocalOnly(), 0),
}


@pytest.mark.parametrize("name", METHODS)
def test_a_round_costs_the_products_of_its_steps_and_little_beside(name, prepared):
    update, products = METHODS[name]
    found = cost(Stage(name, update, Optimizer(), 1, 3), prepared, sampled(prepared)).operations
    # Steps, proximal terms and control variates are a few operations for each parameter and batch.
    parameters = BODY + HEAD + HIDDEN + CLASSES
    steps = products / WHOLE / BATCH + 2
    assert products <= found <= products + 9 * parameters * steps + 0.01 * products


def test_settings_share_what_counts_them_and_steps_cost_alike(prepared):
    clients, counting = sampled(prepared), counting_of(prepared)
    one, three, six = (
        cost(Stage("", FedAvg(n, batch_size=BATCH), Optimizer(), 1, 3), prepared, clients, counting).operations
        for n in (1, 3, 6)
    )
    # Beside its steps a client computes Δ.
    assert six - three == pytest.approx(3 * (three - one) / 2, rel=1e-6) and 0 < one - (three - one) / 2 < 0.03 * one


def of_xla(function, *arguments):
    return jax.jit(function).lower(*arguments).compile().cost_analysis()["flops"]


@pytest.mark.parametrize("model", ["logistic", "mlp"])
def test_a_step_counts_what_xla_counts(model):
    x, y = np.ones((20, 28, 28, 1), np.float32), np.arange(20, dtype=np.int32)
    net = _model(model)
    params = net.init(jax.random.key(0))
    local_sgd = LocalSGD(Classification(), net, optax.sgd(0.1), 20)

    def step(params, x, y):
        examples = Examples(x, y, jnp.ones(20, bool))
        return local_sgd.step(local_sgd.init(params), examples, jax.random.key(0)).params

    assert operations(step, params, x, y) == pytest.approx(of_xla(step, params, x, y), rel=0.02)


def _model(name):
    data = Data("glyphs", {"writers": 4, "examples": 25}, train=0.5, validation=0.25)
    options = {"widths": (HIDDEN,)} if name == "mlp" else {}
    return prepare(
        Experiment("model", (Stage("plain", FedAvg(), Optimizer(), 1, 2),), data, ModelSpec(name, options))
    ).model


def test_second_derivatives_cost_what_a_plain_program_of_them_does(prepared, capsys):
    """MAML of one step beside a loop of jax.grad written apart, counted by XLA; and its ratio to FOMAML's."""
    clients = sampled(prepared)

    def counted(update):
        return cost(Stage("", update, Optimizer(), 1, 3), prepared, clients).operations

    def network(params, x):
        (w, b), (v, c) = params
        return jax.nn.relu(x @ w + b) @ v + c

    def loss(params, x, y):
        return optax.softmax_cross_entropy_with_integer_labels(network(params, x), y).mean()

    def maml(params, x, y, x2, y2):
        def after(params):
            inner = jax.grad(loss)(params, x, y)
            return loss(jax.tree.map(lambda p, g: p - 0.1 * g, params, inner), x2, y2)

        return jax.grad(after)(params)

    shapes = ((IMAGES, HIDDEN), (HIDDEN,)), ((HIDDEN, CLASSES), (CLASSES,))
    params = jax.tree.map(jnp.ones, shapes, is_leaf=lambda leaf: isinstance(leaf[0], int))
    x, y = jnp.ones((BATCH, IMAGES)), jnp.zeros(BATCH, jnp.int32)
    second, first = counted(MAML(1, batch_size=BATCH)), counted(FOMAML(1, batch_size=BATCH))
    assert second == pytest.approx(of_xla(maml, params, x, y, x, y), rel=0.1)
    with capsys.disabled():
        print(f"\nMAML's operations are {second / first:.2f} times FOMAML's, both of one step")
    assert 1.3 < second / first < 2
