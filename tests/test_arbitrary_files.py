"""Any bytes end in a federation or a sentence: valid files of every layout, changed at random, and random bytes.

`HEADSTART_EXAMPLES=10000` tries as many of each in place of a few.
"""

from __future__ import annotations

import gzip
import io
import math
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from arbitrary import examples
from headstart.data.load import load
from headstart.data.preprocessing import Preprocessing, is_raw
from headstart.errors import UserError
from test_datasets import IDS, drawings, write, write_fedjax, write_h5, write_leaf, write_tff

MOST_SECONDS = 10
MAGICS = (
    b"SQLite format 3\0",
    b"\x89HDF\r\n\x1a\n",
    b"PK\x03\x04",
    b"PAR1",
    b"\x1f\x8b\x08\0",
    b"]\0\0\x80\0",
    b"\xfd7zXZ\0",
    b'{"users": ["u"], "num_samples": [1], "user_data": {"u": ',
    b"client,y,a\n",
    b"client;y;a\nu;1;",
    b"",
)
TABLE = {"client": np.repeat(["ann", "bo"], 4), "x": np.arange(16.0).reshape(8, 2), "y": np.arange(8) % 2}


def one(*, text: bool = False) -> dict[Any, Any]:
    """One client with one example, so that there is little that a change would not meet."""
    if text:
        return {(IDS[0], "train"): {"snippets": [b"Ay, marry."]}}
    fields = drawings()[IDS[0], "train"]
    return {(IDS[0], "train"): {name: values[:1] for name, values in fields.items()}}


def csv() -> bytes:
    rows = zip(TABLE["client"], TABLE["x"][:, 0], TABLE["y"], strict=True)
    return b"client,a,y\n" + "".join(f"{client},{a},{y}\n" for client, a, y in rows).encode()


def npz(folder: Path) -> Path:
    np.savez(folder / "a.npz", **TABLE)
    return folder / "a.npz"


def parquet_file(folder: Path) -> Path:
    columns = {"client": TABLE["client"], "a": TABLE["x"][:, 0], "y": TABLE["y"].astype(np.int32)}
    parquet.write_table(pa.table(columns), folder / "a.parquet", compression="none")
    return folder / "a.parquet"


MAKERS = {
    "npz": npz,
    "parquet": parquet_file,
    "csv": lambda folder: content(folder / "a.csv", csv()),
    "csv.gz": lambda folder: content(folder / "a.csv.gz", gzip.compress(csv(), mtime=0)),
    "tff-sqlite": lambda folder: write_tff(folder / "a.sqlite", one()),
    "tff-lzma": lambda folder: write(folder, "tff-lzma", one()),
    "tff-text": lambda folder: write_tff(folder / "a.sqlite", one(text=True), names=("train", "test")),
    "tff-h5": lambda folder: write_h5(folder / "a.h5", one(), "train"),
    "tff-h5-text": lambda folder: write_h5(folder / "a.h5", one(text=True), "train"),
    "fedjax": lambda folder: write_fedjax(folder / "a.sqlite", one(), "train"),
    "fedjax-text": lambda folder: write_fedjax(folder / "a.sqlite", one(text=True), "train"),
    "leaf": lambda folder: write_leaf(folder / "a.json", one(), "train"),
}


def content(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.fixture(scope="module")
def valid(tmp_path_factory) -> dict[str, bytes]:
    """A valid file of each layout."""
    return {name: make(tmp_path_factory.mktemp(name)).read_bytes() for name, make in MAKERS.items()}


@pytest.fixture(scope="module", autouse=True)
def _no_cache() -> Iterator[None]:
    """The cache is a folder that cannot be made, so every file is read, and nothing is left."""
    with pytest.MonkeyPatch.context() as patch, tempfile.NamedTemporaryFile() as file:
        patch.setenv("HEADSTART_CACHE", f"{file.name}/cache")
        yield


def ends_well(data: bytes) -> None:
    """That reading these bytes ends in a federation that can be fetched, or in a sentence."""
    folder = Path(tempfile.mkdtemp())
    began = time.monotonic()
    try:
        # A parser may warn of what it reads; a warning is no error outside of tests.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            federation = load(content(folder / "a", data))
            x, y = federation.fetch(np.arange(len(federation)))
        assert len(x) == len(y) == federation.sizes.sum() and len(set(federation.ids)) == len(federation)
        if is_raw(federation):
            assert not np.isinf(x).any()
            x, _ = Preprocessing.fit(federation, np.arange(len(federation))).apply(federation).fetch(np.arange(1))
        assert x.dtype.kind != "f" or np.isfinite(x).all()
    except UserError as error:
        assert str(error).isprintable() and str(error)
    finally:
        shutil.rmtree(folder)
    assert time.monotonic() - began < MOST_SECONDS


@pytest.mark.parametrize("layout", MAKERS)
def test_changed_files_of_every_layout_end_well(layout, valid):
    sound = valid[layout]
    ends_well(sound)
    positions = st.integers(0, len(sound) - 1)
    # A byte, a cut, zeros, a piece twice, or bytes that often stand for large, small and negative numbers.
    pieces = st.sampled_from(
        [b"\xff" * 4, b"\xff" * 8, b"\x7f" + b"\xff" * 7, bytes(8), b"\x80", b"9" * 20, b"[[[[", b"\x93"]
    )
    changes = st.lists(
        st.tuples(positions, st.one_of(st.binary(min_size=1, max_size=8), pieces, st.integers(-64, 64))),
        min_size=1,
        max_size=6,
    )

    @examples(25)
    @given(changes, st.integers(0, 9))
    def changed(changes, cut):
        data = bytearray(sound)
        for at, change in changes:
            if isinstance(change, bytes):
                data[at : at + len(change)] = change
            elif change < 0:
                del data[at : at - change]
            else:
                data[at:at] = data[at : at + change]
        ends_well(bytes(data[: len(data) // 2] if cut == 0 else data))

    changed()


@examples(25)
@given(st.sampled_from(MAGICS), st.binary(max_size=400))
def test_random_bytes_end_well(magic, data):
    ends_well(magic + data)


words = st.text(alphabet=st.characters(exclude_characters="\0"), max_size=8)
values = st.one_of(st.integers(), st.floats(), words, st.booleans(), st.none(), st.just(10**30))
headers = st.sampled_from(["client", "y", "a", "a ", "", "Unnamed: 0"])
columns = st.lists(st.tuples(headers, st.lists(values, min_size=1, max_size=6)), min_size=1, max_size=5)


@examples(25)
@given(columns, st.sampled_from([",", ";", "\t"]))
def test_any_cells_of_csv_end_well(columns, separator):
    lines = [separator.join(name for name, _ in columns)]
    for row in range(max(len(cells) for _, cells in columns)):
        lines.append(separator.join(written(cells[row % len(cells)]) for _, cells in columns))
    ends_well("\n".join(lines).encode(errors="surrogatepass"))


def written(cell: Any) -> str:
    return "" if cell is None else f'"{cell}"' if isinstance(cell, str) else str(cell)


KINDS = ("<f8", "<f4", "<f2", "<i8", "|i1", "|u1", "<u8", "|b1", "<U3", "|S3", "<M8[D]", "<m8[s]", "<c8", "|V2")
shapes = st.lists(st.sampled_from([0, 1, 2, 3, 28, 8]), max_size=4)


arrays = st.fixed_dictionaries({name: st.tuples(st.sampled_from(KINDS), shapes) for name in ("client", "x", "y")})


@examples(25)
@given(arrays, st.integers(1, 6), st.integers(0, 2**32))
def test_arrays_of_any_type_and_shape_end_well(arrays, rows, seed):
    generator = np.random.default_rng(seed)
    made = {name: array(generator, np.dtype(kind), (rows, *shape)) for name, (kind, shape) in arrays.items()}
    file = io.BytesIO()
    np.savez(file, **made)
    ends_well(file.getvalue())


def array(generator: np.random.Generator, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """Small whole numbers, or any bytes."""
    if dtype.kind in "fiu" and generator.random() < 0.5:
        return generator.integers(0, 3, shape).astype(dtype)
    return np.frombuffer(generator.bytes(math.prod(shape) * dtype.itemsize), dtype).reshape(shape)


names = st.text(max_size=12)
TABLES = ("client", "target", "features", "split", "classes", "labels", "regression", "inverted")
PARTITIONS = ("partition", "clients", "alpha", "classes_per_client", "seed", "digits_only")
GLYPHS = ("writers", "seed", "humps", "examples", "test_fraction", "habits", "variation")
settings_of_tables = st.one_of(
    *(names, st.integers(), st.floats(), st.booleans(), st.none(), st.lists(names, max_size=3)),
    *(st.sampled_from(["dirichlet", "random", "classes", "x", "y", 2, 10**400, "1e400", "inf"]),),
    st.dictionaries(names, names, max_size=1),
)
settings_of_glyphs = st.one_of(
    *(st.integers(-3, 50), st.floats(), names, st.none(), st.lists(st.floats(), max_size=3)),
    st.sampled_from([10**12, "3", "(1, 2)", "[" * 3000, "9" * 5000]),
)
some_options = st.dictionaries(st.sampled_from((*TABLES, *PARTITIONS)), settings_of_tables, max_size=4)


@examples(25)
@given(some_options, st.sampled_from(["npz", "csv", "tff-sqlite", "leaf"]))
def test_any_options_end_well_and_are_no_damaged_file(valid, options, layout):
    folder = Path(tempfile.mkdtemp())
    try:
        federation = load(content(folder / "a", valid[layout]), **options)
        federation.fetch(np.arange(len(federation)))
    except UserError as error:
        assert "damaged" not in str(error) and str(error).isprintable()
    finally:
        shutil.rmtree(folder)


@examples(25)
@given(st.dictionaries(st.sampled_from(GLYPHS), settings_of_glyphs, max_size=3))
def test_any_options_of_glyphs_end_well(options):
    try:
        load("glyphs", **{"writers": 2, "examples": 3, **options})
    except UserError as error:
        assert str(error).isprintable()
