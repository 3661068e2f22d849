"""What every reader makes of its files: all rows, client after client."""

from __future__ import annotations

import errno
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from headstart.data.mapped import taken
from headstart.errors import UserError


class Rows(NamedTuple):
    """The examples of all clients, as a reader has found them.

    ids: one per client, sorted.
    sizes: int64 `[clients, 2]`: the numbers of local training and of local test rows.
    x, y: `[rows, ...]`, client after client, of each the local training rows first.
    has_predefined_split: whether the files separate the two parts; if not, the second column of `sizes` is zero.
    metadata: as in `Federation.metadata`; JSON values only.
    """

    ids: Sequence[str]
    sizes: np.ndarray
    x: np.ndarray
    y: np.ndarray
    has_predefined_split: bool
    metadata: Mapping[str, Any]


class Chunk(NamedTuple):
    """Some rows of any clients, in the order of the file.

    owners: the client of each row.
    test: bool `[rows]`, or one bool for all.
    x, y: `[rows, ...]`.
    """

    owners: Sequence[str]
    test: np.ndarray | bool
    x: np.ndarray
    y: np.ndarray


def assemble(chunks: Iterable[Chunk], metadata: Mapping[str, Any], *, has_predefined_split: bool) -> Rows:
    """Group the rows by client; inside a client they keep the order of the file."""
    numbers: dict[str, int] = {}
    codes, tests, xs, ys = [], [], [], []
    for chunk in chunks:
        codes.append(np.array([numbers.setdefault(owner, len(numbers)) for owner in chunk.owners], np.int64))
        tests.append(np.broadcast_to(chunk.test, len(chunk.owners)))
        xs.append(chunk.x)
        ys.append(chunk.y)
    if not numbers:
        raise ValueError("no examples in it")
    joined = (np.concatenate(pieces) for pieces in (codes, tests, xs, ys))
    return arrange(list(numbers), *joined, metadata=metadata, has_predefined_split=has_predefined_split)


def arrange(
    ids: Sequence[str],
    codes: np.ndarray,
    test: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    *,
    metadata: Mapping[str, Any],
    has_predefined_split: bool,
) -> Rows:
    """Sort rows by client id, then local training before local test rows; equal rows keep their order.

    ids: every client has at least one row. codes: int `[rows]`, the index of each row's client in `ids`.
    """
    check_ids(ids)
    by_id = sorted(range(len(ids)), key=ids.__getitem__)
    rank = np.empty(len(ids), np.int64)
    rank[by_id] = np.arange(len(ids))
    slot = rank[codes] * 2 + test
    sizes = np.bincount(slot, minlength=2 * len(ids)).reshape(-1, 2)
    if (np.diff(slot) < 0).any():
        order = np.argsort(slot, kind="stable")
        x, y = taken(x, order), taken(y, order)
    return Rows([ids[i] for i in by_id], sizes, x, y, has_predefined_split, metadata)


def check_ids(ids: Iterable[str]) -> None:
    """Refuse ids that are no text, or that a reader of tables could not tell apart.

    Raises:
        UserError: for the first one.
    """
    for client in ids:
        try:
            client.encode()
        except UnicodeEncodeError:
            raise UserError(f"the client id {client!a} is not valid Unicode; write it as text") from None
        if not client.strip():
            raise UserError(f"the client id {client!r} is empty; give every client a name")
    if pair := twins(ids):
        raise UserError(
            f"the clients {pair[0]!r} and {pair[1]!r} differ only by spaces or in how letters are composed; write one"
            " client always alike"
        )


def twins(names: Iterable[str]) -> tuple[str, str] | None:
    """Two names that a reader of a table could not see the difference of; None if there are none."""
    seen: dict[str, str] = {}
    for name in names:
        plain = " ".join((name if name.isascii() else unicodedata.normalize("NFC", name)).split())
        if seen.setdefault(plain, name) != name:
            return seen[plain], name
    return None


def joined_unless_split(rows: Rows) -> Rows:
    """The rows as they are, or without a split if no client has both parts: files then separate clients, not examples.

    LEAF's `user` splits are such.
    """
    if not rows.has_predefined_split or rows.sizes.all(axis=1).any():
        return rows
    totals = rows.sizes.sum(axis=1)
    return rows._replace(sizes=np.stack([totals, np.zeros_like(totals)], axis=1), has_predefined_split=False)


def listed(names: Iterable[str], *, most: int = 8) -> str:
    """Names for a sentence; of many, the first."""
    found = list(names)
    more = f" ... and {len(found) - most} more" if len(found) > most else ""
    return ", ".join(found[:most]) + more if found else "none"


def refuse_empty(path: Path, counts: Mapping[str, int]) -> None:
    """A client that is listed must have examples."""
    empty = sorted(client for client, count in counts.items() if count == 0)
    if empty:
        more = f" and {len(empty) - 1} more" if len(empty) > 1 else ""
        raise UserError(f"{path}: client {empty[0]}{more} has no examples; leave empty clients out of the file")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what a parser raises on bad bytes into one sentence.

    For parsers alone: the error of an option is no damaged file.
    """
    try:
        yield
    except UserError:
        raise
    # The parsers of seven libraries raise nearly everything there is for bytes that are not what they should be.
    except Exception as error:
        raise UserError(explain(path, error)) from error


def explain(path: Path, error: Exception) -> str:
    """What a parser, or the system, has raised, as a sentence about the file."""
    if isinstance(error, MemoryError):
        return f"{path} needs more memory than there is; give a smaller file"
    if isinstance(error, RecursionError):
        return f"{path} is damaged or not what it seems (nested too deeply); get or write it again"
    reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")[:200]
    if isinstance(error, TypeError | AttributeError | LookupError):
        reason = f"of another structure: {reason}"
    number = error.errno if isinstance(error, OSError) else None
    if number == errno.ENOSPC:
        return f"{path} cannot be unpacked: no space left on the disk; free some, or set HEADSTART_CACHE to another"
    if number in (errno.EACCES, errno.EPERM):
        return f"{path} may not be read; give yourself the permission"
    if number == errno.ENAMETOOLONG:
        return f"{str(path)[:80]}... is too long for the name of a file; give the path of one"
    return f"{path} is damaged, cut short or not what it seems ({reason}); get or write it again"


def as_flag(name: str, value: object) -> bool:
    """True or False, also as a word from the command line."""
    word = str(value).lower()
    if word not in ("true", "false"):
        raise UserError(f"option {name}={value!r} is neither true nor false; give one of them")
    return word == "true"


def accept(options: Mapping[str, object], names: Sequence[str], what: str) -> None:
    """Refuse options that this source does not know."""
    unknown = sorted(set(options) - set(names))
    if unknown:
        known = f"it accepts {', '.join(names)}" if names else "it accepts none"
        raise UserError(f"{what} has no option {unknown[0]!r}; {known}")
