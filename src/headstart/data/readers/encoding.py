"""Columns of a table as numbers, with what each stands for: a number, a category, a date, a yes or no; and gaps."""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from headstart.data.readers import meaning
from headstart.errors import UserError

Kind = Literal["number", "category", "date", "boolean"]
KINDS: tuple[Kind, ...] = get_args(Kind)

# What people write for a value that is not there, beside nothing at all.
_GAPS = frozenset(("", "na", "n/a", "nan", "null", "none", "nil", "?", "-", "--", ".", "missing", "unknown", "#n/a"))
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_DATE = re.compile(r"\d{4}-\d\d-\d\d([ T]\d\d:\d\d(:\d\d(\.\d+)?)?)?(Z|[+-]00:?00)?")
# Of fewer labels, numbers may well be codes.
_MANY = 20
# Dates count days from here, so that few digits are spent on centuries.
EPOCH = np.datetime64("2000-01-01", "us")
_DAY = np.timedelta64(1, "D") / np.timedelta64(1, "us")


class Encoded(NamedTuple):
    """A column as numbers.

    values: float64 `[rows]`: the number, days since 2000-01-01, 0 or 1, or the index of the category's label; NaN
        where there is no value.
    labels: of a category, every label there is, sorted; else empty.
    """

    kind: Kind
    values: np.ndarray
    labels: Sequence[str] = ()


def encode(path: str, name: str, values: np.ndarray, kind: Kind | None = None) -> Encoded:
    """A column `[rows]` as numbers.

    kind: what it stands for; by default what its values look like.

    Raises:
        UserError: if it is of no such kind, or holds an infinite number.
    """
    values = meaning.flat(values)
    if values.ndim != 1:
        each = "x".join(map(str, values.shape[1:]))
        raise UserError(f"{path} has {each} values for each row in column {name!r}; write one in each column")
    if values.dtype.kind in "SUO":
        values = np.array([_plain(value) for value in values.tolist()], object)
    kind = kind or _kind_of(path, name, values)
    convert = {"number": _numbers, "boolean": _flags, "date": _dates, "category": _categories}[kind]
    found = convert(values)
    if found is None:
        wrong = (
            i for i, value in enumerate(values.tolist()) if value is not None and convert(values[i : i + 1]) is None
        )
        row = 1 + next(wrong, 0)
        raise UserError(
            f"{path} has {str(values[row - 1])!r:.60} in column {name!r} of row {row}, which is no {kind}; give a"
            f" {kind} in each row, or nothing"
        )
    if np.isinf(found.values).any() or (np.abs(found.values) > np.finfo(np.float32).max).any():
        row = 1 + int(np.argmax(~(np.abs(found.values) <= np.finfo(np.float32).max) & ~np.isnan(found.values)))
        raise UserError(
            f"{path} has an infinite value, or one beyond the range of float32, in column {name!r}, row {row}; mend or"
            " leave out the row"
        )
    return found


def _plain(value: Any) -> Any:
    """A value of a column of objects: text without spaces around it, None for a gap."""
    if isinstance(value, bytes):
        value = meaning.texts(np.array([value], object))[0]
    if isinstance(value, str):
        text = value.strip()
        return None if text.lower() in _GAPS else text
    if value is None or type(value).__name__ in ("NAType", "NaTType") or value != value:
        return None
    return value


def _kind_of(path: str, name: str, values: np.ndarray) -> Kind:
    if values.dtype.kind in "iuf":
        return "number"
    if values.dtype.kind in "bM":
        return "boolean" if values.dtype.kind == "b" else "date"
    present: list[Any] = [value for value in values.tolist() if value is not None]
    if values.dtype.kind != "O":
        raise UserError(f"{path} has values of type {values.dtype} in column {name!r}; give numbers, text or dates")
    types = {type(value) for value in present}
    if types <= {bool, np.bool_}:
        return "boolean" if types else "number"
    if types <= {int, float, Decimal, bool} or (types == {str} and all(map(_NUMBER.fullmatch, present))):
        return "number"
    if all(issubclass(each, datetime.date) for each in types):
        return "date"
    if types == {str}:
        if all(map(_DATE.fullmatch, present)):
            return "date"
        if hint := meaning.comma_hint(np.array(present, object)):
            raise UserError(f"{path} has text in column {name!r} in place of numbers; write them{hint[1:]}")
        return "category"
    if types <= {str, int, float, bool}:
        return "category"
    odd = next(type(value).__name__ for value in present if not isinstance(value, str | int | float))
    raise UserError(
        f"{path} has values of type {odd} in column {name!r}; give numbers, text or dates, or leave the column out"
    )


def odd_among_numbers(labels: Sequence[str]) -> str | None:
    """Of the labels of a category that are nearly all numbers, the first that is none; None of any other category."""
    odd = [label for label in labels if not _NUMBER.fullmatch(label)]
    return odd[0] if len(labels) >= _MANY and odd and 10 * len(odd) <= len(labels) else None


def _numbers(values: np.ndarray) -> Encoded | None:
    if values.dtype.kind in "biuf":
        return Encoded("number", values.astype(np.float64))
    if values.dtype.kind != "O":
        return None
    try:
        return Encoded("number", np.array([np.nan if v is None else float(v) for v in values.tolist()], np.float64))
    except (TypeError, ValueError, OverflowError):
        return None


def _flags(values: np.ndarray) -> Encoded | None:
    words = {"true": 1.0, "false": 0.0, "1": 1.0, "0": 0.0, "1.0": 1.0, "0.0": 0.0, "yes": 1.0, "no": 0.0}
    if values.dtype.kind == "f":
        values = np.array([None if value != value else value for value in values.tolist()], object)
    texts = [None if value is None else str(value).lower() for value in values.tolist()]
    if any(text is not None and text not in words for text in texts):
        return None
    return Encoded("boolean", np.array([np.nan if text is None else words[text] for text in texts], np.float64))


def _dates(values: np.ndarray) -> Encoded | None:
    if values.dtype.kind == "O":
        texts = [None if value is None else str(value) for value in values.tolist()]
        if any(text is not None and not _DATE.fullmatch(text) for text in texts):
            return None
        plain = ["NaT" if text is None else re.sub(r"(Z|[+-]00:?00)$", "", text) for text in texts]
        try:
            values = np.array(plain, "M8[us]")
        except ValueError:  # the 30th of February
            return None
    if values.dtype.kind != "M":
        # A column without a single value has no type of its own.
        return _numbers(values) if values.dtype.kind == "f" and np.isnan(values).all() else None
    days = (values.astype("M8[us]") - EPOCH) / np.timedelta64(1, "us") / _DAY
    return Encoded("date", np.where(np.isnat(values), np.nan, days))


def _categories(values: np.ndarray) -> Encoded | None:
    if values.dtype.kind == "f":
        values = np.array([None if value != value else _as_label(value) for value in values.tolist()], object)
    texts = [None if value is None else str(_as_label(value)) for value in values.tolist()]
    labels = sorted({text for text in texts if text is not None})
    numbers: Mapping[str | None, float] = {label: float(i) for i, label in enumerate(labels)}
    return Encoded("category", np.array([numbers.get(text, np.nan) for text in texts], np.float64), labels)


def _as_label(value: Any) -> Any:
    """A whole number is the same category whether it was read as 3 or as 3.0, as beside a gap."""
    return int(value) if isinstance(value, float) and value == int(value) else value
