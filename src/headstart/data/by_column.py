"""What a column of a table says of each client, by which results can be looked at."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from headstart.data.load import NAMES, readable
from headstart.data.readers.columns import no_column
from headstart.data.readers.encoding import EPOCH, Encoded, encode
from headstart.data.readers.rows import reading
from headstart.data.readers.sources import find, recognise
from headstart.data.readers.tables import clients_of_rows, table_of
from headstart.errors import UserError

# A number with more different values than these is looked at in quarters of the clients.
MOST_VALUES = 12
NOTHING = "(no value)"


class ByColumn(NamedTuple):
    """A column's value for each client.

    values: by client. order: of the values. how: what the value of a client is, in words.
    """

    column: str
    values: Mapping[str, str]
    order: Sequence[str]
    how: str


def values_by_client(name_or_path: str | os.PathLike[str], options: Mapping[str, Any], column: str) -> ByColumn:
    """The value of a column for each client of a table (npz, Parquet, CSV).

    Of a column that varies within clients it is the most frequent value; of numbers and dates of many values, the
    client's mean, in quarters of the clients.

    options: as of `load`.

    Raises:
        UserError: if it is no table, or has no such column.
    """
    path = Path(os.fspath(name_or_path))
    if str(path) in NAMES:
        raise UserError(f"{path} has no columns; results by a column are of tables")
    with readable():
        with reading(path):
            sources, form = find(path), recognise(path)
        if form not in ("npz", "parquet", "csv"):
            raise UserError(f"{path} has no columns; results by a column are of tables (npz, Parquet, CSV)")
        table = table_of(sources, form, options)
        if column not in table.columns:
            raise no_column(table.path, column, table.columns, "name the right one with --by")
        encoded = encode(table.path, column, table.columns[column])
        return _by_client(column, encoded, clients_of_rows(table, options))


def _by_client(column: str, encoded: Encoded, owners: Sequence[str]) -> ByColumn:
    rows: dict[str, list[float]] = defaultdict(list)
    for owner, value in zip(owners, encoded.values.tolist(), strict=True):
        rows[owner].append(value)
    different = np.unique(encoded.values[~np.isnan(encoded.values)])
    if encoded.kind in ("number", "date") and len(different) > MOST_VALUES:
        return _in_quarters(column, encoded, rows)
    counts = {owner: Counter(None if value != value else value for value in values) for owner, values in rows.items()}
    texts = {value: _text(encoded, value) for value in different.tolist()} | {None: NOTHING}
    values = {owner: texts[_most_frequent(each)] for owner, each in counts.items()}
    varies = any(len(each) > 1 for each in counts.values())
    how = "the most frequent value of each client, within which it varies" if varies else "the value of each client"
    return ByColumn(column, values, list(texts.values()), how)


def _most_frequent(counts: Counter[float | None]) -> float | None:
    """Of equally frequent values the first; a gap is the last."""
    return min(counts, key=lambda value: (-counts[value], value is None, value or 0.0))


def _in_quarters(column: str, encoded: Encoded, rows: Mapping[str, list[float]]) -> ByColumn:
    means = {owner: _mean(np.array(values)) for owner, values in rows.items()}
    known = np.array([mean for mean in means.values() if not np.isnan(mean)])
    ends = np.unique(np.quantile(known, [0, 0.25, 0.5, 0.75, 1]))
    names = [f"{_text(encoded, low)} to {_text(encoded, high)}" for low, high in pairwise(ends.tolist())]
    names = names or [_text(encoded, float(ends[0]))]

    def named(mean: float) -> str:
        if np.isnan(mean):
            return NOTHING
        return names[int(np.clip(np.searchsorted(ends, mean, "left") - 1, 0, len(names) - 1))]

    values = {owner: named(mean) for owner, mean in means.items()}
    return ByColumn(column, values, [*dict.fromkeys(names), NOTHING], "each client's mean, in quarters of the clients")


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def _text(encoded: Encoded, value: float) -> str:
    if encoded.kind == "category":
        return str(encoded.labels[int(value)])
    if encoded.kind == "boolean":
        return "yes" if value else "no"
    if encoded.kind == "date":
        return str((EPOCH + np.timedelta64(round(value), "D")).astype("M8[D]"))
    return f"{value:.4g}"
