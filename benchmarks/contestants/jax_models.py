"""The models in plain JAX, for FedJAX: the operations that its own models, made with Haiku, come down to."""

from __future__ import annotations

import jax
import jax.numpy as jnp

Array = jax.Array
Params = dict[str, Array]


def logits_of(name: str, params: Params, x: Array, key: Array | None = None) -> Array:
    """Logits of a workload's model. params: by their path in headstart's tree; key: for dropout."""
    if name == "lstm":
        return _lstm(params, x)
    if name == "cnn_lean":
        return _lean_cnn(params, x)
    if name.startswith("cnn"):
        return _cnn(params, x, key if name == "cnn_dropout" else None)
    x = x.reshape(len(x), -1)
    if name == "mlp":
        return _dense(params, 1, jax.nn.relu(_dense(params, 0, x)))
    return _dense(params, 0, x)


def _dense(params: Params, number: int, x: Array) -> Array:
    return x @ params[f"params/Dense_{number}/kernel"] + params[f"params/Dense_{number}/bias"]


def _cnn(params: Params, x: Array, key: Array | None) -> Array:
    for number in range(2):
        x = jax.nn.relu(_convolution(params, number, x))
    x = _dropout(_pooled(x).reshape(len(x), -1), 0.25, key, 0)
    return _dense(params, 1, _dropout(jax.nn.relu(_dense(params, 0, x)), 0.5, key, 1))


def _lean_cnn(params: Params, x: Array) -> Array:
    for number in range(2):
        x = jax.nn.relu(_pooled(_convolution(params, number, x)))
    return _dense(params, 1, jax.nn.relu(_dense(params, 0, x.reshape(len(x), -1))))


def _convolution(params: Params, number: int, x: Array) -> Array:
    kernel, bias = (params[f"params/Conv_{number}/{name}"] for name in ("kernel", "bias"))
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=layout) + bias


def _pooled(x: Array) -> Array:
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def _dropout(x: Array, dropout: float, key: Array | None, number: int) -> Array:
    if key is None:
        return x
    return jnp.where(jax.random.bernoulli(jax.random.fold_in(key, number), 1 - dropout, x.shape), x / (1 - dropout), 0)


def _lstm(params: Params, x: Array) -> Array:
    states = params["params/Embed_0/embedding"][x].swapaxes(0, 1)
    for number in range(2):
        kernel, recurrent, bias = (
            params[f"params/LSTM_{number}/{name}"] for name in ("kernel", "recurrent_kernel", "bias")
        )
        states = _layer(states @ kernel + bias, recurrent)
    return _dense(params, 0, states.swapaxes(0, 1))


def _layer(inputs: Array, recurrent: Array) -> Array:
    def step(state: tuple[Array, Array], given: Array) -> tuple[tuple[Array, Array], Array]:
        hidden, cell = state
        i, f, g, o = jnp.split(given + hidden @ recurrent, 4, axis=-1)
        cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
        hidden = jax.nn.sigmoid(o) * jnp.tanh(cell)
        return (hidden, cell), hidden

    zeros = jnp.zeros((inputs.shape[1], recurrent.shape[0]))
    return jax.lax.scan(step, (zeros, zeros), inputs)[1]
