"""Fetch a file once, and notice if it changes."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from headstart.documents import parse_json
from headstart.errors import UserError
from headstart.files import locked, sha256_of, write_bytes

_CHUNK = 1 << 18
_TIMEOUT_SECONDS = 30
# Of a whole download, unless another time is given; a server may otherwise send a byte at a time for ever.
_MOST_SECONDS = 6 * 3600.0


def download(
    url: str | Sequence[str],
    path: str | os.PathLike[str],
    *,
    sha256: str | None = None,
    progress: bool = True,
    seconds: float = _MOST_SECONDS,
) -> Path:
    """The file at `url`, under `path`; fetched only if it is not there.

    An interrupted download leaves `path` + ".part" and resumes from there the next time, where the server says that
    the file is still the same; otherwise it begins anew. The file gets its name when it is whole. Its SHA-256 is kept
    in `path` + ".sha256" and checked on every use.

    url: an address, or several of the same file, which are tried in their order. sha256: what it should be, if it is
    published. progress: show a bar, on a terminal. seconds: how long the download may take.

    Raises:
        UserError: if no server can be reached or delivers, the connection breaks, it takes too long, the disk is full,
            or the file is not what was expected or has changed since.
    """
    path = Path(path)
    urls = [url] if isinstance(url, str) else list(url)
    if sha256 is not None and not re.fullmatch("[0-9a-f]{64}", sha256):
        raise UserError(f"{sha256!r:.100} is no SHA-256; give 64 hexadecimal digits")
    if not path.exists():
        with _disk(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = _beside(path, ".part.lock")
            with locked(lock, wait=True):
                # Another program may have finished it while this one waited.
                if not path.exists():
                    _fetch_from_any(urls, path, sha256, progress, seconds)
            # The file is there, so who holds the lock from now on has nothing to do; Windows keeps it for as long.
            with contextlib.suppress(OSError):
                lock.unlink()
    with _disk(path):
        _verify(path, sha256)
    return path


def _fetch_from_any(urls: Sequence[str], path: Path, sha256: str | None, progress: bool, seconds: float) -> None:
    """Fetch from the first address that delivers."""
    complaints = []
    for url in urls:
        try:
            with _beside(path, ".part").open("ab") as part:
                _fetch(_Transfer(url, path, sha256, progress, time.monotonic() + seconds), part)
            return _finish(url, path, sha256)
        except UserError as error:
            complaints.append(str(error))
    raise UserError("; and ".join(complaints) or f"no address is known for {path.name}; give one")


@dataclass(frozen=True)
class _Transfer:
    """One attempt. ends: the time of the monotonic clock at which it is given up."""

    url: str
    path: Path
    sha256: str | None
    progress: bool
    ends: float

    @property
    def validators(self) -> Path:
        """Where the address is kept, and what its server said of the file, for as long as only a part of it is here."""
        return _beside(self.path, ".part.etag")

    def known(self) -> dict[str, str]:
        """What was kept; nothing of another address."""
        try:
            kept = parse_json(self.validators.read_bytes())
        except (OSError, ValueError):
            return {}
        sound = isinstance(kept, dict) and all(isinstance(value, str) for value in kept.values())
        return kept if sound and kept.get("url") == self.url else {}


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


def _fetch(transfer: _Transfer, part: IO[bytes]) -> None:
    """Append to `part` until it is whole."""
    url, known = transfer.url, transfer.known()
    have = part.seek(0, os.SEEK_END)
    if have and not (_same_as(known) or transfer.sha256):
        # Nobody could say whether the rest belongs to this beginning.
        part.truncate(0)
        have = 0
    with _network(url), _request(url, have, known) as response:
        total = _total(response)
        if response.status == 416:
            if total == have and (transfer.sha256 or known.get("total") == str(total)):
                return  # a part that is whole
            # The rest that was asked for does not exist: this is the beginning of another file.
            part.truncate(0)
            raise UserError(f"{url} is no longer the file whose beginning is here; run it again to fetch it anew")
        if response.status != 206:
            part.truncate(0)
            have = 0
        elif _range_start(response) != have or (_contradicts(response, known, total) and not transfer.sha256):
            part.truncate(0)
            raise UserError(f"{url} sent a part of another file than the one whose beginning is here; run it again")
        _check_announced(transfer, response, total, have)
        with _disk(transfer.path):
            write_bytes(transfer.validators, json.dumps(_said(response, url, total)).encode())
        have = _copy(transfer, response, part, have, total)
    if total is not None and have != total:
        raise UserError(f"{url} ended after {have:,} of {total:,} bytes; run it again to resume from there")


def _check_announced(transfer: _Transfer, response: Any, total: int | None, have: int) -> None:
    """Refuse an answer that could be cut short unnoticed, is packed, or has no room."""
    url = transfer.url
    chunked = response.headers.get("Transfer-Encoding", "").lower() == "chunked"
    if total is None and not chunked and transfer.sha256 is None:
        raise UserError(
            f"{url} does not say how long the file is, so nobody could see it cut short; fetch it elsewhere"
        )
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise UserError(f"{url} packs the file on its way, which was not asked for; fetch it by other means")
    free = shutil.disk_usage(transfer.path.parent).free
    if total is not None and total - have > free:
        raise UserError(
            f"{url} has {total:,} bytes, and {transfer.path.parent} has room for {free:,}; free some, choose another"
            " folder or set HEADSTART_CACHE"
        )


def _same_as(known: Mapping[str, str]) -> str:
    """What to send as `If-Range`: a strong ETag, or else the date of the last change; empty if neither is known."""
    etag = known.get("etag", "")
    return etag if etag and not etag.startswith("W/") else known.get("modified", "")


def _said(response: Any, url: str, total: int | None) -> dict[str, str]:
    headers = {"etag": "ETag", "modified": "Last-Modified"}
    said = {name: response.headers.get(header, "") for name, header in headers.items()}
    return {"url": url, "total": "" if total is None else str(total), **said}


def _contradicts(response: Any, known: Mapping[str, str], total: int | None) -> bool:
    """Whether a server that sends the rest says now something else of the file."""
    now = _said(response, known.get("url", ""), total)
    if _same_as(known) == known.get("etag") and not now["etag"]:
        return True
    return any(now[name] and known.get(name) and now[name] != known[name] for name in ("etag", "modified", "total"))


def _request(url: str, have: int, known: Mapping[str, str]) -> Any:
    import urllib.error
    import urllib.request

    if urlsplit(url).scheme not in ("http", "https"):
        raise ValueError("an address begins with https:// or http://")
    request = urllib.request.Request(url, headers={"Accept-Encoding": "identity"})
    if have:
        request.add_header("Range", f"bytes={have}-")
        if same := _same_as(known):
            request.add_header("If-Range", same)
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:
            return error
        with error:
            raise UserError(
                f"{url} answered {error.code} {error.reason}; check the address, or fetch the file by other means"
            ) from error
    if response.status != 200 and not (response.status == 206 and have):
        with response:
            raise UserError(f"{url} answered {response.status} {response.reason}, and no file; fetch it by other means")
    return response


@contextlib.contextmanager
def _network(url: str) -> Iterator[None]:
    from http.client import HTTPException  # not above: few commands download anything

    try:
        yield
    except (OSError, HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise UserError(
            f"{urlsplit(url).netloc or url} does not deliver {url} ({reason}); check the connection and run it again"
        ) from error


def _total(response: Any) -> int | None:
    """The length of the whole file, if the server says."""
    match = re.search(r"/(\d+)$", response.headers.get("Content-Range", ""))
    if match:
        return int(match.group(1))
    length = response.headers.get("Content-Length")
    return int(length) if length is not None and response.status == 200 else None


def _range_start(response: Any) -> int | None:
    match = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return int(match.group(1)) if match else None


def _copy(transfer: _Transfer, response: Any, part: IO[bytes], have: int, total: int | None) -> int:
    with _bar(transfer.path.name, have, total, transfer.progress) as advance:
        # What is there is taken at once: a whole block of a slow server would take long.
        while block := response.read1(_CHUNK):
            with _disk(transfer.path):
                part.write(block)
                part.flush()
            have += len(block)
            advance(len(block))
            if total is not None and have > total:
                part.truncate(0)
                raise UserError(f"{transfer.url} sent more than the {total:,} bytes it announced; run it again")
            if time.monotonic() > transfer.ends:
                raise UserError(f"{transfer.url} took too long, {have:,} bytes are here; run it again to resume")
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
        _beside(path, ".part.etag").unlink(missing_ok=True)
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
