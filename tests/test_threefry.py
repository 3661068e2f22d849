"""Random numbers and dropout are those of JAX and Flax."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from headstart.models.dropout import Dropout
from headstart.models.threefry import uniform


@pytest.mark.parametrize("shape", [(1,), (400,), (20, 130), (3, 4, 5)])
@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_uniform_numbers_are_those_of_jax_bit_for_bit(shape, impl):
    key = jax.random.fold_in(jax.random.key(11, impl=impl), 3)
    drawn = jax.jit(uniform, static_argnums=1)(key, shape)
    np.testing.assert_array_equal(drawn, jax.random.uniform(key, shape, jnp.float32))


def test_raw_keys_and_keys_side_by_side_give_the_numbers_of_jax():
    raw = jax.random.PRNGKey(4)
    np.testing.assert_array_equal(uniform(raw, (9,)), jax.random.uniform(raw, (9,)))
    keys = jax.random.split(jax.random.key(4, impl="threefry2x32"), 5)
    expected = jax.vmap(lambda key: jax.random.uniform(key, (7,)))(keys)
    np.testing.assert_array_equal(jax.vmap(lambda key: uniform(key, (7,)))(keys), expected)


@pytest.mark.parametrize("train", [True, False])
def test_dropout_drops_what_flax_drops(train):
    x, key = jnp.arange(1.0, 2001.0).reshape(20, 100), jax.random.key(2, impl="threefry2x32")
    expected = nn.Dropout(0.25, deterministic=not train).apply({}, x, rngs={"dropout": key})
    np.testing.assert_allclose(Dropout(0.25).apply({}, x, train=train, rngs={"dropout": key}), expected, rtol=1e-6)
