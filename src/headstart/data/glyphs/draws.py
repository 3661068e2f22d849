"""Counter-based random numbers: number `n` of stream `key` is a hash of the two, so no draw depends on another.

The generator is splitmix64 (Steele, Lea and Flood, 2014) read at any position. Only integer arithmetic is used, so
a draw is the same on every machine, alone or among others.
"""

from __future__ import annotations

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FACTORS = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def streams(keys: np.ndarray | int, numbers: np.ndarray | int) -> np.ndarray:
    """The uint64 keys of the streams that `numbers` name below `keys`, broadcast against each other."""
    # At least one axis: numpy warns of overflow in scalars, and here overflow is the arithmetic.
    keys, numbers = np.atleast_1d(np.asarray(keys, np.uint64), np.asarray(numbers).astype(np.uint64))
    return _mix(_mix(keys) + numbers * _GOLDEN)


def bits(keys: np.ndarray, count: int) -> np.ndarray:
    """uint64 `[..., count]`: the first `count` draws of every stream in `keys`, `[...]`."""
    return _mix(keys[..., None] + np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN)


def uniform(draws: np.ndarray) -> np.ndarray:
    """Draws as float64 in [0, 1)."""
    return (draws >> np.uint64(11)) * 2.0**-53


def normal(draws: np.ndarray) -> np.ndarray:
    """Draws as float64 of mean 0 and deviation 1: the sum of four uniform 16-bit parts, never beyond 3.47."""
    total = np.zeros(draws.shape)
    for shift in (0, 16, 32, 48):
        total += (draws >> np.uint64(shift)) & np.uint64(0xFFFF)
    return ((total + 2) / 65536 - 2) * 3**0.5


def _mix(state: np.ndarray) -> np.ndarray:
    state = (state ^ (state >> np.uint64(30))) * _FACTORS[0]
    state = (state ^ (state >> np.uint64(27))) * _FACTORS[1]
    return state ^ (state >> np.uint64(31))
