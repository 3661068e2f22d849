"""LEAF's JSON files: FEMNIST (784 pixels, label) and Shakespeare (80 characters, the next one)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from headstart.data.readers.images import SIDE
from headstart.data.readers.limits import TEXT
from headstart.data.readers.rows import Rows
from headstart.data.readers.sources import unpacked
from headstart.data.readers.whole import read_whole
from headstart.documents import unique_names
from headstart.errors import UserError


def read_leaf(train: Sequence[Path], test: Sequence[Path]) -> Rows:
    """`{"users": …, "num_samples": …, "user_data": {user: {"x": …, "y": …}}}`, gzipped or not."""
    return read_whole(_clients, train, test, "LEAF JSON")


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
    if x and isinstance(x[0], str) and isinstance(y[0], str) and len(x[0]) + len(y[0]) == 81:
        return {"windows": [a + b for a, b in zip(x, y, strict=True)]}
    if not x or (isinstance(x[0], list) and len(x[0]) == SIDE**2):
        return {"pixels": np.asarray(x, np.float32), "label": np.asarray(y)}
    raise UserError(
        f"{path} is LEAF's, but neither FEMNIST nor Shakespeare; write these examples as npz, Parquet or CSV"
    )
