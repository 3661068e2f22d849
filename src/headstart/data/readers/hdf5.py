"""What may be read of an HDF5 file: arrays that are in it, whole, and of no more bytes than it may unpack to."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from headstart.data.readers.limits import allowance, refuse_larger
from headstart.errors import UserError


def child(path: Path, group: Any, name: str) -> Any:
    """The group or dataset of this name in a group.

    Raises:
        UserError: if it is a link to another place, which may be in another file.
    """
    import h5py

    if not isinstance(group.get(name, getlink=True), h5py.HardLink):
        raise UserError(
            f"{path} has a link to another place instead of {name!r}, and links are not followed; copy the data into"
            " the file"
        )
    return group[name]


class Reader:
    """Reads datasets of one file, which may not be more in all than it may unpack to."""

    def __init__(self, path: Path) -> None:
        self._path, self._most, self._total = path, allowance(path), 0

    def __call__(self, dataset: Any) -> np.ndarray:
        """All values of a dataset, `[rows, ...]`.

        Raises:
            UserError: for one whose data are elsewhere, and for more than the file may unpack to.
            ValueError: for one without data, or of another type than numbers and texts.
        """
        import h5py

        if not isinstance(dataset, h5py.Dataset) or dataset.shape is None or not dataset.ndim:
            raise ValueError(f"no array named {getattr(dataset, 'name', '')}")
        if dataset.is_virtual or dataset.external:
            raise UserError(
                f"{self._path} keeps the data of {dataset.name} in another file, which is not read; copy them into it"
            )
        text = h5py.check_string_dtype(dataset.dtype) is not None
        if dataset.dtype.kind not in "biuf" and not text:
            raise ValueError(f"{dataset.name} with values of type {dataset.dtype}")
        self._count(math.prod(dataset.shape) * max(dataset.dtype.itemsize, 1))
        if not dataset.size:
            return np.zeros(dataset.shape, object if text else dataset.dtype)
        _refuse_gaps(dataset)
        return self._texts(dataset) if text else dataset[()]

    def _texts(self, dataset: Any) -> np.ndarray:
        # Any number of rows may name one text in the file, so few are read before they are counted.
        if dataset.ndim != 1:
            raise ValueError(f"{dataset.name} with rows of several texts")
        step = max(1, min(len(dataset), (1 << 26) // self._path.stat().st_size))
        found: list[Any] = []
        for start in range(0, len(dataset), step):
            rows = dataset[start : start + step].tolist()
            self._count(sum(map(len, rows)))
            found += rows
        texts = np.empty(len(found), object)
        texts[:] = found
        return texts

    def _count(self, size: int) -> None:
        self._total += size
        refuse_larger(self._path, self._total, self._most)


def _refuse_gaps(dataset: Any) -> None:
    """Refuse a dataset that HDF5 would fill up with a value of its own where the file holds nothing."""
    chunks = math.prod(-(-n // size) for n, size in zip(dataset.shape, dataset.chunks or dataset.shape, strict=True))
    found = dataset.id.get_num_chunks() if dataset.chunks else int(dataset.id.get_storage_size() > 0)
    if found < chunks:
        raise ValueError(f"{dataset.name} has no data for a part of its rows")
