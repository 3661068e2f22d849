"""A user's own text by characters: which of them there are is decided by training clients alone.

A reader gives *unfitted* text: each character by its Unicode number. `fit_characters` numbers the characters of some
clients from 1 on, and makes everything else that is written one token. The names of the tokens are the labels of the
federation, and as such among what training decided: data that come later are read by them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from headstart.data.federation import Federation, derived
from headstart.errors import UserError

LENGTH = 80
# Tokens of unfitted text; a character is its Unicode number and this many.
PAD, BOS, EOS, FIRST = 0, 1, 2, 3
# A character is in the vocabulary if this many training clients use it, and it is among the most frequent.
LEAST_CLIENTS, MOST = 2, 500
NAMES = ("<pad>", "<oov>", "<bos>", "<eos>")
UNFITTED: Mapping[str, Any] = {"kind": "text", "characters": "numbered as training clients use them"}


def is_unfitted(federation: Federation) -> bool:
    """Whether a federation's text has no vocabulary yet."""
    return federation.metadata.get("kind") == "text" and "characters" in federation.metadata


def encode_texts(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Unfitted tokens of texts, int32 `[rows, 81]`, and the number of rows of each; a text is bos, characters, eos."""
    rows = []
    for text in texts:
        codes = np.frombuffer(text.encode("utf-32-le", errors="replace"), "<u4").astype(np.int32) + FIRST
        count = -(-(len(codes) + 2) // (LENGTH + 1))
        row = np.full(count * (LENGTH + 1), PAD, np.int32)
        row[0], row[1 : len(codes) + 1], row[len(codes) + 1] = BOS, codes, EOS
        rows.append(row.reshape(count, LENGTH + 1))
    counts = np.array([len(each) for each in rows], np.int64)
    return np.concatenate([*rows, np.zeros((0, LENGTH + 1), np.int32)]), counts


def as_tokens(unfitted: np.ndarray, characters: str) -> np.ndarray:
    """Unfitted tokens by a vocabulary: pad 0, the characters from 1 on, then oov, bos and eos."""
    known = np.array([ord(character) + FIRST for character in characters], np.int64)
    order = np.argsort(known)
    oov = len(known) + 1
    at = np.minimum(np.searchsorted(known[order], unfitted), max(len(known) - 1, 0))
    found = np.where(known[order][at] == unfitted, order[at] + 1, oov) if len(known) else np.full(unfitted.shape, oov)
    for token, number in ((PAD, 0), (BOS, oov + 1), (EOS, oov + 2)):
        found = np.where(unfitted == token, number, found)
    return found.astype(np.int32)


def vocabulary_metadata(characters: str) -> dict[str, Any]:
    """What is known of text by these characters."""
    pad, *rest = NAMES
    labels = [pad, *characters, *rest]
    metadata = {"kind": "text", "classes": len(labels), "vocabulary": len(labels), "labels": labels}
    return metadata | {"special": special_tokens(metadata)}


def special_tokens(metadata: Mapping[str, Any]) -> dict[str, int]:
    """The tokens that no metric counts, as the metadata of text say, or the names of its tokens; empty if none do."""
    labels = list(metadata.get("labels") or ())
    if metadata.get("special") or metadata.get("kind") != "text" or [*labels[:1], *labels[-3:]] != list(NAMES):
        return dict(metadata.get("special") or {})
    return {"pad": 0, "oov": len(labels) - 3, "bos": len(labels) - 2, "eos": len(labels) - 1}


def characters_of(labels: Sequence[str], what: str) -> str:
    """The characters of a vocabulary, by the names of its tokens.

    Raises:
        UserError: if they are no names of characters.
    """
    inner = list(labels)[1:-3]
    if len(labels) < len(NAMES) or [labels[0], *labels[-3:]] != list(NAMES) or any(len(each) != 1 for each in inner):
        raise UserError(f"{what} is text by characters, and the run was trained on other data; give data like those")
    return "".join(inner)


def fit_characters(federation: Federation, clients: np.ndarray) -> Federation:
    """The federation with the characters that these clients (int array `[n]`) use in the rows that they train on."""
    users, counts = Counter[int](), Counter[int]()
    for client in clients:
        x, y = federation.fetch(np.array([client]))
        most = int(federation.training_sizes[client])
        rows = np.concatenate([x[:most], y[:most, -1:]], axis=1)
        codes, found = np.unique(rows[rows >= FIRST], return_counts=True)
        users.update(codes.tolist())
        counts.update(dict(zip(codes.tolist(), found.tolist(), strict=True)))
    least = min(LEAST_CLIENTS, len(clients))
    common = sorted((code for code in counts if users[code] >= least), key=lambda code: (-counts[code], code))[:MOST]
    return with_characters(federation, "".join(chr(code - FIRST) for code in sorted(common)))


def with_characters(federation: Federation, characters: str) -> Federation:
    """The federation of tokens, from unfitted text."""
    inner = federation.fetch

    def fetch(clients: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        x, y = inner(clients)
        return as_tokens(x, characters), as_tokens(y, characters)

    metadata = {name: value for name, value in federation.metadata.items() if name != "characters"}
    how = f", by the characters {characters!r}"
    return replace(federation, fetch=derived(fetch, inner, how), metadata=metadata | vocabulary_metadata(characters))
