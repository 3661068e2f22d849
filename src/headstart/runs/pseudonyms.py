"""Pseudonyms of clients: what is written in place of their ids, where these are to be hidden.

A pseudonym is a keyed hash of an id. The key derives from the examples, so that runs on the same data give a client the
same pseudonym; it is kept in `ids.key` beside the results. Who has the key, and guesses an id, can check it: leave the
file out when handing results on, and they hold nothing that leads back to an id.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from headstart.data.federation import Federation
from headstart.errors import UserError
from headstart.files import write_bytes

KEY = "ids.key"
# The clients whose examples the key derives from.
_CLIENTS = 64
_PSEUDONYM = re.compile("client-[0-9a-f]{16}")


def key_of(federation: Federation) -> bytes:
    """The key of a federation's pseudonyms."""
    digest = hashlib.sha256(b"pseudonyms")
    for client in federation.ids:
        digest.update(f"{len(client)}:{client}".encode(errors="surrogatepass"))
    chosen = np.unique(np.linspace(0, len(federation) - 1, min(_CLIENTS, len(federation))).astype(int))
    for leaf in jax.tree.leaves(federation.fetch(chosen)):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.digest()


def pseudonym(key: bytes, client: str) -> str:
    """What is written in place of a client's id."""
    return f"client-{hmac.digest(key, client.encode(errors='surrogatepass'), 'sha256').hex()[:16]}"


def is_pseudonym(client: str) -> bool:
    """Whether an id looks like one that was written in place of another."""
    return _PSEUDONYM.fullmatch(client) is not None


def write_key(folder: Path, key: bytes) -> None:
    """Keep the key beside the results."""
    write_bytes(folder / KEY, key.hex().encode() + b"\n")


def read_key(folder: Path) -> bytes | None:
    """The key of the results in a folder; None if it has none.

    Raises:
        UserError: if it is damaged.
    """
    path = folder / KEY
    if not path.exists():
        return None
    try:
        key = bytes.fromhex(path.read_text(encoding="ascii").strip())
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path} ({error}); bring it back") from error
    if len(key) != hashlib.sha256().digest_size:
        raise UserError(f"{path} is damaged; bring it back")
    return key


def hidden(federation: Federation, key: bytes) -> Federation:
    """The federation with pseudonyms for ids, also in its notes."""
    names = {client: pseudonym(key, client) for client in federation.ids}
    return replace(federation, ids=list(names.values()), metadata=_without(federation.metadata, names))


def _without(metadata: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    notes = metadata.get("notes")
    return {**metadata, "notes": hidden_texts(notes, names)} if notes else dict(metadata)


def hidden_texts(texts: Sequence[str], names: Mapping[str, str]) -> list[str]:
    """Sentences with pseudonyms in place of ids, of those that are words in them."""
    there = sorted((name for name in names if any(name in text for text in texts)), key=len, reverse=True)
    if not there:
        return list(texts)
    pattern = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, there))})(?!\w)")
    return [pattern.sub(lambda match: names[match[0]], text) for text in texts]
