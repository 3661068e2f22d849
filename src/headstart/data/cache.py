"""Rows on disk in the form they are used in, so that a file is parsed once.

A folder per source and options: `x.npy`, `y.npy`, `sizes.npy` and `meta.json`. Folders are written under another
name and renamed, so one that is there is whole, and programs that build the same one at once do not meet. A folder says
what its source held and what is in itself, both by digests, of files over a gibibyte of pieces all over them; what does
not match is built anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs

from headstart.data.mapped import save
from headstart.data.readers.rows import Rows
from headstart.files import TEMPORARY, is_temporary, sha256_of

# Raise it when a reader gives other rows for the same file.
READER_VERSION = 6
_ARRAYS = ("x", "y", "sizes")
_DAY = 86400
# Of a file up to this size the digest is of all of it, and of a larger one of this many pieces of a mebibyte.
_HASHED_WHOLE, _PIECES = 2**30, 256


def cache_root() -> Path:
    """`HEADSTART_CACHE`, or `headstart` where the system keeps caches; without a home, a folder for temporary files."""
    if "HEADSTART_CACHE" in os.environ:
        return Path(os.environ["HEADSTART_CACHE"])
    try:
        return platformdirs.user_cache_path("headstart", appauthor=False)
    except (RuntimeError, KeyError):  # the user has no entry in /etc/passwd, and HOME is not set
        return _temporary_root()


def _temporary_root() -> Path:
    """A folder that nobody else may write to; if somebody else has made one of its name, a path that is never there."""
    folder = Path(tempfile.gettempdir()) / f"headstart-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        own = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077
    except OSError:
        own = False
    return folder if own else Path(os.devnull) / "headstart"


def cached(files: Sequence[Path], options: Mapping[str, Any], build: Callable[[], Rows]) -> Rows:
    """The rows of these files, memory-mapped; built if they are not there, are damaged or the files have changed.

    Where the cache cannot be written, the rows stay in memory.
    """
    what = json.dumps([[str(f.resolve()) for f in files], dict(options), READER_VERSION], sort_keys=True, default=str)
    folder = cache_root() / "rows" / hashlib.sha256(what.encode()).hexdigest()[:32]
    stamp = [_stamp(file) for file in dict.fromkeys(files)]
    found = _open(folder, stamp)
    if found is None:
        rows = build()
        found = (_open(folder, stamp) if _write(folder, rows, stamp) else None) or rows
    return found


# Of generated rows this many sets are kept, those that were used last.
_GENERATED = 4


def kept_rows(what: Sequence[Any]) -> Rows | None:
    """The rows that were generated from this (JSON), memory-mapped; None if they are not there, or are damaged."""
    folder = _generated(what)
    found = _open(folder, [])
    if found is not None:
        with contextlib.suppress(OSError):
            os.utime(folder)
    return found


def keep_rows(what: Sequence[Any], rows: Rows) -> None:
    """Keep rows that were generated from this (JSON), and let those go that were used longest ago."""
    folder = _generated(what)
    _write(folder, rows, [])
    with contextlib.suppress(OSError):
        whole = [path for path in folder.parent.iterdir() if not is_temporary(path)]
        for path in sorted(whole, key=lambda path: path.stat().st_mtime)[:-_GENERATED]:
            shutil.rmtree(path, ignore_errors=True)


def _generated(what: Sequence[Any]) -> Path:
    return cache_root() / "generated" / hashlib.sha256(json.dumps(list(what)).encode()).hexdigest()[:32]


def _stamp(file: Path) -> list[Any]:
    """What a source is known by: a file that is replaced keeps, at most, its size and the time of its last change."""
    known = file.stat()
    times = [known.st_size, known.st_mtime_ns]
    return [*times, *([] if known.st_size <= _HASHED_WHOLE else [known.st_ctime_ns, known.st_ino]), _digest(file)]


def _digest(file: Path) -> str:
    """The digest of a file; of a large one, of pieces all over it."""
    size = file.stat().st_size
    if size <= _HASHED_WHOLE:
        return sha256_of(file)
    digest = hashlib.sha256()
    with file.open("rb") as content:
        for piece in range(_PIECES):
            content.seek(piece * (size - 2**20) // (_PIECES - 1))
            digest.update(content.read(2**20))
    return digest.hexdigest()


def _open(folder: Path, stamp: list[list[Any]]) -> Rows | None:
    try:
        meta = json.loads((folder / "meta.json").read_text())
        sealed = meta.pop("sha256")
        if sealed != _seal(meta) or meta["stamp"] != stamp:
            return None
        if meta["digests"] != {name: _digest(folder / f"{name}.npy") for name in _ARRAYS}:
            return None
        x, y, sizes = (np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in _ARRAYS)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    if sizes.shape != (len(meta["ids"]), 2) or not len(x) == len(y) == sizes.sum():
        return None
    return Rows(meta["ids"], np.array(sizes), x, y, meta["own_split"], meta["facts"])


def _seal(meta: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def _write(folder: Path, rows: Rows, stamp: list[list[Any]]) -> bool:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _sweep(folder.parent)
        building = Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=folder.parent))
    except OSError:
        return False
    try:
        for name in _ARRAYS:
            save(building / f"{name}.npy", getattr(rows, name))
        meta = {
            "stamp": stamp,
            "digests": {name: _digest(building / f"{name}.npy") for name in _ARRAYS},
            "own_split": rows.has_predefined_split,
            "facts": rows.metadata,
            "ids": list(rows.ids),
        }
        # As it will be read: keys that are numbers are text in JSON.
        meta = json.loads(json.dumps(meta))
        (building / "meta.json").write_text(json.dumps({**meta, "sha256": _seal(meta)}))
        _publish(building, folder)
        return True
    except OSError:
        return False
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _publish(building: Path, folder: Path) -> None:
    """Rename; what is there is an outdated or damaged folder, or one that another program has just finished."""
    try:
        building.rename(folder)
    except OSError:
        with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=folder.parent) as aside:
            folder.rename(Path(aside) / "old")
            building.rename(folder)


def _sweep(parent: Path) -> None:
    """Remove what programs that were killed while building have left."""
    for left in filter(is_temporary, parent.iterdir()):
        if time.time() - left.stat().st_mtime > _DAY:
            shutil.rmtree(left, ignore_errors=True)
