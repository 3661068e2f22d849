"""Federations from names and files: `load`."""

from __future__ import annotations

import ast
import inspect
import os
import re
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from headstart.console import printable
from headstart.data.cache import cache_root, cached
from headstart.data.decided import as_decided
from headstart.data.download import download
from headstart.data.duplicates import with_duplicate_notes
from headstart.data.federation import Federation, of_rows, split_examples
from headstart.data.preprocessing import is_raw, of_metadata
from headstart.data.readers import fedjax, leaf, tff
from headstart.data.readers.picture_folder import read_pictures
from headstart.data.readers.rows import Rows, accept, explain, listed, reading
from headstart.data.readers.sources import Sources, find, open_database, recognise
from headstart.data.readers.tables import inputs_of, read_table, table_of
from headstart.errors import UserError

__all__ = ["download", "load"]

_DATA_URL = "https://storage.googleapis.com/tff-datasets-public"
_PUBLISHED = {"emnist": "emnist_all.sqlite.lzma", "shakespeare": "shakespeare.sqlite.lzma"}
NAMES = ("glyphs", *_PUBLISHED)


def load(name_or_path: str | os.PathLike[str], **options: Any) -> Federation:
    """A federation: `glyphs` is generated, `emnist` and `shakespeare` are downloaded, anything else is a path.

    The format of a file is recognised from what is in it: TFF sqlite (also packed by lzma) and h5, FedJAX sqlite,
    LEAF JSON, npz, Parquet, CSV, also several of these three in a folder, and folders of pictures. Where train and
    test examples have files of their own, one of them is enough, or their folder. Sources without a predefined split
    get one by `split_examples`.

    options: those of `glyphs`; `digits_only=True` for TFF's EMNIST; those of `tables.read_table`, such as
        `regression=True`, without which whole numbers are classes. They may be text, as a command line gives them.

    Published EMNIST is uint8 `[rows, 28, 28, 1]`, background 255; other pictures keep their polarity. Text is int32
    `[rows, 80]`; features are float32.

    Raises:
        UserError: for a file that is missing, damaged or of another format, bad values, unknown options.
    """
    with readable():
        return _load(os.fspath(name_or_path), options, {})


def load_as_decided(
    name_or_path: str | os.PathLike[str],
    options: Mapping[str, Any],
    decided: Mapping[str, Any],
    *,
    select_features: bool = True,
) -> Federation:
    """The federation read as training decided, by `decided.decisions` of its own data, and not anew.

    select_features: whether the decided features are looked up among all columns. If not, as where the decisions are a
        stranger's, they are but the order of those that the options or, without these, the reader takes.

    Raises:
        UserError: as of `load`, and if the data contradict what was decided.
    """
    name = os.fspath(name_or_path)
    with readable():
        if not select_features:
            own = {key: value for key, value in decided.items() if key not in ("features", "split_by")}
            federation = _load(name, options, own)
            taken, theirs = federation.metadata.get("features"), list(decided.get("features", ()))
            if not theirs or taken == theirs or sorted(taken or ()) != sorted(theirs):
                return as_decided(federation, decided, name)
        return as_decided(_load(name, options, decided), decided, name)


class Inputs(NamedTuple):
    """Inputs as a run's model takes them, without targets.

    x: `[rows, ...]`, in the order of the file. clients: of each row; None where nothing says it. notes: sentences
    on what may be amiss.
    """

    x: np.ndarray
    clients: list[str] | None
    notes: Sequence[str] = ()


def load_inputs(name_or_path: str | os.PathLike[str], options: Mapping[str, Any], decided: Mapping[str, Any]) -> Inputs:
    """The inputs of a file, read as training decided. A table (npz, Parquet, CSV) may be without targets and clients.

    Raises:
        UserError: as of `load_as_decided`.
    """
    path = Path(os.fspath(name_or_path))
    with readable():
        if str(path) not in NAMES:
            with reading(path):
                sources, form = find(path), recognise(path)
            if form in ("npz", "parquet", "csv"):
                with _reachable(path):
                    return _inputs_of_table(sources, form, options, decided)
        federation = as_decided(_load(str(path), options, decided), decided, str(path))
    clients = np.repeat(np.array(list(federation.ids), object), federation.sizes.sum(axis=1))
    return Inputs(federation.fetch(np.arange(len(federation)))[0], clients.tolist())


def _inputs_of_table(sources: Sources, form: str, options: Mapping[str, Any], decided: Mapping[str, Any]) -> Inputs:
    x, metadata, clients = inputs_of(table_of(sources, form, options), options, decided)
    preprocessing, classes = of_metadata(decided), {n: decided[n] for n in ("classes", "labels") if n in decided}
    width = len(preprocessing.target_center) if preprocessing else 0
    y = np.zeros(len(x), np.int32) if classes else np.zeros((len(x), max(1, width)), np.float32)
    # Of one client, so that the rows stay in their order.
    whole = of_rows(
        str(sources.path),
        ["rows"],
        np.array([[len(x), 0]]),
        x,
        y,
        has_predefined_split=True,
        metadata={**metadata, **classes},
    )
    notes = preprocessing.unknown_values(whole) if preprocessing and is_raw(whole) else ()
    return Inputs(as_decided(whole, decided, str(sources.path)).fetch(np.array([0]))[0], clients, notes)


def _load(name: str, options: Mapping[str, Any], decided: Mapping[str, Any]) -> Federation:
    if name == "glyphs":
        return _glyphs(options)
    if name not in _PUBLISHED:
        with reading(Path(name)):
            sources = find(Path(name))
        return _from_files(sources, options, decided)
    path = cache_root() / "downloads" / _PUBLISHED[name]
    download([f"{each}/{path.name}" for each in _mirrors()], path, sha256=_published_digest(name))
    return _from_files(Sources(path, (path,), ()), options, decided, name=name)


def _mirrors() -> list[str]:
    """The addresses of published data sets, in the order in which they are tried."""
    return re.split(r"[\s,]+", os.environ.get("HEADSTART_DATA_URL", _DATA_URL).strip(" ,"))


def _published_digest(name: str) -> str | None:
    """The SHA-256 of a published data set that the environment states, as `emnist=DIGEST shakespeare=DIGEST`."""
    stated = os.environ.get("HEADSTART_DATA_SHA256", "")
    return dict(part.split("=", 1) for part in re.split(r"[\s,]+", stated) if "=" in part).get(name, "").lower() or None


def _glyphs(options: Mapping[str, Any]) -> Federation:
    from headstart.data.glyphs.glyphs import glyphs

    accept(options, list(inspect.signature(glyphs).parameters), "glyphs")
    return glyphs(**{name: _literal(name, value) for name, value in options.items()})


def _literal(name: str, value: Any) -> Any:
    """A number or tuple that a command line gave as text."""
    try:
        return ast.literal_eval(value) if isinstance(value, str) else value
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise UserError(f"option {name}={value!r:.60} of glyphs is not a number; give one") from None


def _from_files(
    sources: Sources, options: Mapping[str, Any], decided: Mapping[str, Any], *, name: str | None = None
) -> Federation:
    as_read = {**options, "decided by training": decided} if decided else options
    with _reachable(sources.path):
        files = [file for file in (sources.path, *sources.files) if file != sources.folder]
        rows = cached(files, as_read, lambda: _read(sources, options, decided))
    return federation_of(name or _name(sources), rows)


def federation_of(name: str, rows: Rows) -> Federation:
    """The federation of what a reader has found, split if nothing has split it; near-duplicates are noted."""
    federation = of_rows(name, *rows[:4], has_predefined_split=rows.has_predefined_split, metadata=rows.metadata)
    if not rows.has_predefined_split and "split" not in rows.metadata:
        federation = split_examples(federation)
    return with_duplicate_notes(federation)


def _name(sources: Sources) -> str:
    """What to call a data set, by its folder or its file without the part."""
    if sources.folder is not None:
        folder = sources.folder.resolve()
        return folder.parent.name if folder.name == "data" and folder.parent.name else folder.name
    return re.sub(r"[_-]?(train|test)(?=[_-]|$)", "", sources.path.name.split(".")[0]) or sources.path.name


@contextmanager
def readable() -> Iterator[None]:
    """Names from a file, which a sentence may hold, control no terminal and make no further line."""
    try:
        yield
    except UserError as error:
        raise UserError(printable(str(error), most=4000)) from error


@contextmanager
def _reachable(path: Path) -> Iterator[None]:
    """What the system says of a file that went away, or the like, is a sentence as in `reading`."""
    try:
        yield
    except OSError as error:
        raise UserError(explain(path, error)) from error


def _read(sources: Sources, options: Mapping[str, Any], decided: Mapping[str, Any]) -> Rows:
    with reading(sources.path):
        form = recognise(sources.path)
    if form == "pictures":
        return read_pictures(sources.path, sources.train, options, decided)
    # A table says for itself what is the file's fault and what an option's.
    if form in ("npz", "parquet", "csv"):
        return read_table(sources, form, options, decided)
    with reading(sources.path):
        return _read_layout(sources, form, options, decided)


def _read_layout(sources: Sources, form: str, options: Mapping[str, Any], decided: Mapping[str, Any]) -> Rows:
    path, train, test, _ = sources
    if form == "sqlite":
        return _read_sqlite(sources, options)
    accept(options, [], f"{path} ({'TFF h5' if form == 'h5' else 'LEAF JSON'})")
    return tff.read_h5(train, test) if form == "h5" else leaf.read_leaf(train, test, decided)


def _read_sqlite(sources: Sources, options: Mapping[str, Any]) -> Rows:
    with open_database(sources.path) as database:
        tables = _tables(database)
        if {"examples", "client_metadata"} <= tables:
            return tff.read_sqlite(sources.path, database, options)
    if "federated_data" not in tables:
        raise UserError(
            f"{sources.path} is SQLite with the tables {listed(sorted(tables))}, neither TFF's (examples,"
            " client_metadata) nor FedJAX's (federated_data); give one of theirs"
        )
    accept(options, [], f"{sources.path} (FedJAX sqlite)")
    return fedjax.read_fedjax(sources.train, sources.test, open_database)


def _tables(database: sqlite3.Connection) -> set[str]:
    return {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
