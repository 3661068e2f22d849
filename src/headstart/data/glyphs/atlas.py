"""Templates of characters: for each font and shape, how far every point lies inside the ink.

A distance field makes the thickness of the pen a threshold, chosen when a character is drawn.
"""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

CHARACTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
# A second sign alters the character: / slash, . dot, - bar through the middle, _ line below, | mirror image.
SHAPES = (*CHARACTERS, "0/", "0.", "1_", "7-", "Z-", "z-", "4|", "N|", "s|", "J|")
FONTS = (
    *("DejaVuSans", "DejaVuSans-Oblique", "DejaVuSans-Bold", "DejaVuSans-BoldOblique"),
    *("DejaVuSansMono", "DejaVuSansMono-Oblique", "DejaVuSerif", "DejaVuSerif-Italic"),
    *("DejaVuSerif-Bold", "DejaVuSerif-BoldItalic", "STIXGeneral", "STIXGeneralItalic"),
    *("STIXGeneralBol", "STIXGeneralBolIta", "cmr10", "cmti10", "cmss10", "cmtt10", "cmb10"),
)
SIDE = 64
_EM = 44
_REACH = 9


class Atlas(NamedTuple):
    """Every shape in every font.

    fields: float32 `[fonts, shapes, SIDE, SIDE]`: distance to the edge of the ink in template pixels, positive inside,
        cut at a reach of 9; the ink's bounding box is centred.
    extents: float32 `[fonts, shapes]`: the longer side of the ink's bounding box, in template pixels.
    half_widths: float32 `[fonts]`: half the thickness of the font's strokes, in template pixels.
    """

    fields: np.ndarray
    extents: np.ndarray
    half_widths: np.ndarray


@functools.lru_cache(maxsize=1)
def atlas() -> Atlas:
    """The templates, drawn once per process from the fonts that matplotlib ships."""
    folder = _fonts()
    ink = np.stack([_font_ink(folder / f"{name}.ttf") for name in FONTS])
    rows, columns = ((ink > 127).any(axis=axis).sum(axis=-1) for axis in (-1, -2))
    fields = np.stack([_distance(cells) for cells in ink])
    inside = fields > 0
    # A stroke of half-width h has points at every depth from 0 to h: their mean is h / 2.
    half_widths = 2 * (fields * inside).sum(axis=(1, 2, 3)) / inside.sum(axis=(1, 2, 3))
    return Atlas(fields, np.maximum(rows, columns).astype(np.float32), half_widths.astype(np.float32))


def _fonts() -> Path:
    """The folder of matplotlib's fonts, found without importing matplotlib, which takes a quarter of a second.

    Only where matplotlib's own folder has none, as where a system keeps them elsewhere, it is imported and asked.
    """
    found = importlib.util.find_spec("matplotlib")
    assert found is not None and found.origin is not None
    own = Path(found.origin).parent / "mpl-data" / "fonts" / "ttf"
    return own if own.is_dir() else Path(importlib.import_module("matplotlib").get_data_path()) / "fonts" / "ttf"


def _font_ink(path: Path) -> np.ndarray:
    font = ImageFont.truetype(str(path), _EM, layout_engine=ImageFont.Layout.BASIC)
    return np.stack([_shape_ink(shape, font) for shape in SHAPES])


def _shape_ink(shape: str, font: ImageFont.FreeTypeFont) -> np.ndarray:
    left, top, right, bottom = font.getbbox(shape[0])
    cell = Image.new("L", (SIDE, SIDE), 0)
    pen = ImageDraw.Draw(cell)
    pen.text(((SIDE - left - right) / 2, (SIDE - top - bottom) / 2), shape[0], fill=255, font=font)
    if shape[1:]:
        _alter(pen, shape[1], (right - left) / 2, (bottom - top) / 2)
    ink = np.asarray(cell)
    return ink[:, ::-1] if shape[1:] == "|" else ink


def _alter(pen: ImageDraw.ImageDraw, sign: str, half_width: float, half_height: float) -> None:
    middle = SIDE / 2
    strokes = {
        "/": (0.9 * half_width, -0.9 * half_height, -0.9 * half_width, 0.9 * half_height),
        ".": (0, -2, 0, 2),
        "-": (-0.7 * half_width, 0, 0.9 * half_width, 0),
        "_": (-9, half_height, 9, half_height),
    }
    if sign in strokes:
        pen.line([middle + offset for offset in strokes[sign]], fill=255, width=4)


def _distance(ink: np.ndarray) -> np.ndarray:
    """Signed distance to the edge of the ink, from coverage `[shapes, SIDE, SIDE]` of 0 to 255."""
    coverage = ink.astype(np.float32) / 255
    depth = _to_nearest(coverage < 0.5) - _to_nearest(coverage >= 0.5)
    # Pixel centres lie half a pixel from the edge; where a pixel is cut by the edge, its coverage says how far.
    field = np.where((ink > 0) & (ink < 255), coverage - 0.5, depth - 0.5 * np.sign(depth))
    return field.astype(np.float32)


def _to_nearest(targets: np.ndarray) -> np.ndarray:
    """Euclidean distance to the nearest target, at most `_REACH`, one axis after the other."""
    # Two squares of the reach still fit 8 bits, which is four times as fast as float32.
    squares = np.where(targets, 0, _REACH**2).astype(np.uint8)
    for axis in (1, 2):
        near = squares.copy()
        for offset in range(1, _REACH):
            low, high = [slice(None)] * 3, [slice(None)] * 3
            low[axis], high[axis] = slice(None, -offset), slice(offset, None)
            for here, there in ((low, high), (high, low)):
                candidates = squares[tuple(there)] + np.uint8(offset**2)
                np.minimum(near[tuple(here)], candidates, out=near[tuple(here)])
        squares = near
    return np.sqrt(squares, dtype=np.float32)
