"""A user's own text and token sequences: each next character, or token, is the target."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from headstart.data.characters import UNFITTED, as_tokens, characters_of, encode_texts, vocabulary_metadata
from headstart.data.decided import class_labels
from headstart.data.readers import meaning
from headstart.data.readers.columns import number
from headstart.errors import UserError

# What `characters=printable` takes: no client decides on these, so that devices can number them alike.
PRINTABLE = "\n" + "".join(map(chr, range(32, 127)))


def texts_of(path: str, name: str, values: np.ndarray) -> list[str]:
    """A column of texts.

    Raises:
        UserError: if it holds something else.
    """
    if values.dtype.kind not in "USO" or not all(isinstance(value, str | bytes) for value in values.tolist()):
        raise UserError(f"{path} has no text in column {name!r}; name the column with the text, as text=COLUMN")
    return meaning.texts(values)


def next_characters(
    path: str, texts: list[str], options: Mapping[str, Any], decided: Mapping[str, Any]
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Tokens int32 `[rows, 81]`, the number of rows of each text, and what is known of them.

    The characters are those that training decided, those of `characters=`, or are still to be fitted.

    Raises:
        UserError: if training was on something else.
    """
    tokens, counts = encode_texts(texts)
    if "classes" in decided or "kind" in decided:
        characters = characters_of(class_labels(decided), path)
    elif "characters" in options:
        given = str(options["characters"])
        characters = PRINTABLE if given == "printable" else "".join(dict.fromkeys(given))
    else:
        return tokens, counts, dict(UNFITTED)
    return as_tokens(tokens, characters), counts, vocabulary_metadata(characters)


def token_sequences(
    path: str, x: np.ndarray, y: np.ndarray, options: Mapping[str, Any]
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Inputs and targets int32 `[rows, length]`, and what is known of them; `padding` is 0 unless said.

    Raises:
        UserError: if they are no tokens of the vocabulary, or of different shapes.
    """
    size = number({**options, "partition": "none"}, "vocabulary", int, least=2)
    padding = number({"padding": 0, **options, "partition": "none"}, "padding", int, least=0)
    for name, tokens in (("x", x), ("y", y)):
        if tokens.dtype.kind not in "iu" or tokens.ndim != 2 or tokens.shape != x.shape:
            shape = "x".join(map(str, tokens.shape))
            raise UserError(
                f"{path} has {tokens.dtype} of shape {shape} for {name}; with vocabulary= both are whole numbers of one"
                " shape, rows x length, y the tokens that come next"
            )
        wrong = (tokens < 0) | (tokens >= size)
        if wrong.any():
            row = int(np.argmax(wrong.any(axis=1)))
            raise UserError(
                f"{path} has the token {int(tokens[row][wrong[row]][0])} in row {row + 1} of {name}; with"
                f" vocabulary={size} tokens go from 0 to {size - 1}"
            )
    metadata = {"kind": "text", "classes": size, "vocabulary": size, "special": {"pad": padding}}
    note = f"token {padding} is padding, which neither loss nor metrics count; padding=N names another, also one unused"
    return x.astype(np.int32), y.astype(np.int32), metadata | {"notes": [note]}
