"""Tables that are easily taken for something else: the right value, or one sentence, and never another result."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from headstart.data.federation import from_arrays
from headstart.data.load import load
from headstart.data.partition import by_dirichlet
from headstart.errors import UserError
from headstart.experiment.experiment import ModelSpec
from headstart.experiment.setup import build_model

ROWS = 40
CLIENTS = np.repeat([f"s{i}" for i in range(8)], 5)
GENERATOR = np.random.default_rng(0)
X = GENERATOR.normal(size=(ROWS, 4))
Y = np.arange(ROWS) % 3


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))


def table(folder, **arrays):
    np.savez(folder / "a.npz", **{"client": CLIENTS, "x": X, "y": Y, **arrays})
    return folder / "a.npz"


def read(folder, options=None, **arrays):
    """Ids, x and y in the order of the file: the examples are not split, for every client has a row of each part."""
    part = np.where(np.arange(ROWS) % 5 < 3, "train", "test")
    federation = load(table(folder, part=part, **arrays), split="part", **(options or {}))
    return federation, *federation.fetch(np.arange(len(federation)))


def text(folder, content, **options):
    (folder / "a.csv").write_text(content)
    return load(folder / "a.csv", **options)


@pytest.mark.parametrize(
    "y",
    [Y[:, None], Y.astype(np.float32), Y.astype(np.float64)[:, None], np.eye(3, dtype=int)[Y], np.eye(3)[Y], Y - 1.0],
    ids=["column", "float32", "float column", "one-hot", "one-hot floats", "from -1 on"],
)
def test_whole_numbers_are_classes_however_they_are_written(y, tmp_path):
    federation, _, found = read(tmp_path, y=y)
    np.testing.assert_array_equal(found, Y)
    assert found.dtype == np.int32 and federation.metadata["classes"] == 3
    assert federation.metadata["labels"] == (["-1", "0", "1"] if y.min() < 0 else ["0", "1", "2"])


def test_fractions_and_what_regression_names_are_quantities(tmp_path):
    for options, y in (({}, X[:, 0]), ({"regression": True}, Y), ({"regression": True}, Y * 1.0)):
        federation, _, found = read(tmp_path, options, y=y)
        np.testing.assert_array_equal(found, y.astype(np.float32))
        assert found.dtype == np.float32 and "classes" not in federation.metadata


@pytest.mark.parametrize("y", [np.arange(ROWS) * 100.0, np.arange(ROWS) // 1.5 // 1])
def test_whole_floats_that_hardly_repeat_are_ambiguous(y, tmp_path):
    with pytest.raises(UserError, match=r"may be quantities or classes; add regression=true for quantities, or write"):
        read(tmp_path, y=y)
    assert read(tmp_path, {"classes": 4000}, y=y)[2].tolist() == y.tolist()


def test_integers_that_hardly_repeat_are_ambiguous(tmp_path):
    arrays = {"client": np.repeat(CLIENTS, 10), "x": np.repeat(X, 10, axis=0), "y": np.arange(ROWS * 10) // 3 * 7}
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(UserError, match="has 134 different whole numbers of type int64 in the 400 rows of column 'y'"):
        load(tmp_path / "a.npz")
    assert "classes" not in load(tmp_path / "a.npz", regression=True).metadata


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (GENERATOR.integers(0, 90, (ROWS, 80)), "has 80 numbers for each row in column 'y', and they are not one-hot"),
        (
            np.array([f"{v:.2f}".replace(".", ",") for v in X[:, 0]]),
            "with a decimal point instead of a comma and nothing between thousands, or",
        ),
        (np.array([f"{v:.2f}" for v in X[:, 0]]), "has text in column 'y' that is mostly numbers, such as"),
        (np.arange(ROWS).astype("M8[D]"), "neither text nor numbers"),
        (np.where(Y > 0, "cat", "cat "), "has the classes 'cat' and 'cat ' in column 'y', which differ only by spaces"),
    ],
)
def test_other_targets_get_a_sentence(y, message, tmp_path):
    with pytest.raises(UserError) as caught:
        read(tmp_path, y=y)
    assert message in str(caught.value)


@pytest.mark.parametrize("client", [CLIENTS[:, None], CLIENTS.astype("S"), CLIENTS])
def test_ids_are_the_same_as_a_column_bytes_or_text(client, tmp_path):
    assert list(read(tmp_path, client=client)[0].ids) == [f"s{i}" for i in range(8)]


@pytest.mark.parametrize("kind", [np.int64, np.float64, np.float32])
def test_ids_that_are_whole_numbers_are_so_in_every_type(kind, tmp_path):
    assert list(read(tmp_path, client=np.repeat(np.arange(8, dtype=kind), 5))[0].ids) == list("01234567")


@pytest.mark.parametrize(
    ("client", "message"),
    [
        (np.repeat(np.arange(8), 5) + 0.5, "has the client 0.5 in column 'client' of row 1, and fractions"),
        (np.repeat(np.arange(8), 5) + 2.0**60, "floats beyond 2**53 are no exact ids; write ids as text"),
        (np.where(Y > 0, "ann", "ann "), "the clients 'ann ' and 'ann' differ only by spaces"),
        (np.where(Y > 0, "\u00e9", "e\u0301"), "or in how letters are composed"),
        (np.where(Y > 0, "a", " "), "the client id ' ' is empty"),
        (np.stack([CLIENTS] * 2, axis=1), "has 2 values for each row in column 'client'; write one client's id"),
        (CLIENTS.astype(object), "holds Python objects in 'client', which are not unpickled; write text as text"),
        (np.full(ROWS, b"\xff"), "are no text; write text as UTF-8"),
        (np.zeros(ROWS) + 1j, "has values of type complex128 in column 'client'"),
    ],
)
def test_ids_that_name_no_client_get_a_sentence(client, message, tmp_path):
    with pytest.raises(UserError) as caught:
        load(table(tmp_path, client=client))
    assert message in str(caught.value)


def test_numbers_beyond_float32_are_refused_with_column_client_and_row(tmp_path):
    x = X.copy()
    x[7, 2] = 1e39
    with pytest.raises(UserError, match=r"beyond the range of float32 \(1e\+39\) in column 'x' of client s1, row 8"):
        load(table(tmp_path, x=x), raw=True)
    with pytest.raises(UserError, match=r"beyond the range of float32, in column 'x\[2\]', row 8"):
        load(table(tmp_path, x=x))
    with pytest.raises(UserError, match=r"beyond the range of float32 \(1e\+39\) in column 'y' of client s1, row 8"):
        load(table(tmp_path, y=x[:, 2]))


PIXELS = GENERATOR.integers(0, 256, (ROWS, 28, 28))
COLOURS = GENERATOR.integers(0, 256, (ROWS, 3, 32, 24)).astype(np.uint8)


@pytest.mark.parametrize("kind", [np.int64, np.float32, np.uint16])
@pytest.mark.parametrize("shape", [(28, 28), (28, 28, 1), (1, 28, 28)])
def test_pixels_from_0_to_255_are_pictures_in_every_type(kind, shape, tmp_path):
    federation, x, _ = read(tmp_path, x=PIXELS.astype(kind).reshape(ROWS, *shape))
    assert x.dtype == np.uint8 and federation.metadata["kind"] == "image"
    np.testing.assert_array_equal(x[..., 0], PIXELS)
    assert any("were taken for pixels" in note for note in federation.metadata["notes"])


@pytest.mark.parametrize("kind", [np.uint8, np.float32, np.int64])
def test_channels_that_come_first_are_put_last(kind, tmp_path):
    federation, x, _ = read(tmp_path, x=COLOURS.astype(kind))
    np.testing.assert_array_equal(x, np.moveaxis(COLOURS, 1, -1))
    assert x.dtype == np.uint8
    assert federation.metadata["notes"][0] == "pictures of 3x32x24 have their channels first; they were put last"


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_channels_are_put_last_or_refused_wherever_pictures_come_from(channels, tmp_path):
    x = GENERATOR.integers(0, 256, (ROWS, channels, 32, 24)).astype(np.uint8)
    np.testing.assert_array_equal(read(tmp_path, x=x)[1], np.moveaxis(x, 1, -1))
    for federation in (by_dirichlet(x, Y, clients=4, alpha=1), from_arrays("mine", ["a"], np.array([[ROWS, 0]]), x, Y)):
        with pytest.raises(UserError, match=r"with their channels first; put them last: np\.moveaxis\(x, 1, -1\)"):
            build_model(ModelSpec("cnn", {"classes": 3}), federation)


def test_numbers_of_the_size_of_a_character_are_pictures_as_they_are(tmp_path):
    standardized = GENERATOR.normal(size=(ROWS, 28, 28))
    federation, x, _ = read(tmp_path, x=standardized)
    np.testing.assert_array_equal(x[..., 0], standardized.astype(np.float32))
    assert federation.metadata["kind"] == "image"


def test_black_and_white_pictures_keep_their_contrast(tmp_path):
    federation, x, _ = read(tmp_path, x=(COLOURS[:, 0] > 99).astype(np.uint8))
    np.testing.assert_array_equal(x[..., 0], np.where(COLOURS[:, 0] > 99, 255, 0))
    assert federation.metadata["notes"] == ["pixels are 0 and 1, and were taken for black and white"]


def test_tables_of_small_numbers_are_no_pictures(tmp_path):
    for x in (COLOURS[:, 0, :, 0], X.astype(np.float16), GENERATOR.integers(0, 90, (ROWS, 80)), Y > 0):
        federation, found, _ = read(tmp_path, {"raw": True}, x=x)
        np.testing.assert_array_equal(found, x.reshape(ROWS, -1).astype(np.float32))
        assert federation.metadata["kind"] == "features" and found.dtype == np.float32


def test_whole_numbers_that_float32_merges_are_noted(tmp_path):
    federation, *_ = read(tmp_path, {"raw": True}, x=1_700_000_000 + np.arange(ROWS))
    assert federation.metadata["notes"] == ["'x' has different whole numbers that are equal as float32"]


def with_index(**more):
    return {"client": CLIENTS, "a": X[:, 0], "y": Y, **more}


@pytest.mark.parametrize(
    ("index", "about"),
    [
        ("__index_level_0__", ["__index_level_0__"]),
        ("patient", ["patient"]),
        ("Unnamed: 0", []),
        ("index", []),
        ("", [{"kind": "range", "name": None, "start": 0, "stop": ROWS, "step": 1}]),
    ],
)
def test_the_index_of_pandas_is_no_feature_of_parquet(index, about, tmp_path):
    columns = pa.table(with_index(**{index: np.arange(ROWS)}))
    columns = columns.replace_schema_metadata({"pandas": json.dumps({"index_columns": about})})
    parquet.write_table(columns, tmp_path / "a.parquet")
    metadata = load(tmp_path / "a.parquet").metadata
    assert metadata["features"] == ["a"]
    assert metadata["notes"] == [f"{index!r} only numbers the rows and is left out; features= takes it"]
    named = load(tmp_path / "a.parquet", features=["a", index])
    assert named.metadata["features"] == ["a", index] and "notes" not in named.metadata
    alone = load(tmp_path / "a.parquet", features="a")
    assert alone.metadata["features"] == ["a"]


@pytest.mark.parametrize("name", ["", "Unnamed: 0", '""', "index"])
def test_the_row_numbers_of_csv_are_no_feature(name, tmp_path):
    rows = "".join(f"{i},{client},{i / 2},{i % 2}\n" for i, client in enumerate(CLIENTS))
    assert text(tmp_path, f"{name},client,a,y\n{rows}").metadata["features"] == ["a"]


def test_a_column_of_whole_numbers_that_is_called_otherwise_is_a_feature(tmp_path):
    rows = "".join(f"{(i * 7) % 5},{client},{i / 2},{i % 2}\n" for i, client in enumerate(CLIENTS))
    assert text(tmp_path, f"index,client,a,y\n{rows}").metadata["features"] == ["index", "a"]


def test_a_pair_may_have_an_index_in_one_file_alone(tmp_path):
    parquet.write_table(pa.table(with_index(__index_level_0__=np.arange(ROWS))), tmp_path / "a_train.parquet")
    parquet.write_table(pa.table(with_index()), tmp_path / "a_test.parquet")
    assert load(tmp_path / "a_train.parquet").metadata["features"] == ["a"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("client,a,a,y\nu,1,2,0\nv,3,4,1\n", "has two columns with the name 'a'; give each its own"),
        ("client;a;y\nu;1,5;0\nv;3,5;1\n", "in place of numbers; write them with a decimal point instead of a comma"),
        ("client;a;y\nu;1;0,5\nv;3;1,5\n", "column 'y' that is mostly numbers, such as '0,5'; write all of them"),
        ("client,a,y\nu,1,0\n,2,1\n", "no value in column 'client' of row 2"),
    ],
)
def test_csv_that_is_not_what_it_seems_gets_a_sentence(content, message, tmp_path):
    with pytest.raises(UserError) as caught:
        text(tmp_path, content)
    assert message in str(caught.value)


def test_a_column_is_what_all_of_its_rows_are_not_the_first_ones(tmp_path):
    content = "client,a,y\n" + "".join(f"u{i % 9},{i % 7},0\n" for i in range(200_000)) + "v,1.5,1\n"
    federation = text(tmp_path, content)
    assert federation.metadata["classes"] == 2 and 1.5 in federation.fetch(np.arange(len(federation)))[0]


def test_digits_of_ids_and_flags_stay(tmp_path):
    federation = text(tmp_path, "client,a,y\n007,true,0\n7,false,1\n")
    assert list(federation.ids) == ["007", "7"] and federation.fetch(np.arange(2))[0].tolist() == [[1], [0]]


def test_categories_of_parquet_are_their_values(tmp_path):
    y = pa.array(Y).dictionary_encode()
    client = pa.array(CLIENTS).dictionary_encode()
    parquet.write_table(pa.table({"client": client, "a": y, "y": client}), tmp_path / "a.parquet")
    federation = load(tmp_path / "a.parquet")
    x, targets = federation.fetch(np.array([3]))
    assert sorted(x[:, 0].tolist()) == sorted(Y[15:20]) and set(targets) == {3}
