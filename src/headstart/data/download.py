"""Fetch a file once, and notice if it changes."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from headstart.errors import UserError
from headstart.files import locked, sha256_of, write_bytes

_CHUNK = 1 << 18
_TIMEOUT_SECONDS = 30


def download(url: str, path: str | os.PathLike[str], *, sha256: str | None = None, progress: bool = True) -> Path:
    """The file at `url`, under `path`; fetched only if it is not there.

    An interrupted download leaves `path` + ".part" and resumes from there the next time, where the server allows.
    The file gets its name when it is whole. Its SHA-256 is kept in `path` + ".sha256" and checked on every use.

    sha256: what it should be, if it is published. progress: show a bar, on a terminal.

    Raises:
        UserError: if the server cannot be reached or refuses, the connection breaks, the disk is full, or the file
            is not what was expected or has changed since.
    """
    path = Path(path)
    if not path.exists():
        with _disk(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = _beside(path, ".part.lock")
            with locked(lock, wait=True):
                # Another program may have finished it while this one waited.
                if not path.exists():
                    with _beside(path, ".part").open("ab") as part:
                        _fetch(url, part, path, progress)
                    _finish(url, path, sha256)
            # The file is there, so who holds the lock from now on has nothing to do; Windows keeps it for as long.
            with contextlib.suppress(OSError):
                lock.unlink()
    with _disk(path):
        _verify(path, sha256)
    return path


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


@contextlib.contextmanager
def _disk(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path} cannot be written or read ({error.strerror or error}); free some space, choose another folder or"
            " set HEADSTART_CACHE"
        ) from error


def _fetch(url: str, part: IO[bytes], path: Path, progress: bool) -> None:
    """Append to `part` until it is whole."""
    validator = _beside(path, ".part.etag")
    have = part.seek(0, os.SEEK_END)
    with _network(url), _request(url, have, validator) as response:
        total = _total(response)
        if response.status == 416:
            if total == have:
                return
            # The rest that was asked for does not exist: this is the beginning of another file.
            part.truncate(0)
            raise UserError(f"{url} is no longer the file whose beginning is here; run it again to fetch it anew")
        if response.status != 206 or _range_start(response) != have:
            part.truncate(0)
            have = 0
        with _disk(path):
            validator.write_text(response.headers.get("ETag", ""))
        have = _copy(response, part, path, have, total, progress)
    if total is not None and have != total:
        raise UserError(f"{url} ended after {have:,} of {total:,} bytes; run it again to resume from there")


def _request(url: str, have: int, validator: Path) -> Any:
    request = urllib.request.Request(url, headers={"Accept-Encoding": "identity"})
    if have:
        request.add_header("Range", f"bytes={have}-")
        if validator.exists() and (etag := validator.read_text()):
            request.add_header("If-Range", etag)
    try:
        return urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:
            return error
        with error:
            raise UserError(
                f"{url} answered {error.code} {error.reason}; check the address, or fetch the file by other means"
            ) from error


@contextlib.contextmanager
def _network(url: str) -> Iterator[None]:
    try:
        yield
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise UserError(
            f"{urlsplit(url).netloc or url} does not deliver {url} ({reason}); check the connection and run it again"
        ) from error


def _total(response: Any) -> int | None:
    """The length of the whole file, if the server says."""
    match = re.search(r"/(\d+)$", response.headers.get("Content-Range", ""))
    length = match.group(1) if match else response.headers.get("Content-Length")
    return int(length) if length is not None else None


def _range_start(response: Any) -> int | None:
    match = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return int(match.group(1)) if match else None


def _copy(response: Any, part: IO[bytes], path: Path, have: int, total: int | None, progress: bool) -> int:
    with _bar(path.name, have, total, progress) as advance:
        while block := response.read(_CHUNK):
            with _disk(path):
                part.write(block)
                part.flush()
            have += len(block)
            advance(len(block))
    return have


@contextlib.contextmanager
def _bar(name: str, have: int, total: int | None, progress: bool) -> Iterator[Any]:
    console = Console(stderr=True)
    columns = [TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn()]
    with Progress(
        *columns, TimeRemainingColumn(), console=console, disable=not (progress and console.is_terminal)
    ) as bar:
        task = bar.add_task(name, total=total, completed=have)
        yield lambda amount: bar.advance(task, amount)


def _finish(url: str, path: Path, sha256: str | None) -> None:
    part = _beside(path, ".part")
    found = sha256_of(part)
    if sha256 and found != sha256:
        part.unlink()
        raise UserError(f"{url} has SHA-256 {found}, not {sha256}; it was removed, so check the address and try again")
    _record(path, found)
    os.replace(part, path)
    _beside(path, ".part.etag").unlink(missing_ok=True)


def _verify(path: Path, sha256: str | None) -> None:
    record = _beside(path, ".sha256")
    found = sha256_of(path)
    known = record.read_text(errors="replace").split() if record.exists() else []
    if not known:
        # Put here by hand, or the record is empty: from now on the file is to stay as it is.
        _record(path, found)
    expected = sha256 or (known or [found])[0]
    if found != expected:
        raise UserError(f"{path} has SHA-256 {found}, not {expected}; delete it to download it again")


def _record(path: Path, digest: str) -> None:
    """In the form that `sha256sum --check` reads."""
    write_bytes(_beside(path, ".sha256"), f"{digest}  {path.name}\n".encode())
