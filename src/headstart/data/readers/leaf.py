"""LEAF's JSON files, by what an example holds.

FEMNIST: 784 pixels, label. Shakespeare: 80 characters, the next one. Synthetic: numbers, label. Sent140: a tweet's id,
date, query, user and text, label.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from headstart.data.readers.images import SIDE
from headstart.data.readers.limits import TEXT
from headstart.data.readers.meaning import targets
from headstart.data.readers.rows import Rows
from headstart.data.readers.sources import unpacked
from headstart.data.readers.targets import decided_classes, target_classes
from headstart.data.readers.whole import read_whole
from headstart.data.readers.words import NOTE, hashed_words
from headstart.documents import unique_names
from headstart.errors import UserError

# Where the text is in Sent140's examples.
_TWEET_TEXT = 4
# Pixels below zero are damaged, but not if they are many: then they are not pixels, but numbers of another scale.
_FEW = 0.1


def read_leaf(train: Sequence[Path], test: Sequence[Path], decided: Mapping[str, Any] = MappingProxyType({})) -> Rows:
    """`{"users": …, "num_samples": …, "user_data": {user: {"x": …, "y": …}}}`, gzipped or not.

    decided: what training decided of the labels, where the file says none; see `decided.decisions`.
    """
    rows = read_whole(_clients, train, test, "LEAF JSON")
    if "classes" in rows.metadata:
        return rows
    path, owners = str([*train, *test][0]), np.repeat(rows.ids, rows.sizes.sum(axis=1)).tolist()
    if decided.get("classes"):
        y, metadata = decided_classes(path, "y", rows.y, decided, owners)
    else:
        y = targets(path, "y", rows.y, known=False)
        y, metadata = target_classes(path, "y", y, {}, owners)
    return rows._replace(y=y, metadata={**rows.metadata, **metadata})


def _clients(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with unpacked(path, TEXT) as file:
        content = json.load(file, object_pairs_hook=unique_names)
    if not isinstance(content, dict) or not {"users", "num_samples", "user_data"} <= content.keys():
        raise UserError(
            f"{path} is JSON, but not LEAF's, which has users, num_samples and user_data; give LEAF's, or npz, Parquet"
            " or CSV"
        )
    if not isinstance(content["users"], list) or not all(isinstance(user, str) for user in content["users"]):
        raise TypeError("users are no list of ids")
    for user, count in zip(content["users"], content["num_samples"], strict=True):
        x, y = content["user_data"][user]["x"], content["user_data"][user]["y"]
        if not len(x) == len(y) == count:
            raise ValueError(f"client {user} should have {count} examples and has {len(x)}")
        yield user, _fields(path, x, y)


def _fields(path: Path, x: list[Any], y: list[Any]) -> dict[str, Any]:
    if not isinstance(x, list) or not isinstance(y, list):
        raise TypeError("examples are no list")
    if not x:
        return {"pixels": np.zeros((0, SIDE**2), np.float32), "label": np.zeros(0, np.int64)}
    if isinstance(x[0], str) and isinstance(y[0], str) and len(x[0]) + len(y[0]) == 81:
        return {"windows": [a + b for a, b in zip(x, y, strict=True)]}
    if _is_tweet(x[0]):
        return {"features": hashed_words([each[_TWEET_TEXT] for each in x]), "target": np.asarray(y), "note": NOTE}
    if isinstance(x[0], list) and all(isinstance(value, int | float) for value in x[0]):
        values = np.asarray(x, np.float32)
        if values.shape[1] == SIDE**2 and (values < 0).mean() < _FEW:
            return {"pixels": values, "label": np.asarray(y)}
        return {"features": values, "target": np.asarray(y)}
    raise UserError(
        f"{path} is LEAF's, but none of FEMNIST, Shakespeare, Synthetic and Sent140; write these examples as npz,"
        " Parquet or CSV"
    )


def _is_tweet(example: Any) -> bool:
    texts = isinstance(example, list) and all(isinstance(value, str) for value in example)
    return texts and len(example) in (_TWEET_TEXT + 1, _TWEET_TEXT + 2)
