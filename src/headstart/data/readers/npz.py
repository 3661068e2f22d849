"""numpy's npz: a zip archive of arrays, of which each says its type and shape before its bytes."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from headstart.data.readers.limits import allowance, refuse_larger
from headstart.data.readers.rows import listed
from headstart.errors import UserError

_ENCRYPTED = 1


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays by name, each `[rows, ...]` with as many rows.

    Raises:
        UserError: for another archive, Python objects, arrays of different lengths, more bytes than it may unpack to.
    """
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        other = [member.filename for member in members if not member.filename.endswith(".npy")]
        if other or not members:
            raise UserError(
                f"{path} is a zip archive, but not one of numpy's arrays (it holds {listed(other)}); write npz, Parquet"
                " or CSV"
            )
        refuse_larger(path, sum(member.file_size for member in members), allowance(path))
        columns = {member.filename.removesuffix(".npy"): _array(path, archive, member) for member in members}
    if len(columns) < len(members):
        raise ValueError("two arrays of one name")
    lengths = {name: len(values) if values.ndim else 0 for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        found = listed(f"{name}: {length}" for name, length in lengths.items())
        raise UserError(f"{path} has arrays of different lengths ({found}); write one row per example in each")
    return columns


def _array(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    name = member.filename.removesuffix(".npy")
    if member.flag_bits & _ENCRYPTED:
        raise UserError(f"{path} is encrypted ({name!r}); write it without a password")
    with archive.open(member) as file:
        shape, by_column, dtype = _header(file)
        if dtype.hasobject:
            raise UserError(
                f"{path} holds Python objects in {name!r}, which are not unpickled; write text as text, for instance"
                f" {name}.astype(str)"
            )
        size = math.prod(shape) * dtype.itemsize
        if (
            dtype.itemsize == 0
            or min(shape[:1], default=0) < 0
            or min(shape[1:], default=1) < 1
            or size > member.file_size
        ):
            raise ValueError(f"{name} with {member.file_size} bytes for the shape {shape} of {dtype}")
        if not shape or not shape[0]:
            return np.zeros(shape, dtype)
        content = file.read(size)
    if len(content) < size:
        raise ValueError(f"{name} ends after {len(content)} of {size} bytes")
    flat = np.frombuffer(content, dtype)
    return flat.reshape(shape[::-1]).T if by_column else flat.reshape(shape)


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = npy.read_magic(file)
    if version == (1, 0):
        return npy.read_array_header_1_0(file)
    if version == (2, 0):
        return npy.read_array_header_2_0(file)
    raise ValueError(f"an array of version {version}")
