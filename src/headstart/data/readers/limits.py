"""How much a file may unpack to: a few kilobytes can hold what fills every disk and memory."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from pathlib import Path
from typing import IO

from headstart.errors import UserError

VARIABLE = "HEADSTART_MAX_UNPACKED"
# Text grows by a large factor again when it is parsed, numbers do not.
TEXT, NUMBERS = 1 << 25, 1 << 29
# Real data pack to a twentieth, seldom to a fiftieth.
_FACTOR = 100


def allowance(path: Path, least: int = NUMBERS) -> int:
    """The bytes that a file may unpack to: `least`, or 100 times its own if that is more; or `HEADSTART_MAX_UNPACKED`.

    Raises:
        UserError: if that variable is no number.
    """
    return total_allowance([path], least)


def total_allowance(paths: Iterable[Path], least: int = NUMBERS) -> int:
    """The bytes that several files may unpack to together; as `allowance`."""
    setting = os.environ.get(VARIABLE)
    if setting is None:
        return max(least, _FACTOR * sum(path.stat().st_size for path in paths))
    try:
        return _bytes(setting)
    except (ValueError, OverflowError):
        raise UserError(f"{VARIABLE} is {setting!r}; give a number of bytes, such as 4e9") from None


def _bytes(setting: str) -> int:
    number = int(float(setting))
    if number < 1:
        raise ValueError
    return number


def refuse_larger(path: Path, size: int, most: float) -> None:
    """Refuse what would be larger than the file may unpack to.

    size, most: bytes.

    Raises:
        UserError: if it would be.
    """
    if size > most:
        raise UserError(
            f"{path} would unpack to more than {most:,} bytes, which its own {path.stat().st_size:,} do not suggest; if"
            f" it is sound, set {VARIABLE} to the bytes it may take"
        )


class _Limited(io.RawIOBase):
    """What a file unpacks to, up to a limit."""

    def __init__(self, file: IO[bytes], path: Path, most: int) -> None:
        self._file, self._path, self._most, self._read = file, path, most, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        data = self._file.read(min(len(buffer), 1 << 20))
        self._read += len(data)
        refuse_larger(self._path, self._read, self._most)
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


def limited(file: IO[bytes], path: Path, most: int) -> IO[bytes]:
    """The same file, which is refused as soon as more than `most` bytes of it were read.

    path: of the file, for the message.
    """
    return io.BufferedReader(_Limited(file, path, most), 1 << 20)
