"""Dropout with random numbers that cost little on a CPU."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from headstart.models.threefry import uniform


class Dropout(nn.Module):
    """Flax's `Dropout`: the same entries are dropped for the same key. A rate of 0 draws no random bits."""

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """If it trains, x `[batch, ...]` with entries set to 0 at this rate and the others scaled up."""
        if not train or self.rate == 0:
            return x
        if self.rate == 1:
            return jnp.zeros_like(x)
        kept = uniform(self.make_rng("dropout"), x.shape) < 1 - self.rate
        return jnp.where(kept, x / (1 - self.rate), 0)
