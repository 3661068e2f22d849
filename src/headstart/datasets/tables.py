"""A user's own examples: npz, Parquet and CSV, one row per example."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from headstart.datasets import images
from headstart.datasets.partition import OWNERS, client_names
from headstart.datasets.rows import Rows, accept, arrange
from headstart.datasets.sources import delimiter, unpacked
from headstart.errors import UserError

_COLUMN_OPTIONS = ("client", "target", "features", "split", "classes", "labels")
_PARTITION_OPTIONS = ("partition", "clients", "alpha", "classes_per_client", "seed")
_PARTITIONS: Mapping[str, Mapping[str, type]] = {
    "dirichlet": {"alpha": float},
    "classes": {"classes_per_client": int},
    "random": {},
}

Columns = Mapping[str, np.ndarray]


def read_table(path: Path, form: str, options: Mapping[str, Any]) -> Rows:
    """Rows of a table.

    Options: `client`, `target`, `features`, `split` name columns (by default `client`, `y`, and `x` in npz or all
    other columns, and none); a column `split` says train or test. Text and whole numbers are classes, in sorted order;
    `classes=62` takes them as the numbers of that many classes instead, `labels=a,b,c` gives the order; other numbers
    are for regression. Without a client column, `partition=dirichlet|classes|random` with `clients`, `alpha`,
    `classes_per_client` and `seed` makes clients.
    """
    accept(options, _COLUMN_OPTIONS + _PARTITION_OPTIONS, f"{path} ({form})")
    columns = _read_npz(path) if form == "npz" else _read_arrow(path, form, options)
    split, target = options.get("split"), str(options.get("target", "y"))
    y = _column(path, columns, target, "target")
    codes, ids = _clients(path, columns, options, y)
    owners = [ids[code] for code in codes.tolist()]
    test = _test_rows(path, columns, str(split)) if split else np.zeros(len(y), bool)
    taken = {str(options.get("client", "client")), target, str(split)}
    x, facts = _features(path, columns, _feature_names(form, columns, options, taken), owners)
    y, target_facts = _targets(path, target, y, options, owners)
    facts |= target_facts | {"source": f"{form} {path.name}"}
    return arrange(ids, codes, test, x, y, facts=facts, own_split=bool(split))


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    # numpy leaves a file open that it opened itself and could not read.
    with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
        columns = {name: file[name] for name in file.files}
    lengths = {name: len(values) if values.ndim else 0 for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name}: {length}" for name, length in lengths.items())
        raise UserError(f"{path} has arrays of different lengths ({listed}); write one row per example in each")
    return columns


def _read_arrow(path: Path, form: str, options: Mapping[str, Any]) -> dict[str, np.ndarray]:
    import pyarrow as pa
    from pyarrow import csv, parquet

    if form == "parquet":
        with parquet.ParquetFile(path) as file:
            table = file.read()
    else:
        with unpacked(path) as file:
            separator = delimiter(file.read(65536)) or ","
        # An id of digits is still a name: 007 stays 007.
        types = {str(options.get("client", "client")): pa.string()}
        with unpacked(path) as file:
            table = csv.read_csv(
                file,
                parse_options=csv.ParseOptions(delimiter=separator, newlines_in_values=True),
                convert_options=csv.ConvertOptions(column_types=types),
            )
    return {name: _to_numpy(table.column(name)) for name in table.column_names}


def _to_numpy(column: Any) -> np.ndarray:
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return column.to_numpy()


def _column(path: Path, columns: Columns, name: str, option: str) -> np.ndarray:
    """A column without gaps."""
    if name not in columns:
        raise UserError(f"{path} has no column {name!r}, but {', '.join(columns)}; name the right one with {option}=")
    values = columns[name]
    missing = _missing(values)
    if missing.any():
        raise UserError(
            f"{path} has no value in column {name!r} of row {int(np.argmax(missing)) + 1}; fill in or leave out the row"
        )
    if not len(values):
        raise UserError(f"{path} has columns but no rows; write one row per example")
    return values


def _missing(values: np.ndarray) -> np.ndarray:
    """Which rows have no value: bool `[rows]`."""
    if values.dtype.kind in "USO":
        return np.array([value is None or (isinstance(value, str | bytes) and not value) for value in values.tolist()])
    if values.dtype.kind == "f":
        return np.any(np.isnan(values).reshape(len(values), -1), axis=1)
    return np.zeros(len(values), bool)


def _clients(path: Path, columns: Columns, options: Mapping[str, Any], y: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """The number of each row's client, and the clients' ids."""
    client = str(options.get("client", "client"))
    if "partition" in options:
        if "client" in options:
            raise UserError(f"{path}: give either client={client} or partition={options['partition']}, not both")
        owners, count = _partition(options, y)
        return owners, client_names(count)
    if client not in columns:
        raise UserError(
            f"{path} has no column {client!r}, but {', '.join(columns)}; name the right one with client=, or make"
            " clients with partition=dirichlet, classes or random"
        )
    values = _texts(_column(path, columns, client, "client"))
    numbers: dict[str, int] = {}
    codes = np.array([numbers.setdefault(value, len(numbers)) for value in values], np.int64)
    return codes, list(numbers)


def _partition(options: Mapping[str, Any], y: np.ndarray) -> tuple[np.ndarray, int]:
    method = str(options["partition"])
    if method not in _PARTITIONS:
        raise UserError(f"partition={method} is none of {', '.join(_PARTITIONS)}; give one of them")
    if method != "random" and y.dtype.kind == "f" and "classes" not in options:
        raise UserError(f"partition={method} needs classes, and the target holds fractions; give partition=random")
    clients = _number(options, "clients", int)
    own = {name: _number(options, name, kind) for name, kind in _PARTITIONS[method].items()}
    seed = _number({"seed": 0, **options}, "seed", int)
    return OWNERS[method](_texts(y) if y.dtype == object else y, clients, seed=seed, **own), clients


def _number(options: Mapping[str, Any], name: str, kind: type) -> Any:
    if name not in options:
        raise UserError(f"partition={options.get('partition')} needs the option {name}; give {name}=NUMBER")
    try:
        return kind(options[name])
    except (TypeError, ValueError):
        what = "whole number" if kind is int else "number"
        raise UserError(f"option {name}={options[name]!r} is not a {what}; give one") from None


def _test_rows(path: Path, columns: Columns, name: str) -> np.ndarray:
    values = _texts(_column(path, columns, name, "split"))
    other = set(values) - {"train", "test"}
    if other:
        raise UserError(f"{path} says {min(other)!r} in its column {name!r}; write train or test in each row")
    return np.array([value == "test" for value in values])


def _feature_names(form: str, columns: Columns, options: Mapping[str, Any], taken: set[str]) -> list[str]:
    names = options.get("features", "x" if form == "npz" else [name for name in columns if name not in taken])
    return names.split(",") if isinstance(names, str) else list(names)


def _features(
    path: Path, columns: Columns, names: Sequence[str], owners: Sequence[str]
) -> tuple[np.ndarray, dict[str, Any]]:
    unknown = [name for name in names if name not in columns]
    if unknown or not names:
        what = f"column {unknown[0]!r}" if unknown else "column left for features"
        raise UserError(f"{path} has no {what}, but {', '.join(columns)}; name the right ones with features=")
    arrays = [_numbers(path, name, columns[name], owners) for name in names]
    if len(arrays) == 1 and (image := _as_image(arrays[0], owners)) is not None:
        return image
    if len(arrays) == 1 and arrays[0].ndim > 1:
        x = arrays[0].astype(np.float32)
    else:
        x = np.concatenate([array.reshape(len(array), -1).astype(np.float32) for array in arrays], axis=1)
    return x, {"kind": "features", "features": list(names)}


def _numbers(path: Path, name: str, values: np.ndarray, owners: Sequence[str]) -> np.ndarray:
    if values.dtype.kind not in "biuf":
        raise UserError(f"{path} has no numbers in column {name!r}; features are numbers, so leave it out or encode it")
    finite = np.isfinite(values).reshape(len(values), -1).all(axis=1)
    if not finite.all():
        row = int(np.argmin(finite))
        raise UserError(
            f"{path} has a missing, NaN or infinite value in column {name!r} of client {owners[row]}, row {row + 1};"
            " fill in or leave out the row"
        )
    return values


def _as_image(values: np.ndarray, owners: Sequence[str]) -> tuple[np.ndarray, dict[str, Any]] | None:
    """uint8 pictures stay so; those of EMNIST's shape also get its polarity, if they have a background."""
    side = images.SIDE
    character = values.shape[1:] in ((side, side), (side, side, 1))
    if not character and (values.dtype != np.uint8 or values.ndim < 3):
        return None
    x = values if values.dtype == np.uint8 else images.to_uint8(values, owners)
    x = x[..., None] if x.ndim == 3 else x
    inverted = False
    if character and images.background(x) < 64:
        x, inverted = images.white_background(x)
    return x, {"kind": "image", "inverted": inverted}


def _targets(
    path: Path, name: str, values: np.ndarray, options: Mapping[str, Any], owners: Sequence[str]
) -> tuple[np.ndarray, dict[str, Any]]:
    if "labels" in options:
        return _named_classes(path, name, _texts(values), options["labels"], owners)
    if "classes" in options:
        if values.dtype.kind not in "iuf":
            raise UserError(f"{path} has no numbers in column {name!r}, so classes= does not fit; give labels= instead")
        classes = _number(options, "classes", int)
        return images.check_labels(values, classes, owners), {"classes": classes, "labels": _range(classes)}
    if values.dtype.kind == "f":
        return _numbers(path, name, values, owners).astype(np.float32), {}
    if values.dtype.kind not in "biuUSO" or values.ndim != 1:
        raise UserError(f"{path} has neither text nor numbers in column {name!r}; name another with target=")
    found, codes = np.unique(np.array(_texts(values)) if values.dtype.kind in "SO" else values, return_inverse=True)
    return codes.astype(np.int32), {"classes": len(found), "labels": [str(label) for label in found]}


def _range(classes: int) -> list[str]:
    return [str(label) for label in range(classes)]


def _named_classes(
    path: Path, name: str, values: Sequence[str], labels: Any, owners: Sequence[str]
) -> tuple[np.ndarray, dict[str, Any]]:
    order = labels.split(",") if isinstance(labels, str) else [str(label) for label in labels]
    places = {label: i for i, label in enumerate(order)}
    for row, value in enumerate(values):
        if value not in places:
            raise UserError(
                f"{path} has the target {value!r} in column {name!r} of client {owners[row]}, which is not among the"
                f" {len(order)} labels given; add it or leave out the row"
            )
    return np.array([places[value] for value in values], np.int32), {"classes": len(order), "labels": order}


def _texts(values: np.ndarray) -> list[str]:
    return [v.decode() if isinstance(v, bytes) else str(v) for v in values.tolist()]
