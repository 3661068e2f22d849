"""Text by characters, with the vocabulary of Reddi et al. 2020 (arXiv:2003.00295): int32 `[rows, 80]`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from headstart.data.readers.rows import Chunk, Rows, assemble

CHARACTERS = "dhlptx@DHLPTX $(,048cgkoswCGKOSW[_#'/37;?bfjnrvzBFJNRVZ\"&*.26:\naeimquyAEIMQUY]!%)-159\r"
PAD, OOV, BOS, EOS = 0, 87, 88, 89
VOCABULARY = 90
LENGTH = 80

_IDS = np.full(257, OOV, np.int32)
_IDS[[ord(character) for character in CHARACTERS]] = np.arange(1, len(CHARACTERS) + 1)


def passage(chunks: Iterable[Chunk], *, source: str, has_predefined_split: bool) -> Rows:
    """Rows of text with what is known of it."""
    metadata: dict[str, Any] = {
        "kind": "text",
        "classes": VOCABULARY,
        "vocabulary": VOCABULARY,
        "labels": ["<pad>", *CHARACTERS, "<oov>", "<bos>", "<eos>"],
        "special": {"pad": PAD, "oov": OOV, "bos": BOS, "eos": EOS},
        "source": source,
    }
    return assemble(chunks, metadata, has_predefined_split=has_predefined_split)


def snippets(owners: Sequence[str], test: Sequence[bool], texts: Sequence[bytes]) -> Chunk:
    """Each snippet as bos, its characters, eos, cut into rows; owners, test: one entry per snippet."""
    encoded = [_cut(np.frombuffer(text, np.uint8)) for text in texts]
    counts = [len(rows) for rows in encoded]
    rows = np.concatenate([*encoded, np.zeros((0, LENGTH + 1), np.int32)])
    whose = [owner for owner, count in zip(owners, counts, strict=True) for _ in range(count)]
    return Chunk(whose, np.repeat(np.asarray(test, bool), counts), rows[:, :-1], rows[:, 1:])


def _cut(codes: np.ndarray) -> np.ndarray:
    count = -(-(len(codes) + 2) // (LENGTH + 1))
    row = np.full(count * (LENGTH + 1), PAD, np.int32)
    row[0], row[len(codes) + 1] = BOS, EOS
    row[1 : len(codes) + 1] = _IDS[codes]
    return row.reshape(count, LENGTH + 1)


def windows(owner: str, test: bool, texts: Sequence[str]) -> Chunk:
    """Rows from texts of 80 characters and the one that comes next; the targets are all 80 next characters.

    LEAF's windows slide over a passage by one character. Such a passage becomes rows that follow one another, every
    80th window and the rest, so that each character is a target once, in local training or in the local test.
    """
    if {len(each) for each in texts} - {LENGTH + 1}:
        raise ValueError(f"a text that is not {LENGTH} characters and the next one")
    codes = np.frombuffer("".join(texts).encode("utf-32-le"), "<u4")
    rows = _IDS[np.minimum(codes, 256)].reshape(-1, LENGTH + 1)
    slides = (rows[1:, :-1] == rows[:-1, 1:]).all(axis=1)
    passages = np.split(rows, np.flatnonzero(~slides) + 1)
    pairs = [_unslide(np.concatenate([each[0], each[1:, -1]])) for each in passages]
    x, y = (np.concatenate(pieces) for pieces in zip(*pairs, strict=True))
    return Chunk([owner] * len(x), test, x, y)


def _unslide(passage: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Tokens `[n]` as inputs and targets `[rows, 80]`: every one but the first is a target once."""
    count = -(-(len(passage) - 1) // LENGTH)
    filled = np.full(count * LENGTH + 1, PAD, np.int32)
    filled[: len(passage)] = passage
    return filled[:-1].reshape(count, LENGTH), filled[1:].reshape(count, LENGTH)
