"""FedJAX's SQLite files: one row per client, a compressed msgpack of all its arrays."""

from __future__ import annotations

import re
import sqlite3
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from headstart.data.readers.rows import Rows
from headstart.data.readers.whole import read_whole

# FedJAX puts a hash before the published id, to shuffle the clients.
_HASH = re.compile(r"^[0-9a-f]{16}:")

OpenDatabase = Callable[[Path], AbstractContextManager[sqlite3.Connection]]


def read_fedjax(train: Sequence[Path], test: Sequence[Path], open_database: OpenDatabase) -> Rows:
    """Table `federated_data(client_id, data, num_examples)`; train and test in files of their own."""

    def clients(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
        with open_database(path) as database:
            for key, data, count in database.execute("SELECT client_id, data, num_examples FROM federated_data"):
                fields = _unpack(zlib.decompress(data))
                client = _HASH.sub("", key.decode() if isinstance(key, bytes) else key)
                if {len(values) for values in fields.values()} != {count}:
                    raise ValueError(f"client {client} should have {count} examples")
                yield client, fields

    return read_whole(clients, train, test, "FedJAX sqlite")


def _unpack(data: bytes) -> Any:
    import msgpack

    return msgpack.unpackb(data, ext_hook=_array)


def _array(code: int, data: bytes) -> Any:
    """Extension type 1 is an array of numbers, 4 one of byte strings."""
    if code == 1:
        shape, dtype, buffer = _unpack(data)
        return np.frombuffer(buffer, np.dtype(dtype)).reshape(shape)
    if code == 4:
        _, strings = _unpack(data)
        return strings
    raise ValueError(f"an array of unknown extension type {code}")
