"""Files of which nobody ever sees half, and locks that keep two writers apart."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import filelock

from headstart.errors import UserError

# What file systems answer that have no locks.
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP}


@contextmanager
def atomic(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that appears at `path` when the block ends well, whole, or not at all.

    Raises:
        UserError: if the folder cannot be written or the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; make room or choose another folder"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, which appears at `path` when the block ends well, with all that is in it, or not at all.

    Raises:
        UserError: if something is there already, or the folder cannot be written.
    """
    path = path.absolute()
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise UserError(f"{path} holds files already; choose a new or an empty folder")
        temporary.mkdir(parents=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cannot write the folder {path}: {error.strerror or error}; choose another") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def file_name(text: str) -> str:
    """A text as one that suits a file: what it may not hold becomes a hyphen."""
    return re.sub(r"[^\w.+-]+", "-", text).strip("-.") or "run"


@contextmanager
def locked(path: Path, *, wait: bool, on_note: Callable[[str], None] = warnings.warn) -> Iterator[None]:
    """A lock file at `path`, held for the time of the block, among processes and threads alike.

    Where the file system has no locks the block is entered without one, and `on_note` gets a sentence that says so.

    wait: whether to wait for another holder.

    Raises:
        TimeoutError: if there is another holder, and one does not wait.
        OSError: if the file cannot be written.
    """
    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except TimeoutError:
        raise
    except (NotImplementedError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
            raise
        on_note(f"{path.parent} is on a file system without locks; see to it that no other process writes there")
    try:
        yield
    finally:
        lock.release()


def write_bytes(path: Path, content: bytes) -> None:
    """Write a whole file, atomically."""
    with atomic(path) as file:
        file.write(content)


def write_json(path: Path, document: Any) -> None:
    """Write a JSON document, atomically."""
    write_bytes(path, (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode())


def sha256_of(path: Path) -> str:
    """The digest of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
