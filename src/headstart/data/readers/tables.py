"""A user's own examples: npz, Parquet and CSV, one row per example."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from headstart.data.decided import class_labels, class_numbers, label_texts
from headstart.data.partition import OWNERS, client_names
from headstart.data.readers import images
from headstart.data.readers.rows import Rows, accept, arrange, as_flag, joined_unless_split, listed
from headstart.data.readers.sources import Sources, delimiter, unpacked
from headstart.errors import UserError

_COLUMN_OPTIONS = ("client", "target", "features", "split", "classes", "labels", "regression", "inverted")
_PARTITION_OPTIONS = ("partition", "clients", "alpha", "classes_per_client", "seed")
_PARTITIONS: Mapping[str, Mapping[str, type]] = {
    "dirichlet": {"alpha": float},
    "classes": {"classes_per_client": int},
    "random": {},
}

Columns = Mapping[str, np.ndarray]


def read_table(
    sources: Sources, form: str, options: Mapping[str, Any], decided: Mapping[str, Any] = MappingProxyType({})
) -> Rows:
    """Rows of a table; of a pair of files, those for local training and those for local tests.

    Options: `client`, `target`, `features`, `split` name columns (by default `client`, `y`, and `x` in npz or all
    other columns, and none); a column `split` says train or test. Text and whole numbers are classes, in sorted order;
    `classes=62` takes them as the numbers of that many classes instead, `labels=a,b,c` gives the order; other numbers
    are for regression, and with `regression=true` whole ones too. Without a client column,
    `partition=dirichlet|classes|random` with `clients`, `alpha`, `classes_per_client` and `seed` makes clients.
    Characters on a dark background are inverted; `inverted=true|false` says instead whether to invert them.

    decided: what training decided, which is applied, and nothing of it anew; see `decided.decisions`.
    """
    files, split, target = [*sources.train, *sources.test], options.get("split"), str(options.get("target", "y"))
    path, pair = " and ".join(map(str, files)), bool(sources.train and sources.test)
    accept(options, _COLUMN_OPTIONS + _PARTITION_OPTIONS, f"{path} ({form})")
    options = _with_decisions(path, options, decided)
    if pair and split:
        raise UserError(f"{path} are a pair, so split={split} does not fit; leave it out, or put one of them elsewhere")
    tables = [_read_npz(file) if form == "npz" else _read_arrow(file, form, options) for file in files]
    columns = _stack(files, tables)
    y = _column(path, columns, target, "target")
    codes, ids = _clients(path, columns, options, y)
    owners = [ids[code] for code in codes.tolist()]
    lengths = [len(next(iter(table.values()))) for table in tables]
    of_test = np.repeat([pair and file in sources.test for file in files], lengths)
    test = _test_rows(path, columns, str(split)) if split else of_test
    taken = {str(options.get("client", "client")), target, str(split)}
    invert = options.get("inverted")
    x, metadata = _features(path, columns, _feature_names(form, columns, options, taken), owners, invert)
    if decided.get("classes"):
        y, target_metadata = _decided_classes(path, target, y, decided, owners)
    else:
        y, target_metadata = _targets(path, target, y, options, owners)
    metadata |= target_metadata | {"source": f"{form} {' and '.join(file.name for file in files)}"}
    rows = arrange(ids, codes, test, x, y, metadata=metadata, has_predefined_split=bool(split) or pair)
    return joined_unless_split(rows) if pair else rows


def _with_decisions(path: str, options: Mapping[str, Any], decided: Mapping[str, Any]) -> dict[str, Any]:
    """The options, and what was decided in place of those that are not given.

    Raises:
        UserError: if they contradict what was decided.
    """
    labels = class_labels(decided)
    decides: Mapping[str, Callable[[Any], bool]] = {
        "features": lambda value: sorted(_names(value)) == sorted(decided["features"]),
        "labels": lambda value: _names(value) == labels,
        "classes": lambda value: str(value) == str(len(labels)),
        "regression": lambda value: as_flag("regression", value) != bool(labels),
    }
    targets = {"labels", "classes", "regression"} if {"classes", "regression"} & decided.keys() else set()
    for name in sorted((targets | ({"features"} & decided.keys())) & options.keys()):
        if not decides[name](options[name]):
            raise UserError(f"{path}: {name}={options[name]} is not what the run was trained with; leave it out")
    added = {name: decided[name] for name in ("features", "regression") if name in decided}
    own_words = {"inverted": decided["inverted"], **options} if "inverted" in decided else options
    return {**own_words, **added}


def _stack(files: Sequence[Path], tables: Sequence[Columns]) -> Columns:
    """The rows of several files, one after the other."""
    first = tables[0]
    for file, table in zip(files[1:], tables[1:], strict=True):
        kinds = {name: (_is_text(values), values.shape[1:]) for name, values in table.items()}
        other = [name for name, values in first.items() if kinds.get(name) != (_is_text(values), values.shape[1:])]
        if other or len(table) != len(first):
            name = (other or [name for name in table if name not in first])[0]
            raise UserError(
                f"{files[0]} and {file} are one data set by their names, but differ in column {name!r}; give both the"
                " same columns, or put one of them elsewhere"
            )
    return {name: np.concatenate([table[name] for table in tables]) for name in first} if len(files) > 1 else first


def _is_text(values: np.ndarray) -> bool:
    return values.dtype.kind not in "biuf"


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    # numpy leaves a file open that it opened itself and could not read.
    with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
        columns = {name: file[name] for name in file.files}
    other = [name for name, values in columns.items() if not isinstance(values, np.ndarray)]
    if other or not columns:
        raise UserError(
            f"{path} is a zip archive, but not one of numpy's arrays (it holds {listed(other)}); write npz, Parquet or"
            " CSV"
        )
    lengths = {name: len(values) if values.ndim else 0 for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        found = listed(f"{name}: {length}" for name, length in lengths.items())
        raise UserError(f"{path} has arrays of different lengths ({found}); write one row per example in each")
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


def _column(path: str, columns: Columns, name: str, option: str) -> np.ndarray:
    """A column without gaps."""
    if name not in columns:
        raise UserError(f"{path} has no column {name!r}, but {listed(columns)}; name the right one with {option}=")
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


def _clients(path: str, columns: Columns, options: Mapping[str, Any], y: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """The number of each row's client, and the clients' ids."""
    client = str(options.get("client", "client"))
    if "partition" in options:
        if "client" in options:
            raise UserError(f"{path}: give either client={client} or partition={options['partition']}, not both")
        owners, count = _partition(options, y)
        return owners, client_names(count)
    if client not in columns:
        raise UserError(
            f"{path} has no column {client!r}, but {listed(columns)}; name the right one with client=, or make"
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
    if method != "random":
        _refuse_rows_of_numbers(y, f"partition={method}")
        if (y.dtype.kind == "f" and "classes" not in options) or _for_regression(options):
            raise UserError(f"partition={method} needs classes, and the target holds fractions; give partition=random")
    clients = _number(options, "clients", int)
    own = {name: _number(options, name, kind) for name, kind in _PARTITIONS[method].items()}
    seed = _number({"seed": 0, **options}, "seed", int, least=0)
    return OWNERS[method](_texts(y) if y.dtype == object else y, clients, seed=seed, **own), clients


def _refuse_rows_of_numbers(y: np.ndarray, option: str) -> None:
    if y.ndim != 1:
        raise UserError(
            f"{option} needs one class per example, and the target has {'x'.join(map(str, y.shape[1:]))} numbers; write"
            " the number of the class, y.argmax(axis=1) of a one-hot y"
        )


def _for_regression(options: Mapping[str, Any]) -> bool:
    return as_flag("regression", options.get("regression", False))


def _number(options: Mapping[str, Any], name: str, kind: type, *, least: float = -np.inf) -> Any:
    if name not in options:
        raise UserError(f"partition={options.get('partition')} needs the option {name}; give {name}=NUMBER")
    try:
        number = kind(options[name])
        if number < least or (not isinstance(options[name], str) and number != options[name]):
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        what = ("whole number" if kind is int else "number") + (f" from {least} on" if np.isfinite(least) else "")
        raise UserError(f"option {name}={options[name]!r} is not a {what}; give one") from None
    return number


def _test_rows(path: str, columns: Columns, name: str) -> np.ndarray:
    values = _texts(_column(path, columns, name, "split"))
    other = set(values) - {"train", "test"}
    if other:
        raise UserError(f"{path} says {min(other)!r} in its column {name!r}; write train or test in each row")
    return np.array([value == "test" for value in values])


def _feature_names(form: str, columns: Columns, options: Mapping[str, Any], taken: set[str]) -> list[str]:
    names = options.get("features", "x" if form == "npz" else [name for name in columns if name not in taken])
    return _names(names)


def _names(given: Any) -> list[str]:
    """Names in a list, or in a text with commas."""
    return [str(name) for name in given] if isinstance(given, list | tuple | np.ndarray) else str(given).split(",")


def _features(
    path: str, columns: Columns, names: Sequence[str], owners: Sequence[str], invert: Any
) -> tuple[np.ndarray, dict[str, Any]]:
    unknown = [name for name in names if name not in columns]
    if unknown or not names:
        what = f"column {unknown[0]!r}" if unknown else "column left for features"
        raise UserError(f"{path} has no {what}, but {listed(columns)}; name the right ones with features=")
    arrays = [_numbers(path, name, columns[name], owners) for name in names]
    if len(arrays) == 1 and (image := _as_image(arrays[0], owners, invert)) is not None:
        return image
    if len(arrays) == 1 and arrays[0].ndim > 1:
        x = arrays[0].astype(np.float32)
    else:
        x = np.concatenate([array.reshape(len(array), -1).astype(np.float32) for array in arrays], axis=1)
    return x, {"kind": "features", "features": list(names)}


def _numbers(path: str, name: str, values: np.ndarray, owners: Sequence[str], *, what: str = "features") -> np.ndarray:
    if values.dtype.kind not in "biuf":
        raise UserError(f"{path} has no numbers in column {name!r}; {what} are numbers, so leave it out or encode it")
    finite = np.isfinite(values).reshape(len(values), -1).all(axis=1)
    if not finite.all():
        row = int(np.argmin(finite))
        raise UserError(
            f"{path} has a missing, NaN or infinite value in column {name!r} of client {owners[row]}, row {row + 1};"
            " fill in or leave out the row"
        )
    return values


def _as_image(values: np.ndarray, owners: Sequence[str], invert: Any) -> tuple[np.ndarray, dict[str, Any]] | None:
    """uint8 pictures stay so; those of EMNIST's shape also get its polarity, if they have a background.

    invert: whether to invert these; None decides by their background.
    """
    side = images.SIDE
    character = values.shape[1:] in ((side, side), (side, side, 1))
    if not character and (values.dtype != np.uint8 or values.ndim < 3):
        return None
    x = values if values.dtype == np.uint8 else images.to_uint8(values, owners)
    x = x[..., None] if x.ndim == 3 else x
    if not character:
        return x, {"kind": "image", "inverted": False}
    level = images.background(x)
    inverted = level < 64 if invert is None else as_flag("inverted", invert)
    x, level = (255 - x, 255 - level) if inverted else (x, level)
    return x, {"kind": "image", "inverted": inverted, "background": level}


def _targets(
    path: str, name: str, values: np.ndarray, options: Mapping[str, Any], owners: Sequence[str]
) -> tuple[np.ndarray, dict[str, Any]]:
    for option in ("labels", "classes"):
        if option in options:
            _refuse_rows_of_numbers(values, f"{option}=")
            if _for_regression(options):
                raise UserError(f"{path}: give either {option}= or regression=true, not both")
    if "labels" in options:
        return _named_classes(path, name, _texts(values), options["labels"], owners)
    if "classes" in options:
        if values.dtype.kind not in "iuf":
            raise UserError(f"{path} has no numbers in column {name!r}, so classes= does not fit; give labels= instead")
        classes = _number(options, "classes", int, least=1)
        return images.check_labels(values, classes, owners), {"classes": classes, "labels": _range(classes)}
    if values.dtype.kind == "f" or _for_regression(options):
        return _numbers(path, name, values, owners, what="targets of regression").astype(np.float32), {}
    if values.dtype.kind not in "biuUSO" or values.ndim != 1:
        raise UserError(f"{path} has neither text nor numbers in column {name!r}; name another with target=")
    found, codes = np.unique(np.array(_texts(values)) if values.dtype.kind in "SO" else values, return_inverse=True)
    return codes.astype(np.int32), {"classes": len(found), "labels": [str(label) for label in found]}


def _decided_classes(
    path: str, name: str, values: np.ndarray, decided: Mapping[str, Any], owners: Sequence[str]
) -> tuple[np.ndarray, dict[str, Any]]:
    """The targets by the numbers that their labels had in training.

    Raises:
        UserError: for a label that training did not know; names the client.
    """
    labels = class_labels(decided)
    if values.ndim != 1:
        raise UserError(f"{path} has more than one target a row in column {name!r}; the run was trained with one label")
    codes = class_numbers(values, labels)
    if (codes < 0).any():
        row = int(np.argmax(codes < 0))
        raise UserError(
            f"{path} has the target {label_texts(values[row : row + 1])[0]!r} in column {name!r} of client"
            f" {owners[row]}, which is not among the labels that the run was trained with ({listed(labels)}); leave out"
            " the row, or give it one of them"
        )
    return codes, {"classes": len(labels), "labels": labels}


def _range(classes: int) -> list[str]:
    return [str(label) for label in range(classes)]


def _named_classes(
    path: str, name: str, values: Sequence[str], labels: Any, owners: Sequence[str]
) -> tuple[np.ndarray, dict[str, Any]]:
    order = _names(labels)
    indices = {label: i for i, label in enumerate(order)}
    for row, value in enumerate(values):
        if value not in indices:
            raise UserError(
                f"{path} has the target {value!r} in column {name!r} of client {owners[row]}, which is not among the"
                f" {len(order)} labels given; add it or leave out the row"
            )
    return np.array([indices[value] for value in values], np.int32), {"classes": len(order), "labels": order}


def _texts(values: np.ndarray) -> list[str]:
    return [v.decode() if isinstance(v, bytes) else str(v) for v in values.tolist()]
