"""Several tables of one folder: pieces of one table, or a file for each client."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from headstart.data.readers.sources import PART_WORD, Sources
from headstart.errors import UserError

# How programs that write a table in pieces call these: Spark, Dask, the Hugging Face hub.
_PIECE = re.compile(r"(?i)(part|shard|chunk|block)[._-]*\d+([._-].*)?|.*-of-\d+.*")


def described(sources: Sources) -> tuple[str, str]:
    """What to call the files in a message, and, in short, in metadata."""
    if sources.folder is not None:
        return str(sources.folder), f"{sources.folder.resolve().name} ({len(sources.files)} files)"
    return " and ".join(map(str, sources.files)), " and ".join(file.name for file in sources.files)


def clients_by_file(
    sources: Sources, lengths: Sequence[int], columns: Mapping[str, np.ndarray], options: Mapping[str, Any]
) -> tuple[Mapping[str, np.ndarray], list[str]]:
    """The columns, with `client`, each row's file, if nothing else says whose the rows are; and a note on it.

    Files that are called like the pieces of one table are no clients.

    Raises:
        UserError: if two files would be one client.
    """
    is_known = "client" in columns or {"client", "partition"} & options.keys()
    if sources.folder is None or len(sources.files) < 2 or is_known:
        return columns, []
    names = [_client(file) for file in sources.files]
    if any(_PIECE.fullmatch(name) for name in names):
        return columns, []
    for part in (sources.train, sources.test):
        ids = [_client(file) for file in part]
        if twice := next((name for name in ids if ids.count(name) > 1), None):
            raise UserError(f"{sources.folder} has two files for the client {twice!r}; give each client one")
    owners = np.repeat(np.array(names, object), lengths)
    note = "every file is a client, named as the file, as there is no column 'client'"
    return {"client": owners, **columns}, [f"{note}; --client COLUMN names another"]


def _client(file: Path) -> str:
    stem = file.name.split(".")[0] if file.name.count(".") == 1 else re.sub(r"(\.[A-Za-z]\w*)+$", "", file.name)
    return re.sub(r"^[ ._-]+|[ ._-]+$", "", PART_WORD.sub("", stem)) or stem
