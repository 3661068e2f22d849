"""Several tables of one folder: pieces of one table, or a file for each client."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

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

    Folders called `column=value`, as Spark and Arrow write them, are a column. Files that are called like the pieces of
    one table are no clients, but the folders that they lie in are.

    Raises:
        UserError: if two files would be one client.
    """
    if sources.folder is None or len(sources.files) < 2:
        return columns, []
    columns = _by_folder(sources, lengths) | dict(columns)
    if "client" in columns or {"client", "partition"} & options.keys():
        return columns, []
    folders = [name for name in (_folder(sources, file) for file in sources.files) if name]
    names = folders if len(folders) == len(sources.files) else [_client(file) for file in sources.files]
    what = "folder" if names is folders else "file"
    if what == "file":
        if any(_PIECE.fullmatch(name) for name in names):
            return columns, []
        for part in (sources.train, sources.test):
            ids = [_client(file) for file in part]
            if twice := next((name for name in ids if ids.count(name) > 1), None):
                raise UserError(f"{sources.folder} has two files for the client {twice!r}; give each client one")
    note = (
        f"every {what} is a client, named as the {what}, as there is no column 'client'; --client COLUMN names another"
    )
    return {"client": np.repeat(np.array(names, object), lengths), **columns}, [note]


def _by_folder(sources: Sources, lengths: Sequence[int]) -> dict[str, np.ndarray]:
    """The columns that the names of folders give, `column=value`."""
    pairs = [_folder(sources, file).partition("=") for file in sources.files]
    names = {name for name, equals, _ in pairs if equals}
    if len(names) != 1 or not all(equals for _, equals, _ in pairs):
        return {}
    return {names.pop(): np.repeat(np.array([unquote(value) for _, _, value in pairs], object), lengths)}


def _folder(sources: Sources, file: Path) -> str:
    """The name of the folder within the data set's that a file lies in, if it is none of a part."""
    name = file.parent.name
    return "" if file.parent == sources.folder or name in ("train", "test") else name


def _client(file: Path) -> str:
    stem = file.name.split(".")[0] if file.name.count(".") == 1 else re.sub(r"(\.[A-Za-z]\w*)+$", "", file.name)
    return re.sub(r"^[ ._-]+|[ ._-]+$", "", PART_WORD.sub("", stem)) or stem
