"""Files that were made to bring a reader down: a federation or one sentence, soon and in little memory."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import sqlite3
import struct
import tracemalloc
import zipfile
import zlib
from contextlib import closing

import h5py
import msgpack
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from headstart.data.load import load
from headstart.errors import UserError
from test_datasets import IDS, drawings, proto, write, write_fedjax, write_h5, write_leaf, write_tff

DAMAGED = "damaged, cut short or not what it seems"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))


def refused(path, message, **options):
    """That a file is refused with a message of one line, in less than 300 MB of Python's memory."""
    tracemalloc.start()
    try:
        with pytest.raises(UserError) as caught:
            load(path, **options)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert message in str(caught.value) and str(caught.value).isprintable()
    assert peak < 300e6, peak


def member(array, *, shape=None, dtype=None):
    """An array as numpy writes it, with another shape or type in its header."""
    file = io.BytesIO()
    header = {"descr": dtype or array.dtype.str, "fortran_order": False, "shape": shape or array.shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue() + array.tobytes()


def archive(path, *, method=zipfile.ZIP_DEFLATED, **members):
    with zipfile.ZipFile(path, "w", method) as file:
        for name, content in members.items():
            file.writestr(f"{name}.npy", content)
    return path


def table(n=4, **changes):
    x, y, client = np.ones((n, 2)), np.arange(n) % 2, np.arange(n)
    return {name: member(array) for name, array in {"x": x, "y": y, "client": client}.items()} | changes


ZEROS = bytes(1 << 20)


@pytest.fixture
def ten_megabytes(monkeypatch):
    monkeypatch.setenv("HEADSTART_MAX_UNPACKED", "1e7")


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress])
@pytest.mark.parametrize("head", [b"SQLite format 3\0", b'{"users": [', b"client,a,y\n"])
def test_packed_bombs_are_not_unpacked(pack, head, tmp_path, ten_megabytes):
    (tmp_path / "a").write_bytes(pack(head + (b"u,1,0\n" if b"," in head else b"\0") * 11_000_000))
    refused(tmp_path / "a", "would unpack to more than 10,000,000 bytes, which its own")


def test_the_limit_is_a_hundred_times_the_file_and_can_be_set(tmp_path, monkeypatch):
    rows = "client,a,y\n" + "u,1,0\nv,2,1\n" * 20_000
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(rows.encode()))
    assert load(tmp_path / "a.csv.gz").sizes.sum() == 40_000
    for limit, message in (("1e5", "set HEADSTART_MAX_UNPACKED to the bytes"), ("lots", "is 'lots'; give a number")):
        monkeypatch.setenv("HEADSTART_MAX_UNPACKED", limit)
        monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / limit))
        refused(tmp_path / "a.csv.gz", message)


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_zip_bombs_are_not_unpacked(method, tmp_path, ten_megabytes):
    path = archive(tmp_path / "a.npz", method=method, **table(y=ZEROS * 11))
    refused(path, "would unpack to more than")


def test_a_member_that_holds_more_than_it_says_is_damaged(tmp_path):
    path = archive(tmp_path / "a.npz", **table(x=member(np.ones((4, 2))) + ZEROS))
    content = bytearray(path.read_bytes())
    entry = content.index(b"PK\x01\x02")
    content[entry + 24 : entry + 28] = struct.pack("<I", 100)
    path.write_bytes(content)
    refused(path, DAMAGED)


@pytest.mark.parametrize(
    "shape",
    [(10**12, 2), (10**12, 0), (4, 10**18, 10**18), (-4, 2), (4, -2), (0, 0), (2**63,), (4, 2, 0)],
)
def test_shapes_that_lie_are_no_arrays(shape, tmp_path):
    refused(archive(tmp_path / "a.npz", **table(x=member(np.ones((4, 2)), shape=shape))), "a.npz")


LIES = ["|S0", "<U0", "|V0", "<f3", "nonsense", "|O", [("a", "<f8")], "<c16"]


# The columns of a table may be dates; those of an array that is taken as it is may not.
@pytest.mark.parametrize(("dtype", "options"), [*((lie, {}) for lie in LIES), ("<M8[D]", {"raw": True})])
def test_types_that_lie_are_no_arrays(dtype, options, tmp_path):
    refused(archive(tmp_path / "a.npz", **table(x=member(np.ones((4, 2)), dtype=dtype))), "a.npz", **options)


def test_encrypted_members_are_said(tmp_path):
    path = archive(tmp_path / "a.npz", **table())
    content = bytearray(path.read_bytes())
    for magic, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(magic) + at] |= 1
    path.write_bytes(content)
    refused(path, "is encrypted ('x'); write it without a password")


@pytest.mark.parametrize("make", ["external", "soft"])
@pytest.mark.parametrize("where", ["examples", "examples/u", "examples/u/pixels"])
def test_links_of_hdf5_are_not_followed(make, where, tmp_path):
    secret = write_h5(tmp_path / "secret.h5", {("u", "train"): drawings()[IDS[0], "train"]}, "train")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("examples/u/label" if where.count("/") == 2 else "other", data=np.zeros(3, np.int64))
        file[where] = h5py.ExternalLink(str(secret), where) if make == "external" else h5py.SoftLink("/other")
    refused(tmp_path / "a.h5", "has a link to another place instead of")


def test_data_in_another_file_are_not_read(tmp_path):
    (tmp_path / "raw").write_bytes(np.ones((3, 784), np.float32).tobytes())
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("examples/u/label", data=np.zeros(3, np.int64))
        file.create_dataset(
            "examples/u/pixels", (3, 784), np.float32, external=[(str(tmp_path / "raw"), 0, 3 * 784 * 4)]
        )
    refused(tmp_path / "a.h5", "keeps the data of /examples/u/pixels in another file, which is not read")
    layout = h5py.VirtualLayout((3, 784), np.float32)
    layout[:] = h5py.VirtualSource(str(tmp_path / "a.h5"), "examples/u/pixels", (3, 784))
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file.create_dataset("examples/u/label", data=np.zeros(3, np.int64))
        file.create_virtual_dataset("examples/u/pixels", layout)
    refused(tmp_path / "b.h5", "keeps the data of /examples/u/pixels in another file, which is not read")


@pytest.mark.parametrize(
    ("shape", "chunks"), [((10**10, 784), None), ((10**6, 784), (1000, 784)), ((3, 784), (1, 784))]
)
def test_rows_that_a_file_does_not_hold_are_not_filled_up(shape, chunks, tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("examples/u/label", data=np.zeros(3, np.int64))
        file.create_dataset("examples/u/pixels", shape, np.float32, chunks=chunks, fillvalue=1)
        if shape[0] == 3:
            file["examples/u/pixels"][1] = 1
    refused(tmp_path / "a.h5", "would unpack to more than" if shape[0] > 3 else "has no data for a part of its rows")


def test_compressed_and_repeated_data_of_hdf5_are_counted(tmp_path, monkeypatch):
    monkeypatch.setenv("HEADSTART_MAX_UNPACKED", "1e6")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("examples/u/label", data=np.zeros(10**6, np.int64), compression="gzip", shuffle=True)
    refused(tmp_path / "a.h5", "would unpack to more than 1,000,000 bytes")
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file.create_dataset("examples/c0/snippets", data=["x" * 60_000], dtype=h5py.string_dtype())
        for i in range(1, 20):
            file[f"examples/c{i}"] = file["examples/c0"]
    refused(tmp_path / "b.h5", "would unpack to more than 1,000,000 bytes")


@pytest.mark.parametrize("kind", ["i4,f4", h5py.ref_dtype, h5py.vlen_dtype(np.int32), "S0"])
def test_odd_types_of_hdf5_are_damaged(kind, tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        if kind == "S0":
            file["examples/u/snippets"] = h5py.Empty("f4")
        else:
            file.create_dataset("examples/u/snippets", (3,), kind)
    refused(tmp_path / "a.h5", DAMAGED)


def nested_ext(depth):
    data = msgpack.packb([[1], "float32", b"1234"])
    for _ in range(depth):
        data = msgpack.packb([[1], "float32", msgpack.ExtType(1, data)])
    return msgpack.packb({"pixels": msgpack.ExtType(1, data), "label": msgpack.ExtType(1, data)})


FEDJAX = {
    "arrays in arrays": nested_ext(3000),
    "lists in lists": b"\x91" * 100_000,
    "dictionaries in dictionaries": b"\x81\xa1a" * 100_000,
    "a list of four billion": b"\x81\xa5label\xdd\xff\xff\xff\xff",
    "lists of a million in each other": b"\x81\xa5label" + b"\xdd\x00\x10\x00\x00" * 1000 + bytes(1 << 20),
    "no dictionary": msgpack.packb([1, 2]),
    "names that are no text": msgpack.packb({1: 2}, strict_types=False),
    "objects": msgpack.packb({"label": msgpack.ExtType(1, msgpack.packb([[1], "O", b"12345678"]))}),
    "a shape of minus one": msgpack.packb({"label": msgpack.ExtType(1, msgpack.packb([[-1.5], "i4", b"1234"]))}),
    "more strings than bytes": msgpack.packb(
        {"snippets": msgpack.ExtType(4, b"\x92\x91\x01\xdd\xff\xff\xff\xff\xa1a")}
    ),
    "an unknown extension": msgpack.packb({"snippets": msgpack.ExtType(9, b"")}),
}


@pytest.mark.parametrize("content", FEDJAX.values(), ids=FEDJAX)
def test_hostile_msgpack_of_fedjax_is_damaged(content, tmp_path):
    with closing(sqlite3.connect(tmp_path / "a.sqlite")) as database:
        database.execute("CREATE TABLE federated_data (client_id BLOB, data BLOB, num_examples INTEGER)")
        database.execute("INSERT INTO federated_data VALUES (?, ?, ?)", (b"u", zlib.compress(content), 1))
        database.commit()
    refused(tmp_path / "a.sqlite", DAMAGED)


@pytest.mark.parametrize("column", ["client_id", "data", "num_examples"])
@pytest.mark.parametrize("value", [None, 1.5, "\x00x", b"\xff\xfe", -(2**62)])
def test_cells_of_other_types_in_fedjax_are_damaged(column, value, tmp_path):
    path = write_fedjax(tmp_path / "a.sqlite", drawings(), "train")
    with closing(sqlite3.connect(path)) as database:
        database.execute(f"UPDATE federated_data SET {column} = ? WHERE rowid = 2", (value,))
        database.commit()
    if (column, value) == ("client_id", "\x00x"):
        assert len(load(path)) == 2
    else:
        refused(path, "a.sqlite")


def test_a_bomb_in_a_cell_is_not_unpacked(tmp_path, ten_megabytes):
    with closing(sqlite3.connect(tmp_path / "a.sqlite")) as database:
        database.execute("CREATE TABLE federated_data (client_id BLOB, data BLOB, num_examples INTEGER)")
        database.execute("INSERT INTO federated_data VALUES (?, ?, ?)", (b"u", zlib.compress(ZEROS * 11), 1))
        database.commit()
    refused(tmp_path / "a.sqlite", "would unpack to more than 10,000,000 bytes")


@pytest.mark.parametrize(
    ("column", "table_name"),
    [("client_id", "examples"), ("serialized_example_proto", "examples"), ("client_id", "client_metadata"),
     ("num_examples", "client_metadata"), ("split_name", "client_metadata")],
)  # fmt: skip
@pytest.mark.parametrize("value", [None, 1.5, b"\xff\xfe", "text", -(2**62)])
def test_cells_of_other_types_in_tff_are_damaged(column, table_name, value, tmp_path):
    path = write_tff(tmp_path / "a.sqlite", drawings())
    with closing(sqlite3.connect(path)) as database:
        database.execute(f"UPDATE {table_name} SET {column} = ? WHERE rowid = 2", (value,))
        database.commit()
    refused(path, "a.sqlite")


def test_values_that_a_database_makes_up_are_counted(tmp_path):
    with closing(sqlite3.connect(tmp_path / "a.sqlite")) as database:
        database.execute("CREATE TABLE client_metadata (client_id TEXT, split_name TEXT, num_examples INTEGER)")
        database.execute("INSERT INTO client_metadata VALUES ('u', 'train', 3)")
        database.execute(
            "CREATE TABLE examples (client_id TEXT, split_name TEXT, serialized_example_proto BLOB"
            " GENERATED ALWAYS AS (zeroblob(900000)))"
        )
        database.executemany("INSERT INTO examples VALUES (?, ?)", [("u", "train")] * 100)
        database.commit()
    refused(tmp_path / "a.sqlite", "would unpack to more than")


def test_a_view_is_no_table(tmp_path):
    with closing(sqlite3.connect(tmp_path / "a.sqlite")) as database:
        database.execute("CREATE TABLE client_metadata (client_id TEXT, split_name TEXT, num_examples INTEGER)")
        database.execute(
            "CREATE VIEW examples AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)"
            " SELECT 'u' AS client_id, 'train' AS split_name, x'00' AS serialized_example_proto FROM n"
        )
        database.commit()
    refused(tmp_path / "a.sqlite", "is SQLite with the tables client_metadata, neither TFF's")


def test_many_layouts_of_one_length_are_read_as_they_are(tmp_path):
    generator = np.random.default_rng(0)
    rows = [proto(label=i % 62, pixels=np.ones(784), extra=generator.bytes(8)) for i in range(300)]
    with closing(sqlite3.connect(write_tff(tmp_path / "a.sqlite", {}))) as database:
        database.executemany("INSERT INTO examples VALUES ('all_train', 'u', ?)", [(row,) for row in rows])
        database.execute("INSERT INTO client_metadata VALUES ('u', 'all_train', 300)")
        database.commit()
    federation = load(tmp_path / "a.sqlite")
    assert sorted(federation.fetch(np.array([0]))[1]) == sorted(i % 62 for i in range(300))


ROW, HUGE = [1.0] * 784, 10**400


def leaf(users=("u",), sizes=(1,), x=(ROW,), y=(1,)):
    return json.dumps({"users": users, "num_samples": sizes, "user_data": {users[0]: {"x": x, "y": y}}})


LEAF = {
    "lists in lists": "[" * 200_000,
    "dictionaries in dictionaries": '{"a":' * 200_000,
    "a user twice": leaf(users=("u", "u"), sizes=(1, 1)),
    "a name twice": '{"users": ["u"], ' + leaf()[1:],
    "a count of 401 digits": leaf(sizes=(HUGE,)),
    "a number of 10000 digits": leaf().replace("[1]", f"[1{'0' * 10_000}]"),
    "a user that is a number": leaf(users=(1,)),
    "users that are text": leaf(users="u"),
    "half a character": leaf(users=("\ud800",)),
    "pixels of a dictionary": leaf(x={"0": 1}),
    "rows of several lengths": leaf(sizes=(2,), x=(ROW, [1]), y=(1, 2)),
    "infinite pixels": leaf(x=([*ROW[1:], float("inf")],)),
    "a pixel of 401 digits": leaf(x=([*ROW[1:], HUGE],)),
    "labels of text": leaf(y=("a",)),
    "a label of 401 digits": leaf(y=(HUGE,)),
    "more examples than labels": leaf(x=(ROW, ROW)),
    "flags for labels": leaf(y=(True,)),
}


@pytest.mark.parametrize("content", LEAF.values(), ids=LEAF)
def test_hostile_json_of_leaf_gets_a_sentence(content, tmp_path):
    (tmp_path / "a.json").write_text(content)
    refused(tmp_path / "a.json", "")


def test_parquet_bombs_are_not_unpacked(tmp_path, ten_megabytes):
    many = pa.table({"client": pa.array(np.zeros(10**6, np.int64)), "y": pa.array(np.zeros(10**6, np.int64))})
    parquet.write_table(many, tmp_path / "a.parquet")
    assert (tmp_path / "a.parquet").stat().st_size < 100_000
    refused(tmp_path / "a.parquet", "would unpack to more than 10,000,000 bytes")


def test_a_long_text_that_is_repeated_stays_one(tmp_path):
    text = pa.array(["x" * 1_000_000]).dictionary_encode()
    many = pa.DictionaryArray.from_arrays(pa.array(np.zeros(5000, np.int32)), text.dictionary)
    rows = pa.table({"client": np.arange(5000) % 5, "a": np.ones(5000), "y": many})
    parquet.write_table(rows, tmp_path / "a.parquet")
    tracemalloc.start()
    try:
        assert load(tmp_path / "a.parquet").metadata["classes"] == 1
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()


def test_endless_headers_of_csv_are_refused(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"client,y" + b",a" * 70_000 + b"\n")
    refused(tmp_path / "a.csv", "has more than 65,536 columns; write npz")


def test_an_option_that_is_wrong_is_no_damaged_file(tmp_path):
    path = archive(tmp_path / "a.npz", **table(8))
    for options in ({"alpha": "nan"}, {"alpha": -1}, {"clients": -3}, {"seed": -1}, {"clients": 10**30}):
        with pytest.raises(UserError) as caught:
            load(path, **{"partition": "dirichlet", "clients": 2, "alpha": 1, **options})
        assert DAMAGED not in str(caught.value)


@pytest.mark.parametrize("layout", ["tff-sqlite", "tff-lzma", "tff-h5", "fedjax", "leaf"])
def test_the_ids_of_every_layout_are_text(layout, tmp_path):
    content = {(" " if client == IDS[0] else client, part): fields for (client, part), fields in drawings().items()}
    refused(write(tmp_path, layout, content), "the client id ' ' is empty; give every client a name")


def test_sound_files_are_read_as_before(tmp_path):
    whole = json.loads(write_leaf(tmp_path / "a_train.json", drawings(), "train").read_text())
    assert list(load(tmp_path / "a_train.json").ids) == sorted(whole["users"])
