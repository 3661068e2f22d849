"""Poolings over windows as slices, reshapes and sums, which stay fast inside loops on a CPU.

The gradient of a maximum goes to the first of those that tie, in the order of a window's rows, as in XLA.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core

Array = jax.Array
Pick = Callable[[Array, Array], Array]

# A window that overlaps others is a slice for each of its entries; of more, a program would take long to compile.
MOST_SLICES = 128


class Windows(NamedTuple):
    """Windows over an array without padding, a number for each axis: their sizes, strides, dilations and how many."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    count: tuple[Any, ...]

    @property
    def tile(self) -> bool:
        """Whether no two windows share an entry, and none leaves one out between its own."""
        axes = zip(self.size, self.stride, self.dilation, self.count, strict=True)
        return all(
            size == 1 == stride or (dilation == 1 and (size == stride or count == 1))
            for size, stride, dilation, count in axes
        )

    def slices(self, x: Array) -> list[Array]:
        """For each position in a window, in the order of its rows, the entries that the windows have there."""
        return [self._slice(x, position) for position in itertools.product(*map(range, self.size))]

    def _slice(self, x: Array, position: tuple[int, ...]) -> Array:
        for axis, at in enumerate(position):
            size, stride, dilation, count = (field[axis] for field in self)
            if size > 1 or stride > 1:
                start = at * dilation
                x = lax.slice_in_dim(x, start, start + (count - 1) * stride + 1, stride, axis)
        return x

    def tiles(self, x: Array) -> tuple[Array, tuple[int, ...]]:
        """Windows that tile: each pooled axis as two, which window and where in it; and the second ones."""
        shape: list[Any] = []
        inside = []
        for axis, (size, count) in enumerate(zip(self.size, self.count, strict=True)):
            shape.append(count)
            if size > 1 or self.stride[axis] > 1:
                x = lax.slice_in_dim(x, 0, count * size, axis=axis)
            if size > 1:
                inside.append(len(shape))
                shape.append(size)
        return x.reshape(shape), tuple(inside)


def _rule(pool: Callable[[Windows, Array], Array], neutral: Callable[[Any], Any], *types: Any, **settings: Any) -> Any:
    _, (result,) = types
    window, strides = settings["window_dimensions"], settings["window_strides"]
    padding, dilation = settings["padding"], settings["window_dilation"]
    windows = Windows(window, strides, dilation, result.shape)
    few = math.prod(window) <= MOST_SLICES or windows.tile
    if not few or result.dtype == bool or any(step != 1 for step in settings["base_dilation"]):
        return None

    def replacement(x: Array) -> list[Array]:
        if any(before or after for before, after in padding):
            x = lax.pad(x, jnp.asarray(neutral(x.dtype), x.dtype), [(*sides, 0) for sides in padding])
        return [pool(windows, x)]

    return replacement


def _sum(windows: Windows, x: Array) -> Array:
    if windows.tile:
        tiles, inside = windows.tiles(x)
        return lax.reduce(tiles, jnp.zeros((), x.dtype), lax.add, inside)
    return reduce(lax.add, windows.slices(x))


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _extreme(pick: Pick, windows: Windows, x: Array) -> Array:
    if math.prod(windows.size) > MOST_SLICES:
        tiles, inside = windows.tiles(x)
        return (jnp.max if pick is lax.max else jnp.min)(tiles, axis=inside)
    return reduce(pick, windows.slices(x))


@_extreme.defjvp
def _extreme_jvp(pick: Pick, windows: Windows, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (tangent,) = primals, tangents
    y = _extreme(pick, windows, x)
    if not windows.tile:
        pairs = list(zip(windows.slices(x), windows.slices(tangent), strict=True))
        return y, _first(pairs, y)
    tiles, inside = windows.tiles(x)
    index = _index(tiles.shape, inside)
    if math.prod(windows.size) > MOST_SLICES:
        first = jnp.min(jnp.where(tiles == jnp.expand_dims(y, inside), index, index.size), axis=inside)
    else:
        first = _first([(value, jnp.int32(number)) for number, value in enumerate(windows.slices(x))], y)
    chosen = jnp.where(index == jnp.expand_dims(first, inside), windows.tiles(tangent)[0], 0)
    return y, chosen.sum(axis=inside)


def _first(pairs: Sequence[tuple[Array, Array]], y: Array) -> Array:
    """The second of the first pair whose first is `y`."""
    found = jnp.broadcast_to(pairs[-1][1], y.shape)
    for value, result in reversed(pairs[:-1]):
        found = jnp.where(value == y, result, found)
    return found


def _index(shape: Sequence[Any], inside: tuple[int, ...]) -> Array:
    """Numbers from 0 of the positions in a window, in the order of its rows, to be broadcast to the shape."""
    sizes = [shape[axis] for axis in inside]
    spread = [shape[axis] if axis in inside else 1 for axis in range(len(shape))]
    return lax.iota(np.int32, math.prod(sizes)).reshape(spread)


def _lowest(dtype: Any) -> Any:
    return -np.inf if jnp.issubdtype(dtype, jnp.floating) else jnp.iinfo(dtype).min


def _highest(dtype: Any) -> Any:
    return np.inf if jnp.issubdtype(dtype, jnp.floating) else jnp.iinfo(dtype).max


_BY_OPERATION = {
    "max": (lax.max, partial(_rule, partial(_extreme, lax.max), _lowest)),
    "min": (lax.min, partial(_rule, partial(_extreme, lax.min), _highest)),
    "add": (lax.add, partial(_rule, _sum, lambda _: 0)),
}


def _any_reduction(operands: Any, results: Any, *, jaxpr: core.Jaxpr, consts: Any, **settings: Any) -> Any:
    """The rule of a reduction that is given as a function: of one array, by a maximum, a minimum or a sum."""
    operation = jaxpr.eqns[0].primitive.name if len(jaxpr.eqns) == 1 and len(operands) == 2 else None
    if operation not in _BY_OPERATION:
        return None
    combine, rule = _BY_OPERATION[operation]
    replacement = rule(operands[:1], results, **settings)
    return replacement and (lambda x, start: [combine(y, lax.broadcast(start, y.shape)) for y in replacement(x)])


RULES = {
    "reduce_window_max": _BY_OPERATION["max"][1],
    "reduce_window_min": _BY_OPERATION["min"][1],
    "reduce_window_sum": _BY_OPERATION["add"][1],
    "reduce_window": _any_reduction,
}
