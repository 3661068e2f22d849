"""What else is tried of a method: a value beyond an edge that suited best, or one between two that did."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from headstart.studies.compare.methods import Settings


def further(tried: Sequence[Settings]) -> Iterator[Settings]:
    """Settings to try next, the most wanted first; each has another value of one setting of the best.

    tried: the best first. First come values beyond an edge of what was tried, as far from it as its neighbour is, then
    values in the middle between the best and the better one of its neighbours. Settings without an order are left.
    """
    best = tried[0]
    grids = {name: grid for name in best if len(grid := _grid(tried, name)) > 1}
    for name, grid in grids.items():
        if best[name] in (grid[0], grid[-1]):
            new = _beyond(grid, best[name])
            if new is not None:
                yield {**best, name: new}
    for name, grid in grids.items():
        index = grid.index(best[name])
        neighbours = [grid[i] for i in (index - 1, index + 1) if 0 <= i < len(grid)]
        for neighbour in sorted(neighbours, key=lambda value: _rank(tried, name, value)):
            new = _rounded(math.sqrt(best[name] * neighbour), best[name])
            if new not in grid:
                yield {**best, name: new}


def at_edges(chosen: Settings, tried: Sequence[Settings]) -> list[str]:
    """The settings of a choice that are at an edge of what was tried, and might go beyond it."""
    grids = {name: grid for name in chosen if len(grid := _grid(tried, name)) > 1}
    return [
        name
        for name, grid in grids.items()
        if chosen[name] in (grid[0], grid[-1]) and _beyond(grid, chosen[name]) is not None
    ]


def _grid(tried: Sequence[Settings], name: str) -> list[Any]:
    """The positive numbers that were tried of a setting, in order; none where they are no numbers."""
    values = {settings[name] for settings in tried}
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    return sorted(numbers) if len(numbers) == len(values) and min(numbers, default=0) > 0 else []


def _beyond(grid: Sequence[Any], edge: Any) -> Any:
    """The value beyond an edge by the factor between the last two; None where there is none: no count is below 1."""
    factor = grid[-1] / grid[-2] if edge == grid[-1] else grid[0] / grid[1]
    new = _rounded(edge * factor, edge)
    return None if new in grid or (new < 1 and isinstance(edge, int)) else new


def _rounded(value: float, like: Any) -> Any:
    return round(value) if isinstance(like, int) else float(f"{value:.2g}")


def _rank(tried: Sequence[Settings], name: str, value: Any) -> int:
    return next(rank for rank, settings in enumerate(tried) if settings[name] == value)
