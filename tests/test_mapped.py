"""Columns of pictures that are larger than memory should hold: read some rows at a time, with the same result."""

from __future__ import annotations

import ctypes
import io
import mmap
import tracemalloc

import jax
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

import headstart as hs
from headstart.data import mapped
from headstart.data.cache import cached
from headstart.data.federation import of_rows
from headstart.data.fingerprint import fingerprint
from headstart.data.readers import arrow
from headstart.data.readers.sources import find
from headstart.data.readers.tables import read_table
from headstart.devices import release_after_compiling
from headstart.errors import UserError

SHARDS, ROWS, CLIENTS = 3, 40, 7


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))


def made_large(monkeypatch, size=1000):
    """Arrays of this many bytes or more are large, and five pictures are a piece."""
    monkeypatch.setattr(mapped, "LARGE", size)
    monkeypatch.setattr(mapped, "PIECE", 5 * 28 * 28)


def pictures(count, seed=0):
    """uint8 `[count, 28, 28]` with a light background."""
    drawn = np.random.default_rng(seed).integers(0, 256, (count, 28, 28), np.uint8)
    drawn[:, [0, -1]], drawn[:, :, [0, -1]] = 255, 255
    return drawn


def png(picture):
    content = io.BytesIO()
    Image.fromarray(picture).save(content, "PNG")
    return content.getvalue()


FORMS = {
    "bytes": lambda x: pa.array(x.tolist(), pa.list_(pa.list_(pa.uint8(), 28), 28)),
    "whole numbers": lambda x: pa.array(x.astype(np.int64).tolist()),
    "shares": lambda x: pa.array((x / 255).tolist()),
    "channels first": lambda x: pa.array(np.stack([x] * 3, axis=1).tolist(), pa.list_(pa.list_(pa.list_(pa.uint8())))),
    "levels": lambda x: pa.array((x.astype(np.float64) - 100.5).tolist()),
    "tensors": lambda x: pa.FixedShapeTensorArray.from_numpy_ndarray(x),
    "files": lambda x: pa.array([png(each) for each in x], pa.binary()),
    "files of the hub": lambda x: pa.array([{"bytes": png(each), "path": None} for each in x]),
    "black and white": lambda x: pa.array((x > 99).astype(np.uint8).tolist(), pa.list_(pa.list_(pa.uint8()))),
    "vectors": lambda x: pa.array(x.reshape(len(x), -1).astype(np.float32).tolist()),
}


def write_shards(folder, form="bytes", rows=ROWS):
    folder.mkdir(exist_ok=True)
    for shard in range(SHARDS):
        owners = [f"client{i % CLIENTS}" for i in range(rows)]
        table = {"client": owners, "x": FORMS[form](pictures(rows, shard)), "y": [i % 3 for i in range(rows)]}
        parquet.write_table(pa.table(table), folder / f"part-{shard}.parquet", row_group_size=11)
    return folder


@pytest.mark.parametrize("form", FORMS)
def test_large_shards_are_read_as_small_ones_are(form, tmp_path, monkeypatch):
    folder, options = write_shards(tmp_path / "shards", form), {"raw": "true"} if form == "vectors" else {}
    whole = hs.load(folder, **options)
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "another"))
    made_large(monkeypatch)
    large = hs.load(folder, **options)
    assert fingerprint(large) == fingerprint(whole)
    assert large.metadata == whole.metadata
    for cohort in ([4], [2, 3], [5, 0, 6], list(range(CLIENTS))):
        for mine, theirs in zip(large.fetch(np.array(cohort)), whole.fetch(np.array(cohort)), strict=True):
            np.testing.assert_array_equal(mine, theirs)


def test_one_large_file_is_read_as_a_small_one_is(tmp_path, monkeypatch):
    path = write_shards(tmp_path / "shards") / "part-0.parquet"
    path = path.rename(tmp_path / "own.parquet")
    whole = fingerprint(hs.load(path, inverted="true"))
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "another"))
    made_large(monkeypatch)
    assert fingerprint(hs.load(path, inverted="true")) == whole


@pytest.mark.parametrize(
    "values", [np.zeros((0, 3), np.int32), np.arange(12.0).reshape(3, 4).T, np.arange(5, dtype="u1")]
)
def test_arrays_are_saved_as_numpy_saves_them(values, tmp_path):
    mapped.save(tmp_path / "x.npy", values)
    found = np.load(tmp_path / "x.npy")
    np.testing.assert_array_equal(found, values)
    assert found.dtype == values.dtype


def test_a_damaged_shard_is_named(tmp_path):
    folder = write_shards(tmp_path / "shards")
    path = folder / "part-1.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="part-1"):
        hs.load(folder)


def test_memory_does_not_grow_with_large_shards(tmp_path, monkeypatch):
    shards = find(write_shards(tmp_path / "shards", rows=1500))
    made_large(monkeypatch)
    monkeypatch.setattr(arrow, "_ROWS_AT_ONCE", 20)
    hs.load(write_shards(tmp_path / "others"))  # so that nothing is imported below
    tracemalloc.start()
    try:
        rows = cached(shards.files, {}, lambda: read_table(shards, "parquet", {}))
        federation = of_rows("shards", *rows[:4])
        for client in range(CLIENTS):
            federation.fetch(np.array([client]))
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert rows.x.nbytes == SHARDS * 1500 * 28 * 28
    assert most < rows.x.nbytes / 3


def test_rows_of_a_large_array_are_copies(monkeypatch, tmp_path):
    made_large(monkeypatch)
    federation = hs.load(write_shards(tmp_path / "shards"))
    x = federation.fetch(np.array([1, 2]))[0]
    while isinstance(x, np.ndarray):
        assert not isinstance(x.base, mmap.mmap)
        x = x.base


def test_a_shard_that_changes_is_read_again(tmp_path, monkeypatch):
    made_large(monkeypatch)
    folder = write_shards(tmp_path / "shards")
    before = fingerprint(hs.load(folder))
    table = parquet.read_table(folder / "part-1.parquet")
    changed = table.set_column(1, "x", FORMS["bytes"](255 - pictures(ROWS, 9)))
    parquet.write_table(changed, folder / "part-1.parquet")
    assert fingerprint(hs.load(folder)) != before
    (folder / "part-2.parquet").unlink()
    assert hs.load(folder).sizes.sum() == 2 * ROWS


@pytest.mark.parametrize("odd", ["shape", "gap", "text", "size"])
def test_odd_rows_of_large_shards_are_refused_as_those_of_small_ones_are(odd, tmp_path, monkeypatch):
    folder, form = write_shards(tmp_path / "shards", "files" if odd == "size" else "shares"), "shares"
    values = {
        "shape": (pictures(ROWS)[:, :27] / 255).tolist(),
        "gap": [None, *(pictures(ROWS - 1) / 255).tolist()],
        "text": ["a"] * ROWS,
        "size": [png(each[:20]) for each in pictures(ROWS)],
    }[odd]
    table = parquet.read_table(folder / "part-1.parquet").set_column(1, "x", pa.array(values))
    parquet.write_table(table, folder / "part-1.parquet")
    with pytest.raises(UserError) as small:
        hs.load(folder)
    made_large(monkeypatch)
    with pytest.raises(UserError) as large:
        hs.load(folder)
    assert str(large.value) == str(small.value), form


def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * mmap.PAGESIZE


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="not the GNU C library")
def test_memory_of_compiling_is_given_back():
    release_after_compiling()
    blocks = [bytes(1000) for _ in range(100_000)]
    kept = blocks[-1]
    del blocks
    before = resident_bytes()
    jax.monitoring.record_event_duration_secs("/jax/core/compile/backend_compile_duration", 0.1)
    assert before - resident_bytes() < 2e7
    jax.monitoring.record_event_duration_secs("/jax/core/compile/backend_compile_duration", 2.0)
    assert before - resident_bytes() > 5e7
    assert kept == bytes(1000)


def test_what_was_written_into_a_private_map_is_kept(tmp_path):
    x = np.arange(12000, dtype=np.float32).reshape(100, 120)
    np.save(tmp_path / "x.npy", x)
    own = np.load(tmp_path / "x.npy", mmap_mode="c")
    own /= 2
    for _ in range(2):
        np.testing.assert_array_equal(
            mapped.stretches(own, [slice(3, 5), slice(90, 100)]), (x / 2)[[3, 4, *range(90, 100)]]
        )
    np.testing.assert_array_equal(mapped.taken(own, np.arange(99, -1, -1)), x[::-1] / 2)


def test_rows_at_the_very_end_of_a_map_and_of_one_turned_round(tmp_path):
    x = np.arange(8 * 1024, dtype=np.float32).reshape(8, 1024)
    x.tofile(tmp_path / "x")
    plain = np.memmap(tmp_path / "x", np.float32, "r", shape=x.shape)
    np.testing.assert_array_equal(mapped.stretches(plain, [slice(6, 8), slice(8, 8)]), x[6:])
    np.testing.assert_array_equal(mapped.stretches(plain[::-1], [slice(6, 8)]), x[::-1][6:])


def test_a_column_whose_name_begins_like_that_of_a_large_one_is_another(tmp_path, monkeypatch):
    table = {
        "client": [f"c{i % 2}" for i in range(ROWS)],
        "x.width": list(range(ROWS)),
        "y": [i % 3 for i in range(ROWS)],
    }
    read = []
    for size in (1000, 2**40):
        made_large(monkeypatch, size)
        folder = tmp_path / str(size)
        folder.mkdir()
        parquet.write_table(pa.table({**table, "x": FORMS["bytes"](pictures(ROWS))}), folder / "a.parquet")
        with parquet.ParquetFile(folder / "a.parquet") as file:
            assert file.schema_arrow.names[1] == "x.width"
        names = arrow.large_columns([folder / "a.parquet"])
        assert names == (["x"] if size == 1000 else [])
        with mapped.Scratch() as scratch:
            columns, _ = arrow.read_parquet(folder / "a.parquet", dict.fromkeys(names, scratch))
            read.append(scratch.array() if names else columns["x"])
    np.testing.assert_array_equal(*read)
