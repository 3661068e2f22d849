"""Picture files, on the disk or in a column, decoded one by one within what they may unpack to."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from headstart.data.readers.limits import refuse_larger
from headstart.data.readers.rows import reading
from headstart.errors import UserError

_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "PPM")
# Modes of Pillow with 8 bits in each channel, and what they are read as.
_MODES = {"1": "L", "L": "L", "P": "RGB", "RGB": "RGB", "CMYK": "RGB", "YCbCr": "RGB", "HSV": "RGB", "LAB": "RGB"}


def pixels_of(name: Path, content: Path | bytes) -> np.ndarray:
    """One picture, uint8 `[height, width, 1 or 3]`, turned as its camera says; transparency lies on white.

    name: what messages call it.

    Raises:
        UserError: if it is no picture, has several frames, or more than 8 bits a channel, which would be cut off.
    """
    from PIL import Image

    with reading(name), warnings.catch_warnings():
        # Pillow refuses twice the size that it warns of, and `stacked` what all are together.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with Image.open(content if isinstance(content, Path) else io.BytesIO(content), formats=_FORMATS) as image:
            return _unpacked(name, image)


def stacked(
    count: int, pictures: Iterable[tuple[str, np.ndarray]], most: float, first_file: Path
) -> tuple[np.ndarray, bool]:
    """Pictures of one size as uint8 `[count, height, width, channels]`, and whether some are grey and some in colour.

    pictures: of each a name for messages, and its pixels. most: the bytes that all may take.

    Raises:
        UserError: if they are of different sizes, or more than they may be.
    """
    x, first, mixed = np.zeros((0, 0, 0, 1), np.uint8), "", False
    for row, (name, pixels) in enumerate(pictures):
        if row == 0:
            refuse_larger(first_file, pixels.size * count, most)
            x, first = np.zeros((count, *pixels.shape), np.uint8), name
        if pixels.shape[:2] != x.shape[1:3]:
            one, other = ("x".join(map(str, shape)) for shape in (pixels.shape[1::-1], x.shape[2:0:-1]))
            raise UserError(f"{name} has {one} pixels, and {first} {other}; bring all pictures to one size")
        if pixels.shape[-1] != x.shape[-1]:
            mixed = True
            if x.shape[-1] == 1:
                refuse_larger(first_file, 3 * x.size, most)
                x = np.repeat(x, 3, axis=-1)
        x[row] = pixels
    return x, mixed


def _unpacked(name: Path, image: Any) -> np.ndarray:
    from PIL import Image, ImageOps

    if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
        raise UserError(f"{name} has {image.n_frames} frames; write each as a picture of its own")
    image = ImageOps.exif_transpose(image)
    mode = _MODES.get(image.mode)
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or (mode and "transparency" in image.info):
        mode = "L" if image.mode.startswith("L") else "RGB"
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    if mode is None:
        raise UserError(
            f"{name} has pixels of the mode {image.mode}, not grey or colour of 8 bits; convert the pictures, so that"
            " it is you who decides which brightness is 255"
        )
    return np.asarray(image.convert(mode)).reshape(image.height, image.width, -1)
