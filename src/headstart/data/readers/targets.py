"""The target of every row of a table: the number of a class, or a quantity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from headstart.data.decided import class_labels, class_numbers, label_texts
from headstart.data.readers import images
from headstart.data.readers.columns import for_regression, names_in, number, numbers, refuse_rows_of_numbers
from headstart.data.readers.meaning import texts
from headstart.data.readers.rows import listed, twins
from headstart.errors import UserError


def target_classes(
    path: str, name: str, values: np.ndarray, options: Mapping[str, Any], owners: Sequence[str]
) -> tuple[np.ndarray, dict[str, Any]]:
    """The targets `[rows]` as the numbers of classes, with these, or as quantities.

    Raises:
        UserError: if the options do not fit them, or they are neither.
    """
    for option in ("labels", "classes"):
        if option in options:
            refuse_rows_of_numbers(values, f"{option}=")
            if for_regression(options):
                raise UserError(f"{path}: give either {option}= or regression=true, not both")
    if "labels" in options:
        return _named_classes(path, name, texts(values), options["labels"], owners)
    if "classes" in options:
        if values.dtype.kind not in "iuf":
            raise UserError(f"{path} has no numbers in column {name!r}, so classes= does not fit; give labels= instead")
        classes = number(options, "classes", int, least=1)
        return images.check_labels(values, classes, owners), {"classes": classes, "labels": _range(classes)}
    if values.dtype.kind == "f" or for_regression(options):
        return numbers(path, name, values, owners, what="targets of regression").astype(np.float32), {}
    if values.ndim != 1:
        each = "x".join(map(str, values.shape[1:]))
        raise UserError(
            f"{path} has {each} numbers for each row in column {name!r}, and they are not one-hot; write the number of"
            " the class, or add regression=true to predict them all"
        )
    if values.dtype.kind not in "biuUSO" or _is_odd(values):
        raise UserError(f"{path} has neither text nor numbers in column {name!r}; name another with target=")
    if values.dtype.kind in "USO":
        return _text_classes(path, name, texts(values))
    found, codes = np.unique(values, return_inverse=True)
    return codes.astype(np.int32), {"classes": len(found), "labels": [str(label) for label in found]}


def decided_classes(
    path: str, name: str, values: np.ndarray, decided: Mapping[str, Any], owners: Sequence[str]
) -> tuple[np.ndarray, dict[str, Any]]:
    """The targets by the numbers that their labels had in training.

    Raises:
        UserError: for a label that training did not know; names the client.
    """
    labels = class_labels(decided)
    if values.ndim != 1:
        raise UserError(f"{path} has more than one target a row in column {name!r}; the run was trained with one label")
    codes = class_numbers(values, labels)
    if (codes < 0).any():
        row = int(np.argmax(codes < 0))
        raise UserError(
            f"{path} has the target {label_texts(values[row : row + 1])[0]!r} in column {name!r} of client"
            f" {owners[row]}, which is not among the labels that the run was trained with ({listed(labels)}); leave out"
            " the row, or give it one of them"
        )
    return codes, {"classes": len(labels), "labels": labels}


def _is_odd(values: np.ndarray) -> bool:
    """Whether a column of objects holds other things than text."""
    return values.dtype.kind == "O" and not all(isinstance(value, str | bytes) for value in values.tolist())


def _text_classes(path: str, name: str, values: Sequence[str]) -> tuple[np.ndarray, dict[str, Any]]:
    labels = sorted(set(values))
    if pair := twins(labels):
        raise UserError(
            f"{path} has the classes {pair[0]!r} and {pair[1]!r} in column {name!r}, which differ only by spaces or in"
            " how letters are composed; write one class always alike"
        )
    numbers = {label: number for number, label in enumerate(labels)}
    return np.array([numbers[value] for value in values], np.int32), {"classes": len(labels), "labels": labels}


def _range(classes: int) -> list[str]:
    return [str(label) for label in range(classes)]


def _named_classes(
    path: str, name: str, values: Sequence[str], labels: Any, owners: Sequence[str]
) -> tuple[np.ndarray, dict[str, Any]]:
    order = names_in(labels)
    indices = {label: i for i, label in enumerate(order)}
    for row, value in enumerate(values):
        if value not in indices:
            raise UserError(
                f"{path} has the target {value!r} in column {name!r} of client {owners[row]}, which is not among the"
                f" {len(order)} labels given; add it or leave out the row"
            )
    return np.array([indices[value] for value in values], np.int32), {"classes": len(order), "labels": order}
