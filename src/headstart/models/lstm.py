"""A recurrent layer whose weight gradient is one matrix product after the scan."""

from __future__ import annotations

from typing import Any

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
        bias = self.param("bias", _forget_bias, (gates,))
        # The inputs of all time steps in one product, outside the scan.
        inputs = multiply(x.swapaxes(0, 1), kernel) + bias
        return recur(inputs, recurrent).swapaxes(0, 1)


@jax.custom_vjp
def recur(inputs: Array, recurrent: Array) -> Array:
    """The scan of an LSTM over time.

    inputs: `[time, batch, 4 * width]`, what the gates get from outside, bias included.
    recurrent: `[width, 4 * width]`.
    Returns the hidden states `[time, batch, width]`. Differentiable in reverse mode, any number of times.
    """
    return _forward(inputs, recurrent)[0]


def _forward(inputs: Array, recurrent: Array) -> tuple[Array, tuple[Any, ...]]:
    # A product per gate: the weights outgrow the second-level cache, and narrow rows come out of the third one faster.
    weights = _quarters(recurrent)

    def step(state: tuple[Array, Array], given: Array) -> tuple[tuple[Array, Array], tuple[Any, ...]]:
        hidden, before = state
        i, f, g, o = (
            gate + hidden @ weight for gate, weight in zip(jnp.split(given, 4, axis=-1), weights, strict=True)
        )
        i, f, g, o = jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(g), jax.nn.sigmoid(o)
        cell = f * before + i * g
        hidden = o * jnp.tanh(cell)
        return (hidden, cell), (hidden, before, (i, f, g, o))

    zeros = jnp.zeros((inputs.shape[1], recurrent.shape[0]), jnp.result_type(inputs, recurrent))
    _, (hidden, before, gates) = jax.lax.scan(step, (zeros, zeros), inputs)
    return hidden, (recurrent, hidden, before, gates)


def _backward(residuals: tuple[Any, ...], cotangent: Array) -> tuple[Array, Array]:
    recurrent, hidden, before, gates = residuals
    weights = _quarters(recurrent.T)

    def step(state: tuple[Array, Array], given: tuple[Any, ...]) -> tuple[tuple[Array, Array], Array]:
        d_hidden, d_cell = state
        direct, before, (i, f, g, o) = given
        squashed = jnp.tanh(f * before + i * g)
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
        return (jnp.concatenate([d_gates @ weight for weight in weights], axis=-1), d_cell * f), d_gates

    zeros = jnp.zeros_like(hidden[0])
    _, d_gates = jax.lax.scan(step, (zeros, zeros), (cotangent, before, gates), reverse=True)
    # Autodiff of the scan would add a product to the weight gradient at every step; this is all of them at once.
    delayed = jnp.concatenate([zeros[None], hidden[:-1]])
    return d_gates, _kernel_gradient(delayed, d_gates)


recur.defvjp(_forward, _backward)


@jax.custom_vjp
def multiply(x: Array, kernel: Array) -> Array:
    """The product of `[..., features]` and `[features, outputs]`, with gradients that XLA computes fast on a CPU."""
    return x @ kernel


def _multiply_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return x @ kernel, (x, kernel)


def _multiply_backward(factors: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    x, kernel = factors
    return cotangent @ jax.lax.optimization_barrier(kernel.T), _kernel_gradient(x, cotangent)


multiply.defvjp(_multiply_forward, _multiply_backward)


def dot_general(x: Array, kernel: Array, *_: Any, **__: Any) -> Array:
    """`multiply` as the argument `dot_general` of Flax's `Dense`."""
    return multiply(x, kernel)


def _kernel_gradient(x: Array, cotangent: Array) -> Array:
    """`[features, outputs]` of `[..., features]` and `[..., outputs]`.

    The barrier has the first transposed by a copy; otherwise XLA would rather transpose or copy the second, the larger.
    """
    columns = jax.lax.optimization_barrier(x.reshape(-1, x.shape[-1]).T)
    return columns @ cotangent.reshape(-1, cotangent.shape[-1])


def _quarters(weights: Array) -> tuple[Array, ...]:
    """Four blocks of columns, which the barrier has made once: products with a view take longer, at every step."""
    return jax.lax.optimization_barrier(tuple(jnp.array_split(weights, 4, axis=-1)))


def _forget_bias(_: Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> Array:
    """A bias of 1 for the forget gate, which keeps the state at first, and of 0 for the others."""
    return jnp.zeros((4, shape[0] // 4), dtype).at[1].set(1).reshape(shape)
