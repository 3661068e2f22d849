"""Results by a column's values: for which clients personalization pays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from headstart.statistics.clients import bootstrap


def by_value(
    values: Sequence[str], order: Sequence[str], initial: np.ndarray, personalized: np.ndarray
) -> list[dict[str, Any]]:
    """A JSON document for each value, in order: its clients, and their initial and personalized means with intervals.

    values: of each client. order: of the values. initial, personalized: of each client, `[clients]`; those without a
        number are left out. The interval of 95 % is from a bootstrap over the clients of the value, paired for the
        difference; a single client has none.
    """
    known, groups = ~np.isnan(initial) & ~np.isnan(personalized), np.array(list(values), object)
    found = []
    for value in order:
        mine = known & (groups == value)
        if mine.any():
            before, after = initial[mine], personalized[mine]
            columns = {"initial": before, "personalized": after, "difference": after - before}
            means = {name: _estimate(column) for name, column in columns.items()}
            found.append({"value": value, "clients": int(mine.sum()), **means})
    return found


def _estimate(values: np.ndarray) -> dict[str, Any]:
    varied = len(values) > 1 and bool(np.isfinite(values).all())
    low, high = bootstrap(values) if varied else (float("nan"), float("nan"))
    return {"mean": float(values.mean()), "interval": [low, high]}
