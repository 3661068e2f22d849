from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from headstart.models.conv import conv_general_dilated, convolve, convolve_and_pool, max_pool
from headstart.models.lstm import LSTM, dot_general, recur
from tiny import normal

pytestmark = pytest.mark.usefixtures("float64")


def same_to_second_order(ours, theirs, *arguments):
    """Outputs, gradients, and gradients of a nonlinear function of the gradients, with respect to every argument."""

    def loss(f, *arguments):
        return jnp.sin(f(*arguments)).sum()

    def curvature(f, *arguments):
        gradients = jax.grad(loss, argnums=tuple(range(1, 1 + len(arguments))))(f, *arguments)
        return sum(jnp.cos(leaf).sum() for leaf in jax.tree.leaves(gradients))

    def close(a, b):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-10)

    numbers = tuple(range(1, 1 + len(arguments)))

    @partial(jax.jit, static_argnums=0)
    def derivatives(f, *arguments):
        return f(*arguments), *(jax.grad(function, argnums=numbers)(f, *arguments) for function in (loss, curvature))

    jax.tree.map(close, derivatives(ours, *arguments), derivatives(theirs, *arguments))


def lax_convolve(x, kernel):
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))


@pytest.mark.parametrize("image", [(6, 7, 1), (9, 6, 32)])
def test_convolution_and_pooling_in_one_is_what_each_does_to_second_order(image):
    def apart(x, kernel):
        return jax.lax.reduce_window(
            lax_convolve(x, kernel), -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"
        )

    same_to_second_order(convolve_and_pool, apart, normal(0, 2, *image), normal(1, 3, 3, image[-1], 3))


@pytest.mark.parametrize(
    ("image", "kernel"),
    [
        ((6, 7, 1), (3, 3, 1, 4)),
        ((9, 5, 32), (3, 3, 32, 3)),
        ((8, 7, 8), (5, 2, 8, 3)),
    ],
)
def test_convolution_is_that_of_lax_to_second_order(image, kernel):
    same_to_second_order(convolve, lax_convolve, normal(0, 2, *image), normal(1, *kernel))


def test_convolution_under_vmap_of_images_and_kernels_is_that_of_each():
    x, kernel = normal(0, 3, 2, 8, 8, 32), normal(1, 3, 3, 3, 32, 4)
    expected = jnp.stack([lax_convolve(*pair) for pair in zip(x, kernel, strict=True)])
    np.testing.assert_allclose(jax.vmap(convolve)(x, kernel), expected, atol=1e-12)


def test_convolution_in_float32_is_as_exact_as_training_needs():
    x = jax.random.uniform(jax.random.key(0), (4, 26, 26, 32), jnp.float32)
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 32, 64), jnp.float32) / 17
    exact = lax_convolve(x.astype(jnp.float64), kernel.astype(jnp.float64))
    assert jnp.abs(convolve(x, kernel) - exact).max() < 1e-5 * jnp.abs(exact).max()


@pytest.mark.parametrize(
    "options",
    [
        {"padding": "VALID"},
        {"padding": "SAME"},
        {"padding": ((2, 1), (0, 3))},
        {"padding": "CIRCULAR"},
        {"strides": 2},
        {"kernel_dilation": 2},
        {"feature_group_count": 2},
    ],
    ids=str,
)
def test_flax_convolution_takes_it_with_any_options(options):
    ours, theirs = (
        nn.Conv(6, (3, 3), dtype=jnp.float64, param_dtype=jnp.float64, conv_general_dilated=function, **options)
        for function in (conv_general_dilated, None)
    )
    x = normal(0, 2, 8, 9, 8)
    params = theirs.init(jax.random.key(0), x)
    np.testing.assert_allclose(ours.apply(params, x), theirs.apply(params, x), atol=1e-12)


def test_flax_convolution_takes_it_in_one_dimension():
    ours, theirs = (nn.Conv(6, (3,), conv_general_dilated=function) for function in (conv_general_dilated, None))
    x = normal(0, 2, 8, 3)
    params = theirs.init(jax.random.key(0), x)
    np.testing.assert_allclose(ours.apply(params, x), theirs.apply(params, x), atol=1e-12)


@pytest.mark.parametrize(("height", "width", "size"), [(6, 4, 2), (7, 5, 2), (6, 9, 3)])
def test_max_pool_is_that_of_flax_to_second_order(height, width, size):
    def flax_max_pool(x):
        return nn.max_pool(x, (size, size), (size, size))

    same_to_second_order(lambda x: max_pool(x, size), flax_max_pool, normal(0, 2, height, width, 3))


def test_max_pool_shares_the_gradient_of_a_tie():
    gradient = jax.grad(lambda x: 8 * max_pool(x).sum())(jnp.zeros((1, 2, 2, 1)))
    np.testing.assert_array_equal(gradient.ravel(), [2, 2, 2, 2])


def scanned(inputs, recurrent):
    """The textbook, left to autodiff."""

    def step(state, given):
        i, f, g, o = jnp.split(given + state[0] @ recurrent, 4, axis=-1)
        cell = jax.nn.sigmoid(f) * state[1] + jax.nn.sigmoid(i) * jnp.tanh(g)
        hidden = jax.nn.sigmoid(o) * jnp.tanh(cell)
        return (hidden, cell), hidden

    zeros = jnp.zeros((inputs.shape[1], recurrent.shape[0]))
    return jax.lax.scan(step, (zeros, zeros), inputs)[1]


def test_recurrence_under_vmap_of_inputs_and_weights_has_the_gradients_of_each():
    inputs, recurrent = normal(0, 3, 5, 2, 16), normal(1, 3, 4, 16)
    ours, theirs = (
        jax.vmap(jax.grad(lambda *given, f=f: jnp.sin(f(*given)).sum(), argnums=(0, 1)))(inputs, recurrent)
        for f in (recur, scanned)
    )
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)


def test_lstm_is_that_of_flax_to_second_order():
    x, width = normal(0, 3, 6, 5), 4
    layer, cell = LSTM(width), nn.RNN(nn.OptimizedLSTMCell(width, param_dtype=jnp.float64))
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), layer.init(jax.random.key(0), x)["params"])

    def flax_lstm(params, x):
        kernels, recurrents, biases = (
            jnp.split(params[name], 4, axis=-1) for name in ("kernel", "recurrent_kernel", "bias")
        )
        theirs = {f"i{gate}": {"kernel": kernel} for gate, kernel in zip("ifgo", kernels, strict=True)}
        for gate, kernel, bias in zip("ifgo", recurrents, biases, strict=True):
            theirs[f"h{gate}"] = {"kernel": kernel, "bias": bias}
        return cell.apply({"params": {"cell": theirs}}, x)

    same_to_second_order(lambda params, x: layer.apply({"params": params}, x), flax_lstm, params, x)


def test_flax_dense_layer_takes_our_product_to_second_order():
    ours, theirs = (nn.Dense(4, param_dtype=jnp.float64, dot_general=product) for product in (dot_general, None))
    x = normal(0, 2, 3, 5)
    params = theirs.init(jax.random.key(0), x)
    same_to_second_order(ours.apply, theirs.apply, params, x)
