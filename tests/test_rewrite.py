from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax import lax

from headstart.data.federation import Examples, from_arrays
from headstart.experiment.experiment import Data, Experiment, Stage
from headstart.learning.local_sgd import LocalSGD, batch_stats_mask
from headstart.learning.optimizers import Optimizer
from headstart.methods.paper import FedAvg
from headstart.models.rewrite import VARIABLE, Rewritten, rewritten
from headstart.models.zoo import CNN, as_given, as_model
from headstart.training import run as training
from headstart.training.seed_run import Options
from tiny import normal

REPLACED = ("conv_general_dilated", "reduce_window")
KEY = jax.random.key(7)


pytestmark = pytest.mark.usefixtures("float64")


def left(function, *arguments):
    """The names of operations that should have been replaced."""
    program = str(jax.make_jaxpr(function)(*arguments))
    return [name for name in REPLACED if name in program]


def derivatives(function, order, *arguments):
    """The value, the gradient of a nonlinear function of it and, at order 2, of a nonlinear function of that."""
    numbers = tuple(range(len(arguments)))

    def first(*arguments):
        return jax.grad(lambda *given: jnp.sin(function(*given)).sum(), argnums=numbers)(*arguments)

    def second(*arguments):
        return jax.grad(lambda *given: sum(jnp.cos(leaf).sum() for leaf in first(*given)), argnums=numbers)(*arguments)

    return jax.jit(lambda *given: (function(*given), first(*given), second(*given) if order == 2 else ()))(*arguments)


def same(function, *arguments, order=2, tolerance=1e-11):
    ours = rewritten(function)
    assert left(function, *arguments) and not left(ours, *arguments)
    found, expected = derivatives(ours, order, *arguments), derivatives(function, order, *arguments)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance), found, expected)


LAST, FIRST = ("NHWC", "HWIO", "NHWC"), ("NCHW", "OIHW", "NCHW")


@pytest.mark.parametrize(
    ("x", "kernel", "strides", "padding", "options"),
    [
        ((4, 9, 8, 8), (3, 3, 8, 5), (1, 1), "SAME", {}),
        ((4, 9, 8, 2), (5, 3, 2, 5), (2, 3), "SAME", {}),
        ((4, 9, 8, 2), (3, 3, 2, 5), (2, 2), ((1, 2), (-1, 0)), {"rhs_dilation": (2, 1)}),
        ((4, 5, 4, 3), (1, 1, 3, 2), (2, 2), "VALID", {}),
        ((4, 4, 9, 8), (8, 1, 3, 3), (2, 2), "SAME", {"feature_group_count": 4, "dimension_numbers": FIRST}),
        ((4, 9, 8, 4), (3, 3, 2, 6), (2, 2), "SAME", {"feature_group_count": 2}),
        ((2, 5, 5, 20), (3, 3, 2, 30), (1, 1), "SAME", {"feature_group_count": 10}),
        ((4, 9, 3), (4, 3, 5), (2,), "SAME", {"dimension_numbers": ("NHC", "HIO", "NHC")}),
        ((2, 5, 4, 6, 3), (2, 2, 3, 3, 2), (1, 2, 1), "SAME", {"dimension_numbers": ("NDHWC", "DHWIO", "NDHWC")}),
        ((4, 5, 4, 3), (3, 1, 3, 2), (1, 1), ((2, 1), (1, 1)), {"lhs_dilation": (2, 2)}),
        ((4, 5, 4, 3), (3, 2, 3, 2), (2, 1), ((0, 2), (1, 1)), {"lhs_dilation": (3, 2), "rhs_dilation": (1, 2)}),
    ],
)
def test_a_convolution_is_that_of_xla(x, kernel, strides, padding, options):
    options = {"dimension_numbers": LAST} | options
    same(
        lambda x, w: lax.conv_general_dilated(x, w, strides, padding, **options),
        normal(0, *x),
        normal(1, *kernel),
        order=1,
    )


def test_many_examples_are_convolved_some_at_a_time_with_the_same_result():
    x, kernel = normal(0, 6, 30, 30, 8), normal(1, 5, 5, 8, 4)
    function = partial(lax.conv_general_dilated, window_strides=(1, 1), padding="SAME", dimension_numbers=LAST)
    assert "scan" in str(jax.make_jaxpr(rewritten(function))(x, kernel))
    same(function, x, kernel, order=1)


WINDOWS = [
    ((1, 2, 2, 1), (1, 2, 2, 1), "VALID"),
    ((1, 3, 3, 1), (1, 2, 2, 1), "SAME"),
    ((1, 3, 2, 1), (1, 1, 2, 1), ((0, 0), (1, 0), (0, 1), (0, 0))),
    ((1, 19, 8, 1), (1, 19, 8, 1), "VALID"),
]


@pytest.mark.parametrize(("window", "strides", "padding"), WINDOWS)
@pytest.mark.parametrize(
    ("combine", "start"),
    [(lax.max, -np.inf), pytest.param(lax.min, np.inf, marks=pytest.mark.slow), (lax.add, 0.0)],
)
def test_a_pooling_is_that_of_xla_and_a_tie_goes_to_the_first(combine, start, window, strides, padding):
    def pool(x):
        return lax.reduce_window(x, start, combine, window, strides, padding)

    same(pool, jnp.round(normal(0, 2, 19, 8, 3)), order=1)


def test_a_pooling_by_a_function_of_jax_numpy_is_replaced_too():
    def pool(x):
        return lax.reduce_window(x, -jnp.inf, jnp.maximum, (1, 2, 1), (1, 2, 1), "VALID")

    x = normal(0, 2, 8, 3)
    assert left(pool, x) and not left(rewritten(pool), x)
    np.testing.assert_array_equal(rewritten(pool)(x), pool(x))


def conv(x, kernel):
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=LAST)


@jax.custom_jvp
def forward_rule(x, kernel):
    return conv(x, kernel)


forward_rule.defjvp(lambda given, moved: (conv(*given), 3 * conv(moved[0], given[1]) + conv(given[0], moved[1])))


@jax.custom_vjp
def reverse_rule(x, kernel, number):
    return conv(x, kernel) * number


reverse_rule.defvjp(
    lambda *given: (reverse_rule(*given), given),
    lambda given, cotangent: (3 * conv(cotangent, given[1].swapaxes(2, 3)), jnp.cos(given[1]), None),
)


@jax.custom_jvp
def counted_rule(x, kernel, number):
    return conv(x, kernel) * number


counted_rule.defjvp(
    lambda given, moved: (
        counted_rule(*given),
        3 * conv(moved[0], given[1]) * given[2] + conv(given[0], moved[1]),
    )
)


@pytest.mark.parametrize(
    "inside",
    [
        jax.jit(conv),
        jax.checkpoint(conv),
        lambda x, kernel: lax.fori_loop(0, 2, lambda _, y: conv(y, kernel), x),
        lambda x, kernel: lax.cond(x.sum() > 0, conv, lambda x, _: x, x, kernel),
        lambda x, kernel: lax.scan(lambda y, k: (conv(y, k), y.sum()), x, jnp.stack([kernel, kernel]))[0],
        jax.vmap(lambda x, kernel: conv(x[None], kernel)[0], in_axes=(0, None)),
        lambda x, kernel: jax.vmap(conv, in_axes=(None, 0))(x, jnp.stack([kernel, 2 * kernel])).sum(axis=0),
        forward_rule,
        lambda x, kernel: reverse_rule(x, kernel, 2),
        lambda x, kernel: counted_rule(x, kernel, jnp.argmax(x)),
        lambda x, kernel: reverse_rule(x, kernel, jnp.argmax(x)),
    ],
    ids=[
        *("jit", "checkpoint", "loop", "branch", "scan", "vmap", "vmap of kernels", "own jvp", "own vjp"),
        *("own jvp of a whole number", "own vjp of a whole number"),
    ],
)
def test_what_is_inside_of_other_operations_is_replaced_and_rules_of_derivatives_are_kept(inside):
    same(inside, normal(0, 2, 3, 3, 2), normal(1, 2, 2, 2, 2) / 5, order=1)


def test_a_derivative_of_its_own_has_a_forward_mode_over_it_where_xla_has_one():
    @jax.custom_vjp
    def rule(x, kernel):
        return conv(x, kernel)

    rule.defvjp(
        lambda *given: (conv(*given), given),
        lambda given, cotangent: (3 * conv(cotangent, given[1]) * given[0], given[1]),
    )

    def gradient(function):
        return jax.grad(lambda x: jnp.sin(function(x, normal(1, 2, 2, 2, 2))).sum())

    x = normal(0, 2, 3, 3, 2)
    found = jax.jvp(gradient(rewritten(rule)), (x,), (x,))
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-11), found, jax.jvp(gradient(rule), (x,), (x,)))


def test_sums_of_a_depthwise_filter_in_half_precision_are_in_float32():
    x, kernel = (normal(seed, *shape).astype(jnp.bfloat16) for seed, shape in ((0, (2, 6, 6, 4)), (1, (3, 3, 1, 4))))
    function = partial(
        lax.conv_general_dilated,
        window_strides=(1, 1),
        padding="SAME",
        dimension_numbers=LAST,
        feature_group_count=4,
    )
    exact = function(x.astype(jnp.float64), kernel.astype(jnp.float64))
    np.testing.assert_allclose(rewritten(function)(x, kernel).astype(jnp.float64), exact, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize("window", [(1, 1, 1, 1), (1, 1, 2, 1)])
@pytest.mark.parametrize(("combine", "start"), [(lax.max, -np.inf), (lax.add, 0.0)])
def test_windows_that_leave_the_last_row_out_are_those_of_xla(combine, start, window):
    def pool(x):
        return lax.reduce_window(x, start, combine, window, (1, 2, 2, 1), "VALID")

    same(pool, normal(0, 2, 2, 2, 3), order=1)


def test_second_derivatives_of_a_convolution_and_its_pooling_are_those_of_xla():
    def network(x, kernel):
        y = lax.conv_general_dilated(x, kernel, (2, 1), "SAME", dimension_numbers=LAST)
        return lax.reduce_window(y, -np.inf, lax.max, (1, 3, 2, 1), (1, 1, 2, 1), "SAME")

    same(network, normal(0, 2, 7, 5, 2), normal(1, 3, 3, 2, 3))


def test_under_vmap_of_images_and_kernels_it_is_that_of_each():
    x, kernel = normal(0, 3, 2, 8, 8, 8), normal(1, 3, 3, 3, 8, 4)
    found = jax.vmap(rewritten(conv))(x, kernel)
    np.testing.assert_allclose(found, jnp.stack([conv(*pair) for pair in zip(x, kernel, strict=True)]), atol=1e-12)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_short_types_stay_what_they_are(dtype):
    x, kernel = normal(0, 2, 9, 9, 8).astype(dtype), normal(1, 3, 3, 8, 8).astype(dtype)
    found = rewritten(conv)(x, kernel)
    assert found.dtype == dtype
    exact = conv(*(value.astype(jnp.float64) for value in (x, kernel)))
    assert jnp.abs(found - exact).max() < 16 * jnp.finfo(dtype).eps * jnp.abs(exact).max()


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x, *, train=False):
        x = nn.max_pool(nn.relu(nn.Conv(4, (3, 3))(x)), (2, 2), (2, 2))
        x = nn.BatchNorm(use_running_average=not train, momentum=0.5)(x)
        x = nn.Dropout(0.5, deterministic=not train)(x)
        x = nn.avg_pool(nn.Conv(4, (3, 3), strides=2)(x), (2, 2), (2, 2))
        return nn.Dense(3)(x.reshape(x.shape[0], -1))


class Small(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.max_pool(nn.Conv(2, (3, 3))(x), (2, 2), (2, 2)).reshape(x.shape[0], -1))


class NewStyle(nnx.Module):
    def __init__(self, *, rngs):
        self.conv, self.norm = nnx.Conv(1, 4, (3, 3), rngs=rngs), nnx.BatchNorm(4, momentum=0.5, rngs=rngs)
        self.dropout, self.dense = nnx.Dropout(0.5, rngs=rngs), nnx.Linear(64, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.max_pool(self.norm(self.conv(x)), (2, 2), (2, 2))
        return self.dense(self.dropout(x).reshape(x.shape[0], -1))


def functions():
    def init(key):
        return {"kernel": jax.random.normal(key, (3, 3, 1, 3), jnp.float32), "unused": jnp.zeros(2)}

    def apply(params, x, *, key=None):
        y = conv(x, params["kernel"]).mean(axis=(1, 2))
        return y if key is None else y + jax.random.normal(key, y.shape, y.dtype)

    return init, apply


@pytest.mark.parametrize("thing", [Linen(), NewStyle, functions()], ids=["linen", "nnx", "functions"])
def test_a_model_of_any_kind_is_rewritten_and_computes_what_it_did(thing, monkeypatch):
    x = normal(0, 6, 8, 8, 1).astype(np.float32)
    model = as_model(thing, x)
    plain = as_given(model)
    assert isinstance(model.apply, Rewritten) and not isinstance(plain.apply, Rewritten)
    variables = model.init(KEY)
    for key in (None, KEY):
        assert left(plain.apply, variables, x) and not left(partial(model.apply, key=key), variables, x)
        found, expected = (jax.jit(each.apply)(variables, x, key=key) for each in (model, plain))
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), found, expected)
    examples = Examples(x, np.zeros(6, int), jnp.ones(6, bool))
    masks = [batch_stats_mask(each, examples, variables, KEY) for each in (model, plain)]
    assert masks[0] == masks[1]
    assert sum(jax.tree.leaves(masks[0])) == (0 if isinstance(thing, tuple) else 2)
    assert as_model(model, x) is model
    assert not isinstance(as_model(thing, x, rewrite=False).apply, Rewritten)
    monkeypatch.setenv(VARIABLE, "0")
    assert not isinstance(as_model(thing, x).apply, Rewritten)


class PreparedError(Exception):
    pass


@pytest.mark.parametrize("rewrite", [True, False])
def test_a_run_trains_what_was_rewritten_unless_an_option_says_otherwise(rewrite, monkeypatch, tmp_path):
    def stop(prepared, *_):
        raise PreparedError(prepared)

    monkeypatch.setattr(training, "run_context", stop)  # before anything is compiled
    x, y = np.random.default_rng(0).random((24, 6, 6, 1), np.float32), np.arange(24) % 3
    federation = from_arrays("mine", list("abcd"), np.array([[4, 2]] * 4), x, y, metadata={"classes": 3})
    stage = Stage("s", FedAvg(1, 0.1, 4), Optimizer("sgd", 1.0), 1, 2)
    experiment = Experiment("e", (stage,), data=Data("", train=0.5, validation=0.25))
    with jax.enable_x64(False), pytest.raises(PreparedError) as caught:
        training.run(experiment, tmp_path, federation=federation, model=Small(), options=Options(rewrite=rewrite))
    (prepared,) = caught.value.args
    local_sgd = LocalSGD(prepared.task, prepared.model, optax.sgd(0.1), 4)
    examples, params = Examples(x[:4], y[:4], jnp.ones(4, bool)), prepared.model.init(KEY)
    assert rewrite != bool(left(local_sgd.gradient, examples, params, KEY))


def test_the_built_in_model_has_nothing_to_rewrite():
    assert not isinstance(as_model(CNN(filters=(2, 3), hidden=4), np.zeros((1, 8, 8, 1))).apply, Rewritten)
