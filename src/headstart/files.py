"""Writing files so that nobody ever sees half of one."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from headstart.errors import UserError


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


def write_bytes(path: Path, content: bytes) -> None:
    """Write a whole file, atomically."""
    with atomic(path) as file:
        file.write(content)


def write_json(path: Path, document: Any) -> None:
    """Write a JSON document, atomically."""
    write_bytes(path, (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode())
