"""From templates and strokes to images: a smooth map from output pixels to template pixels, and a threshold."""

from __future__ import annotations

import numpy as np

from headstart.data.glyphs.atlas import SIDE, Atlas
from headstart.data.glyphs.styles import WAVES, Strokes

PIXELS = 28
_CHUNK = 64  # characters drawn at once: their arrays stay in the processor's cache
_BOX = 19.0  # output pixels that a character of usual size fills
_USUAL = 34.0  # template pixels of a capital's longer side
_CENTRE = np.float32((SIDE - 1) / 2)
_GRID = np.arange(PIXELS) - (PIXELS - 1) / 2
_WAVES = np.stack([(_GRID / 14) ** 2 - 1 / 3, np.sin(np.pi * _GRID / 14), np.cos(1.5 * np.pi * _GRID / 14)]).astype(
    np.float32
)


def draw(strokes: Strokes, templates: Atlas) -> np.ndarray:
    """uint8 `[rows, 28, 28, 1]`: dark ink on a background of 255."""
    images = np.empty((len(strokes.labels), PIXELS, PIXELS, 1), np.uint8)
    for start in range(0, len(images), _CHUNK):
        part = slice(start, start + _CHUNK)
        _draw_chunk(Strokes(*(field[part] for field in strokes)), templates, images[part, ..., 0])
    return images


def _draw_chunk(strokes: Strokes, templates: Atlas, out: np.ndarray) -> None:
    slant, stretch, rotation, size, right, down, pen = strokes.traits.T
    extent = templates.extents[strokes.fonts, strokes.shapes]
    # Template pixels per output pixel.
    zoom = _USUAL * (extent / _USUAL) ** strokes.normalized / (_BOX * np.exp(size))
    matrix = _to_upright(slant, np.exp(stretch), rotation) * zoom[:, None, None]
    bends = _bend(strokes.bends * zoom[:, None])
    x, y = _GRID - right[:, None], _GRID - down[:, None]
    u = _separable(matrix[:, 0, 0, None] * x + bends[0], matrix[:, 0, 1, None] * y + bends[1])
    v = _separable(matrix[:, 1, 0, None] * x + bends[2], matrix[:, 1, 1, None] * y + bends[3])
    depth = _sample(templates.fields, strokes.fonts, strokes.shapes, u, v)
    half_width = templates.half_widths[strokes.fonts]
    # A bold font may be thinned, but not so far that its finest lines vanish.
    offset = np.maximum(pen * zoom - half_width, -0.2 * half_width)
    _ink(depth, offset.astype(np.float32), zoom.astype(np.float32), out)


def _to_upright(slant: np.ndarray, stretch: np.ndarray, rotation: np.ndarray) -> np.ndarray:
    """`[rows, 2, 2]`: undoes rotation, then slant, then stretch."""
    cos, sin = np.cos(rotation), np.sin(rotation)
    upper = np.stack([cos - slant * sin, sin + slant * cos], axis=1) / stretch[:, None]
    return np.stack([upper, np.stack([-sin, cos], axis=1) * stretch[:, None]], axis=1)


def _bend(bends: np.ndarray) -> np.ndarray:
    """float32 `[4, rows, 28]`: u along x, u along y, v along x, v along y."""
    weights = np.moveaxis(bends.reshape(-1, 4, WAVES), 0, 1).astype(np.float32)
    # Summed by hand: a matrix product rounds differently for different numbers of rows.
    first, second, third = (weights[..., i, None] * _WAVES[i] for i in range(WAVES))
    return first + second + third


def _separable(along_x: np.ndarray, along_y: np.ndarray) -> np.ndarray:
    return along_y.astype(np.float32)[:, :, None] + along_x.astype(np.float32)[:, None, :] + _CENTRE


def _sample(fields: np.ndarray, fonts: np.ndarray, shapes: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """The templates at columns `u` and rows `v`, `[rows, 28, 28]`, interpolated bilinearly; overwrites `u` and `v`."""
    flat = fields.reshape(-1)
    np.clip(u, 0, SIDE - 1.001, out=u)
    np.clip(v, 0, SIDE - 1.001, out=v)
    column, index = u.astype(np.intp), v.astype(np.intp)
    u -= column
    v -= index
    index *= SIDE
    index += column
    index += ((fonts * fields.shape[1] + shapes) * SIDE**2)[:, None, None]
    # Half of all time goes here: `take` that clips is twice as fast as indexing, which checks.
    upper = _between(flat.take(index, mode="clip"), flat.take(index + 1, mode="clip"), u)
    index += SIDE
    lower = _between(flat.take(index, mode="clip"), flat.take(index + 1, mode="clip"), u)
    return _between(upper, lower, v)


def _between(start: np.ndarray, end: np.ndarray, share: np.ndarray) -> np.ndarray:
    end -= start
    end *= share
    end += start
    return end


def _ink(depth: np.ndarray, offset: np.ndarray, zoom: np.ndarray, out: np.ndarray) -> None:
    # The edge of the ink is one and a half output pixels wide, as in a scan.
    scale = (-255 / 1.5) / zoom
    depth *= scale[:, None, None]
    depth += (scale * offset + 128)[:, None, None]
    np.clip(depth, 0, 255, out=depth)
    out[...] = depth
