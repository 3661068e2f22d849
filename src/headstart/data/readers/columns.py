"""Columns of a table, and options that are about them: refused in a sentence, or as they are."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from headstart.data.mapped import pieces
from headstart.data.readers import meaning
from headstart.data.readers.rows import as_flag, listed
from headstart.errors import UserError

# The columns of a table by name, each `[rows, ...]`.
Columns = Mapping[str, np.ndarray]


def single(name: str, values: np.ndarray) -> dict[str, np.ndarray]:
    """A column by its name; one of several numbers a row as that many columns, of which the first is `name[0]`."""
    if values.ndim < 2:
        return {name: values}
    flat = values.reshape(len(values), -1)
    return {f"{name}[{i}]": flat[:, i] for i in range(flat.shape[1])} if flat.shape[1] > 1 else {name: flat[:, 0]}


def with_parts(columns: Columns, names: Iterable[str]) -> Columns:
    """The columns, and beside them those of `single` where one of the names is of such a column, as `x[3]`."""
    wholes = {name.rpartition("[")[0] for name in names if name not in columns} & columns.keys()
    found = {part: values for name in wholes for part, values in single(name, np.asarray(columns[name])).items()}
    return {**found, **columns}


def missing(values: np.ndarray) -> np.ndarray:
    """Which rows have no value: bool `[rows]`."""
    if not len(values):
        return np.zeros(0, bool)
    if values.dtype.kind in "USO":
        return np.array([value is None or (isinstance(value, str | bytes) and not value) for value in values.tolist()])
    if values.dtype.kind == "M":
        return np.isnat(values)
    if values.dtype.kind == "f":
        return np.any(np.isnan(values).reshape(len(values), -1), axis=1)
    return np.zeros(len(values), bool)


def no_column(path: str, name: str, columns: Iterable[str], advice: str) -> UserError:
    """The error for a column that is not there; it names the nearest that is."""
    there = list(columns)
    return UserError(f"{path} has no column {name!r}{nearest(name, there)}, but {listed(there)}; {advice}")


def nearest(name: str, names: Iterable[str]) -> str:
    """The one of the names that is nearest to one that is none of them, as words in brackets; empty if none is near."""
    lower = {each.lower(): each for each in names}
    near = difflib.get_close_matches(name.lower(), list(lower), n=1)
    return f" (did you mean {lower[near[0]]!r}?)" if near else ""


def refuse_rows_of_numbers(y: np.ndarray, option: str) -> None:
    """Refuse targets with several numbers for each row, where an option needs one class.

    Raises:
        UserError: for these.
    """
    if y.ndim != 1:
        raise UserError(
            f"{option} needs one class per example, and the target has {'x'.join(map(str, y.shape[1:]))} numbers; write"
            " the number of the class, y.argmax(axis=1) of a one-hot y"
        )


def for_regression(options: Mapping[str, Any]) -> bool:
    """Whether the options ask for quantities."""
    return as_flag("regression", options.get("regression", False))


def number(options: Mapping[str, Any], name: str, kind: type, *, least: float = -np.inf) -> Any:
    """The number that an option gives.

    Raises:
        UserError: if it is not given, is none of this kind, or is below the least.
    """
    if name not in options:
        raise UserError(f"partition={options.get('partition')} needs the option {name}; give {name}=NUMBER")
    try:
        found = kind(options[name])
        if (
            isinstance(options[name], bool)
            or found < least
            or (not isinstance(options[name], str) and found != options[name])
        ):
            raise ValueError
    except OverflowError:
        if kind is float:
            return np.inf
        raise UserError(f"option {name}={options[name]!r:.60} is not a whole number; give one") from None
    except (TypeError, ValueError):
        what = ("whole number" if kind is int else "number") + (f" from {least} on" if np.isfinite(least) else "")
        raise UserError(f"option {name}={options[name]!r:.60} is not a {what}; give one") from None
    return found


def names_in(given: Any) -> list[str]:
    """Names in a list, or in a text with commas."""
    return [str(name) for name in given] if isinstance(given, list | tuple | np.ndarray) else str(given).split(",")


def numbers(path: str, name: str, values: np.ndarray, owners: Sequence[str], *, what: str = "features") -> np.ndarray:
    """A column of numbers, finite also as float32.

    Raises:
        UserError: for the first row that has none; names the client.
    """
    flags = values.dtype.kind == "O" and {type(value) for value in values.tolist()} <= {bool, type(None)}
    if values.dtype.kind not in "biuf" and not flags:
        raise UserError(
            f"{path} has no numbers in column {name!r}; {what} are numbers{meaning.comma_hint(values)}, so leave it out"
            " or encode it"
        )
    wrong = missing(values) if flags else ~np.concatenate([_is_finite(piece) for piece in pieces(values)])
    if wrong.any():
        row = int(np.argmax(wrong))
        found = "a missing, NaN or infinite value"
        if not flags and _is_finite(values[row : row + 1], np.float64).all():
            found = f"a value beyond the range of float32 ({np.abs(values[row]).max():g})"
        raise UserError(
            f"{path} has {found} in column {name!r} of client {owners[row]}, row {row + 1}; fill in or leave out the"
            " row"
        )
    return values


def _is_finite(values: np.ndarray, kind: Any = np.float32) -> np.ndarray:
    """Which rows hold finite numbers, also as float32: bool `[rows]`."""
    if values.dtype.kind in "biu":
        return np.ones(len(values), bool)
    with np.errstate(over="ignore"):
        return np.all(np.isfinite(values.astype(kind, copy=False)).reshape(len(values), -1), axis=1)
