"""A user's own examples: npz, Parquet and CSV, one row per example."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from headstart.data.decided import class_labels
from headstart.data.mapped import Scratch, UnlikeRowsError
from headstart.data.preprocessing import of_metadata
from headstart.data.readers import meaning
from headstart.data.readers.arrow import large_columns, read_csv, read_parquet
from headstart.data.readers.columns import (
    Columns,
    for_regression,
    missing,
    names_in,
    no_column,
    single,
    with_parts,
)
from headstart.data.readers.encoding import Kind
from headstart.data.readers.features import features_of, is_pictures
from headstart.data.readers.meaning import texts
from headstart.data.readers.npz import read_npz
from headstart.data.readers.own_text import next_characters, texts_of, token_sequences
from headstart.data.readers.owners import clients_of, column_of
from headstart.data.readers.rows import Rows, accept, arrange, as_flag, joined_unless_split, listed, reading
from headstart.data.readers.shards import clients_by_file, described
from headstart.data.readers.sources import Sources
from headstart.data.readers.targets import decided_classes, target_classes
from headstart.data.readers.within_clients import OPTIONS as WITHIN
from headstart.data.readers.within_clients import by_group, by_time, chosen_option, untestable_note
from headstart.data.readers.words import NOTE, hashed_words
from headstart.errors import UserError

COLUMN_OPTIONS = (
    *("client", "target", "features", "split", "exclude", "time", "group"),
    *("classes", "labels", "regression", "inverted", "raw"),
    *("text", "characters", "vocabulary", "padding"),
)
_PARTITION_OPTIONS = ("partition", "clients", "alpha", "classes_per_client", "seed")


def read_table(
    sources: Sources, form: str, options: Mapping[str, Any], decided: Mapping[str, Any] = MappingProxyType({})
) -> Rows:
    """Rows of a table; of a pair of files, those for local training and those for local tests.

    Options: `client`, `target`, `features`, `split` name columns (by default `client`, `y`, and `x` in npz or all
    other columns but row numbers, and none); a column `split` says train or test. `exclude` names columns that are no
    features. `time` names the column by which the last part of each client's rows tests, `group` the one whose rows
    stay together; these are no features unless `features` names them. Text and whole numbers are classes, in sorted
    order, also those written as 1.0 where they are few, and one-hot rows; `classes=62` takes them as the numbers of
    that many classes instead, `labels=a,b,c` gives the order; other numbers are for regression, and with
    `regression=true` whole ones too. Without a client column, `partition=dirichlet|classes|random` with `clients`,
    `alpha`, `classes_per_client` and `seed` makes clients.

    `text` names a column of text: its words are features where `target` is given, and else every next character is a
    target, of characters that training clients decide, or of `characters=printable`. `vocabulary=N` says that x and y
    are tokens, y the next of each, and `padding=0` which of them fills rows up.
    Pictures keep the polarity that they have; `inverted=true` inverts characters of 28 x 28.

    Features of Parquet and CSV may be numbers, text, dates and booleans with gaps: a raw table, which a `Preprocessing`
    makes features of, and so may x of npz, `[rows, columns]`. `raw=true` takes numbers as they are, and refuses all
    else.

    decided: what training decided, which is applied, and nothing of it anew; see `decided.decisions`.
    """
    rows = rows_of(table_of(sources, form, options), options, decided)
    return joined_unless_split(rows) if sources.train and sources.test else rows


def table_of(sources: Sources, form: str, options: Mapping[str, Any]) -> Table:
    """The columns of a table, read from its file or files.

    Raises:
        UserError: if they cannot be read, do not belong together, or there is no such option.
    """
    (path, short), pair = described(sources), bool(sources.train and sources.test)
    accept(options, COLUMN_OPTIONS + _PARTITION_OPTIONS, f"{path} ({form})")
    if pair and (split := options.get("split")):
        raise UserError(f"{path} are a pair, so split={split} does not fit; leave it out, or put one of them elsewhere")
    (tables, numberings), apart = _read_all(sources, form, options)
    numbering = set().union(*numberings)
    columns = _stack(sources.files, tables, numbering, apart)
    lengths = [len(next(iter(table.values()))) for table in tables]
    columns, notes = clients_by_file(sources, lengths, columns, options)
    of_test = np.repeat([file in sources.test for file in sources.files], lengths) if pair else None
    return Table(path, f"{form} {short}", columns, numbering, of_test, notes, is_npz=form == "npz")


class Table(NamedTuple):
    """The columns of a table, by name, and what is known of them beside the options.

    path: what messages call it. source: what metadata call it, which begins with its form. numbering: the columns that
    only number rows. test: bool `[rows]`, where the source says itself which rows are for local tests.
    """

    path: str
    source: str
    columns: Columns
    numbering: Collection[str] = ()
    test: np.ndarray | None = None
    notes: Sequence[str] = ()
    is_npz: bool = False


def rows_of(table: Table, options: Mapping[str, Any], decided: Mapping[str, Any] = MappingProxyType({})) -> Rows:
    """Rows of the columns of a table; options and decided as of `read_table`."""
    path, columns = table.path, table.columns
    accept(options, COLUMN_OPTIONS + _PARTITION_OPTIONS, table.source)
    options = _with_decisions(path, options, decided, is_split=table.test is not None)
    if options.get("text"):
        return _rows_of_text(table, options, decided)
    target = str(options.get("target", "y"))
    y = column_of(path, columns, target, "target")
    if "vocabulary" in options:
        x = column_of(path, columns, ",".join(names_in(options.get("features", "x"))), "features")
        x, y, metadata = token_sequences(path, meaning.flat(x), y, options)
        return _arranged(table, options, _owners(table, options, y[:, 0]), x, y, metadata)
    y, clients, owners = _owned(table, target, y, options, decided)
    taken = {str(options[name]) for name in ("client", "split", *WITHIN) if name in options}
    taken |= {str(options.get("client", "client")), target}
    names = _feature_names(path, table, options, taken)
    _refuse_as_features(path, names, options, target)
    x, metadata = _features(table, names, owners, options, decided)
    y, about = _targets(path, target, y, options, decided, owners)
    if left_out := sorted(map(repr, set(table.numbering) - taken - set(names))):
        note = f"{listed(left_out)} only numbers the rows and is left out; features= takes it"
        metadata["notes"] = [*metadata.get("notes", []), note]
    beside = [name for name in columns if name not in {*taken, *names, *table.numbering}]
    first = columns.get(names[0])
    if beside and not table.is_npz and "features" not in options and first is not None and is_pictures(first):
        note = f"{names[0]!r} holds pictures and is the one input; {listed(map(repr, beside))} beside it is left out"
        metadata["notes"] = [*metadata.get("notes", []), note]
    return _arranged(table, options, clients, x, y, metadata | about | {"target": target})


def _features(
    table: Table, names: Sequence[str], owners: Sequence[str], options: Mapping[str, Any], decided: Mapping[str, Any]
) -> tuple[np.ndarray, dict[str, Any]]:
    invert, raw, kinds = options.get("inverted"), as_flag("raw", options.get("raw", False)), _decided_kinds(decided)
    return features_of(table.path, table.columns, names, owners, invert, table=not raw, kinds=kinds)


def _targets(
    path: str, name: str, y: np.ndarray, options: Mapping[str, Any], decided: Mapping[str, Any], owners: Sequence[str]
) -> tuple[np.ndarray, dict[str, Any]]:
    if decided.get("classes"):
        return decided_classes(path, name, y, decided, owners)
    return target_classes(path, name, y, options, owners)


def _rows_of_text(table: Table, options: Mapping[str, Any], decided: Mapping[str, Any]) -> Rows:
    """Rows of a column of text: its words, where `target` is given too, and else its characters, each a target."""
    path, columns, text = table.path, table.columns, str(options["text"])
    texts = texts_of(path, text, column_of(path, columns, text, "text"))
    if "features" in options and "features" not in decided:
        raise UserError(f"{path}: text={text} is the one input, so features= does not fit; leave it out")
    if "target" not in options:
        clients = _owners(table, options, np.zeros(len(texts), np.int64))
        tokens, counts, metadata = next_characters(path, texts, options, decided)
        return _arranged(table, options, clients, tokens[:, :-1], tokens[:, 1:], metadata, counts)
    target = str(options["target"])
    y, clients, owners = _owned(table, target, column_of(path, columns, target, "target"), options, decided)
    y, about = _targets(path, target, y, options, decided, owners)
    return _arranged(table, options, clients, hashed_words(texts), y, {"kind": "features", "notes": [NOTE]} | about)


class _Clients(NamedTuple):
    """The clients of a table's rows: int `[rows]`, the index of each row's client in `ids`."""

    codes: np.ndarray
    ids: list[str]


def _owners(table: Table, options: Mapping[str, Any], y: np.ndarray) -> _Clients:
    return _Clients(*clients_of(table.path, table.columns, options, y))


def _owned(
    table: Table, target: str, y: np.ndarray, options: Mapping[str, Any], decided: Mapping[str, Any]
) -> tuple[np.ndarray, _Clients, list[str]]:
    """The targets `[rows, ...]` in the form in which classes are apart from quantities, and whose they are."""
    if not for_regression(options):
        y = meaning.targets(table.path, target, y, known=bool({"classes", "labels"} & {*options, *decided}))
    clients = _owners(table, options, y)
    return y, clients, [clients.ids[code] for code in clients.codes.tolist()]


def _arranged(
    table: Table,
    options: Mapping[str, Any],
    clients: _Clients,
    x: np.ndarray,
    y: np.ndarray,
    metadata: Mapping[str, Any],
    counts: np.ndarray | None = None,
) -> Rows:
    """The rows by client, split as the table or the options say.

    counts: int `[rows]`, how many rows of x and y each row of the table has become; None: one.
    """
    path, split, (codes, ids) = table.path, options.get("split"), clients
    predefined = bool(split) or table.test is not None
    within = chosen_option(path, options, predefined=predefined)
    test, about, notes = np.zeros(len(codes), bool), {}, list(table.notes)
    if split:
        test = _test_rows(path, table.columns, str(split))
    elif table.test is not None:
        test = table.test
    elif within:
        values = column_of(path, table.columns, str(options[within]), within)
        chosen = {"time": by_time, "group": by_group}[within](path, str(options[within]), values, codes, ids)
        test, about = chosen.test, {"split": chosen.words, "split_by": chosen.decided}
        notes += untestable_note(len(ids), codes, test, chosen.words)
    if counts is not None:
        codes, test = np.repeat(codes, counts), np.repeat(test, counts)
    if notes := [*metadata.get("notes", []), *notes]:
        about["notes"] = notes
    metadata = {**metadata, **about, "source": table.source}
    return arrange(ids, codes, test, x, y, metadata=metadata, has_predefined_split=predefined)


def _with_decisions(
    path: str, options: Mapping[str, Any], decided: Mapping[str, Any], *, is_split: bool
) -> dict[str, Any]:
    """The options, and what was decided in place of those that are not given.

    is_split: whether the data say themselves which rows are for local tests, whatever was decided.

    Raises:
        UserError: if they contradict what was decided.
    """
    labels = class_labels(decided)
    decides: Mapping[str, Callable[[Any], bool]] = {
        "features": lambda value: _same_features(names_in(value), decided),
        "labels": lambda value: names_in(value) == labels,
        "classes": lambda value: str(value) == str(len(labels)),
        "regression": lambda value: as_flag("regression", value) != bool(labels),
    }
    targets = {"labels", "classes", "regression"} if {"classes", "regression"} & decided.keys() else set()
    for name in sorted((targets | ({"features"} & decided.keys())) & options.keys()):
        if not decides[name](options[name]):
            raise UserError(f"{path}: {name}={options[name]} is not what the run was trained with; leave it out")
    added = {name: decided[name] for name in ("features", "regression") if name in decided}
    if not is_split and not {"split", *WITHIN} & options.keys():
        added |= {name: column for name, column in dict(decided.get("split_by", {})).items() if name in WITHIN}
    if decided.get("features"):
        added["raw"] = "preprocessing" not in decided
    own_words = {"inverted": decided["inverted"], **options} if "inverted" in decided else options
    return {**own_words, **added}


def _same_features(names: Sequence[str], decided: Mapping[str, Any]) -> bool:
    """Whether the names are of the decided features; preprocessing may have left out some of them."""
    if "preprocessing" in decided:
        return set(decided["features"]) <= set(names)
    return sorted(names) == sorted(decided["features"])


def _decided_kinds(decided: Mapping[str, Any]) -> dict[str, Kind]:
    """What training decided that columns stand for, by name."""
    preprocessing = of_metadata(decided)
    return {column.name: column.kind for column in preprocessing.columns} if preprocessing else {}


def _read_all(sources: Sources, form: str, options: Mapping[str, Any]) -> tuple[Any, Mapping[str, np.ndarray]]:
    """The columns of each file and what only numbers its rows, as two tuples; and large columns, of all files."""
    names = large_columns(sources.files) if form == "parquet" else []
    with ExitStack() as stack, suppress(UnlikeRowsError):
        apart = {name: stack.enter_context(Scratch()) for name in names}
        read = tuple(zip(*(_read(file, form, options, apart) for file in sources.files), strict=True))
        return read, {name: scratch.array() for name, scratch in apart.items()}
    # Together, they may yet be columns; or what they are is said of them.
    return tuple(zip(*(_read(file, form, options) for file in sources.files), strict=True)), {}


def _read(
    path: Path, form: str, options: Mapping[str, Any], apart: Mapping[str, Scratch] = MappingProxyType({})
) -> tuple[Columns, list[str]]:
    """The columns of a file, and the names of those that only number its rows; apart: as of `read_parquet`."""
    with reading(path):
        if form == "npz":
            return read_npz(path), []
        return read_parquet(path, apart) if form == "parquet" else read_csv(path, str(options.get("client", "client")))


def _stack(
    files: Sequence[Path], tables: Sequence[Columns], numbering: set[str], apart: Mapping[str, np.ndarray]
) -> Columns:
    """The rows of several files, one after the other; a column that numbers rows may be in one of them alone.

    apart: columns of all files, which they do not hold themselves.
    """
    tables = _with_empty_columns_alike(tables)
    first = tables[0]
    for file, table in zip(files[1:], tables[1:], strict=True):
        names = [name for name in {**first, **table} if name not in numbering]
        other = [name for name in names if _kind(first.get(name)) != _kind(table.get(name))]
        if other:
            raise UserError(
                f"{files[0]} and {file} are one data set by their names or their folder, but differ in column"
                f" {other[0]!r}; give both the same columns, or put one of them elsewhere"
            )
    common = [name for name in first if all(_kind(first[name]) == _kind(table.get(name)) for table in tables)]
    if len(files) == 1:
        return {**first, **apart}
    return {
        name: apart[name] if name in apart else np.concatenate([table[name] for table in tables]) for name in common
    }


def _with_empty_columns_alike(tables: Sequence[Columns]) -> list[Columns]:
    """The tables, with columns that have no value in one of them of the type that they have in another."""
    empty = [{name for name, values in table.items() if values.ndim == 1 and missing(values).all()} for table in tables]
    types: dict[str, np.dtype[Any]] = {}
    for table, without in zip(tables, empty, strict=True):
        types = {name: values.dtype for name, values in table.items() if name not in without} | types
    return [
        table | {name: _gaps(len(table[name]), types[name]) for name in without & types.keys()}
        for table, without in zip(map(dict, tables), empty, strict=True)
    ]


def _gaps(rows: int, like: np.dtype[Any]) -> np.ndarray:
    """A column without a value, in a type that can be one column with this."""
    if like.kind in "biuf":
        return np.full(rows, np.nan)
    return np.full(rows, np.datetime64("NaT", "us") if like.kind == "M" else None)


def _kind(values: np.ndarray | None) -> Any:
    """What columns must have in common to be one: text or numbers, the shape of a row, pixels or not."""
    if values is None:
        return None
    return values.dtype.kind not in "biuf", values.shape[1:], values.dtype == np.uint8 and values.ndim > 2


def _test_rows(path: str, columns: Columns, name: str) -> np.ndarray:
    values = texts(column_of(path, columns, name, "split"))
    other = set(values) - {"train", "test"}
    if other:
        raise UserError(f"{path} says {min(other)!r} in its column {name!r}; write train or test in each row")
    return np.array([value == "test" for value in values])


def _feature_names(path: str, table: Table, options: Mapping[str, Any], taken: set[str]) -> list[str]:
    rest = [name for name in table.columns if name not in taken | set(table.numbering)]
    # A picture is an input by itself; what stands beside it in a table is about it.
    pictures = [name for name in rest if is_pictures(table.columns[name])]
    rest = pictures if len(pictures) == 1 else rest
    names = names_in(options.get("features", "x" if table.is_npz else rest))
    excluded = names_in(options["exclude"]) if options.get("exclude") else []
    there = with_parts(table.columns, excluded)
    for name in excluded:
        if name not in there:
            raise no_column(path, name, table.columns, "name the right ones with exclude=")
    if there.keys() - table.columns.keys():
        names = [part for name in names for part in (single(name, there[name]) if name in there else (name,))]
    return [name for name in names if name not in excluded]


def _refuse_as_features(path: str, names: Sequence[str], options: Mapping[str, Any], target: str) -> None:
    """Refuse what is no input: the client of a row, and what is to be predicted."""
    client = None if "partition" in options else str(options.get("client", "client"))
    for name, what in ((client, "says whose the rows are"), (target, "is the target")):
        if name in names:
            raise UserError(f"{path}: column {name!r} {what}, so it is no feature; leave it out of features=")


def inputs_of(
    table: Table, options: Mapping[str, Any], decided: Mapping[str, Any]
) -> tuple[np.ndarray, dict[str, Any], list[str] | None]:
    """The inputs of a table as `rows_of` makes them, in the order of its rows, whether or not there are targets.

    Returns the inputs `[rows, ...]`, what is known of them, and the client of each row, None without a column of them.
    """
    path, columns = table.path, table.columns
    options = _with_decisions(path, options, decided, is_split=True)
    client = str(options.get("client", "client"))
    owners = clients_of_rows(table, options) if "client" in options or client in columns else None
    if options.get("text") or decided.get("kind") == "text":
        x = _inputs_of_text(table, options, decided)
        return x, {"kind": "text" if x.dtype == np.int32 else "features", "source": table.source}, owners
    taken = {client, *(str(options[name]) for name in ("target", "split", *WITHIN) if name in options)}
    names = _feature_names(path, table, options, taken)
    rows = owners or [""] * len(next(iter(columns.values())))
    x, metadata = _features(table, names, rows, options, decided)
    return x, metadata | {"source": table.source}, owners


def _inputs_of_text(table: Table, options: Mapping[str, Any], decided: Mapping[str, Any]) -> np.ndarray:
    """The numbers of words of a column of text, or token sequences."""
    if not options.get("text"):
        x = column_of(table.path, table.columns, ",".join(names_in(options.get("features", "x"))), "features")
        return token_sequences(table.path, x, x, {"vocabulary": decided.get("classes"), **options})[0]
    if decided.get("kind") == "text":
        raise UserError(
            f"{table.path}: of next characters there is no prediction for a row of a table; give Run.predict tokens"
        )
    return hashed_words(
        texts_of(table.path, options["text"], column_of(table.path, table.columns, options["text"], "text"))
    )


def clients_of_rows(table: Table, options: Mapping[str, Any]) -> list[str]:
    """The client of each row of a table.

    Raises:
        UserError: if there is no such column, or it has gaps.
    """
    client = str(options.get("client", "client"))
    return meaning.client_ids(table.path, client, column_of(table.path, table.columns, client, "client"))
