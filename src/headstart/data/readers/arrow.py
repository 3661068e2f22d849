"""Parquet and CSV: columns by name, and which of them only number the rows."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from headstart.data.readers.limits import TEXT, allowance, refuse_larger
from headstart.data.readers.rows import listed
from headstart.data.readers.sources import delimiter, is_packed, unpacked
from headstart.errors import UserError

Columns = dict[str, np.ndarray]

_MOST_COLUMNS = 1 << 16
# What pandas and R name the column of row numbers that they write beside the data.
_NUMBERING = re.compile(r"\s*|Unnamed: \d+(\.\d+)?|__index_level_\d+__")
_COUNTERS = ("index", "level_0")


def read_parquet(path: Path) -> tuple[Columns, list[str]]:
    """The columns, and the names of those that are an index.

    Raises:
        UserError: if they are larger than the file may unpack to, or two have one name.
    """
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        most, about = allowance(path), file.metadata
        groups = [about.row_group(i) for i in range(about.num_row_groups)]
        chunks = [group.column(i) for group in groups for i in range(about.num_columns)]
        values = sum(max(chunk.num_values, 0) for chunk in chunks)
        refuse_larger(path, max(8 * values, sum(chunk.total_uncompressed_size for chunk in chunks)), most)
        _refuse_names(path, file.schema_arrow.names)
        # Texts that are repeated stay one text each, however often they are.
        texts = [column.path for column in file.schema if column.physical_type == "BYTE_ARRAY"]
    with parquet.ParquetFile(path, read_dictionary=texts) as file:
        table = file.read()
    columns = {name: _to_numpy(table.column(name)) for name in table.column_names}
    return columns, [name for name in columns if name in _pandas_index(table.schema) or _numbers_rows(name, columns)]


def read_csv(path: Path, client: str) -> tuple[Columns, list[str]]:
    """The columns, and the names of those that are an index.

    client: the column whose digits are still a name: 007 stays 007.

    Raises:
        UserError: if two columns have one name, or there are too many.
    """
    import pyarrow as pa
    from pyarrow import csv

    with unpacked(path, TEXT) as file:
        separator = delimiter(file.read(65536)) or ","
    with unpacked(path, TEXT) as file:
        if file.readline(1 << 26).count(separator.encode()) >= _MOST_COLUMNS:
            raise UserError(f"{path} has more than {_MOST_COLUMNS:,} columns; write npz")
    with unpacked(path, TEXT) as file:
        content = file.read() if is_packed(path) else b""
        # The types are those of the first block, so it is as large as it may be.
        size = min(max(len(content) or path.stat().st_size, 1 << 20) + 1, 1 << 30)
        table = csv.read_csv(
            pa.BufferReader(content) if content else cast(IO[bytes], file),
            read_options=csv.ReadOptions(block_size=size),
            parse_options=csv.ParseOptions(delimiter=separator, newlines_in_values=True),
            convert_options=csv.ConvertOptions(column_types={client: pa.string()}),
        )
    names = table.column_names
    _refuse_names(path, [name for name in names if name.strip()])
    columns = {name: _to_numpy(table.column(i)) for i, name in enumerate(names)}
    return columns, [name for name in columns if _numbers_rows(name, columns)]


def _refuse_names(path: Path, names: Sequence[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise UserError(f"{path} has two columns with the name {listed(map(repr, twice))}; give each its own")


def _numbers_rows(name: str, columns: Columns) -> bool:
    """Whether a column without a name of its own, or one called index, only counts the rows."""
    if _NUMBERING.fullmatch(name):
        return True
    values = columns[name]
    return name in _COUNTERS and values.dtype.kind in "iu" and bool((values == np.arange(len(values))).all())


def _pandas_index(schema: Any) -> set[str]:
    """The columns that pandas says are an index."""
    about = json.loads((schema.metadata or {}).get(b"pandas", b"{}"))
    return {name for name in about.get("index_columns", []) if isinstance(name, str)}


def _to_numpy(column: Any) -> np.ndarray:
    import pyarrow as pa
    from pyarrow import types

    if types.is_decimal(column.type):
        return column.cast(pa.float64()).to_numpy()
    if not types.is_dictionary(column.type):
        return column.to_numpy()
    if types.is_primitive(column.type.value_type):
        return column.cast(column.type.value_type).to_numpy()
    pieces = [np.zeros(0, object)]
    for chunk in column.chunks:
        values = np.array([*chunk.dictionary.to_pylist(), None], object)
        pieces.append(values[chunk.indices.fill_null(len(values) - 1).to_numpy()])
    return np.concatenate(pieces)
