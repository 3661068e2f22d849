"""A user's own npz, Parquet and CSV."""

from __future__ import annotations

import gzip
import zipfile
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import csv, parquet

from headstart.data import load as datasets
from headstart.errors import UserError

FORMATS = ("csv", "parquet", "npz")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))


def columns(**changes):
    found = {
        "client": ["007", "bo", "007", "ann", "bo"],
        "y": ["cat", "ant", "bee", "cat", "cat"],
        "a": [1.0, 2.0, 3.0, 4.0, 5.0],
        "b": [10, 20, 30, 40, 50],
    }
    return {name: values for name, values in {**found, **changes}.items() if values is not None}


def npz(path, **arrays: Any):
    np.savez(path, **arrays)
    return path


def write(folder, form, table):
    path = folder / f"own.{form}"
    if form == "npz":
        npz(path, **{name: np.asarray(values) for name, values in table.items()})
    elif form == "parquet":
        parquet.write_table(pa.table(table), path)
    else:
        csv.write_csv(pa.table(table), path)
    return path


def load(folder, form, table, **options):
    if form == "npz":
        options = {"features": "a,b", **options}
    return datasets.load(write(folder, form, table), **options)


def rows(federation):
    """{client: its rows of x beside y, sorted}: split_examples shuffles them."""
    found = {}
    for number, client in enumerate(federation.ids):
        x, y = federation.fetch(np.array([number]))
        found[client] = sorted(np.column_stack([x.reshape(len(x), -1), y]).tolist())
    return found


@pytest.mark.parametrize("form", FORMATS)
def test_columns_become_clients_features_and_classes(form, tmp_path):
    federation = load(tmp_path, form, columns())
    assert rows(federation) == {"007": [[1, 10, 2], [3, 30, 1]], "ann": [[4, 40, 2]], "bo": [[2, 20, 0], [5, 50, 2]]}
    assert not federation.has_predefined_split
    assert federation.metadata["labels"] == ["ant", "bee", "cat"] and federation.metadata["classes"] == 3
    assert (federation.metadata["kind"], federation.metadata["features"]) == ("features", ["a", "b"])
    x, y = federation.example()
    assert x.dtype == np.float32 and y.dtype == np.int32


@pytest.mark.parametrize("form", FORMATS)
def test_columns_may_have_any_names(form, tmp_path):
    table = {"who": ["u", "v"], "kind": ["p", "q"], "a": [1.0, 2.0], "b": [3.0, 4.0]}
    federation = load(tmp_path, form, table, client="who", target="kind", features=["b"])
    assert rows(federation) == {"u": [[3, 0]], "v": [[4, 1]]}


@pytest.mark.parametrize("form", FORMATS)
def test_fractions_are_for_regression_and_whole_numbers_are_classes(form, tmp_path):
    regression = load(tmp_path, form, columns(y=[0.5, 1.5, 2.5, 3.5, 4.5]))
    assert rows(regression)["ann"] == [[4, 40, 3.5]] and regression.example()[1].dtype == np.float32
    assert "classes" not in regression.metadata
    whole = load(tmp_path, form, columns(y=[30, 7, 30, 7, 9]))
    assert whole.metadata["labels"] == ["7", "9", "30"] and rows(whole)["007"] == [[1, 10, 2], [3, 30, 2]]


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("flag", [True, "true"])
def test_whole_numbers_are_for_regression_on_request(form, flag, tmp_path):
    federation = load(tmp_path, form, columns(y=[30, 7, 30, 7, 9]), regression=flag)
    assert rows(federation)["ann"] == [[4, 40, 7]] and federation.example()[1].dtype == np.float32
    assert not {"classes", "labels"} & set(federation.metadata)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("named", ["train", "test", ""])
def test_a_pair_of_files_is_one_data_set(form, named, tmp_path):
    parts = {"train": columns(), "test": columns(client=["bo", "007"], y=["dog", "ant"], a=[6.0, 7.0], b=[60, 70])}
    paths = {part: write(tmp_path, form, table).rename(tmp_path / f"{part}.{form}") for part, table in parts.items()}
    options = {"features": "a,b"} if form == "npz" else {}
    federation = datasets.load(paths.get(named, tmp_path), **options)
    assert federation.has_predefined_split and federation.sizes.tolist() == [[2, 1], [1, 0], [2, 1]]
    assert federation.metadata["labels"] == ["ant", "bee", "cat", "dog"]
    x, y = federation.fetch(np.array([0]))
    assert np.column_stack([x, y]).tolist() == [[1, 10, 2], [3, 30, 1], [7, 70, 0]]
    with pytest.raises(UserError, match="are a pair, so split=b does not fit"):
        datasets.load(tmp_path, split="b", **options)
    write(tmp_path, form, columns(b=["u"] * 5)).rename(paths["test"])
    with pytest.raises(UserError, match="but differ in column 'b'; give both the same columns"):
        datasets.load(tmp_path, **options)


@pytest.mark.parametrize("form", FORMATS)
def test_classes_and_labels_fix_the_numbers_of_classes(form, tmp_path):
    table = columns(y=[3, 4, 3, 5, 3])
    fixed = load(tmp_path, form, table, classes="6")
    assert rows(fixed)["ann"] == [[4, 40, 5]] and fixed.metadata["classes"] == 6
    named = load(tmp_path, form, columns(), labels="bee,cat,dog,ant")
    assert rows(named)["bo"] == [[2, 20, 3], [5, 50, 1]] and named.metadata["classes"] == 4
    with pytest.raises(UserError, match="client ann has an example with label 5; with 5 classes"):
        load(tmp_path, form, table, classes=5)
    with pytest.raises(UserError, match="target 'ant' in column 'y' of client bo, which is not among the 2 labels"):
        load(tmp_path, form, columns(), labels=["bee", "cat"])
    with pytest.raises(UserError, match="no numbers in column 'y', so classes= does not fit"):
        load(tmp_path, form, columns(), classes=5)


@pytest.mark.parametrize("form", FORMATS)
def test_a_split_column_separates_the_parts(form, tmp_path):
    table = columns(part=["test", "train", "train", "train", "train"])
    federation = load(tmp_path, form, table, split="part")
    assert federation.has_predefined_split and federation.sizes.tolist() == [[1, 1], [1, 0], [2, 0]]
    assert federation.fetch(np.array([0]))[0].tolist() == [[3, 30], [1, 10]]
    with pytest.raises(UserError, match="says 'dev' in its column 'part'; write train or test"):
        load(tmp_path, form, columns(part=["dev"] * 5), split="part")


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"client": None}, {}, "has no column 'client', but y, a, b; name the right one with client=, or make"),
        ({"y": None}, {}, "has no column 'y', but client, a, b; name the right one with target="),
        ({}, {"features": "a,c"}, "has no column 'c', but client, y, a, b; name the right ones with features="),
        ({}, {"features": "a,client"}, "column 'client' says whose the rows are, so it is no feature"),
        ({}, {"features": "a,y"}, "column 'y' is the target, so it is no feature"),
        (
            {"a": [1.0, 2.0, 3.0, np.nan, 5.0]},
            {"raw": True},
            "NaN or infinite value in column 'a' of client ann, row 4",
        ),
        ({"a": [1.0, np.inf, 3.0, 4.0, 5.0]}, {"raw": True}, "NaN or infinite value in column 'a' of client bo, row 2"),
        ({"y": [1.5, 2.5, np.nan, 1.0, 1.0]}, {}, "no value in column 'y' of row 3"),
        ({"client": ["a", "b", "", "d", "e"]}, {}, "no value in column 'client' of row 3"),
        ({}, {"colour": "red"}, "has no option 'colour'; it accepts client, target, features, split"),
        ({}, {"partition": "random", "client": "client"}, "give either client=client or partition=random"),
        ({}, {"partition": "fair"}, "partition=fair is none of dirichlet, classes, random"),
        ({}, {"partition": "random"}, "partition=random needs the option clients"),
        ({}, {"partition": "random", "clients": "many"}, "option clients='many' is not a whole number"),
        ({}, {"partition": "random", "clients": 6}, "6 clients cannot share 5 examples"),
        ({"y": [0.5] * 5}, {"partition": "dirichlet"}, "the target holds fractions; give partition=random"),
        ({}, {"features": 3}, "has no column '3', but"),
        ({}, {"labels": 3}, "which is not among the 1 labels given"),
        ({"y": [1, 2, 1, 2, 1]}, {"classes": -3}, "option classes=-3 is not a whole number from 1 on"),
        ({}, {"partition": "random", "clients": 2, "seed": -1}, "option seed=-1 is not a whole number from 0 on"),
        ({}, {"partition": "random", "clients": 2.5}, "option clients=2.5 is not a whole number"),
        ({}, {"partition": "random", "clients": 10**12}, "1000000000000 clients cannot share 5 examples"),
        ({}, {"partition": "random", "clients": True}, "option clients=True is not a whole number"),
        ({}, {"partition": "random", "clients": "1e400"}, "option clients='1e400' is not a whole number"),
        ({}, {"partition": "dirichlet", "clients": 2, "alpha": "nan"}, "alpha is nan; give a number above 0"),
        ({}, {"partition": "dirichlet", "clients": 2, "alpha": -1}, "alpha is -1; give a number above 0"),
        ({}, {"regression": "true"}, "no numbers in column 'y'; targets of regression are numbers"),
        ({}, {"regression": "yes"}, "neither true nor false"),
        ({"y": [1, 2, 1, 2, 1]}, {"regression": True, "classes": 3}, "give either classes= or regression=true"),
        (
            {f"c{i}": [1.0] * 5 for i in range(9)} | {"y": None},
            {},
            "but client, a, b, c0, c1, c2, c3, c4 ... and 4 more",
        ),
    ],
)
def test_bad_tables_get_one_sentence(form, changes, options, message, tmp_path):
    with pytest.raises(UserError) as caught:
        load(tmp_path, form, columns(**changes), **options)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("form", FORMATS)
def test_tables_without_rows_or_cut_short_are_refused(form, tmp_path):
    empty = {name: np.asarray(values)[:0] for name, values in columns().items()}
    with pytest.raises(UserError, match="has columns but no rows"):
        load(tmp_path, form, empty)
    path = write(tmp_path, form, columns())
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b"\n") + 4] if form == "csv" else content[: len(content) // 2])
    with pytest.raises(UserError, match="damaged, cut short"):
        datasets.load(path)


def test_nulls_in_parquet_are_missing_values(tmp_path):
    with pytest.raises(UserError, match="no value in column 'y' of row 2"):
        load(tmp_path, "parquet", columns(y=["a", None, "b", "a", "b"]))
    with pytest.raises(UserError, match="no value in column 'y' of row 2"):
        load(tmp_path, "parquet", columns(y=[1, None, 2, 3, 1]))
    with pytest.raises(UserError, match="missing, NaN or infinite value in column 'b' of client bo, row 2"):
        load(tmp_path, "parquet", columns(b=[1, None, 2, 3, 1]), raw=True)


def test_csv_may_be_packed_and_separated_by_semicolons(tmp_path):
    (tmp_path / "own.csv.gz").write_bytes(gzip.compress(b"client;y;a\nu;1;0.5\nv;0;1.5\n"))
    assert rows(datasets.load(tmp_path / "own.csv.gz")) == {"u": [[0.5, 1]], "v": [[1.5, 0]]}


def test_small_clients_need_no_test_example(tmp_path):
    assert load(tmp_path, "csv", columns()).sizes.tolist() == [[1, 1], [1, 0], [1, 1]]


def test_npz_pictures_stay_uint8(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (4, 5, 6, 3)).astype(np.uint8)
    federation = datasets.load(npz(tmp_path / "a.npz", x=x, y=np.arange(4), client=np.arange(4)))
    np.testing.assert_array_equal(federation.fetch(np.arange(4))[0], x)
    assert federation.metadata["kind"] == "image"


@pytest.mark.parametrize("shape", [(3, 28, 28), (3, 28, 28, 1)])
def test_npz_characters_are_inverted_where_the_user_says_so_alone(shape, tmp_path):
    x = np.zeros(shape, np.float32)
    x[:, 10:15, 10:15] = 1
    path = npz(tmp_path / "a.npz", x=x, y=np.arange(3), client=["u", "v", "w"])
    for options, high in (({}, 255), ({"inverted": True}, 0)):
        federation = datasets.load(path, **options)
        found = federation.fetch(np.arange(3))[0]
        assert found.shape == (3, 28, 28, 1) and found.dtype == np.uint8
        np.testing.assert_array_equal(found[..., 0], np.where(x.reshape(3, 28, 28) == 1, high, 255 - high))
        assert federation.metadata["inverted"] == (high == 0)


def test_npz_features_keep_their_shape(tmp_path):
    x = np.arange(12.0).reshape(2, 3, 2)
    federation = datasets.load(npz(tmp_path / "a.npz", x=x, y=np.arange(2), client=["u", "v"]))
    np.testing.assert_array_equal(federation.fetch(np.arange(2))[0], x.astype(np.float32))


@pytest.mark.parametrize("options", [{}, {"classes": 3}, {"partition": "dirichlet", "clients": 2, "alpha": 1}])
@pytest.mark.parametrize("kind", [np.float64, np.int64, bool])
def test_one_hot_targets_are_the_classes_that_they_mark(options, kind, tmp_path):
    y = np.arange(12) % 3
    arrays = {"x": y[:, None] * np.ones(2), "y": np.eye(3, dtype=kind)[y]}
    path = npz(tmp_path / "a.npz", **arrays if "partition" in options else {**arrays, "client": np.arange(12) // 4})
    federation = datasets.load(path, **options)
    found = federation.fetch(np.arange(len(federation)))
    np.testing.assert_array_equal(found[0][:, 0], found[1])
    assert federation.metadata["classes"] == 3 and found[1].dtype == np.int32


@pytest.mark.parametrize("options", [{"classes": 3}, {"partition": "dirichlet", "clients": 2, "alpha": 1}, {}])
def test_several_numbers_are_no_class(options, tmp_path):
    arrays = {"x": np.ones((3, 2)), "y": np.array([[1, 2], [0, 1], [0, 0]])}
    path = npz(tmp_path / "a.npz", **arrays if "partition" in options else {**arrays, "client": np.arange(3)})
    with pytest.raises(
        UserError, match=r"needs one class per example, and the target has 2|has 2 numbers for each row"
    ):
        datasets.load(path, **options)


@pytest.mark.parametrize("name", ["xl/workbook.xml", "archive/data.pkl"])
def test_other_zip_archives_are_refused(name, tmp_path):
    with zipfile.ZipFile(tmp_path / "book.xlsx", "w") as archive:
        archive.writestr(name, "<workbook/>")
    with pytest.raises(UserError, match="is a zip archive, but not one of numpy's arrays"):
        datasets.load(tmp_path / "book.xlsx")


def test_bad_npz_gets_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"arrays of different lengths \(x: 3, y: 2, client: 2\)"):
        datasets.load(npz(tmp_path / "a.npz", x=np.ones((3, 2)), y=np.arange(2), client=np.arange(2)))
    with pytest.raises(UserError, match=r"holds Python objects in 'y', which are not unpickled; .* y\.astype\(str\)"):
        datasets.load(npz(tmp_path / "b.npz", x=np.ones((2, 2)), y=np.array([{}, None]), client=np.arange(2)))


@pytest.mark.parametrize(
    "options",
    [
        {"partition": "dirichlet", "clients": "5", "alpha": "0.5"},
        {"partition": "classes", "clients": 5, "classes_per_client": 2, "seed": 3},
        {"partition": "random", "clients": 5},
        {"partition": "dirichlet", "clients": 5, "alpha": "inf"},
    ],
)
def test_tables_without_clients_can_be_partitioned(options, tmp_path):
    table = {"y": list(np.arange(100) % 4), "a": list(np.arange(100.0))}
    federation = datasets.load(write(tmp_path, "csv", table), **options)
    assert list(federation.ids) == [f"client_{i}" for i in range(5)]
    found = [row for client in rows(federation).values() for row in client]
    assert sorted(found) == [[i, i % 4] for i in range(100)]
