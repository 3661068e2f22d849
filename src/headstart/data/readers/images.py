"""Handwritten characters: uint8 `[rows, 28, 28, 1]`, background 255, as EMNIST is published by TensorFlow Federated."""

from __future__ import annotations

import string
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from headstart.data.mapped import extent, pieces, rowwise
from headstart.data.readers.rows import Chunk, Rows, assemble
from headstart.errors import UserError

SIDE = 28
LABELS = string.digits + string.ascii_uppercase + string.ascii_lowercase


def chunk(
    owners: Sequence[str], test: np.ndarray | bool, pixels: np.ndarray, labels: np.ndarray, classes: int
) -> Chunk:
    """Check images and labels and store them compactly.

    pixels: float `[rows, ...]` in [0, 1], 784 a row. labels: int `[rows]` in 0..classes-1.
    """
    pixels = pixels.reshape(len(owners), SIDE, SIDE, 1)
    return Chunk(owners, test, to_uint8(pixels, owners), check_labels(labels, classes, owners))


def handwriting(
    chunks: Iterable[Chunk], path: Path, *, source: str, has_predefined_split: bool, classes: int = len(LABELS)
) -> Rows:
    """Rows of handwriting in one polarity, whatever the source's."""
    metadata: dict[str, Any] = {"kind": "image", "classes": classes, "labels": LABELS[:classes], "source": source}
    rows = assemble(chunks, metadata, has_predefined_split=has_predefined_split)
    level = background(rows.x)
    if 64 <= level < 192:
        raise UserError(
            f"{path}: the images' borders have a median of {level / 255:.2f}, neither a white (1) nor a black (0)"
            " background; give images of handwriting"
        )
    x, metadata["inverted"] = white_background(rows.x)
    if metadata["inverted"]:
        metadata["notes"] = ["pictures with a dark background were inverted, as all published EMNIST is light"]
    return rows._replace(x=x, metadata=metadata)


def to_uint8(pixels: np.ndarray, owners: Sequence[str]) -> np.ndarray:
    """Numbers `[rows, ...]` in [0, 1] as 0..255, rounded.

    Raises:
        UserError: if a pixel is NaN or out of range; names the client.
    """
    # The comparisons are written so that NaN fails them.
    if not (pixels.min(initial=1) >= 0 and pixels.max(initial=0) <= 1):
        flat = pixels.reshape(len(pixels), -1)
        row = int(np.argmin(((flat >= 0) & (flat <= 1)).all(axis=1)))
        value = flat[row][~((flat[row] >= 0) & (flat[row] <= 1))][0]
        raise UserError(
            f"client {owners[row]} has an image with a pixel of {value:g}; pixels are numbers from 0 to 1, so mend or"
            " leave out this image"
        )
    return (pixels * 255 + 0.5).astype(np.uint8)


def check_labels(labels: np.ndarray, classes: int, owners: Sequence[str]) -> np.ndarray:
    """Labels as int32.

    Raises:
        UserError: if a label is no class; names the client.
    """
    labels = np.asarray(labels)
    if labels.dtype.kind not in "iuf":
        raise ValueError(f"client {owners[0] if len(owners) else ''} has labels that are not numbers")
    wrong = (labels < 0) | (labels >= classes) | (labels != np.trunc(labels))
    if wrong.any():
        row = int(np.argmax(wrong))
        raise UserError(
            f"client {owners[row]} has an example with label {labels[row]}; with {classes} classes labels go from 0 to"
            f" {classes - 1}, so mend or leave out this example"
        )
    return labels.astype(np.int32)


def white_background(x: np.ndarray) -> tuple[np.ndarray, bool]:
    """The images with a light background, and whether they had to be inverted; the one place that does this."""
    inverted = background(x) < 128
    return (255 - x if inverted else x), inverted


def level(x: np.ndarray) -> int | None:
    """The background of pictures as a level from 0 to 255; of floats, between their least and their most.

    None of floats that are all the same.
    """
    if x.dtype == np.uint8:
        return background(x)
    least, most = map(np.float64, extent(x) if x.size else (0, 0))
    if not most > least:
        return None
    return background(rowwise(lambda rows: ((rows - least) * (255 / (most - least)) + 0.5).astype(np.uint8), x))


def background(x: np.ndarray) -> int:
    """The median of all images' outermost pixels; x: uint8 `[rows, height, width, 1]`."""
    border = np.ones(x.shape[1:3], bool)
    border[1:-1, 1:-1] = False
    counts = np.zeros(256, np.int64)
    for piece in pieces(x):
        for start in range(0, len(piece), 8192):
            counts += np.bincount(piece[start : start + 8192][:, border].ravel(), minlength=256)
    return int(np.searchsorted(np.cumsum(counts), counts.sum() / 2))
