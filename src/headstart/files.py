"""Files of which nobody ever sees half, and locks that keep two writers apart."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

import filelock

from headstart.errors import UserError

# What file systems answer that have no locks.
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP}

# What a name may take of the 255 bytes that file systems give it; its ending has room too.
NAME_BYTES = 200

# How the names of what is being written begin, whatever it is to be called.
TEMPORARY = ".headstart-tmp-"


def temporary_beside(path: Path) -> Path:
    """A new name in the same folder, for what is being written."""
    return path.with_name(f"{TEMPORARY}{secrets.token_hex(4)}")


def is_temporary(path: Path) -> bool:
    """Whether a name is one that headstart gives to what it is writing, and nobody else to anything."""
    return re.fullmatch(rf"{re.escape(TEMPORARY)}[0-9a-z_]{{8}}", path.name) is not None


@contextmanager
def atomic(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that appears at `path` when the block ends well, whole, or not at all.

    Raises:
        UserError: if the folder cannot be written or the disk is full.
    """
    temporary = temporary_beside(path)
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
        with suppress(OSError):  # as where there is no such folder; the error that says so is the one to see
            temporary.unlink(missing_ok=True)


def check_writable(folder: Path) -> None:
    """Make a folder, and see that files can be written there, before the work whose results they are.

    Raises:
        UserError: if not.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"cannot write the folder {folder}: {error.strerror or error}; choose another") from error


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, which appears at `path` when the block ends well, with all that is in it, or not at all.

    Raises:
        UserError: if something is there already, or the folder cannot be written.
    """
    path = path.absolute()
    temporary = temporary_beside(path)
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
    """A text as one that suits a file: what it may not hold becomes a hyphen, and one that is too long is cut."""
    name = re.sub(r"[^\w.+-]+", "-", text).strip("-.") or "run"
    return name if len(name.encode()) <= NAME_BYTES else _with_digest(name, text)


def file_names(texts: Sequence[str]) -> list[str]:
    """Names for files, one for each of several texts, no two alike even where upper and lower case are.

    A text that holds what a name may not is percent-encoded. One that is too long then is cut; to it, and to those that
    differ in case alone, a digest of the text is added.
    """
    names = [quote(text, safe="", errors="surrogatepass") for text in texts]
    alike = Counter(name.casefold() for name in names)
    return [
        name if alike[name.casefold()] == 1 and 0 < len(name) <= NAME_BYTES else _with_digest(name, text)
        for name, text in zip(names, texts, strict=True)
    ]


def _with_digest(name: str, text: str) -> str:
    """A name of at most `NAME_BYTES` that ends with a digest of a text; `quote` gives none with a "+"."""
    digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]
    start = name.encode()[: NAME_BYTES - len(digest) - 1].decode(errors="ignore")
    return f"{start}+{digest}"


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
        with suppress(OSError):
            lock.release()


def write_bytes(path: Path, content: bytes) -> None:
    """Write a whole file, atomically."""
    with atomic(path) as file:
        file.write(content)


def write_json(path: Path, document: Any) -> None:
    """Write a JSON document, atomically, as `as_json` has it."""
    # What is no character, as half of a pair of surrogates, becomes an escape, which JSON knows.
    text = json.dumps(as_json(document), indent=2, ensure_ascii=False, allow_nan=False)
    write_bytes(path, (text + "\n").encode(errors="backslashreplace"))


def as_json(value: Any) -> Any:
    """A document with null in place of numbers that JSON has not: those that are not finite."""
    if isinstance(value, Mapping):
        return {key: as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def from_null(value: Any) -> Any:
    """A document of numbers with NaN in place of the null that `as_json` writes."""
    if isinstance(value, dict):
        return {key: from_null(item) for key, item in value.items()}
    if isinstance(value, list):
        return [from_null(item) for item in value]
    return math.nan if value is None else value


def sha256_of(path: Path) -> str:
    """The digest of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
