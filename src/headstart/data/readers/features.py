"""The inputs of a table's rows: its columns for preprocessing, numbers as they are, or pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from headstart.data.mapped import extent, rowwise
from headstart.data.readers import images, meaning
from headstart.data.readers.columns import Columns, no_column, numbers, single, with_parts
from headstart.data.readers.encoding import Encoded, Kind, encode, odd_among_numbers
from headstart.data.readers.pictures import as_pictures, is_character
from headstart.data.readers.rows import as_flag, listed
from headstart.errors import UserError

# More different texts than these are no category: ids, names, notes.
MOST_LABELS = 1000


def is_pictures(values: np.ndarray) -> bool:
    """Whether a column holds pictures."""
    return values.dtype == np.uint8 and values.ndim > 2


def features_of(
    path: str,
    columns: Columns,
    names: Sequence[str],
    owners: Sequence[str],
    invert: Any,
    *,
    table: bool,
    kinds: Mapping[str, Kind],
) -> tuple[np.ndarray, dict[str, Any]]:
    """The inputs `[rows, ...]` and what is known of them.

    table: whether these are columns of a table, for preprocessing. kinds: what training decided that they stand for.
    """
    columns = with_parts(columns, names)
    unknown = [name for name in names if name not in columns]
    if unknown:
        raise no_column(path, unknown[0], columns, "name the right ones with features=")
    if not names:
        raise UserError(
            f"{path} has no column left for features, but {listed(columns)}; name the right ones with features="
        )
    if table and not _is_array(columns, names):
        return table_inputs(path, columns, names, kinds)
    arrays = [numbers(path, name, columns[name], owners) for name in names]
    notes = [
        f"{name!r} has different whole numbers that are equal as float32"
        for name, array in zip(names, arrays, strict=True)
        if array.ndim == 1 and meaning.rounded(array)
    ]
    about: dict[str, Any] = {}
    if len(arrays) == 1:
        arrays[0], notes_of_pictures = as_pictures(arrays[0])
        notes += notes_of_pictures
    if notes:
        about["notes"] = notes
    if len(arrays) == 1 and (image := _as_image(arrays[0], owners, invert)) is not None:
        return image[0], image[1] | about
    if len(arrays) == 1 and arrays[0].ndim > 1:
        x = rowwise(lambda rows: rows.astype(np.float32), arrays[0])
    else:
        x = np.concatenate([array.reshape(len(array), -1).astype(np.float32) for array in arrays], axis=1)
    return x, {"kind": "features", "features": list(names)} | about


def _is_array(columns: Columns, names: Sequence[str]) -> bool:
    """Whether the features are one array of more than one number a row, such as pictures."""
    return len(names) == 1 and columns[names[0]].dtype.kind in "biuf" and columns[names[0]].ndim > 2


def table_inputs(
    path: str, columns: Columns, names: Sequence[str], kinds: Mapping[str, Kind]
) -> tuple[np.ndarray, dict[str, Any]]:
    """The inputs of a raw table `[rows, columns]`, and what its columns stand for.

    float32 where these are all numbers that it holds closely enough, without gaps; else float64.
    """
    flat = {each: values for name in names for each, values in single(name, columns[name]).items()}
    encoded = {name: encode(path, name, values, kinds.get(name)) for name, values in flat.items()}
    about = [{"name": name, "kind": each.kind} | _labels(each) for name, each in encoded.items()]
    x = np.stack([each.values for each in encoded.values()], axis=1)
    plain = all(each.kind == "number" for each in encoded.values()) and not np.isnan(x).any()
    if plain and not (any(map(meaning.rounded, flat.values())) or any(map(meaning.blurred, x.T))):
        x = x.astype(np.float32)
    notes = [
        f"{name!r} holds numbers but for text such as {odd!r}, and is taken for a category; mend such values"
        for name, each in encoded.items()
        if each.kind == "category" and (odd := odd_among_numbers(each.labels)) is not None
    ]
    return x, {"kind": "features", "features": list(flat), "columns": about} | ({"notes": notes} if notes else {})


def _labels(column: Encoded) -> dict[str, Any]:
    """The labels of a category; of more than any category has only their number, and its rows are gaps."""
    if column.kind != "category":
        return {}
    if len(column.labels) <= MOST_LABELS:
        return {"labels": list(column.labels)}
    column.values[:] = np.nan
    return {"labels": [], "different": len(column.labels)}


def _are_shares(x: np.ndarray) -> bool:
    least, most = extent(x)
    return bool(least >= 0 and most <= 1)


def _as_image(values: np.ndarray, owners: Sequence[str], invert: Any) -> tuple[np.ndarray, dict[str, Any]] | None:
    """uint8 pictures stay so, and shares of 28 x 28 become so; other numbers of that shape are pictures as they are.

    invert: whether to invert those of 28 x 28, which nothing else does.
    """
    character, pixels = is_character(values), values.dtype == np.uint8
    if not character and (not pixels or values.ndim < 3):
        return None
    x = values[..., None] if values.ndim == 3 else values
    if not character:
        return x, {"kind": "image", "inverted": False}
    inverted = as_flag("inverted", False if invert is None else invert)
    if not pixels and x.size and _are_shares(x):
        x, pixels = rowwise(lambda rows: images.to_uint8(rows, owners), x), True
    if inverted and not pixels:
        raise UserError(
            f"inverted=true inverts pixels from 0 to 255 or from 0 to 1, and these go from {x.min():g} to {x.max():g};"
            " invert them in the file"
        )
    if inverted or not pixels:
        x = rowwise(lambda rows: 255 - rows if inverted else rows.astype(np.float32), x)
    level = images.level(x)
    return x, {"kind": "image", "inverted": inverted} | ({} if level is None else {"background": level})
