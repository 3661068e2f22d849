"""Arrays that are pictures, in the form that everything else expects: channels last, pixels uint8 from 0 to 255."""

from __future__ import annotations

import numpy as np

from headstart.data.mapped import extent, pieces, rowwise
from headstart.data.readers.images import SIDE

_CHANNELS = (1, 3, 4)
# A table of numbers may have few rows and columns; a picture has more.
_LEAST_SIDE = 8


def as_pictures(values: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """The same examples with channels last, and as uint8 if they are pixels of another type; and what was changed.

    values: numbers `[rows, ...]`. Those that are no pictures stay as they are.
    """
    notes = []
    if channels_first(values.shape):
        notes.append(
            f"pictures of {'x'.join(map(str, values.shape[1:]))} have their channels first; they were put last"
        )
        values = rowwise(lambda rows: np.ascontiguousarray(np.moveaxis(rows, 1, -1)), values)
    flags = values.ndim > 2 and values.dtype == np.uint8 and values.size > 0 and extent(values)[1] == 1
    if flags:
        notes.append("pixels are 0 and 1, and were taken for black and white")
        return rowwise(lambda rows: rows * np.uint8(255), values), notes
    if not _pictorial(values.shape[1:]) or not values.size or values.dtype == np.uint8:
        return values, notes
    least, most = extent(values)
    if least >= 0 and 1 < most <= 255 and (most > 127 or _channels_or_character(values.shape[1:])) and _whole(values):
        notes.append(f"{values.dtype} numbers from {least:.0f} to {most:.0f} were taken for pixels")
        values = rowwise(lambda rows: rows.astype(np.uint8), values)
    return values, notes


def channels_first(shape: tuple[int, ...]) -> bool:
    """Whether an array of this shape, `[rows, ...]`, would be pictures if its second axis were the last."""
    return len(shape) == 4 and shape[1] in _CHANNELS and shape[-1] not in _CHANNELS


def is_character(values: np.ndarray) -> bool:
    """Whether these are pictures of the shape that EMNIST's characters have."""
    return values.shape[1:] in ((SIDE, SIDE), (SIDE, SIDE, 1))


def _pictorial(shape: tuple[int, ...]) -> bool:
    return (
        len(shape) in (2, 3)
        and min(shape[:2]) >= _LEAST_SIDE
        and (_channels_or_character(shape) or (len(shape) == 2 and shape[0] == shape[1]))
    )


def _channels_or_character(shape: tuple[int, ...]) -> bool:
    return shape == (SIDE, SIDE) or (len(shape) == 3 and shape[-1] in _CHANNELS)


def _whole(values: np.ndarray) -> bool:
    return values.dtype.kind in "iu" or all((piece == np.trunc(piece)).all() for piece in pieces(values))
