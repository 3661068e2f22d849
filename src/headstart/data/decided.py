"""What training decided of its data: the numbering of labels, the features in order, the polarity of pictures.

A reader decides these from the file at hand. They are part of a run from then on, and data that come later are read
by them: applied where the reader can, and otherwise compared, so that a contradiction is a sentence and no result.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from headstart.data.federation import Federation
from headstart.data.preprocessing import is_raw, is_table, needs_preprocessing, of_metadata
from headstart.errors import UserError

# In a federation's metadata. `regression` is added where the task says that targets are quantities.
_NAMES = (
    *("kind", "classes", "labels", "features", "inverted", "background", "regression", "preprocessing"),
    # The option, and its column, by which a table's rows were split within each client.
    "split_by",
)
# How a table's source begins. Pictures of every other source have the light background that they are published in.
_TABLE = re.compile(r"(npz|parquet|csv|frame) |devices")
_LIGHT, _DARK = 255, 64


def decisions(metadata: Mapping[str, Any], *, regression: bool = False) -> dict[str, Any]:
    """The decisions in a federation's metadata, as JSON values.

    `inverted`: whether the pictures of its file were inverted. `background`: the level of their background thereafter.
    regression: whether the targets are quantities.
    """
    known = {name: metadata[name] for name in _NAMES if metadata.get(name) is not None}
    for name in ("labels", "features"):
        if name in known:
            known[name] = [str(each) for each in known[name]]
    if "classes" in known:
        known["classes"] = int(known["classes"])
    if "inverted" in known and "background" not in known:
        if not _TABLE.match(str(metadata.get("source", ""))):
            del known["inverted"]
            known["background"] = _LIGHT
        elif known["inverted"]:
            known["background"] = _LIGHT
    return known | ({"regression": True} if regression and "classes" not in known else {})


def decisions_before(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The decisions, in a federation's metadata, that would not be made again; empty if there are none.

    Once a dark background decided by itself to invert the pictures of a table, and the columns of a table were taken as
    they were. A run that was begun then resumes with the same examples.
    """
    source = _TABLE.match(str(metadata.get("source", "")))
    if source is None:
        return {}
    of_file = source[1] in ("csv", "parquet", "npz")
    plain = of_file and metadata.get("kind") == "features" and "preprocessing" not in metadata
    return ({"inverted": True} if metadata.get("inverted") is True else {}) | (
        {"features": metadata["features"]} if plain and "features" in metadata else {}
    )


def class_labels(decided: Mapping[str, Any]) -> list[str]:
    """The names of the decided classes, in order; numbers where they have no names."""
    return list(decided.get("labels") or map(str, range(decided.get("classes", 0))))


def class_numbers(values: np.ndarray, labels: Sequence[Any]) -> np.ndarray:
    """int32, as many as the values: the number of the class that each names; -1 for one that none has.

    A label is the same as text and as a number. Where classes have names that are no numbers, numbers that are no
    label are class numbers.
    """
    names = [str(label) for label in labels]
    flat = values.ravel()
    found, inverse = np.unique(np.array(label_texts(flat)) if flat.dtype.kind in "USO" else flat, return_inverse=True)
    numbers = {name: number for number, name in enumerate(names)}
    codes = np.array([numbers.get(text, -1) for text in label_texts(found)], np.int64)
    named_by_numbers = all(name.lstrip("-").isdecimal() for name in names)
    if (codes < 0).any() and found.dtype.kind in "iuf" and not named_by_numbers:
        fits = (found >= 0) & (found < len(names)) & (found == np.trunc(found))
        codes = np.where(fits, found, -1)
    return codes.astype(np.int32)[inverse].reshape(values.shape)


def label_texts(values: np.ndarray) -> list[str]:
    """The values of an array `[rows]` as text; a whole number is written as one."""
    if values.dtype.kind == "f":
        return [str(int(v)) if np.isfinite(v) and v == int(v) else str(v) for v in values.tolist()]
    return [v.decode() if isinstance(v, bytes) else str(v) for v in values.tolist()]


def opposite(level: int, trained: int) -> bool:
    """Whether pictures of this background are rather the negatives of those trained on; levels from 0 to 255."""
    return abs(level - trained) > abs(level - (_LIGHT - trained))


def as_decided(federation: Federation, decided: Mapping[str, Any], what: str) -> Federation:
    """The federation with the decided names of its classes, and the decided features of a raw table.

    what: the data's name, for messages.

    Raises:
        UserError: if it contradicts what was decided.
    """
    own = decisions(federation.metadata)
    # Of a raw table the columns are taken by name, and it may have others.
    by_name = is_raw(federation) and "preprocessing" in decided
    checks = (_kind, _targets, _pictures) if by_name else (_kind, _features, _targets, _pictures)
    complaint = next(filter(None, (check(own, decided) for check in checks)), "")
    if complaint:
        raise UserError(f"{what} {complaint}")
    federation = _as_preprocessed(federation, decided, what)
    if "classes" not in own or class_labels(own) == class_labels(decided):
        return federation
    classes = {name: decided[name] for name in ("classes", "labels") if name in decided}
    return replace(federation, metadata={**federation.metadata, **classes})


def _as_preprocessed(federation: Federation, decided: Mapping[str, Any], what: str) -> Federation:
    """The federation with its columns made features as in training."""
    preprocessing = of_metadata(decided)
    if preprocessing is None:
        if decided.get("features") and needs_preprocessing(federation):
            raise UserError(f"{what} has gaps or columns that are no numbers, and training had only numbers")
        return federation
    if not is_table(federation.metadata):
        # Numbers in the order of the columns, as who makes a federation of arrays has them.
        x, _ = federation.example()
        names = preprocessing.names_of(np.shape(x)[1]) if np.ndim(x) == 2 else ()
        if not names or any(column.kind == "category" for column in preprocessing.used):
            wanted = ", ".join(column.name for column in preprocessing.used)
            raise UserError(f"{what} is no table, and training had one with the columns {wanted}; give such a table")
        columns = [{"name": each.name, "kind": each.kind} for each in preprocessing.columns if each.name in names]
        federation = replace(federation, metadata={**federation.metadata, "columns": columns})
    if is_raw(federation):
        return preprocessing.apply(federation)
    if of_metadata(federation.metadata) != preprocessing:
        raise UserError(f"{what} was preprocessed otherwise than in training; give the table as it was before")
    return federation


def _kind(own: Mapping[str, Any], decided: Mapping[str, Any]) -> str:
    kinds = own.get("kind"), decided.get("kind")
    if None in kinds or kinds[0] == kinds[1]:
        return ""
    return f"holds data of the kind {kinds[0]}, and training had {kinds[1]}; give data like those trained on"


def _features(own: Mapping[str, Any], decided: Mapping[str, Any]) -> str:
    if "features" not in own or "features" not in decided:
        return ""
    # A request's lists come as tuples.
    mine, theirs = list(own["features"]), list(decided["features"])
    if mine == theirs:
        return ""
    return f"has the features {', '.join(mine)}, and training had {', '.join(theirs)}; give the same, in this order"


def _targets(own: Mapping[str, Any], decided: Mapping[str, Any]) -> str:
    if "classes" in own and "regression" in decided:
        return "has classes for targets, and training had quantities; for a table add --data-option regression=true"
    if "classes" in decided and "classes" not in own and "kind" in own:
        return "has quantities for targets, and training had classes; name their column as the target"
    if "classes" not in own or "classes" not in decided:
        return ""
    mine, theirs = class_labels(own), class_labels(decided)
    # Numbers from 0 on are the numbers of the classes, whatever these are called.
    if mine == theirs[: len(mine)] or ("labels" not in own and len(mine) <= len(theirs)):
        return ""
    unknown = next((label for label in mine if label not in theirs), None)
    if unknown is None:
        return f"numbers its labels otherwise than training, which had {_some(theirs)}; give labels= in this order"
    return f"has the label {unknown!r}, and training knew {_some(theirs)} alone; leave out what it did not know"


def _some(labels: Sequence[str], most: int = 12) -> str:
    return ", ".join(labels[:most]) + (f" and {len(labels) - most} more" if len(labels) > most else "")


def _pictures(own: Mapping[str, Any], decided: Mapping[str, Any]) -> str:
    if decided.get("inverted") is False and "background" not in decided and own.get("background", _LIGHT) < _DARK:
        return "holds pictures with a dark background, and training had none; invert them (255 less each pixel)"
    if "background" not in own or "background" not in decided:
        return ""
    return polarity_complaint(own["background"], decided["background"])


def polarity_complaint(level: int, trained: int) -> str:
    """What is wrong with pictures of this background, as the end of a sentence; empty if nothing is."""
    if not opposite(level, trained):
        return ""
    return (
        f"holds pictures with a background of {level}, the negatives of those trained on, with one of {trained};"
        " invert them (255 less each pixel), or for a table say --data-option inverted=true or false"
    )
