"""A recurrent layer whose weight gradient is one matrix product after the scan."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

Array = jax.Array


class LSTM(nn.Module):
    """Long short-term memory, from a state of zeros.

    One bias vector of 4 * width, as Keras has it; gates in the order input, forget, cell, output.
    """

    width: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Hidden states `[batch, time, width]` of inputs `[batch, time, features]`."""
        gates = 4 * self.width
        kernel = self.param("kernel", nn.initializers.glorot_uniform(), (x.shape[-1], gates))
        recurrent = self.param("recurrent_kernel", nn.initializers.orthogonal(), (self.width, gates))
        bias = self.param("bias", _remember, (gates,))
        # The inputs of all time steps in one product, outside the scan.
        inputs = x.swapaxes(0, 1) @ kernel + bias
        return recur(inputs, recurrent).swapaxes(0, 1)


@jax.custom_vjp
def recur(inputs: Array, recurrent: Array) -> Array:
    """The scan of an LSTM over time.

    inputs: `[time, batch, 4 * width]`, what the gates get from outside, bias included.
    recurrent: `[width, 4 * width]`.
    Returns the hidden states `[time, batch, width]`. Differentiable in reverse mode, any number of times.
    """
    return _forward(inputs, recurrent)[0]


def _forward(inputs: Array, recurrent: Array) -> tuple[Array, tuple[Array, ...]]:
    def step(state: tuple[Array, Array], given: Array) -> tuple[tuple[Array, Array], tuple[Array, ...]]:
        hidden, cell = state
        i, f, g, o = _activate(given + hidden @ recurrent)
        cell = f * cell + i * g
        hidden = o * jnp.tanh(cell)
        return (hidden, cell), (hidden, cell, jnp.concatenate([i, f, g, o], axis=-1))

    zeros = jnp.zeros((inputs.shape[1], recurrent.shape[0]), jnp.result_type(inputs, recurrent))
    _, (hidden, cell, gates) = jax.lax.scan(step, (zeros, zeros), inputs)
    return hidden, (recurrent, hidden, cell, gates)


def _backward(residuals: tuple[Array, ...], cotangent: Array) -> tuple[Array, Array]:
    recurrent, hidden, cell, gates = residuals
    # The barrier has the transpose made once; products with it as a view take longer, at every step.
    transposed = jax.lax.optimization_barrier(recurrent.T)

    def step(state: tuple[Array, Array], given: tuple[Array, ...]) -> tuple[tuple[Array, Array], Array]:
        d_hidden, d_cell = state
        direct, cell, before, gates = given
        i, f, g, o = jnp.split(gates, 4, axis=-1)
        squashed = jnp.tanh(cell)
        d_hidden = d_hidden + direct
        d_cell = d_cell + d_hidden * o * (1 - squashed**2)
        d_gates = jnp.concatenate(
            [
                d_cell * g * i * (1 - i),
                d_cell * before * f * (1 - f),
                d_cell * i * (1 - g**2),
                d_hidden * squashed * o * (1 - o),
            ],
            axis=-1,
        )
        return (d_gates @ transposed, d_cell * f), d_gates

    zeros = jnp.zeros_like(hidden[0])
    given = (cotangent, cell, _delay(cell), gates)
    _, d_gates = jax.lax.scan(step, (zeros, zeros), given, reverse=True)
    # Autodiff of the scan would add a product to the weight gradient at every step; this is all of them at once.
    return d_gates, jnp.einsum("tbh,tbg->hg", _delay(hidden), d_gates)


recur.defvjp(_forward, _backward)


def _activate(gates: Array) -> tuple[Array, Array, Array, Array]:
    i, f, g, o = jnp.split(gates, 4, axis=-1)
    return jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(g), jax.nn.sigmoid(o)


def _delay(states: Array) -> Array:
    """The state before each step: zeros, then all but the last."""
    return jnp.concatenate([jnp.zeros_like(states[:1]), states[:-1]])


def _remember(_: Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> Array:
    """A bias of 1 for the forget gate, which remembers at first, and 0 for the others."""
    return jnp.zeros((4, shape[0] // 4), dtype).at[1].set(1).reshape(shape)
