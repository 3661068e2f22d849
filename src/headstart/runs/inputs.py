"""A user's own arrays as a run's model was trained on them: by name, scale and polarity, never by guess."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from headstart.data.checks import first_beyond
from headstart.data.decided import class_labels, class_numbers, label_texts, polarity_complaint
from headstart.data.federation import Tree
from headstart.data.preprocessing import Preprocessing, of_metadata
from headstart.data.readers import images
from headstart.data.readers.columns import nearest
from headstart.errors import UserError


def inputs_like(decided: Mapping[str, Any], example: np.ndarray | None) -> Callable[[Tree], Tree]:
    """What brings inputs `[rows, ...]` to the form of those trained on, or refuses them.

    decided: of the run's data. example: some inputs of the run `[rows, ...]`, or None where it keeps none.
    A frame's columns are taken by the names of the features, those of a table as they were before preprocessing.
    """
    preprocessing = of_metadata(decided)

    def prepare(x: Tree) -> Tree:
        if preprocessing is not None:
            x = preprocessing.transform(_table(x, preprocessing), "what you give")
        elif hasattr(x, "columns") and "features" in decided:
            x = _by_name(x, decided["features"])
        if not isinstance(x, np.ndarray | jax.Array | list) or example is None:
            _check_finite(x)
            return x
        x = np.asarray(x)
        if x.dtype.kind not in "biuf":
            raise UserError(f"the inputs are {x.dtype}, which is no number; give numbers like those trained on")
        _check_finite(x)
        x = x[..., None] if x.ndim == 3 and example.ndim == 4 and example.shape[-1] == 1 else x
        if example.ndim == 4 and x.ndim == 4:
            pixels = example.dtype == np.uint8
            x = _pictures(x, pixels, decided.get("background"))
        if x.shape[1:] != example.shape[1:]:
            given, wanted = (", ".join(map(str, ("rows", *shape[1:]))) for shape in (x.shape, example.shape))
            raise UserError(f"the inputs have the shape [{given}], and those trained on had [{wanted}]; give the same")
        return x

    return prepare


def _table(x: Any, preprocessing: Preprocessing) -> Mapping[str, Any]:
    """The columns of a table by name, of a frame, a mapping, or numbers `[rows, columns]` in the order of training."""
    if isinstance(x, Mapping):
        return x
    if hasattr(x, "column_names"):  # Arrow
        return {name: x[name].to_numpy() for name in x.column_names}
    if hasattr(x, "columns"):
        return {str(name): np.asarray(x[name]) for name in x.columns}
    x = np.asarray(x)
    names = preprocessing.names_of(x.shape[1]) if x.ndim == 2 else ()
    if not names:
        wanted = ", ".join(column.name for column in preprocessing.used)
        raise UserError(
            f"the inputs have the shape {list(x.shape)}, and training had the columns {wanted}; give a frame,"
            " or a dictionary of columns"
        )
    return dict(zip(names, x.T, strict=True))


def targets_like(decided: Mapping[str, Any]) -> Callable[[Tree], Tree]:
    """What brings targets `[rows, ...]` to the form of those trained on: labels to the numbers of their classes.

    A label is the same as text and as a number; where labels are names, a number is the number of a class. Quantities
    that were standardized in training are standardized.
    """
    preprocessing = of_metadata(decided)

    def prepare(y: Tree) -> Tree:
        if not isinstance(y, np.ndarray | jax.Array | list) and not hasattr(y, "to_numpy"):
            return y
        y = np.asarray(y)
        whole = decided.get("kind") == "text" and y.dtype.kind in "iu"  # tokens, some of which are called by a digit
        if "classes" not in decided or whole:
            return y if preprocessing is None else preprocessing.transform_targets(y)
        numbers = class_numbers(y, class_labels(decided))
        if (numbers < 0).any():
            unknown = label_texts(y.ravel()[np.ravel(numbers) < 0][:1])[0]
            labels = class_labels(decided)
            known = ", ".join(labels[:12]) + (" and more" if len(labels) > 12 else "")
            raise UserError(f"there is a target {unknown!r}, and training knew {known}; leave it out")
        return numbers

    return prepare


def _check_finite(x: Tree) -> None:
    """Refuse numbers that are missing, infinite or beyond what the device holds: a model would answer all the same."""
    for leaf in map(np.asarray, jax.tree.leaves(x)):
        row = first_beyond(leaf) if leaf.ndim else None
        if row is not None:
            raise UserError(
                f"the inputs hold a number in row {row + 1} that is missing, infinite or beyond the range of 32 bits;"
                " mend or leave out the row"
            )


def _by_name(frame: Any, features: list[str]) -> np.ndarray:
    columns = {str(name): name for name in frame.columns}
    missing = [name for name in features if name not in columns]
    if missing:
        hint = nearest(missing[0], columns)
        raise UserError(
            f"the frame has no column {missing[0]!r}{hint}; training had the features {', '.join(features)}"
        )
    return np.stack([np.asarray(frame[columns[name]]) for name in features], axis=1)


def _pictures(x: np.ndarray, pixels: bool, background: int | None) -> np.ndarray:
    """Pictures `[rows, height, width, channels]`: uint8, or floats in [0, 1]; any numbers, where training had such."""
    if not pixels:
        _check_polarity(x.astype(np.float32), background)
        return x
    low, high = (x.min(), x.max()) if x.size else (0, 0)
    most = 1 if x.dtype.kind == "f" else 255
    if not (low >= 0 and high <= most):
        raise UserError(
            f"the pictures have pixels from {low:g} to {high:g}; give whole numbers from 0 to 255, or fractions from 0"
            " to 1"
        )
    levels = (x * 255).astype(np.uint8) if most == 1 else x.astype(np.uint8)
    _check_polarity(levels, background)
    return x if most == 1 else levels


def _check_polarity(x: np.ndarray, background: int | None) -> None:
    """Refuse pictures `[rows, height, width, channels]` that are the negatives of those trained on."""
    level = images.level(x) if x.size and background is not None else None
    if level is not None and background is not None and (complaint := polarity_complaint(level, background)):
        raise UserError(f"what you give {complaint}")
