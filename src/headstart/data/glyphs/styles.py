"""Writer styles: how writers write, how often they write which character, and how their examples of one differ."""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

from headstart.data.glyphs.atlas import CHARACTERS, FONTS, SHAPES
from headstart.data.glyphs.draws import bits, normal, streams, uniform

CLASSES = len(CHARACTERS)
WAVES = 3  # functions that bend a character along one axis
_TRAITS = 7
_BENDS = 4 * WAVES
_FREQUENT_LETTERS = "etaoinshrdlu"

# What a writer may draw instead of the usual shape. Every letter may besides take the shape of its other case.
_HABITS = {
    **{"0": "O o 0/ 0.", "1": "l I 7 1_", "2": "Z z", "4": "4| 9 q", "5": "S s", "6": "b G", "7": "7- 1", "8": "B"},
    **{"9": "q g", "A": "H R", "B": "8", "D": "O 0", "F": "f E", "G": "6 C", "H": "h A", "I": "l 1 J", "J": "J| I"},
    **{"L": "l J|", "M": "W", "N": "N| u", "O": "0 D 0/", "Q": "9 O", "S": "5 s|", "T": "t 7", "U": "u V", "V": "v U"},
    **{"Z": "2 Z-", "a": "o d", "b": "6 h", "c": "e r", "d": "a", "e": "c", "f": "t", "g": "9 q y", "h": "n k b"},
    **{"i": "j l", "j": "i J", "k": "h K", "l": "I 1 e", "n": "u h", "o": "a 0", "q": "9 g", "r": "v n", "s": "5 s|"},
    **{"t": "f T", "u": "v n", "v": "u r", "x": "k y", "y": "g v", "z": "2 z-"},
}


class WriterStyles(NamedTuple):
    """The styles of some writers.

    keys: uint64 `[writers]`, the streams of random numbers that they come from.
    traits: `[writers, 7]`: slant, log stretch, rotation (radians), log size, shift right and down (output pixels),
        half the thickness of the pen (output pixels).
    normalized: `[writers]`: 1 where every character fills the same box, 0 where small letters stay small.
    fonts, shapes: int `[writers, CLASSES]`, the template of each character.
    bends: `[writers, CLASSES, 12]`, the writer's deformation of each character, in output pixels.
    frequencies: `[writers, CLASSES]`, cumulated: how often each character occurs.
    """

    keys: np.ndarray
    traits: np.ndarray
    normalized: np.ndarray
    fonts: np.ndarray
    shapes: np.ndarray
    bends: np.ndarray
    frequencies: np.ndarray


class Strokes(NamedTuple):
    """What to draw, one entry per example: arrays `[rows]`, but `traits` `[rows, 7]` and `bends` `[rows, 12]`."""

    labels: np.ndarray
    fonts: np.ndarray
    shapes: np.ndarray
    normalized: np.ndarray
    traits: np.ndarray
    bends: np.ndarray


# Deviation between writers, then between one writer's examples, in the order of the traits.
_BETWEEN = np.array([0.16, 0.10, 0.06, 0.07, 0.7, 0.7, 0.22])
_WITHIN = np.array([0.05, 0.05, 0.05, 0.05, 0.6, 0.6, 0.10])
_MEAN = np.array([0.10, 0.0, 0.0, 0.0, 0.0, 0.0, 1.4])
_WAVE_SIZES = np.tile([0.8, 0.6, 0.4], 4)


def writer_styles(keys: np.ndarray, *, habits: float, variation: float) -> WriterStyles:
    """The styles of the writers whose streams are `keys` (uint64 `[writers]`)."""
    own = bits(streams(keys, 0), _TRAITS + _BENDS + 4)
    traits = _MEAN + variation * _BETWEEN * normal(own[:, :_TRAITS])
    bend = normal(own[:, _TRAITS : _TRAITS + _BENDS])
    font, second, normalized, mixing = np.moveaxis(uniform(own[:, -4:]), -1, 0)
    letters = bits(streams(keys[:, None], 1 + np.arange(CLASSES)), _BENDS + 4)
    mixed, odd, which = np.moveaxis(uniform(letters[..., _BENDS : _BENDS + 3]), -1, 0)
    pair = (np.stack([font, second], axis=1) * len(FONTS)).astype(np.int64)
    uses_second = mixed < (0.6 * mixing)[:, None]
    return WriterStyles(
        keys=keys,
        traits=traits,
        normalized=0.4 + 0.6 * normalized,
        fonts=np.where(uses_second, pair[:, 1:], pair[:, :1]),
        shapes=np.where(odd < habits, _choose_habit(which), np.arange(CLASSES)),
        bends=variation * _WAVE_SIZES * (0.8 * bend[:, None] + 0.6 * normal(letters[..., :_BENDS])),
        frequencies=_cumulate(_frequencies() * np.exp(0.35 * normal(letters[..., -1]))),
    )


def write(writers: WriterStyles, counts: np.ndarray) -> Strokes:
    """What the writers write: `counts[i]` examples of writer `i`, one writer after the other."""
    owner = np.repeat(np.arange(len(counts)), counts)
    number = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    draws = bits(streams(writers.keys[owner], 1000 + number), _TRAITS + _BENDS + 1)
    labels = (uniform(draws[:, -1:]) >= writers.frequencies[owner]).sum(axis=1)
    return Strokes(
        labels=labels,
        fonts=writers.fonts[owner, labels],
        shapes=writers.shapes[owner, labels],
        normalized=writers.normalized[owner],
        traits=writers.traits[owner] + _WITHIN * normal(draws[:, :_TRAITS]),
        bends=writers.bends[owner, labels] + 0.3 * _WAVE_SIZES * normal(draws[:, _TRAITS:-1]),
    )


@functools.lru_cache(maxsize=1)
def _habit_table() -> tuple[np.ndarray, np.ndarray]:
    """For each character how many shapes a habit chooses from, and which, padded to the longest list."""
    names = [[*_HABITS.get(c, "").split(), *([c.swapcase()] if c.isalpha() else [])] for c in CHARACTERS]
    names = [options or [character] for options, character in zip(names, CHARACTERS, strict=True)]
    width = max(map(len, names))
    table = [[SHAPES.index(options[i % len(options)]) for i in range(width)] for options in names]
    return np.array([len(options) for options in names]), np.array(table)


def _choose_habit(which: np.ndarray) -> np.ndarray:
    counts, table = _habit_table()
    return table[np.arange(CLASSES), (which * counts).astype(np.int64)]


def _frequencies() -> np.ndarray:
    """Half of all characters are digits, as in FEMNIST; letters common in English come twice as often as the others."""
    weights = [1 + (c.lower() in _FREQUENT_LETTERS) for c in CHARACTERS[10:]]
    return np.concatenate([np.full(10, 0.05), 0.5 * np.array(weights) / sum(weights)])


def _cumulate(weights: np.ndarray) -> np.ndarray:
    total = np.cumsum(weights, axis=-1)
    total /= total[..., -1:]
    total[..., -1] = 1  # above every draw, whatever was rounded
    return total
