"""`glyphs`: a federation of handwritten-looking characters that needs no download.

The 62 characters 0-9, A-Z, a-z of FEMNIST (Caldas et al. 2018, "LEAF"), drawn from the outlines of the fonts that
matplotlib ships, by as many writers as asked, each with their own style. A writer's habits contradict other writers'
(one's 0 is another's O), so one model for all is imperfect and a model for each is better.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np

from headstart.data.federation import Federation, Generated, Ids
from headstart.data.glyphs.atlas import CHARACTERS, atlas
from headstart.data.glyphs.draws import bits, normal, streams, uniform
from headstart.data.glyphs.pen import draw
from headstart.data.glyphs.styles import write, writer_styles
from headstart.data.kept import Kept
from headstart.errors import UserError

_SHARE_OF_FIRST_HUMP = 0.65  # with humps at 170 and 340: mean 230, deviation 87; FEMNIST has 227 and 89
_SPREAD = 0.12  # deviation of a hump, as a share of its centre
_SIZE_STREAM = 2**40  # apart from the streams of the styles
_MOST = 2**24  # writers: their sizes alone take a gigabyte
_VERSION = 1  # to be raised when the same options give other rows
_GROUP = 16  # writers whose styles are made at once: bounds the memory of a fetch


def _id(writer: int) -> str:
    return f"writer{writer:07d}"


def glyphs(
    *,
    writers: int = 500,
    seed: int = 0,
    humps: tuple[float, float] = (170, 340),
    examples: int | None = None,
    test_fraction: float = 0.12,
    habits: float = 0.1,
    variation: float = 1.0,
) -> Federation:
    """Characters drawn by `writers` writers; x uint8 `[rows, 28, 28, 1]`, 255 = background; y int32 `[rows]`, 0 to 61.

    Writer i depends on (seed, i) and the options below alone, not on who else takes part. Rows are drawn when fetched.
    With the usual options a small CNN trained on the pooled data of 150 writers reaches 0.78 on others, and 0.88 after
    five epochs on the local training examples of each.

    humps: where the numbers of examples per writer cluster.
    examples: the number of examples of every writer, in place of the humps.
    test_fraction: share of a writer's examples that are for testing; at least one of two or more.
    habits: share of the characters that a writer draws in an unusual shape, often that of another character.
    variation: how far styles differ in slant, width, size, position, pen and deformation; at 0 only in fonts.

    Raises:
        UserError: if an option is out of its range.

    Example:
    >>> federation = glyphs(writers=1_000_000, examples=20)
    >>> federation.ids[999_999], federation.sizes[999_999]
    ('writer0999999', array([18,  2]))

    """
    _check(writers, seed, humps, examples, test_fraction, habits, variation)
    sizes = _sizes(seed, writers, humps, examples, test_fraction)
    made_from = f"glyphs {_VERSION}: seed {seed}, habits {float(habits)!r}, variation {float(variation)!r}"
    drawn = functools.partial(_fetch, sizes=sizes, seed=seed, habits=habits, variation=variation)
    return Federation(
        name="glyphs",
        ids=Ids(writers, _id),
        sizes=sizes,
        fetch=Generated(Kept(drawn, made_from, sizes), made_from),
        metadata={"kind": "image", "classes": 62, "labels": CHARACTERS, "source": "drawn from matplotlib's fonts"},
    )


def _check_kinds(whole: Mapping[str, Any], numbers: Mapping[str, Any], humps: Any) -> None:
    for name, value in whole.items():
        if not isinstance(value, Integral) or isinstance(value, bool):
            raise UserError(f"glyphs: {name}={value!r} is not a whole number; give one")
    for name, value in numbers.items():
        if not isinstance(value, Real) or isinstance(value, bool):
            raise UserError(f"glyphs: {name}={value!r} is not a number; give one")
    if not isinstance(humps, Sequence) or not all(isinstance(hump, Real) for hump in humps):
        raise UserError(f"glyphs: humps={humps!r} are not two numbers; give two from 1 on, such as (170, 340)")


def _check(
    writers: int,
    seed: int,
    humps: tuple[float, float],
    examples: int | None,
    test_fraction: float,
    habits: float,
    variation: float,
) -> None:
    _check_kinds(
        {"writers": writers, "seed": seed, "examples": 1 if examples is None else examples},
        {"test_fraction": test_fraction, "habits": habits, "variation": variation},
        humps,
    )
    wrong = [
        (not 1 <= writers <= _MOST, f"writers={writers} is not between 1 and {_MOST}"),
        (not -(2**63) <= seed < 2**64, f"seed={seed} is not a number of 64 bits"),
        (
            examples is not None and not 1 <= examples <= 1e6,
            f"examples={examples} is not a number of examples; give 1 or more, at most a million",
        ),
        (
            len(humps) != 2 or not all(1 <= hump <= 1e6 for hump in humps),
            f"humps={humps} are not two numbers from 1 on",
        ),
        (not 0 <= test_fraction < 1, f"test_fraction={test_fraction} is not a share of at least 0 and below 1"),
        (not 0 <= habits <= 1, f"habits={habits} is not a share between 0 and 1"),
        (not 0 <= variation <= 2, f"variation={variation} is not between 0 and 2, beyond which nothing is legible"),
    ]
    for is_wrong, sentence in wrong:
        if is_wrong:
            raise UserError(f"glyphs: {sentence}")


def _keys(seed: int, writers: np.ndarray) -> np.ndarray:
    return streams(streams(seed % 2**64, 0), writers)


def _sizes(
    seed: int, writers: int, humps: tuple[float, float], examples: int | None, test_fraction: float
) -> np.ndarray:
    """int64 `[writers, 2]`: the numbers of local training and of local test examples."""
    if examples is None:
        draws = bits(streams(_keys(seed, np.arange(writers)), _SIZE_STREAM), 2)
        hump = np.where(uniform(draws[:, 0]) < _SHARE_OF_FIRST_HUMP, *humps)
        totals = np.maximum(np.rint(hump * (1 + _SPREAD * normal(draws[:, 1]))), 1).astype(np.int64)
    else:
        totals = np.full(writers, examples, np.int64)
    test = np.maximum(np.rint(totals * test_fraction).astype(np.int64), np.minimum(1, totals // 2))
    return np.stack([totals - test, test], axis=1)


def _fetch(
    clients: np.ndarray, *, sizes: np.ndarray, seed: int, habits: float, variation: float
) -> tuple[np.ndarray, np.ndarray]:
    clients = np.asarray(clients, np.int64)
    counts = sizes[clients].sum(axis=1)
    ends = np.cumsum(counts)
    x, y = np.empty((counts.sum(), 28, 28, 1), np.uint8), np.empty(counts.sum(), np.int32)
    for first in range(0, len(clients), _GROUP):
        group = slice(first, first + _GROUP)
        rows = slice(ends[first] - counts[first], ends[group][-1])
        styles = writer_styles(_keys(seed, clients[group]), habits=habits, variation=variation)
        strokes = write(styles, counts[group])
        x[rows], y[rows] = draw(strokes, atlas()), strokes.labels
    return x, y
