"""Convolutions of any kind as matrix products, which stay fast inside loops on a CPU, as do their derivatives.

XLA's own convolution, and its gradient above all, is unusably slow there. Patches are made for a few examples at a
time, so that they are still in the cache when they are multiplied, and made again where a derivative needs them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Array = jax.Array

# A filter is a slice for each of its taps; of more, a program would take long to compile.
MOST_TAPS = 256
# Patches that are made at a time: as many as stay in a core's second-level cache.
CACHE_BYTES = 2**19
# With so few groups each is a convolution of its own; of more, one product has them all.
FEW_GROUPS = 8


class Window(NamedTuple):
    """How a filter moves, a number for each spatial axis; `padding` is before and after, negative to cut."""

    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    spread: tuple[int, ...]
    dilation: tuple[int, ...]

    def lengths(self, x: Sequence[int], kernel: Sequence[int]) -> list[int]:
        """How many outputs there are along each axis, of lengths of the input and of the filter."""
        spread = [max((length - 1) * step + 1, 0) for length, step in zip(x, self.spread, strict=True)]
        padded = [length + sum(sides) for length, sides in zip(spread, self.padding, strict=True)]
        return [
            (length - (taps - 1) * dilation - 1) // stride + 1
            for length, taps, dilation, stride in zip(padded, kernel, self.dilation, self.strides, strict=True)
        ]


def rule(operands: Any, results: Any, **settings: Any) -> Callable[..., list[Array]] | None:
    """What takes the place of `conv_general_dilated` with these settings, where anything does."""
    (x, kernel), (result,) = operands, results
    numbers = settings["dimension_numbers"]
    taps = math.prod(kernel.shape[axis] for axis in numbers.rhs_spec[2:])
    unusual = settings["batch_group_count"] != 1 or settings.get("out_sharding") is not None
    if unusual or taps > MOST_TAPS or 0 in result.shape or 0 in x.shape or 0 in kernel.shape or x.ndim < 3:
        return None
    window = Window(*(settings[name] for name in ("window_strides", "padding", "lhs_dilation", "rhs_dilation")))
    groups, precision = settings["feature_group_count"], settings["precision"]
    products = Products(precision, settings["preferred_element_type"] or result.dtype)

    def replacement(x: Array, kernel: Array) -> list[Array]:
        batch, features, *space = numbers.lhs_spec
        outputs, inputs, *taps = numbers.rhs_spec
        x, kernel = x.transpose(batch, *space, features), kernel.transpose(*taps, inputs, outputs)
        y = convolution(x, kernel, window, groups, products)
        batch, features, *space = numbers.out_spec
        return [y.transpose(np.argsort([batch, *space, features])).astype(result.dtype)]

    return replacement


class Products(NamedTuple):
    """How matrices are multiplied: JAX's precision, and the type of the result."""

    precision: Any
    dtype: Any

    def __call__(self, x: Array, matrix: Array) -> Array:
        """`[..., k] @ [k, n]`."""
        rows = x.reshape(-1, x.shape[-1])
        y = lax.dot(rows, matrix, precision=self.precision, preferred_element_type=self.dtype)
        return y.reshape(*x.shape[:-1], matrix.shape[-1])

    def grouped(self, x: Array, matrices: Array) -> Array:
        """`[rows, groups, k]` and `[groups, k, n]`, group by group: `[rows, groups, n]`."""
        dimensions = (((2,), (1,)), ((1,), (0,)))
        y = lax.dot_general(x, matrices, dimensions, self.precision, self.dtype)
        return y.swapaxes(0, 1)


def convolution(x: Array, kernel: Array, window: Window, groups: int, products: Products) -> Array:
    """`[batch, *space, in]` by `[*taps, in / groups, out]`: `[batch, *space, out]`."""
    for axis, spread in enumerate(window.spread):
        if spread > 1 and window.strides[axis] == window.dilation[axis] == 1:
            return _interleaved(axis, x, kernel, window, groups, products)
    if any(spread > 1 for spread in window.spread):
        config = [(0, 0, spread - 1) for spread in window.spread]
        x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *config, (0, 0, 0)])
        window = window._replace(spread=(1,) * len(config))
    if 1 < groups <= FEW_GROUPS and groups < x.shape[-1]:
        parts = zip(jnp.split(x, groups, axis=-1), jnp.split(kernel, groups, axis=-1), strict=True)
        return jnp.concatenate([convolution(*part, window, 1, products) for part in parts], axis=-1)
    lengths = window.lengths(x.shape[1:-1], kernel.shape[:-2])
    size = math.prod(lengths) * math.prod(kernel.shape[:-2]) * x.shape[-1] * x.dtype.itemsize

    def one(x: Array) -> Array:
        return _convolve(x, kernel, window, groups, products)

    single = math.prod(kernel.shape[:-2]) == 1
    return one(x) if single else _by_parts(one, x, size)


def _by_parts(function: Callable[[Array], Array], x: Array, size: int) -> Array:
    """The function of a few examples at a time, of `size` bytes of patches each."""
    batch = x.shape[0]
    if not isinstance(batch, int) or batch * size <= CACHE_BYTES:
        return function(x)
    part = max(
        count for count in range(1, batch + 1) if batch % count == 0 and (count * size <= CACHE_BYTES or count == 1)
    )
    body = jax.checkpoint(function, prevent_cse=False)
    y = lax.map(body, x.reshape(batch // part, part, *x.shape[1:]))
    return y.reshape(batch, *y.shape[2:])


def _convolve(x: Array, kernel: Array, window: Window, groups: int, products: Products) -> Array:
    *taps, inputs, outputs = kernel.shape
    count = math.prod(taps)
    if inputs == 1 and groups > 1:
        return _depthwise(_slices(x, taps, window), kernel, groups, products)
    patches = _slices(x, taps, window, together=True)[0]
    if groups == 1:
        return products(patches, kernel.reshape(-1, outputs))
    rows = patches.reshape(-1, count, groups, inputs).swapaxes(1, 2).reshape(-1, groups, count * inputs)
    y = products.grouped(rows, kernel.reshape(-1, groups, outputs // groups).swapaxes(0, 1))
    return y.reshape(*patches.shape[:-1], outputs)


def _depthwise(slices: list[Array], kernel: Array, groups: int, products: Products) -> Array:
    """Every channel has filters of its own: no product of matrices, but one for each tap, entry by entry."""
    # Sums of half precision are in float32, as XLA's are.
    dtype = products.dtype
    if jnp.issubdtype(dtype, jnp.inexact):
        dtype = jnp.promote_types(dtype, jnp.float32)
    filters = kernel.reshape(len(slices), groups, -1).astype(dtype)
    slices = [part.astype(dtype) for part in slices]
    found = [
        functools.reduce(lax.add, (part * taps[:, number] for part, taps in zip(slices, filters, strict=True)))
        for number in range(filters.shape[-1])
    ]
    y = found[0] if len(found) == 1 else jnp.stack(found, axis=-1)
    return y.reshape(*slices[0].shape[:-1], kernel.shape[-1]).astype(products.dtype)


def _slices(x: Array, taps: Sequence[int], window: Window, *, together: bool = False) -> list[Array]:
    """For each tap of a filter the inputs it meets, `[batch, *space, in]`; or `together`, one after another, as one
    array `[batch, *space, taps * in]`, which is made axis by axis: so it takes fewer and larger pieces.
    """
    lengths = window.lengths(x.shape[1:-1], taps)
    found = [_padded(x, taps, lengths, window)]
    for axis in reversed(range(len(taps))):
        stride, dilation = window.strides[axis], window.dilation[axis]
        starts = [tap * dilation for tap in range(taps[axis])]
        found = [_slice(part, axis + 1, start, stride, lengths[axis]) for start in starts for part in found]
        if together:
            found = [jnp.concatenate(found, axis=-1)]
    return found


def _padded(x: Array, taps: Sequence[int], lengths: Sequence[int], window: Window) -> Array:
    """The input that the filter meets, to a whole number of strides along each axis."""
    sides = [(0, 0, 0)]
    for axis, stride in enumerate(window.strides):
        needed = (lengths[axis] - 1) * stride + (taps[axis] - 1) * window.dilation[axis] + 1
        before, _ = window.padding[axis]
        sides.append((before, -(-needed // stride) * stride - x.shape[1 + axis] - before, 0))
    return lax.pad(x, jnp.zeros((), x.dtype), [*sides, (0, 0, 0)])


def _slice(x: Array, axis: int, start: int, stride: int, length: int) -> Array:
    """Every entry at a stride. The axis is first taken apart by it, of which the derivative is quicker."""
    if stride > 1:
        x = x.reshape(*x.shape[:axis], x.shape[axis] // stride, stride, *x.shape[axis + 1 :])
        x = lax.index_in_dim(x, start % stride, axis + 1, keepdims=False)
    return lax.slice_in_dim(x, start // stride, start // stride + length, axis=axis)


def _interleaved(axis: int, x: Array, kernel: Array, window: Window, groups: int, products: Products) -> Array:
    """A transposed convolution, whose input is spread along an axis.

    Outputs at positions of one remainder by the spread meet the same taps: a convolution of the input as it is.
    """
    spread, (before, _) = window.spread[axis], window.padding[axis]
    total = window.lengths(x.shape[1:-1], kernel.shape[:-2])[axis]
    count = -(-total // spread)
    parts = []
    for remainder in range(spread):
        first = (before - remainder) % spread
        taps = (
            lax.slice_in_dim(kernel, min(first, kernel.shape[axis]), None, spread, axis)
            if first < kernel.shape[axis]
            else None
        )
        start = (remainder + first - before) // spread
        parts.append(_part(axis, x, taps, window, groups, products, (start, count)))
    shapes = [part for part in parts if part is not None]
    parts = [jnp.zeros_like(shapes[0]) if part is None else part for part in parts]
    y = jnp.stack(parts, axis=axis + 2)
    y = y.reshape(*y.shape[: axis + 1], count * spread, *y.shape[axis + 3 :])
    return lax.slice_in_dim(y, 0, total, axis=axis + 1)


def _part(
    axis: int, x: Array, kernel: Array | None, window: Window, groups: int, products: Products, where: tuple[int, int]
) -> Array | None:
    if kernel is None:
        return None
    start, count = where
    after = count - 1 + kernel.shape[axis] + start - x.shape[1 + axis]

    def put(values: tuple[Any, ...], value: Any) -> tuple[Any, ...]:
        return (*values[:axis], value, *values[axis + 1 :])

    window = window._replace(spread=put(window.spread, 1), padding=put(window.padding, (-start, after)))
    return convolution(x, kernel, window, groups, products)
