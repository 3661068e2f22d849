"""Splits of a client's rows by what a column says: the last part of its time tests, or whole groups of rows do.

Rows that overlap in time, or come of one recording, are alike; split at random they would be on both sides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from headstart.data.federation import key_data
from headstart.data.readers import meaning
from headstart.data.readers.encoding import encode
from headstart.errors import UserError

TEST_SHARE = 0.2
OPTIONS = ("time", "group")


class WithinClients(NamedTuple):
    """Which rows are for local tests.

    test: bool `[rows]`. words: how they were chosen. decided: the option that said so, `{"time" or "group": column}`.
    """

    test: np.ndarray
    words: str
    decided: dict[str, str]


def chosen_option(path: str, options: Mapping[str, Any], *, predefined: bool) -> str | None:
    """The one of the options `time` and `group` that is given.

    predefined: whether the data say themselves which rows test.

    Raises:
        UserError: for both, or for one where the split is given otherwise.
    """
    given = [name for name in OPTIONS if options.get(name)]
    if len(given) == 2:
        raise UserError(f"{path}: time= and group= are two ways to split a client's rows; give one of them")
    if given and predefined:
        raise UserError(f"{path} says itself which rows are for local tests, so {given[0]}= does not fit; leave it out")
    return given[0] if given else None


def by_time(path: str, name: str, values: np.ndarray, codes: np.ndarray, ids: Sequence[str]) -> WithinClients:
    """The last fifth of each client's rows test; rows of one time stay on one side.

    values: `[rows]`, numbers or dates. codes: int `[rows]`, each row's client in `ids`.

    Raises:
        UserError: if they are no times.
    """
    column = encode(path, name, values)
    if column.kind not in ("number", "date"):
        raise UserError(
            f"{path} has a {column.kind} in column {name!r}, which is no time; name a column of numbers or of dates,"
            " written as 2024-03-31 or 2024-03-31 12:00:00"
        )
    _refuse_gaps(path, name, np.isnan(column.values))
    test = np.zeros(len(codes), bool)
    for rows in _by_client(codes, len(ids)):
        times = np.sort(column.values[rows])
        starts = np.flatnonzero(np.diff(times)) + 1
        if len(starts):
            first = starts[np.argmin(np.abs(starts - len(times) * (1 - TEST_SHARE)))]
            test[rows] = column.values[rows] >= times[first]
    return WithinClients(test, f"by time: the last part of each client by {name!r} tests, about 20 %", {"time": name})


def by_group(path: str, name: str, values: np.ndarray, codes: np.ndarray, ids: Sequence[str]) -> WithinClients:
    """Whole groups of a client's rows test, drawn by its id, of about a fifth of its rows.

    values: `[rows]`, what names a row's group. codes, ids: as of `by_time`.

    Raises:
        UserError: if a row has no group.
    """
    values = meaning.flat(values)
    if values.ndim != 1 or values.dtype.kind not in "biufUSOM":
        raise UserError(f"{path} has no names or numbers in column {name!r}; name another with group=")
    missing = [value is None or value != value or value in ("", b"") for value in values.tolist()]
    _refuse_gaps(path, name, np.array(missing, bool))
    _, groups = np.unique(np.array(meaning.texts(values)), return_inverse=True)
    test = np.zeros(len(codes), bool)
    for client, rows in zip(ids, _by_client(codes, len(ids)), strict=True):
        test[rows] = np.isin(groups[rows], _drawn(client, groups[rows]))
    words = f"by group: rows of one {name!r} stay together; groups of about 20 % of each client's rows test"
    return WithinClients(test, words, {"group": name})


def untestable_note(clients: int, codes: np.ndarray, test: np.ndarray, words: str) -> list[str]:
    """A sentence on clients whose rows cannot be split so, and thus test nothing; it names none."""
    alone = clients - len(np.unique(codes[test]))
    what = "client has" if alone == 1 else "clients have"
    return [f"{alone} {what} no rows for local tests, split {words.split(':')[0]}"] if alone else []


def _drawn(client: str, groups: np.ndarray) -> list[int]:
    """The groups of a client that test; of two or more, at least one does, and one does not."""
    names, sizes = np.unique(groups, return_counts=True)
    order = np.random.default_rng([0, *map(int, key_data(client))]).permutation(len(names))
    wanted, taken, rows = TEST_SHARE * len(groups), [], 0
    for i in order:
        if len(taken) < len(names) - 1 and abs(rows + sizes[i] - wanted) < abs(rows - wanted):
            taken.append(int(names[i]))
            rows += int(sizes[i])
    if not taken and len(names) > 1:
        taken = [int(names[order[np.argmin(sizes[order])]])]
    return taken


def _by_client(codes: np.ndarray, count: int) -> list[np.ndarray]:
    order = np.argsort(codes, kind="stable")
    return np.split(order, np.cumsum(np.bincount(codes, minlength=count))[:-1])


def _refuse_gaps(path: str, name: str, gaps: np.ndarray) -> None:
    if gaps.any():
        row = int(np.argmax(gaps)) + 1
        raise UserError(f"{path} has no value in column {name!r} of row {row}; fill in or leave out the row")
