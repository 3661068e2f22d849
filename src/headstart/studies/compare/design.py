"""The combinations of settings that are tried, chosen so that no setting stands for another."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations, product
from typing import Any

Columns = list[list[int]]


def design(shared: Mapping[str, Sequence[Any]], own: Mapping[str, Sequence[Any]], count: int) -> list[dict[str, Any]]:
    """`count` different combinations of the values of settings, or all of them if there are fewer.

    shared: two settings whose values and pairs of values are met equally often, whatever the others are, so that all
        methods that share them try the same. own: the others: their values are met equally often too, and pairs of
        values of any two settings as evenly as exchanges of two values can make them (Li and Wu 1997).
    """
    values = {**shared, **own}
    sizes = [len(each) for each in values.values()]
    if math.prod(sizes) <= count:
        rows = list(product(*map(range, sizes)))
    else:
        blocks = [[row * size // count for row in range(count)] for size in sizes[2:]]
        rows = list(zip(*_exchanged([*_diagonals(sizes[0], sizes[1], count), *blocks], sizes), strict=True))
    return [{name: values[name][index] for name, index in zip(values, row, strict=True)} for row in rows]


def _diagonals(first: int, second: int, count: int) -> Columns:
    """Two columns of indices `[count]`: all pairs in an order in which every stretch has all values of both."""
    return [
        [row % first for row in range(count)],
        [(row + row // math.lcm(first, second)) % second for row in range(count)],
    ]


def _exchanged(columns: Columns, sizes: Sequence[int]) -> Columns:
    """The columns after every exchange within one of them, the first two apart, that makes the design more even."""
    least, better = _unevenness(columns, sizes), True
    while better:
        better = False
        for column, a, b in product(columns[2:], range(len(columns[0])), range(len(columns[0]))):
            if column[a] < column[b]:
                column[a], column[b] = column[b], column[a]
                if (found := _unevenness(columns, sizes)) < least:
                    least, better = found, True
                else:
                    column[a], column[b] = column[b], column[a]
    return columns


def _unevenness(columns: Columns, sizes: Sequence[int]) -> tuple[int, float]:
    """How many rows are repeated, then how far pairs of values are from being met equally often."""
    count, squares = len(columns[0]), 0.0
    for a, b in combinations(range(len(columns)), 2):
        met = Counter(zip(columns[a], columns[b], strict=True))
        squares += sum(times**2 for times in met.values()) - count**2 / (sizes[a] * sizes[b])
    return count - len(set(zip(*columns, strict=True))), squares
