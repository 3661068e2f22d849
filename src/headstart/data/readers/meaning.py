"""One column of a table as what it stands for: ids of clients, classes or quantities to predict, numbers."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from headstart.errors import UserError

# From here on neighbouring whole numbers are one float64.
_EXACT = 2.0**53
# More different whole numbers than this are rather quantities than classes, and so are ones that hardly ever repeat.
_MOST_CLASSES = 100
# Integers are classes more often than floats are: more of them are, where each is in as many rows on average.
_REPEATS = 5
_FRACTION = re.compile(r"\s*[+-]?(\d*[.,]\d+([eE][+-]?\d+)?|\d{1,3}(,\d{3})+(\.\d+)?)\s*")


def texts(values: np.ndarray) -> list[str]:
    """The values of a column `[rows]` as text.

    Raises:
        UserError: for bytes that are none.
    """
    values = values.astype(str) if values.dtype.kind == "M" else values
    try:
        return [v.decode() if isinstance(v, bytes) else str(v) for v in values.tolist()]
    except UnicodeDecodeError as error:
        raise UserError(f"the bytes {error.object[:20]!r} are no text; write text as UTF-8") from None


def client_ids(path: str, name: str, values: np.ndarray) -> list[str]:
    """The client of each row; whole numbers are the same id whatever their type.

    Raises:
        UserError: for values that name no client.
    """
    values = flat(values)
    if values.ndim != 1:
        raise UserError(f"{path} has {_shape(values)} values for each row in column {name!r}; write one client's id")
    odd = next((v for v in values.tolist() if not isinstance(v, str | bytes)), "") if values.dtype.kind == "O" else ""
    if values.dtype.kind not in "biufUSOM" or odd != "":
        kind = type(odd).__name__ if odd != "" else values.dtype
        raise UserError(f"{path} has values of type {kind} in column {name!r}; write clients' ids as text")
    if values.dtype.kind == "f":
        wrong = (values != np.trunc(values)) | (np.abs(values) >= _EXACT)
        if wrong.any():
            row = int(np.argmax(wrong))
            raise UserError(
                f"{path} has the client {values[row].item()!r} in column {name!r} of row {row + 1}, and fractions and"
                " floats beyond 2**53 are no exact ids; write ids as text, or name another column with client="
            )
        values = values.astype(np.int64)
    return texts(values)


def targets(path: str, name: str, values: np.ndarray, *, known: bool) -> np.ndarray:
    """Targets for which regression was not asked, in the form in which classes are apart from quantities.

    `[rows, 1]` becomes `[rows]`, one-hot rows become the numbers of their classes, and whole numbers written as
    fractions whole numbers. known: whether the classes are given, so that nothing need be guessed.

    Raises:
        UserError: where these may be classes or quantities.
    """
    whole = values.dtype.kind in "iu" or (values.dtype.kind == "f" and bool((values == np.trunc(values)).all()))
    values = flat(values) if whole or values.dtype.kind != "f" else values
    if values.ndim == 2 and values.shape[1] > 1 and values.dtype.kind in "biuf" and _one_hot(values):
        return values.argmax(axis=1)
    if values.ndim == 1 and whole:
        return _whole_numbers(path, name, values, known)
    if values.ndim == 1 and values.dtype.kind in "USO" and not known:
        _refuse_fractions(path, name, values)
    return values


def flat(values: np.ndarray) -> np.ndarray:
    """`[rows, 1]` as `[rows]`; anything else as it is."""
    return values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values


def as_float32(values: np.ndarray) -> np.ndarray:
    """The numbers as float32; those beyond its range are infinite."""
    with np.errstate(over="ignore"):
        return values.astype(np.float32)


def rounded(values: np.ndarray) -> bool:
    """Whether float32 makes different whole numbers of this column equal."""
    if values.dtype.kind not in "iu" or not values.size or max(-int(values.min()), int(values.max())) <= 1 << 24:
        return False
    return len(np.unique(as_float32(values))) < len(np.unique(values))


def blurred(values: np.ndarray) -> bool:
    """Whether the steps of float32 at a column's largest number exceed a hundredth of the column's deviation."""
    deviation = float(np.std(values, dtype=np.float64)) if values.size else 0.0
    return deviation > 0 and float(np.spacing(as_float32(np.abs(values).max()))) > deviation / 100


def comma_hint(values: np.ndarray) -> str:
    """For text in place of numbers: what to do if it is numbers with a decimal comma."""
    sample = [str(v) for v in values.ravel()[:100].tolist()]
    return (
        ", with a decimal point instead of a comma and nothing between thousands"
        if any("," in v and _FRACTION.fullmatch(v) for v in sample)
        else ""
    )


def _one_hot(values: np.ndarray) -> bool:
    return bool(((values == 0) | (values == 1)).all() and (values.sum(axis=1) == 1).all())


def _whole_numbers(path: str, name: str, values: np.ndarray, known: bool) -> np.ndarray:
    floats, different = values.dtype.kind == "f", len(np.unique(values))
    if floats:
        few = different <= _MOST_CLASSES and 2 * different <= len(values)
    else:
        few = different <= _MOST_CLASSES or _REPEATS * different <= len(values)
    if (few or known) and not (floats and (np.abs(values) >= _EXACT).any()):
        return values.astype(np.int64) if floats else values
    raise UserError(
        f"{path} has {different} different whole numbers of type {values.dtype} in the {len(values)} rows of column"
        f" {name!r}, which may be quantities or classes; add regression=true for quantities, or write classes as text,"
        " or give classes=N where they are 0 to N - 1"
    )


def _refuse_fractions(path: str, name: str, values: np.ndarray) -> None:
    different: Sequence[str] = sorted(set(texts(values)))
    fractions = [text for text in different if _FRACTION.fullmatch(text)]
    if 2 * len(fractions) > len(different):
        raise UserError(
            f"{path} has text in column {name!r} that is mostly numbers, such as {fractions[0]!r}; write all of them as"
            f" numbers{comma_hint(values)}, or give labels= if they are names of classes"
        )


def _shape(values: np.ndarray) -> str:
    return "x".join(map(str, values.shape[1:])) or "no"
