"""The fingerprint of a federation: equal for equal contents, wherever they lie and however they were read.

A digest each of the clients' ids, of their sizes, of every array of x and y row after row, and of what their reader
decided, so that a difference can be named. Rows are hashed as they are fetched, some clients at a time, at the speed of
SHA-256 (more than a gigabyte a second where the processor has it). Rows that are generated when they are fetched are
known by what they are generated from.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from headstart.data.decided import decisions
from headstart.data.federation import Federation, Generated, named

_ROWS_AT_ONCE = 2**16

Fingerprint = Mapping[str, str]
# How the parts are called in a sentence; the names of x and y are those of their arrays.
_WORDS = {
    "ids": "the ids of the clients",
    "sizes": "how many examples clients have",
    "decided": "labels, features or kind",
    "generated": "what generates the examples",
}


def fingerprint(federation: Federation) -> dict[str, str]:
    """The digests of a federation's parts, in hexadecimal, by name."""
    ids = hashlib.sha256()
    for client in federation.ids:
        ids.update(f"{len(client)}:{client}".encode(errors="surrogatepass"))
    sizes = np.asarray(federation.sizes, np.int64)
    known = decisions(federation.metadata)
    # The polarity of pictures is in x already.
    decided = {name: known[name] for name in ("kind", "classes", "labels", "features") if name in known}
    decided["has_predefined_split"] = federation.has_predefined_split
    parts: dict[str, str] = {
        "ids": ids.hexdigest(),
        "sizes": _digest(np.ascontiguousarray(sizes).tobytes()),
        "decided": _digest(json.dumps(decided, sort_keys=True, default=str).encode()),
    }
    if isinstance(federation.fetch, Generated):
        return parts | {"generated": _digest(federation.fetch.made_from.encode())}
    return parts | _rows(federation)


def differing(before: Fingerprint, now: Fingerprint) -> str:
    """What differs between two fingerprints, in words; empty if nothing does."""
    parts = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return " and ".join(_WORDS.get(name) or f"the examples ({_array(name)})" for name in parts)


def _array(name: str) -> str:
    """The name of an array of `(x, y)` as one says it: `y`, or `x['age']`."""
    return {"0": "x", "1": "y"}[name[1]] + name[3:]


def combined(parts: Any) -> str:
    """One digest of a JSON document, such as a fingerprint."""
    return _digest(json.dumps(parts, sort_keys=True).encode())


def _rows(federation: Federation) -> dict[str, str]:
    digests: dict[str, Any] = {}
    for clients in _groups(federation):
        for name, leaf in named(federation.fetch(clients)):
            rows = np.asarray(leaf)
            if name not in digests:
                digests[name] = hashlib.sha256(f"{rows.dtype}{rows.shape[1:]}".encode())
            digests[name].update(repr(rows.tolist()).encode() if rows.dtype.hasobject else _bytes(rows))
    return {name: digest.hexdigest() for name, digest in digests.items()}


def _groups(federation: Federation) -> Iterator[np.ndarray]:
    """The clients in their order, some thousand rows at a time."""
    if not len(federation):
        return
    ends = np.cumsum(federation.sizes.sum(axis=1))
    groups = ends // _ROWS_AT_ONCE
    yield from np.split(np.arange(len(federation)), np.flatnonzero(np.diff(groups)) + 1)


def _bytes(rows: np.ndarray) -> memoryview | bytes:
    rows = np.ascontiguousarray(rows)
    return rows.view(np.uint8).data if rows.size else b""


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
