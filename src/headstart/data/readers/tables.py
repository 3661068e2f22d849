"""A user's own examples: npz, Parquet and CSV, one row per example."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from headstart.data.decided import class_labels, class_numbers, label_texts
from headstart.data.partition import OWNERS, client_names
from headstart.data.readers import images, meaning
from headstart.data.readers.arrow import read_csv, read_parquet
from headstart.data.readers.meaning import texts
from headstart.data.readers.npz import read_npz
from headstart.data.readers.pictures import as_pictures, is_character
from headstart.data.readers.rows import Rows, accept, arrange, as_flag, joined_unless_split, listed, reading, twins
from headstart.data.readers.sources import Sources
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
    other columns but row numbers, and none); a column `split` says train or test. Text and whole numbers are classes,
    in sorted order, also those written as 1.0 where they are few, and one-hot rows; `classes=62` takes them as the
    numbers of that many classes instead, `labels=a,b,c` gives the order; other numbers are for regression, and with
    `regression=true` whole ones too. Without a client column,
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
    tables, numberings = zip(*(_read(file, form, options) for file in files), strict=True)
    numbering = set().union(*numberings)
    columns = _stack(files, tables, numbering)
    y = _column(path, columns, target, "target")
    if not _for_regression(options):
        y = meaning.targets(path, target, y, known=bool({"classes", "labels"} & {*options, *decided}))
    codes, ids = _clients(path, columns, options, y)
    owners = [ids[code] for code in codes.tolist()]
    lengths = [len(next(iter(table.values()))) for table in tables]
    of_test = np.repeat([pair and file in sources.test for file in files], lengths)
    test = _test_rows(path, columns, str(split)) if split else of_test
    taken = {str(options.get("client", "client")), target, str(split)}
    names = _feature_names(form, columns, options, taken | numbering)
    x, metadata = _features(path, columns, names, owners, options.get("inverted"))
    if decided.get("classes"):
        y, target_metadata = _decided_classes(path, target, y, decided, owners)
    else:
        y, target_metadata = _targets(path, target, y, options, owners)
    metadata |= target_metadata | {"source": f"{form} {' and '.join(file.name for file in files)}"}
    if left_out := sorted(map(repr, numbering - taken - set(names))):
        note = f"{listed(left_out)} only numbers the rows and is left out; features= takes it"
        metadata["notes"] = [*metadata.get("notes", []), note]
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


def _read(path: Path, form: str, options: Mapping[str, Any]) -> tuple[Columns, list[str]]:
    """The columns of a file, and the names of those that only number its rows."""
    with reading(path):
        if form == "npz":
            return read_npz(path), []
        return read_parquet(path) if form == "parquet" else read_csv(path, str(options.get("client", "client")))


def _stack(files: Sequence[Path], tables: Sequence[Columns], numbering: set[str]) -> Columns:
    """The rows of several files, one after the other; a column that numbers rows may be in one of them alone."""
    first = tables[0]
    for file, table in zip(files[1:], tables[1:], strict=True):
        names = [name for name in {**first, **table} if name not in numbering]
        other = [name for name in names if _kind(first.get(name)) != _kind(table.get(name))]
        if other:
            raise UserError(
                f"{files[0]} and {file} are one data set by their names, but differ in column {other[0]!r}; give both"
                " the same columns, or put one of them elsewhere"
            )
    common = [name for name in first if all(_kind(first[name]) == _kind(table.get(name)) for table in tables)]
    return {name: np.concatenate([table[name] for table in tables]) for name in common} if len(files) > 1 else first


def _kind(values: np.ndarray | None) -> Any:
    """What columns must have in common to be one: text or numbers, the shape of a row, pixels or not."""
    if values is None:
        return None
    return values.dtype.kind not in "biuf", values.shape[1:], values.dtype == np.uint8 and values.ndim > 2


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
    if values.dtype.kind == "M":
        return np.isnat(values)
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
    values = meaning.client_ids(path, client, _column(path, columns, client, "client"))
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
    return OWNERS[method](np.array(texts(y)) if y.dtype == object else y, clients, seed=seed, **own), clients


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
        if (
            isinstance(options[name], bool)
            or number < least
            or (not isinstance(options[name], str) and number != options[name])
        ):
            raise ValueError
    except OverflowError:
        if kind is float:
            return np.inf
        raise UserError(f"option {name}={options[name]!r:.60} is not a whole number; give one") from None
    except (TypeError, ValueError):
        what = ("whole number" if kind is int else "number") + (f" from {least} on" if np.isfinite(least) else "")
        raise UserError(f"option {name}={options[name]!r:.60} is not a {what}; give one") from None
    return number


def _test_rows(path: str, columns: Columns, name: str) -> np.ndarray:
    values = texts(_column(path, columns, name, "split"))
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
    notes = [
        f"{name!r} has different whole numbers that are equal as float32"
        for name, array in zip(names, arrays, strict=True)
        if array.ndim == 1 and meaning.rounded(array)
    ]
    about: dict[str, Any] = {}
    if len(arrays) == 1:
        arrays[0], notes_of_pictures = as_pictures(arrays[0])
        notes += notes_of_pictures
    if notes:
        about["notes"] = notes
    if len(arrays) == 1 and (image := _as_image(arrays[0], owners, invert)) is not None:
        return image[0], image[1] | about
    if len(arrays) == 1 and arrays[0].ndim > 1:
        x = arrays[0].astype(np.float32)
    else:
        x = np.concatenate([array.reshape(len(array), -1).astype(np.float32) for array in arrays], axis=1)
    return x, {"kind": "features", "features": list(names)} | about


def _numbers(path: str, name: str, values: np.ndarray, owners: Sequence[str], *, what: str = "features") -> np.ndarray:
    flags = values.dtype.kind == "O" and {type(value) for value in values.tolist()} <= {bool, type(None)}
    if values.dtype.kind not in "biuf" and not flags:
        raise UserError(
            f"{path} has no numbers in column {name!r}; {what} are numbers{meaning.comma_hint(values)}, so leave it out"
            " or encode it"
        )
    wrong = _missing(values) if flags else ~_is_finite(values)
    if wrong.any():
        row = int(np.argmax(wrong))
        found = "a missing, NaN or infinite value"
        if not flags and _is_finite(values[row : row + 1], np.float64).all():
            found = f"a value beyond the range of float32 ({np.abs(values[row]).max():g})"
        raise UserError(
            f"{path} has {found} in column {name!r} of client {owners[row]}, row {row + 1}; fill in or leave out the"
            " row"
        )
    return values


def _is_finite(values: np.ndarray, kind: Any = np.float32) -> np.ndarray:
    """Which rows hold finite numbers, also as float32: bool `[rows]`."""
    with np.errstate(over="ignore"):
        return np.all(np.isfinite(values.astype(kind, copy=False)).reshape(len(values), -1), axis=1)


def _as_image(values: np.ndarray, owners: Sequence[str], invert: Any) -> tuple[np.ndarray, dict[str, Any]] | None:
    """uint8 pictures stay so; those of EMNIST's shape also get its polarity, if they have a background.

    invert: whether to invert these; None decides by their background.
    """
    character = is_character(values)
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
        return _named_classes(path, name, texts(values), options["labels"], owners)
    if "classes" in options:
        if values.dtype.kind not in "iuf":
            raise UserError(f"{path} has no numbers in column {name!r}, so classes= does not fit; give labels= instead")
        classes = _number(options, "classes", int, least=1)
        return images.check_labels(values, classes, owners), {"classes": classes, "labels": _range(classes)}
    if values.dtype.kind == "f" or _for_regression(options):
        return _numbers(path, name, values, owners, what="targets of regression").astype(np.float32), {}
    if values.ndim != 1:
        each = "x".join(map(str, values.shape[1:]))
        raise UserError(
            f"{path} has {each} numbers for each row in column {name!r}, and they are not one-hot; write the number of"
            " the class, or add regression=true to predict them all"
        )
    if values.dtype.kind not in "biuUSO" or _is_odd(values):
        raise UserError(f"{path} has neither text nor numbers in column {name!r}; name another with target=")
    if values.dtype.kind in "USO":
        return _text_classes(path, name, texts(values))
    found, codes = np.unique(values, return_inverse=True)
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


def _is_odd(values: np.ndarray) -> bool:
    """Whether a column of objects holds other things than text."""
    return values.dtype.kind == "O" and not all(isinstance(value, str | bytes) for value in values.tolist())


def _text_classes(path: str, name: str, values: Sequence[str]) -> tuple[np.ndarray, dict[str, Any]]:
    labels = sorted(set(values))
    if pair := twins(labels):
        raise UserError(
            f"{path} has the classes {pair[0]!r} and {pair[1]!r} in column {name!r}, which differ only by spaces or in"
            " how letters are composed; write one class always alike"
        )
    numbers = {label: number for number, label in enumerate(labels)}
    return np.array([numbers[value] for value in values], np.int32), {"classes": len(labels), "labels": labels}


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
