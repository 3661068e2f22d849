"""What every test shares: one kind of random bits, the CPU, and float64 where a test asks for it."""

import os
from collections.abc import Iterator

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest

jax.config.update("jax_default_prng_impl", "threefry2x32")
jax.config.update("jax_threefry_partitionable", True)


@pytest.fixture
def float64() -> Iterator[None]:
    """The test runs in float64."""
    with jax.enable_x64(True):
        yield
