"""Parquet, CSV and Arrow: columns by name, and which of them only number the rows."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, cast

import numpy as np

from headstart.data import mapped
from headstart.data.readers.limits import TEXT, allowance, refuse_larger
from headstart.data.readers.picture_files import pixels_of, stacked
from headstart.data.readers.rows import listed, reading
from headstart.data.readers.sources import delimiter, is_packed, unpacked
from headstart.errors import UserError

Columns = dict[str, np.ndarray]

_MOST_COLUMNS = 1 << 16
# What pandas and R name the column of row numbers that they write beside the data.
_NUMBERING = re.compile(r"\s*|Unnamed: \d+(\.\d+)?|__index_level_\d+__")
_COUNTERS = ("index", "level_0")
# Rows of a large column that are read at a time, at most. To how much the files of pictures in it commonly unpack.
_ROWS_AT_ONCE, _PACKED = 1 << 13, 8
# How files of pictures begin: PNG, JPEG, GIF, WebP.
_PICTURES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"RIFF")


def large_columns(paths: Sequence[Path]) -> list[str]:
    """The columns of lists or of pictures that had better not be in memory, of Parquet files that are one table."""
    from pyarrow import parquet

    sizes: Counter[str] = Counter()
    for path in paths:
        with reading(path), parquet.ParquetFile(path) as file:
            sizes += _unpacked_sizes(file)
    return [name for name, size in sizes.items() if size >= mapped.LARGE]


def _unpacked_sizes(file: Any) -> Counter[str]:
    """The bytes to which the columns of lists and of pictures of a Parquet file about unpack."""
    sizes: Counter[str] = Counter()
    fields = {field.name: _plain(field.type) for field in file.schema_arrow if "." not in field.name}
    groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
    for chunk in (group.column(i) for group in groups for i in range(group.num_columns)):
        name = chunk.path_in_schema.partition(".")[0]
        if name in fields and (each := _unpacked_bytes(fields[name])):
            packed = 0 if _is_list(fields[name]) else chunk.total_uncompressed_size
            sizes[name] += each * (packed or chunk.num_values)
    return sizes


def _plain(kind: Any) -> Any:
    """The type in which the values of another one are stored."""
    import pyarrow as pa

    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind


def _unpacked_bytes(kind: Any) -> int:
    """The bytes of a number in lists, or of what a byte of a picture's file about unpacks to; 0 of other columns."""
    from pyarrow import types

    if types.is_struct(kind):
        return _PACKED if kind.get_field_index("bytes") >= 0 else 0
    if types.is_binary(kind) or types.is_large_binary(kind):
        return _PACKED
    leaf = kind
    while _is_list(leaf):
        leaf = leaf.value_type
    return max(1, leaf.bit_width // 8) if leaf is not kind and types.is_primitive(leaf) else 0


def read_parquet(path: Path, apart: Mapping[str, mapped.Scratch] = MappingProxyType({})) -> tuple[Columns, list[str]]:
    """The columns, and the names of those that are an index.

    apart: columns whose rows are appended to these; in what is returned, an array without content has their place.

    Raises:
        UserError: if they are larger than the file may unpack to, or two have one name.
        UnlikeRowsError: if the rows of a column apart are no numbers of one type and shape.
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
        texts = [name for name in texts if name in file.schema_arrow.names]
        names = file.schema_arrow.names
    with parquet.ParquetFile(path, read_dictionary=texts) as file:
        table = file.read([name for name in names if name not in apart] if apart else None)
    columns, numbering = columns_of(table, str(path), most)
    if not apart:
        return columns, numbering
    columns |= {name: _append(path, name, scratch, most) for name, scratch in apart.items() if name in names}
    return {name: columns[name] for name in names if name in columns}, numbering


def _append(path: Path, name: str, scratch: mapped.Scratch, most: float) -> np.ndarray:
    """Append the rows of a column, some at a time; returns an array of their type and shape without content."""
    import pyarrow as pa
    from pyarrow import parquet

    rows, before = 0, scratch.nbytes
    with parquet.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file:
        each = _unpacked_sizes(file)[name] // max(file.metadata.num_rows, 1)
        at_once = min(_ROWS_AT_ONCE, 1 + mapped.PIECE // max(each, 1))
        for batch in file.iter_batches(at_once, columns=[name]):
            column = pa.chunked_array([batch.column(name)])
            pictures = _encoded_pictures(column)
            values = _to_numpy(column) if pictures is None else _pixels(str(path), name, pictures, most, rows)
            if values.ndim < 2 or values.dtype.kind not in "biuf":
                raise _unlike(path, name)
            scratch.append(values)
            rows += len(values)
            refuse_larger(path, scratch.nbytes - before, most)
    if not rows:
        raise _unlike(path, name)
    return np.broadcast_to(np.zeros((), values.dtype), (rows, *values.shape[1:]))


def columns_of(table: Any, path: str, most: float = math.inf) -> tuple[Columns, list[str]]:
    """The columns of an Arrow table, and the names of those that are an index.

    Pictures in a column become pixels, lists of one length arrays, and numbers of classes, where the Hugging Face hub
    has written what they are called, these names.

    path: what messages call it. most: the bytes that its pictures may unpack to.

    Raises:
        UserError: for pictures that cannot be read.
    """
    names = table.column_names
    _refuse_names(path, [name for name in names if name.strip()])
    labels = _class_names(table.schema)
    columns = {}
    for i, name in enumerate(names):
        pictures = _encoded_pictures(table.column(i))
        if pictures is not None:
            columns[name] = _pixels(path, name, pictures, most)
        else:
            columns[name] = _with_labels(_to_numpy(table.column(i)), labels.get(name))
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
    return columns_of(table, str(path))


def _unlike(path: Path, name: str) -> mapped.UnlikeRowsError:
    return mapped.UnlikeRowsError(f"{path} has rows in column {name!r} that are not numbers of one shape; mend them")


def _refuse_names(path: Path | str, names: Sequence[str]) -> None:
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
    about = _document(schema, b"pandas")
    return {name for name in about.get("index_columns", []) if isinstance(name, str)}


def _class_names(schema: Any) -> dict[str, list[str]]:
    """What the classes of a column of numbers are called, as `datasets` of Hugging Face writes it."""
    features = _document(schema, b"huggingface").get("info", {})
    features = features.get("features", {}) if isinstance(features, dict) else {}
    about = {name: each.get("names") for name, each in features.items() if isinstance(each, dict)}
    return {name: list(map(str, labels)) for name, labels in about.items() if isinstance(labels, list) and labels}


def _document(schema: Any, key: bytes) -> dict[str, Any]:
    try:
        document = json.loads((schema.metadata or {}).get(key, b"{}"))
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def _with_labels(values: np.ndarray, labels: list[str] | None) -> np.ndarray:
    """Numbers of classes as their names; -1, which the hub writes where a class is not known, is a gap."""
    if labels is None or values.ndim != 1 or values.dtype.kind not in "iuf":
        return values
    numbers = np.where(np.isnan(values), -1, values).astype(np.int64) if values.dtype.kind == "f" else values
    if not len(numbers) or numbers.min() < -1 or numbers.max() >= len(labels):
        return values
    return np.array([*labels, None], object)[numbers]


def _encoded_pictures(column: Any) -> Any:
    """The content of the picture files of a column, as bytes; None if it holds none."""
    import pyarrow as pa
    from pyarrow import types

    if types.is_struct(column.type) and column.type.get_field_index("bytes") >= 0:
        chunks = [chunk.flatten()[column.type.get_field_index("bytes")] for chunk in column.chunks]
        column = pa.chunked_array(chunks) if chunks else pa.chunked_array([], pa.binary())
        return column if types.is_binary(column.type) or types.is_large_binary(column.type) else None
    plain = column.type.value_type if types.is_dictionary(column.type) else column.type
    if not (types.is_binary(plain) or types.is_large_binary(plain)) or not len(column):
        return None
    first = column[0].as_py()
    return column if first and first.startswith(_PICTURES) else None


def _pixels(path: str, name: str, column: Any, most: float, first: int = 0) -> np.ndarray:
    """The pictures of a column, uint8 `[rows, height, width, channels]`; first: how many rows lie before them."""

    def decoded() -> Iterator[tuple[str, np.ndarray]]:
        for row, content in enumerate(column, first + 1):
            where = f"{path}, column {name!r}, row {row},"
            if content.as_py() is None:
                raise UserError(f"{where} holds no picture, or the name of a file in its place; write the pictures in")
            yield where, pixels_of(Path(where), content.as_py())

    return stacked(len(column), decoded(), most, Path(path))[0]


def _to_numpy(column: Any) -> np.ndarray:
    import pyarrow as pa
    from pyarrow import types

    if types.is_null(column.type):
        return np.full(len(column), np.nan)
    if types.is_decimal(column.type):
        return column.cast(pa.float64()).to_numpy()
    if isinstance(column.type, pa.BaseExtensionType):
        return _to_numpy(pa.chunked_array([chunk.storage for chunk in column.chunks], column.type.storage_type))
    if _is_list(column.type):
        lists = _lists(column)
        return _objects(column) if lists is None else lists
    if types.is_struct(column.type) or types.is_map(column.type):
        return _objects(column)
    if not types.is_dictionary(column.type):
        return column.to_numpy()
    if types.is_primitive(column.type.value_type):
        return column.cast(column.type.value_type).to_numpy()
    pieces = [np.zeros(0, object)]
    for chunk in column.chunks:
        values = np.array([*chunk.dictionary.to_pylist(), None], object)
        pieces.append(values[chunk.indices.fill_null(len(values) - 1).to_numpy()])
    return np.concatenate(pieces)


def _is_list(kind: Any) -> bool:
    from pyarrow import types

    return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)


def _lists(column: Any) -> np.ndarray | None:
    """Lists of numbers, all of one length, as an array `[rows, length, ...]`; None if they are no such lists."""
    from pyarrow import compute, types

    shape = [len(column)]
    while _is_list(column.type):
        lengths = compute.unique(compute.list_value_length(column)).to_pylist()  # pyright: ignore[reportAttributeAccessIssue]
        if len(lengths) != 1 or not lengths[0]:
            return None
        shape.append(lengths[0])
        column = compute.list_flatten(column)  # pyright: ignore[reportAttributeAccessIssue]
    if not (types.is_integer(column.type) or types.is_floating(column.type) or types.is_boolean(column.type)):
        return None
    values = column.to_numpy()
    return values.reshape(shape) if values.dtype.kind in "biuf" else None


def _objects(column: Any) -> np.ndarray:
    values = np.empty(len(column), object)
    values[:] = column.to_pylist()
    return values
