"""FedJAX's SQLite files: one row per client, a compressed msgpack of all its arrays."""

from __future__ import annotations

import operator
import re
import sqlite3
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from headstart.data.readers.limits import allowance, refuse_larger
from headstart.data.readers.rows import Rows
from headstart.data.readers.sources import typed
from headstart.data.readers.whole import read_whole

# FedJAX puts a hash before the published id, to shuffle the clients.
_HASH = re.compile(r"^[0-9a-f]{16}:")

OpenDatabase = Callable[[Path], AbstractContextManager[sqlite3.Connection]]


def read_fedjax(train: Sequence[Path], test: Sequence[Path], open_database: OpenDatabase) -> Rows:
    """Table `federated_data(client_id, data, num_examples)`; train and test in files of their own."""

    def clients(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
        with open_database(path) as database:
            left = allowance(path)
            query = "SELECT client_id, data, num_examples FROM federated_data"
            for key, data, count in typed(path, database, query, str | bytes, bytes, int):
                content = _inflated(path, data, left)
                left -= len(content)
                fields = _fields(content)
                client = _HASH.sub("", key.decode() if isinstance(key, bytes) else key)
                if {len(values) for values in fields.values()} != {count}:
                    raise ValueError(f"client {client} should have {count} examples")
                yield client, fields

    return read_whole(clients, train, test, "FedJAX sqlite")


def _inflated(path: Path, data: bytes, most: int) -> bytes:
    inflater = zlib.decompressobj()
    content = inflater.decompress(data, most + 1)
    refuse_larger(path, len(content), most)
    if not inflater.eof:
        raise ValueError("compressed data that are cut short")
    return content


def _fields(data: bytes) -> dict[str, Any]:
    """The arrays of one client by name.

    Nothing in them is nested, and msgpack is asked for no more than there can be: it makes room for a list by the
    length that the list announces, and calls itself for arrays in arrays until the interpreter ends.
    """
    import msgpack

    fields = msgpack.unpackb(data, ext_hook=_array, max_array_len=0, max_map_len=64)
    if not isinstance(fields, dict) or not all(isinstance(name, str) for name in fields):
        raise ValueError("a client that is no dictionary of arrays")
    return fields


def _array(code: int, data: bytes) -> Any:
    """Extension type 1 is an array of numbers, 4 one of byte strings."""
    import msgpack

    if code == 1:
        shape, dtype, buffer = msgpack.unpackb(data, max_array_len=8, max_map_len=0, max_ext_len=0)
        return np.frombuffer(buffer, np.dtype(dtype)).reshape([operator.index(length) for length in shape])
    if code == 4:
        return _byte_strings(data)
    raise ValueError(f"an array of unknown extension type {code}")


def _byte_strings(data: bytes) -> list[bytes]:
    import msgpack

    unpacker = msgpack.Unpacker(max_buffer_size=max(len(data), 1), max_array_len=8, max_map_len=0, max_ext_len=0)
    unpacker.feed(data)
    if unpacker.read_array_header() != 2:
        raise ValueError("an array of byte strings that is none")
    unpacker.unpack()
    # Every string has a byte at least, so a longer list ends with the data.
    return [unpacker.unpack() for _ in range(unpacker.read_array_header())]
