"""What a caller gives, checked: numbers of options, and the ids, sizes and arrays of a federation."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import jax
import numpy as np

from headstart.errors import UserError


def whole(name: str, value: Any, least: int | None = None, most: int | None = None) -> int:
    """A whole number in a range.

    Raises:
        UserError: if it is none.
    """
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise UserError(f"{name} is {value!r:.60}; give a whole number{_range(least, most)}")
    number = int(value)
    if (least is not None and number < least) or (most is not None and number > most):
        raise UserError(f"{name} is {number}; give a number{_range(least, most)}")
    return number


def real(name: str, value: Any) -> float:
    """A number, which may be infinite.

    Raises:
        UserError: if it is none.
    """
    if not isinstance(value, Real) or isinstance(value, bool):
        raise UserError(f"{name} is {value!r:.60}; give a number")
    try:
        return float(value)
    except OverflowError:
        return float("inf") if str(value)[0] != "-" else float("-inf")


def _range(least: int | None, most: int | None) -> str:
    if least is None:
        return ""
    return f" from {least} on" if most is None else f" from {least} to {most}"


def checked_ids(name: str, ids: Any) -> Sequence[str]:
    """The ids of a federation, as text.

    Raises:
        UserError: for the first that is no text, empty or there already.
    """
    if isinstance(ids, str) or not isinstance(ids, Sequence | np.ndarray):
        raise UserError(f"{name}: ids are {type(ids).__name__}; give a list with the id of each client")
    found: dict[str, int] = {}
    for number, client in enumerate(ids):
        if not isinstance(client, str):
            raise UserError(
                f"{name}: the id of client number {number} is {client!r:.60}; ids are text, such as 'site-7'"
            )
        if not client or not _is_text(client):
            raise UserError(f"{name}: the id of client number {number} is {client!a:.60}; give it a name")
        if client in found:
            raise UserError(
                f"{name}: clients number {found[client]} and {number} have the same id {client!r:.60}; join their"
                " examples, or give each its own id"
            )
        found[str(client)] = number
    return list(found)


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def checked_sizes(name: str, sizes: Any, clients: int) -> np.ndarray:
    """int64 `[clients, 2]`: the numbers of rows of each client.

    Raises:
        UserError: if they are of another type or shape, or negative.
    """
    try:
        found = np.asarray(sizes)
    except ValueError:
        found = np.zeros(0, object)
    if found.dtype.kind not in "iu" and found.size:
        raise UserError(f"{name}: sizes are of type {found.dtype}; give whole numbers")
    if found.shape != (clients, 2):
        raise UserError(
            f"{name}: sizes have the shape {found.shape} for {clients} ids; give a line per client with its numbers of"
            " local training and of local test examples"
        )
    if (found < 0).any():
        raise UserError(f"{name}: client number {int(np.argmax((found < 0).any(axis=1)))} has a negative size; mend it")
    return found.astype(np.int64)


def check_rows(name: str, ids: Sequence[str], sizes: np.ndarray, leaves: Sequence[tuple[str, Any]]) -> None:
    """Refuse arrays that are not the clients' rows, or hold numbers that a device cannot.

    leaves: the arrays, each with what to call it.

    Raises:
        UserError: for the first one.
    """
    ends = np.cumsum(sizes.sum(axis=1))
    odd = [path for path, leaf in leaves if not np.ndim(leaf) or getattr(leaf, "dtype", np.dtype("O")).kind == "O"]
    if odd or not leaves:
        raise UserError(f"{name}: {(odd or ['x'])[0]} is no array; give NumPy arrays with a row per example")
    other = next(((path, leaf.dtype) for path, leaf in leaves if leaf.dtype.kind in "USMm"), None)
    if other is not None:
        raise UserError(f"{name}: {other[0]} is of type {other[1]}; give numbers, such as the number of each class")
    rows = {len(leaf) for _, leaf in leaves}
    if rows != {int(sizes.sum())}:
        raise UserError(f"{name}: the clients' sizes add up to {sizes.sum()}, but the arrays have {rows} rows")
    for path, leaf in leaves:
        row = first_beyond(leaf)
        if row is not None:
            client = ids[int(np.searchsorted(ends, row, side="right"))]
            raise UserError(
                f"{name}: {path} of client {client}, row {row + 1}, holds a number that is missing, infinite or beyond"
                " the range of 32 bits; mend or leave out the row"
            )


def first_beyond(leaf: Any, *, at_once: int = 1 << 14) -> int | None:
    """The first row with a number that is not finite or does not fit where JAX keeps it; None if all do."""
    wide = bool(jax.config.read("jax_enable_x64"))
    if leaf.dtype.kind not in "iuf" or (leaf.dtype.kind != "f" and (wide or leaf.dtype.itemsize < 8)):
        return None
    for start in range(0, len(leaf), at_once):
        values = np.asarray(leaf[start : start + at_once])
        kept = values if wide or values.itemsize < 8 else _narrow(values)
        sound = np.isfinite(kept) if values.dtype.kind == "f" else kept == values
        fine = np.all(sound.reshape(len(values), -1), axis=1)
        if not fine.all():
            return start + int(np.argmin(fine))
    return None


def _narrow(values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return values.astype({"f": np.float32, "i": np.int32, "u": np.uint32}[values.dtype.kind])
