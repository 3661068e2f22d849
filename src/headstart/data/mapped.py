"""Arrays that lie in files: larger than memory should hold, and so made and read some rows at a time.

A page of such a file that was read counts as this process's memory until it is let go, which each function here does.
With arrays in memory they compute as a whole.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from headstart.errors import UserError

# Bytes: from which on an array is one of these, and of its rows that are in memory at a time.
LARGE, PIECE = 2**28, 2**24


def is_mapped(values: np.ndarray) -> bool:
    """Whether an array lies in a file."""
    return _map_of(values) is not None


def pieces(values: np.ndarray) -> Iterator[np.ndarray]:
    """The rows of an array, as many at a time as memory should hold; all of them if it is not mapped."""
    if not is_mapped(values):
        yield values
        return
    for rows in _slices(values, len(values)):
        yield np.asarray(values[rows])
        _release(values)


def rowwise(function: Callable[[np.ndarray], np.ndarray], values: np.ndarray) -> np.ndarray:
    """What a function makes of every row; of a mapped array another one."""
    return _written(map(function, pieces(values))) if is_mapped(values) else function(values)


def taken(values: np.ndarray, order: np.ndarray) -> np.ndarray:
    """`values[order]`, of a mapped array another one."""
    if not is_mapped(values):
        return values[order]
    return _written(stretches(values, [order[rows]]) for rows in _slices(values, len(order)))


def extent(values: np.ndarray) -> tuple[Any, Any]:
    """The least and the greatest of the numbers of an array that is not empty; NaN if one is."""
    found = [(piece.min(), piece.max()) for piece in pieces(values)]
    return np.min([least for least, _ in found]), np.max([most for _, most in found])


def stretches(values: np.ndarray, wanted: Sequence[slice | np.ndarray]) -> np.ndarray:
    """A copy of these rows, one stretch after the other; a file is asked for all of them at once."""
    found = _map_of(values)
    if found is not None and values.flags.c_contiguous and hasattr(mmap, "MADV_WILLNEED"):
        each = values.nbytes // max(len(values), 1)
        begin = values.ctypes.data - np.frombuffer(found, np.uint8).ctypes.data
        for rows in wanted:
            if isinstance(rows, slice) and rows.start < rows.stop:
                first = (begin + rows.start * each) // mmap.PAGESIZE * mmap.PAGESIZE
                found.madvise(mmap.MADV_WILLNEED, first, max(1, begin + rows.stop * each - first))
    plain = np.asarray(values)
    copied = np.concatenate([plain[rows] for rows in wanted])
    _release(values)
    return copied


def save(path: Path, values: np.ndarray) -> None:
    """`numpy.save`, some rows at a time."""
    with path.open("wb") as file:
        about = {"descr": np.lib.format.dtype_to_descr(values.dtype), "fortran_order": False, "shape": values.shape}
        np.lib.format.write_array_header_1_0(file, about)
        for piece in pieces(values):
            file.write(_bytes(piece))
        file.flush()
        os.fsync(file.fileno())


class Scratch:
    """A file without a name to which rows are appended in a `with` block; what it holds stays as long as its array."""

    def __init__(self) -> None:
        from headstart.data.readers.sources import roomy_folder  # which imports what reads and keeps rows

        self._file = tempfile.TemporaryFile(dir=roomy_folder())  # noqa: SIM115 (closed by `__exit__`)
        self._like: np.ndarray | None = None
        self._rows = self.nbytes = 0

    def __enter__(self) -> Scratch:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def append(self, rows: np.ndarray) -> None:
        """Write rows behind those that are there.

        Raises:
            UnlikeRowsError: for rows of another type or shape.
        """
        self._like = rows[:0] if self._like is None else self._like
        if (rows.dtype, rows.shape[1:]) != (self._like.dtype, self._like.shape[1:]):
            raise UnlikeRowsError("rows of one column differ in their type or shape; write all of them alike")
        self._file.write(_bytes(rows))
        self._rows += len(rows)
        self.nbytes += rows.nbytes

    def array(self) -> np.ndarray:
        """All rows, mapped."""
        self._file.flush()
        assert self._like is not None
        if not self.nbytes:  # which cannot be mapped
            return self._like
        return np.memmap(self._file, self._like.dtype, "r", shape=(self._rows, *self._like.shape[1:]))


class UnlikeRowsError(UserError):
    """Rows that cannot be one array, unless their types or shapes are changed."""


def _written(arrays: Iterable[np.ndarray]) -> np.ndarray:
    with Scratch() as scratch:
        for array in arrays:
            scratch.append(array)
        return scratch.array()


def _bytes(values: np.ndarray) -> memoryview | bytes:
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8).data if values.size else b""


def _slices(values: np.ndarray, count: int) -> Iterator[slice]:
    """`count` rows, as slices of what memory should hold of rows like those of an array."""
    step = max(1, PIECE * len(values) // max(values.nbytes, 1))
    return (slice(start, start + step) for start in range(0, count, step))


def _map_of(values: np.ndarray) -> mmap.mmap | None:
    found = values
    while isinstance(found, np.ndarray):
        found = found.base
    # What this process wrote into a private map is nowhere else, and would be lost if its pages were let go.
    return found if isinstance(found, mmap.mmap) and memoryview(found).readonly else None


def _release(values: np.ndarray) -> None:
    found = _map_of(values)
    if found is not None and hasattr(mmap, "MADV_DONTNEED"):
        found.madvise(mmap.MADV_DONTNEED)
