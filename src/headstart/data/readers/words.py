"""Texts as numbers of their words, for models of features: float32 `[rows, 1024]`.

A word's feature is a hash of it (feature hashing, Weinberger et al. 2009, arXiv:0902.2206), so that nothing is fitted
to anybody's texts, and a device has the same features without a vocabulary.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

FEATURES = 1024
NOTE = (
    f"every text became the numbers of its words, hashed into {FEATURES:,} features and scaled to length 1, for no"
    " built-in model reads text in order to classify it"
)
_WORD = re.compile(r"\w+|[^\w\s]")


def hashed_words(texts: Sequence[str]) -> np.ndarray:
    """float32 `[texts, 1024]`, each row of length 1, or 0 where a text has no words; case does not count."""
    found = np.zeros((len(texts), FEATURES), np.float32)
    for row, text in enumerate(texts):
        for word, count in Counter(_WORD.findall(text.lower())).items():
            found[row, _feature(word)] += count
    lengths = np.sqrt((found**2).sum(axis=1, keepdims=True))
    return found / np.maximum(lengths, 1)


@lru_cache(maxsize=1 << 16)
def _feature(word: str) -> int:
    return zlib.crc32(word.encode(errors="surrogatepass")) % FEATURES
