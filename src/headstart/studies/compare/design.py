"""Which of all combinations of settings are tried, so that no setting stands for another."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

# So many designs are drawn, of which the most even is taken.
DRAWS = 500


def design(shared: Mapping[str, Sequence[Any]], own: Mapping[str, Sequence[Any]], count: int) -> list[dict[str, Any]]:
    """So many different combinations of the values of settings, or all of them if there are not as many.

    shared: two settings whose values and pairs of values are met equally often, whatever the others are, so that all
        who share them try the same. own: the others: their values are met equally often, and pairs of values of any
        two settings as evenly as the best of `DRAWS` designs has them.
    """
    values = {**shared, **own}
    every = [dict(zip(values, each, strict=True)) for each in itertools.product(*values.values())]
    if len(every) <= count:
        return every
    sizes = [len(each) for each in values.values()]
    fixed = _diagonals(sizes[0], sizes[1], count)
    generator = np.random.default_rng(0)
    drawn = [
        np.stack([*fixed, *(generator.permutation(np.arange(count) % size) for size in sizes[2:])])
        for _ in range(DRAWS if own else 1)
    ]
    best = min(drawn, key=lambda columns: _unevenness(columns, sizes))
    met = [{name: values[name][i] for name, i in zip(values, row, strict=True)} for row in best.T]
    different = [each for place, each in enumerate(met) if each not in met[:place]]
    return different + [each for each in every if each not in different][: count - len(different)]


def _diagonals(first: int, second: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Two columns of values, int `[count]`: all pairs in an order in which every stretch has all values of both."""
    place = np.arange(count)
    return place % first, (place + place // math.lcm(first, second)) % second


def _unevenness(columns: np.ndarray, sizes: Sequence[int]) -> float:
    """How far pairs of values are from being met equally often, and above all combinations from being different."""
    count = columns.shape[1]
    squares = float(count**2 * (count - len(np.unique(columns, axis=1).T)))
    for a, b in itertools.combinations(range(len(sizes)), 2):
        met = np.bincount(columns[a] * sizes[b] + columns[b], minlength=sizes[a] * sizes[b])
        squares += float(((met - count / len(met)) ** 2).sum())
    return squares
