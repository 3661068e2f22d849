"""Convolution and pooling that stay fast inside loops and for one client after another, on a CPU too.

XLA's own convolution is unusable on a CPU inside a scan or under vmap. Here a convolution is a few matrix products,
whose derivatives are matrix products again. All of it is plain array code: derivatives of any order and mode exist.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array

# Minimal filtering F(4, 3) (Winograd; Lavin and Gray, arXiv:1509.09308): four outputs of a filter of three taps from
# six products instead of twelve: outputs = _OUTPUT @ ((_FILTER @ taps) * (_INPUT @ inputs)), six inputs in a row.
_INPUT = np.array(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ]
)
_FILTER = np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24
_OUTPUT = np.array([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]])
_TILE = 4
# With fewer channels the sums around the products cost what the products save, and they take twice as long to compile.
_MANY = 32


def convolve(x: Array, kernel: Array) -> Array:
    """The valid convolution of stride 1: `[batch, height, width, in]` by `[rows, columns, in, out]`."""
    return _filter_rows(x, kernel) if kernel.shape[0] == 3 and kernel.shape[2] >= _MANY else _multiply(x, kernel)


def conv_general_dilated(
    x: Array,
    kernel: Array,
    window_strides: Any,
    padding: Any,
    *,
    lhs_dilation: Any = None,
    rhs_dilation: Any = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    precision: Any = None,
) -> Array:
    """`jax.lax.conv_general_dilated` for `flax.linen.Conv(conv_general_dilated=...)`.

    Images of channels last with stride 1, undilated and ungrouped go through `convolve`; all else through XLA.
    """
    ones = [window_strides, lhs_dilation or 1, rhs_dilation or 1, feature_group_count]
    plain = x.ndim == 4 and all(np.all(np.asarray(value) == 1) for value in ones)
    if not plain or dimension_numbers != _channels_last(x.ndim):
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            window_strides,
            padding,
            lhs_dilation=lhs_dilation,
            rhs_dilation=rhs_dilation,
            dimension_numbers=dimension_numbers,
            feature_group_count=feature_group_count,
            precision=precision,
        )
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], (1, 1), padding)
    return convolve(jnp.pad(x, ((0, 0), *padding, (0, 0))), kernel)


def convolve_and_pool(x: Array, kernel: Array, *_: Any, **__: Any) -> Array:
    """`max_pool(convolve(x, kernel))`, for `flax.linen.Conv(conv_general_dilated=...)`, whatever else it is given.

    What pooling leaves out is not computed.

    Raises:
        ValueError: as `max_pool` does.
    """
    height, width = (
        (length - taps + 1) // 2 * 2 + taps - 1 for length, taps in zip(x.shape[1:3], kernel.shape[:2], strict=True)
    )
    return max_pool(convolve(x[:, :height, :width], kernel))


def max_pool(x: Array, size: int = 2) -> Array:
    """The maximum over squares of `size` pixels: `[batch, height, width, channels]` -> `[batch, height // size, ...]`.

    Rows and columns that fill no square are left out. Entries that tie share the gradient equally.

    Raises:
        ValueError: if the images are smaller than one square.
    """
    if min(x.shape[1:3]) < size:
        raise ValueError(
            f"the images are too small: what is left of them, {x.shape[1]} x {x.shape[2]}, cannot be pooled"
        )
    height, width = (length // size * size for length in x.shape[1:3])
    return _max_of_squares(size, x[:, :height, :width])


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _max_of_squares(size: int, x: Array) -> Array:
    return _squares(size, x).max(axis=(2, 4))


@_max_of_squares.defjvp
def _max_of_squares_jvp(size: int, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    # The derivative of `jnp.max`, but for the ties: XLA's loops on a CPU count them slowly over axes of a reshape.
    (x,), (tangent,) = primals, tangents
    y = _max_of_squares(size, x)
    ties = sum((x[:, i::size, j::size] == y).astype(x.dtype) for i in range(size) for j in range(size))
    chosen = jnp.where(_squares(size, x) == y[:, :, None, :, None], _squares(size, tangent), 0)
    return y, chosen.sum(axis=(2, 4)) / ties


def _squares(size: int, x: Array) -> Array:
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // size, size, width // size, size, channels)


def _channels_last(ndim: int) -> jax.lax.ConvDimensionNumbers:
    order = (0, ndim - 1, *range(1, ndim - 1))
    return jax.lax.ConvDimensionNumbers(order, (ndim - 1, ndim - 2, *range(ndim - 2)), order)


def _multiply(x: Array, kernel: Array) -> Array:
    """Gather patches, then one matrix product."""
    rows, columns, _, outputs = kernel.shape
    height, width = x.shape[1] - rows + 1, x.shape[2] - columns + 1
    windows = [x[:, i : i + height, j : j + width] for i in range(rows) for j in range(columns)]
    patches = jnp.concatenate(windows, axis=-1)
    product = patches.reshape(-1, patches.shape[-1]) @ kernel.reshape(-1, outputs)
    return product.reshape(*patches.shape[:-1], outputs)


def _filter_rows(x: Array, kernel: Array) -> Array:
    """Kernels of three rows: patches along the width, minimal filtering along the height."""
    batch, height, _, channels = x.shape
    tiles = -(-(height - 2) // _TILE)
    x = jnp.pad(x, ((0, 0), (0, _TILE * (tiles + 1) - height), (0, 0), (0, 0)))
    x = x.reshape(batch, tiles + 1, _TILE, -1, channels)
    inputs = [x[:, :-1, i] for i in range(_TILE)] + [x[:, 1:, i] for i in range(2)]
    kernels = jnp.tensordot(jnp.asarray(_FILTER, kernel.dtype), kernel, axes=1)
    # Without the barrier XLA computes each transformed input once for every patch it is in.
    transformed = jax.lax.optimization_barrier(_combine(_INPUT, inputs))
    products = [_multiply(tile, part[None]) for tile, part in zip(transformed, kernels, strict=True)]
    y = jnp.stack(_combine(_OUTPUT, products), axis=2)
    return y.reshape(batch, tiles * _TILE, *y.shape[3:])[:, : height - 2]


def _combine(matrix: np.ndarray, values: list[Array]) -> list[Array]:
    """`matrix @ values`, spelled out: the entries are small whole numbers, many of them 0."""
    rows = [[(int(entry), value) for entry, value in zip(row, values, strict=True) if entry] for row in matrix]
    return [sum((entry * value for entry, value in row[1:]), row[0][0] * row[0][1]) for row in rows]
