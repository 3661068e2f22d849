"""TensorFlow Federated's files: SQLite today, HDF5 before."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from headstart.data.readers import hdf5, images, text, tfexample
from headstart.data.readers.rows import Chunk, Rows, accept, as_flag, listed, refuse_empty
from headstart.data.readers.sources import typed
from headstart.data.readers.whole import read_whole
from headstart.errors import UserError

_AT_ONCE = 4096


class _Splits(NamedTuple):
    train: str
    test: str


def read_sqlite(path: Path, database: sqlite3.Connection, options: Mapping[str, object]) -> Rows:
    """Tables `examples` and `client_metadata`; option `digits_only` takes the splits of that name.

    path: what the user named, for messages; database: the same, unpacked and open.
    """
    accept(options, ["digits_only"], f"{path} (TFF sqlite)")
    digits = as_flag("digits_only", options.get("digits_only", False))
    found = [name for (name,) in typed(path, database, "SELECT DISTINCT split_name FROM client_metadata", str)]
    splits = _choose_splits(path, found, digits)
    expected = _expected(path, database, splits)
    has_predefined_split = splits.test in found
    batches = _counted(path, _batches(path, database, splits), expected)
    first = next(batches, None)
    if first is None:
        raise UserError(f"{path} has no examples in its splits {splits.train} and {splits.test}; get it again")
    batches = chain([first], batches)
    if "snippets" in tfexample.features(first[0][2]):
        chunks = (_snippets(batch, splits) for batch in batches)
        return text.passage(chunks, source=f"TFF sqlite {path.name}", has_predefined_split=has_predefined_split)
    classes = 10 if digits else len(images.LABELS)
    chunks = (_images(batch, splits, classes) for batch in batches)
    return images.handwriting(
        chunks, path, source=f"TFF sqlite {path.name}", has_predefined_split=has_predefined_split, classes=classes
    )


def _batches(path: Path, database: sqlite3.Connection, splits: _Splits) -> Iterator[list[tuple]]:
    query = (
        "SELECT client_id, split_name, serialized_example_proto FROM examples WHERE split_name IN (?, ?) ORDER BY rowid"
    )
    rows = typed(path, database, query, str, str, bytes, given=splits)
    return iter(lambda: list(islice(rows, _AT_ONCE)), [])


def _choose_splits(path: Path, found: list[str], digits: bool) -> _Splits:
    wanted = [_Splits("digits_only_train", "digits_only_test")] if digits else []
    wanted = wanted or [_Splits("all_train", "all_test"), _Splits("train", "test")]
    for splits in wanted:
        if splits.train in found:
            return splits
    raise UserError(
        f"{path} has the splits {listed(sorted(found))}, not {' or '.join(s.train for s in wanted)};"
        " name another file" + (", or leave out digits_only" if digits else "")
    )


def _expected(path: Path, database: sqlite3.Connection, splits: _Splits) -> Counter[tuple[str, str]]:
    """How many examples the file says it has, by client and split."""
    query = "SELECT client_id, split_name, num_examples FROM client_metadata WHERE split_name IN (?, ?)"
    expected, totals = Counter(), Counter()
    for client, split, count in typed(path, database, query, str, str, int, given=splits):
        if count < 0:
            raise ValueError(f"client {client} with {count} examples")
        expected[client, split] += count
        totals[client] += count
    refuse_empty(path, totals)
    return expected


def _counted(path: Path, batches: Iterator[list[tuple]], expected: Counter) -> Iterator[list[tuple]]:
    """Pass the batches on; then compare what came with what was announced."""
    found = Counter()
    for batch in batches:
        found.update((client, split) for client, split, _ in batch)
        yield batch
    for client, split in found.keys() | expected.keys():
        if found[client, split] != expected[client, split]:
            raise UserError(
                f"{path} has {found[client, split]} examples of client {client} in {split}, but announces"
                f" {expected[client, split]}; get it again"
            )


def _images(batch: list[tuple], splits: _Splits, classes: int) -> Chunk:
    owners = [client for client, _, _ in batch]
    test = np.array([split == splits.test for _, split, _ in batch])
    pixels, labels = tfexample.images([message for _, _, message in batch], size=images.SIDE**2)
    return images.chunk(owners, test, pixels, labels, classes)


def _snippets(batch: list[tuple], splits: _Splits) -> Chunk:
    texts = [(c, s == splits.test, t) for c, s, m in batch for t in tfexample.byte_strings(m, "snippets")]
    return text.snippets([c for c, _, _ in texts], [test for _, test, _ in texts], [t for _, _, t in texts])


def read_h5(train: Sequence[Path], test: Sequence[Path]) -> Rows:
    """Groups `examples/<client>/` with `pixels` and `label`, or `snippets`; train and test in files of their own."""
    return read_whole(_h5_clients, train, test, "TFF h5")


def _h5_clients(path: Path) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    import h5py

    with h5py.File(path, "r") as file:
        clients = hdf5.child(path, file, "examples") if "examples" in file else None
        names = map(str, clients) if isinstance(clients, h5py.Group) else ()
        groups = {name: hdf5.child(path, clients, name) for name in names}
        if not groups or not all(isinstance(group, h5py.Group) for group in groups.values()):
            raise UserError(
                f"{path} is HDF5 of another data set, with {listed(file)} and no group of clients named examples; write"
                " it as npz, Parquet or CSV"
            )
        read = hdf5.Reader(path)
        for client, group in groups.items():
            yield client, {name: read(hdf5.child(path, group, name)) for name in group}
