"""Layouts that a user's own examples come in, each made here: pictures, shards, text, the hub's Parquet, frames."""

from __future__ import annotations

import importlib.util
import io
import json
import shutil
import types
from dataclasses import replace
from decimal import Decimal

import jax
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import csv, parquet

import headstart as hs
from headstart import Data, Experiment, FedAvg, ModelSpec, NextCharacter, Optimizer, Stage
from headstart.data import characters
from headstart.data import load as datasets
from headstart.data.decided import decisions
from headstart.data.duplicates import data_notes, duplicate_notes, near_duplicates
from headstart.data.readers.words import hashed_words
from headstart.errors import UserError
from headstart.experiment.setup import prepare
from headstart.experiment.suited import suited
from headstart.reports import page


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))


def picture(path, level, *, mode="L", size=(10, 9), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, level).save(path, **options)
    return path


def levels(federation):
    """{client: [(its local training rows, brightness and label), (its local test rows)]}, sorted."""
    found, labels = {}, federation.metadata["labels"]
    for number, client in enumerate(federation.ids):
        x, y = federation.fetch(np.array([number]))
        rows = [(int(a.flat[0]), str(labels[int(b)])) for a, b in zip(x, y, strict=True)]
        n = federation.sizes[number, 0]
        found[client] = (sorted(rows[:n]), sorted(rows[n:]))
    return found


def test_a_folder_of_pictures_is_read_by_client_and_class_with_its_own_polarity(tmp_path):
    folder = tmp_path / "signs"
    for client, label, levels_ in (("ann", "stop", (3, 4)), ("ann", "go", (5, 6, 7)), ("bo", "go", (8, 9))):
        for level in levels_:
            picture(folder / client / label / f"{level}.png", level)
    (folder / "ann" / "stop" / "notes.txt").write_text("no picture")
    federation = hs.load(folder)
    assert (federation.name, list(federation.ids)) == ("signs", ["ann", "bo"])
    assert federation.metadata["labels"] == ["go", "stop"] and not federation.has_predefined_split
    adapt, test = levels(federation)["ann"]
    assert sorted(adapt + test) == [(3, "stop"), (4, "stop"), (5, "go"), (6, "go"), (7, "go")]
    x, _ = federation.example()
    assert x.shape[1:] == (9, 10, 1) and x.dtype == np.uint8
    assert "files that are no pictures are left out (1, such as notes.txt)" in federation.metadata["notes"]
    assert hs.load(folder, labels="stop,go").metadata["labels"] == ["stop", "go"]
    with pytest.raises(UserError, match="has no option 'client'; it accepts labels"):
        hs.load(folder, client="writer")


@pytest.mark.parametrize("path", ["{part}/{client}/{label}", "{client}/{part}/{label}", "{client}/{label}/{part}"])
def test_folders_train_and_test_are_a_split(path, tmp_path):
    for level, (part, client) in enumerate([("train", "a"), ("train", "a"), ("test", "a"), ("train", "b")]):
        picture(tmp_path / "p" / path.format(part=part, client=client, label="x") / f"{level}.png", level)
    federation = hs.load(tmp_path / "p")
    assert federation.has_predefined_split
    assert levels(federation) == {"a": ([(0, "x"), (1, "x")], [(2, "x")]), "b": ([(3, "x")], [])}


def test_colour_grey_and_transparent_pictures_become_one_array(tmp_path):
    folder = tmp_path / "p" / "c" / "k"
    picture(folder / "0.png", 7)
    picture(folder / "1.png", (1, 2, 3), mode="RGB")
    picture(folder / "2.png", (0, 0, 0, 0), mode="RGBA")
    turned = Image.new("L", (9, 10), 50)
    turned.getexif()[0x0112] = 6
    turned.save(folder / "3.png", exif=turned.getexif())
    federation = datasets.load(tmp_path / "p")
    x, _ = federation.fetch(np.array([0]))
    assert sorted(map(tuple, x[:, 0, 0].tolist())) == [(1, 2, 3), (7, 7, 7), (50, 50, 50), (255, 255, 255)]
    assert "grey and some in colour" in federation.metadata["notes"][0]


def odd_size(folder):
    picture(folder / "a" / "x" / "9.png", 1, size=(3, 3))


def sixteen_bits(folder):
    Image.fromarray(np.full((9, 10), 1000, np.uint16)).save(folder / "a" / "x" / "9.png")


def cut_short(folder):
    whole = picture(folder / "a" / "x" / "9.png", 1)
    whole.write_bytes(whole.read_bytes()[:40])


def animated(folder):
    frames = [Image.new("L", (10, 9), level) for level in (0, 200)]
    frames[0].save(folder / "a" / "x" / "9.gif", save_all=True, append_images=frames[1:])


def too_deep(folder):
    picture(folder / "a" / "x" / "y" / "9.png", 1)


def huge(folder):
    Image.new("1", (20_000, 20_000)).save(folder / "a" / "x" / "0.png")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (odd_size, r"9\.png has 3x3 pixels, and .*0\.png 10x9; bring all pictures to one size"),
        (sixteen_bits, "mode I;16, not grey or colour of 8 bits"),
        (cut_short, r"9\.png is damaged, cut short"),
        (animated, "has 2 frames"),
        (too_deep, "in folders of different depths"),
        (huge, "exceeds limit of 178956970 pixels"),
    ],
)
def test_bad_folders_of_pictures_get_one_sentence(spoil, message, tmp_path):
    for level in range(2):
        picture(tmp_path / "p" / "a" / "x" / f"{level}.png", level)
    spoil(tmp_path / "p")
    with pytest.raises(UserError, match=message):
        hs.load(tmp_path / "p")


def test_folders_that_name_no_clients_are_refused(tmp_path):
    for part in ("train", "test"):
        picture(tmp_path / "p" / part / "cat" / "0.png", 1)
    with pytest.raises(UserError, match="where test, train are no clients or classes; put each picture into client"):
        hs.load(tmp_path / "p")


def shard(path, rows, *, clients=None, start=0):
    columns = {"a": [start + i + 0.5 for i in range(rows)], "y": ["no", "yes"] * (rows // 2)}
    table = pa.table(columns | ({"client": clients} if clients else {}))
    path.parent.mkdir(parents=True, exist_ok=True)
    (parquet.write_table if path.suffix == ".parquet" else csv.write_csv)(table, path)


@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_the_files_of_a_folder_are_pieces_of_one_table(ending, tmp_path):
    folder = tmp_path / "visits"
    for piece in range(3):
        shard(folder / f"part-{piece:05d}-c4.{ending}", 4, clients=["a", "b", "a", "b"], start=10 * piece)
    federation = hs.load(folder)
    assert (federation.name, federation.sizes.sum(axis=1).tolist()) == ("visits", [6, 6])
    assert federation.metadata["source"] == f"{ending} visits (3 files)"
    shard(folder / f"part-00009.{ending}", 2, clients=["c", "c"])
    assert list(hs.load(folder).ids) == ["a", "b", "c"]


def test_a_file_per_client_is_named_by_its_file_and_pieces_are_not(tmp_path):
    for client, rows in (("007", 4), ("ward-2", 6)):
        shard(tmp_path / "own" / f"{client}.csv", rows)
    federation = hs.load(tmp_path / "own")
    assert (list(federation.ids), federation.sizes.sum(axis=1).tolist()) == (["007", "ward-2"], [4, 6])
    assert "every file is a client, named as the file" in federation.metadata["notes"][0]
    for part in ("train", "test"):
        for client in ("a", "b"):
            shard(tmp_path / "split" / part / f"{client}.parquet", 4 if part == "train" else 2)
    federation = hs.load(tmp_path / "split")
    assert federation.has_predefined_split and federation.sizes.tolist() == [[4, 2], [4, 2]]
    for piece in ("train-00000-of-00002", "train-00001-of-00002"):
        shard(tmp_path / "hub" / f"{piece}.parquet", 4)
    with pytest.raises(UserError, match="hub has no column 'client'"):
        hs.load(tmp_path / "hub")


def test_folders_of_tables_are_clients_or_a_column(tmp_path):
    for i, client in enumerate(("ann", "bo")):
        for piece in range(2):
            shard(tmp_path / "own" / client / f"part-{piece}.csv", 4, start=i)
            shard(tmp_path / "hive" / f"ward={client}%201" / f"part-{piece}.parquet", 4)
    federation = hs.load(tmp_path / "own")
    assert (list(federation.ids), federation.sizes.sum(axis=1).tolist()) == (["ann", "bo"], [8, 8])
    assert "every folder is a client" in federation.metadata["notes"][0]
    assert list(hs.load(tmp_path / "hive", client="ward").ids) == ["ann 1", "bo 1"]


def test_a_column_without_values_in_one_piece_is_gaps(tmp_path):
    text = "client,y,a,b,when\nc,0,{a},{b},{when}\nc,1,{a},{b},{when}\n"
    (tmp_path / "part-0.csv").write_text(text.format(a="", b="", when=""))
    (tmp_path / "part-1.csv").write_text(text.format(a="red", b="2.5", when="2024-01-02"))
    federation = hs.load(tmp_path)
    assert [column["kind"] for column in federation.metadata["columns"]] == ["category", "number", "date"]
    x, _ = federation.fetch(np.array([0]))
    assert np.isnan(x).sum(axis=0).tolist() == [2, 2, 2]


def test_tables_of_a_folder_that_differ_are_no_data_set(tmp_path):
    shard(tmp_path / "a.csv", 2)
    (tmp_path / "b.csv").write_text("other,y\n1,2\n")
    with pytest.raises(UserError, match="differ in column 'a'"):
        hs.load(tmp_path)


def leaf(path, **examples):
    data = {user: {"x": x, "y": y} for user, (x, y) in examples.items()}
    counts = [len(user["y"]) for user in data.values()]
    path.write_text(json.dumps({"users": list(data), "num_samples": counts, "user_data": data}))
    return path


def test_leaf_synthetic_is_numbers_and_classes(tmp_path):
    train = leaf(tmp_path / "all_train.json", f_0=([[0.5, -1.0], [1.5, 2.0]], [7, 3]), f_1=([[3.0, 4.0]], [9]))
    leaf(tmp_path / "all_test.json", f_0=([[8.0, 9.0]], [9]))
    federation = hs.load(train)
    assert federation.sizes.tolist() == [[2, 1], [1, 0]] and federation.metadata["kind"] == "features"
    x, y = federation.fetch(np.array([0]))
    assert x.dtype == np.float32 and x.tolist() == [[0.5, -1.0], [1.5, 2.0], [8.0, 9.0]]
    assert [federation.metadata["labels"][number] for number in y] == ["7", "3", "9"]
    (other := tmp_path / "other").mkdir()
    theirs = leaf(other / "new.json", g=([[1.0, 2.0], [1.0, 2.0]], [9, 7]))
    later = datasets.load_as_decided(theirs, {}, decisions(federation.metadata))
    assert sorted(later.fetch(np.array([0]))[1].tolist()) == [1, 2]
    wide = leaf(tmp_path / "wide.json", a=([[-0.4] * 700 + [2.5] * 84] * 2, [1, 0]))
    assert hs.load(wide).example()[0].shape == (2, 784)


def test_leaf_tweets_are_hashed_words(tmp_path):
    def tweets(*texts):
        return [["1", "Mon", "NO_QUERY", "ann", text] for text in texts]

    path = leaf(tmp_path / "t.json", ann=(tweets("Good, good day", "day GOOD good ,", ""), [1, 1, 0]))
    federation = hs.load(path)
    x, y = federation.fetch(np.array([0]))
    x, y = x[np.argsort(-x.sum(axis=1), kind="stable")], sorted(y)
    np.testing.assert_array_equal(x[0], x[1])
    np.testing.assert_allclose(np.sort(x[0])[-3:], np.array([1, 1, 2]) / np.sqrt(6), rtol=1e-6)
    assert x.shape == (3, 1024) and not x[2].any() and y == [0, 1, 1]
    assert "hashed into 1,024 features" in federation.metadata["notes"][0]
    bad = leaf(tmp_path / "r.json", ann=([[["a", "b"]]], [1]))
    with pytest.raises(UserError, match="none of FEMNIST, Shakespeare, Synthetic and Sent140"):
        hs.load(bad)


def visits(path, *, rows=20, clients=3, **columns):
    """A table of clients with a time, a recording of four rows each, a number and a class."""
    n = rows * clients
    table = {
        "ward": np.repeat([f"w{i}" for i in range(clients)], rows),
        "day": np.tile(np.arange(rows)[::-1], clients).astype(float),
        "tape": np.tile(np.repeat(np.arange(rows // 4), 4), clients),
        "a": np.random.default_rng(0).normal(size=n),
        "y": np.tile(["no", "yes"], n // 2),
    }
    csv.write_csv(pa.table(table | columns), path)
    return path


def parts(path, column, **options):
    """{client: (its support values of a column, its query values)}."""
    federation = hs.load(path, client="ward", features=f"{column},a", **options)
    found = {}
    for number, client in enumerate(federation.ids):
        values = federation.fetch(np.array([number]))[0][:, 0].tolist()
        found[client] = values[: federation.sizes[number, 0]], values[federation.sizes[number, 0] :]
    return federation, found


def test_the_last_part_of_a_clients_time_tests(tmp_path):
    federation, found = parts(visits(tmp_path / "v.csv"), "day", time="day")
    assert not federation.has_predefined_split and federation.metadata["split"].startswith("by time")
    assert all((min(query), max(support), len(query)) == (16, 15, 4) for support, query in found.values())
    tied = visits(tmp_path / "tied.csv", day=np.tile(np.repeat([1.0, 2.0, 3.0], [9, 8, 3]), 3))
    assert all(set(query) == {3.0} for _, query in parts(tied, "day", time="day")[1].values())
    same = visits(tmp_path / "same.csv", day=np.ones(60))
    federation, _ = parts(same, "day", time="day")
    assert federation.sizes.tolist() == [[20, 0]] * 3
    assert "3 clients have no rows for local tests, split by time" in federation.metadata["notes"][0]
    dates = visits(tmp_path / "dates.csv", when=[f"2024-01-{1 + i % 20:02d}" for i in range(60)])
    federation = hs.load(dates, client="ward", time="when")
    assert federation.metadata["features"] == ["day", "tape", "a"] and federation.sizes.tolist() == [[16, 4]] * 3


def test_a_group_stays_on_one_side(tmp_path):
    path = visits(tmp_path / "v.csv")
    federation, found = parts(path, "tape", group="tape")
    assert federation.sizes.tolist() == [[16, 4]] * 3 and federation.metadata["split"].startswith("by group")
    assert all(not set(support) & set(query) for support, query in found.values())
    assert len({tuple(query) for _, query in found.values()}) > 1
    assert hs.load(path, client="ward", group="tape").metadata["features"] == ["day", "a"]
    later = datasets.load_as_decided(path, {"client": "ward"}, decisions(federation.metadata))
    np.testing.assert_array_equal(later.fetch(np.arange(3))[0], federation.fetch(np.arange(3))[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"time": "y"}, "has a category in column 'y', which is no time"),
        ({"time": "dya"}, r"no column 'dya' \(did you mean 'day'\?\), but ward, day, .* with time="),
        ({"time": "day", "group": "tape"}, "time= and group= are two ways"),
        ({"group": "tape", "split": "y"}, "says itself which rows are for local tests, so group= does not fit"),
        ({"exclude": "tpae"}, r"did you mean 'tape'\?.* with exclude="),
        ({"features": "A,tape", "client": "Ward"}, r"no column 'Ward' \(did you mean 'ward'\?\)"),
    ],
)
def test_columns_of_splits_that_do_not_fit_get_one_sentence(options, message, tmp_path):
    with pytest.raises(UserError, match=message):
        hs.load(visits(tmp_path / "v.csv"), **({"client": "ward"} | options))


def test_the_command_splits_by_group_and_excludes_columns(command, tmp_path):
    path = visits(tmp_path / "v.csv", **{f"a_rather_long_name_of_a_column_{i}": np.arange(60.0) for i in range(9)})
    code, out, _ = command("data", path, "--client", "ward", "--group", "tape", "--exclude", "day")
    assert code == 0 and "split of examples: by group: rows of one 'tape' stay together" in out
    assert "features: a, a_rather" in out and "a_rather_long_name_of_a_column_8\n" in out


def duplicates_of(*clients, y=None):
    sizes = np.array([[len(x), 0] for x in clients])
    x = np.concatenate(clients).astype(np.float32)
    metadata = {"kind": "features"}
    y = np.zeros(len(x), np.float32) if y is None else y
    federation = hs.from_arrays("f", [f"c{i}" for i in range(len(clients))], sizes, x, y, metadata=metadata)
    return hs.split_examples(federation)


def test_independent_rows_are_no_near_duplicates():
    generator = np.random.default_rng(0)
    for make in (
        lambda: generator.normal(generator.normal(size=6), 1, (50, 6)),
        lambda: np.exp(2 * generator.normal(size=(50, 5))),
        lambda: (generator.random((50, 4)) < generator.random(4)).astype(float),
        lambda: np.column_stack([np.sort(generator.random(50)), generator.normal(size=(50, 2))]),
        lambda: generator.normal(size=(50, 1)),
    ):
        assert duplicate_notes(duplicates_of(*(make() for _ in range(12)))) == []
    quantities = np.sort(generator.normal(size=(12, 50)), axis=1)
    made_of = [np.column_stack([y + generator.normal(0, 0.3, 50) for _ in range(3)]) for y in quantities]
    assert duplicate_notes(duplicates_of(*made_of, y=quantities.reshape(-1))) == []


def windows(generator, *, step, features):
    signal = generator.normal(size=64 + 49 * step)
    cut = np.stack([signal[i : i + 64] for i in range(0, 50 * step, step)])
    moments = [cut.mean(1), cut.std(1), cut.min(1), cut.max(1), np.abs(np.diff(cut, axis=1)).mean(1), (cut**3).mean(1)]
    return np.column_stack(moments) if features else cut


@pytest.mark.parametrize("features", [False, True])
def test_windows_that_overlap_and_were_split_at_random_are_warned_of(features):
    generator = np.random.default_rng(1)
    apart = [windows(generator, step=64, features=features) for _ in range(12)]
    assert duplicate_notes(duplicates_of(*apart)) == []
    found = near_duplicates(duplicates_of(*(windows(generator, step=32, features=features) for _ in range(12))))
    assert found is not None and (found.neighbours if features else found.overlapping) > 0.8


def test_repeated_rows_are_warned_of_and_a_split_by_group_heals_it(tmp_path):
    generator = np.random.default_rng(2)
    once = generator.normal(size=(12, 15, 8))
    (note,) = duplicate_notes(duplicates_of(*np.repeat(once, 3, axis=1)))
    assert "equal a row of the same client's local training (support)" in note and "--group COLUMN" in note
    again = duplicates_of(*np.repeat(once, 3, axis=1))
    prepared = prepare(Experiment("t", data=Data("", train=8), stages=(stage(),)), federation=again)
    assert data_notes(prepared.federation) == [note]
    noisy = np.repeat(once, 3, axis=1) + generator.normal(0, 0.05, (12, 45, 8))
    found = near_duplicates(duplicates_of(*(generator.permutation(rows) for rows in noisy)))
    assert found is not None and found.near > 0.5
    columns = {f"x{i}": noisy.reshape(-1, 8)[:, i] for i in range(8)}
    tape = np.tile(np.repeat(np.arange(15), 3), 12)
    path = tmp_path / "tapes.csv"
    y = generator.integers(0, 2, 540)
    csv.write_csv(pa.table({"client": np.repeat(np.arange(12), 45), "tape": tape, "y": y, **columns}), path)
    assert any("near-duplicates" in note for note in hs.load(path, exclude="tape").metadata["notes"])
    assert "notes" not in hs.load(path, group="tape").metadata


def png(level, *, mode="L", size=(6, 6)):
    content = io.BytesIO()
    Image.new(mode, size, level).save(content, "png")
    return content.getvalue()


def hub(path, *, pictures, labels=("0", "A", "a"), count=6):
    """A Parquet file as the hub has FEMNIST: an image, the writer's id, a class by its number."""
    table = pa.table(
        {
            "image": pictures,
            "writer_id": pa.array(["f1", "f2"] * (count // 2)),
            "hsf_id": list(range(count)),
            "character": pa.array([i % 3 for i in range(count)], pa.int64()),
        }
    )
    features = {"image": {"_type": "Image"}, "character": {"names": list(labels), "_type": "ClassLabel"}}
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(
        table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})}), path
    )
    return path


def test_pictures_and_class_names_of_the_hub(tmp_path):
    for piece in range(2):
        pictures = [{"bytes": png(10 * piece + i), "path": f"{i}.png"} for i in range(6)]
        hub(tmp_path / "femnist" / "data" / f"train-{piece:05d}-of-00002.parquet", pictures=pictures)
    federation = hs.load(tmp_path / "femnist" / "data", client="writer_id", target="character")
    note = "'image' holds pictures and is the one input; 'hsf_id' beside it is left out"
    assert federation.name == "femnist" and note in federation.metadata["notes"]
    assert list(federation.ids) == ["f1", "f2"] and federation.metadata["labels"] == ["0", "A", "a"]
    adapt, test = levels(federation)["f1"]
    assert sorted(adapt + test) == [(0, "0"), (2, "a"), (4, "A"), (10, "0"), (12, "a"), (14, "A")]
    assert federation.metadata["kind"] == "image" and federation.example()[0].shape[1:] == (6, 6, 1)
    plain = hub(tmp_path / "plain.parquet", pictures=[png(i) for i in range(6)])
    assert hs.load(plain, client="writer_id", target="character").metadata["kind"] == "image"
    for bad, message in (
        ({"bytes": None, "path": "a.png"}, "name of a file"),
        ({"bytes": b"x", "path": ""}, "damaged"),
    ):
        spoiled = hub(tmp_path / "bad.parquet", pictures=[{"bytes": png(0), "path": ""}] * 5 + [bad])
        with pytest.raises(UserError, match=rf"column 'image', row 6, .*{message}"):
            hs.load(spoiled, client="writer_id", target="character")


def test_lists_decimals_and_dictionaries_of_arrow(tmp_path):
    table = {
        "client": pa.array(["a", "b"] * 4).dictionary_encode(),
        "y": pa.array([Decimal("1.5"), Decimal("2.25")] * 4),
        "v": pa.array([[float(i), 0.5] for i in range(8)]),
        "w": pa.array([[i, i + 1, i + 2] for i in range(8)], pa.list_(pa.int32(), 3)),
        "colour": pa.array(["red", None] * 4).dictionary_encode(),
        "ragged": pa.array([[1]] * 7 + [[1, 2]]),
        "empty": pa.nulls(8),
    }
    parquet.write_table(pa.table(table), tmp_path / "t.parquet")
    federation = hs.load(tmp_path / "t.parquet", exclude="ragged,empty")
    assert federation.metadata["features"] == ["v[0]", "v[1]", "w[0]", "w[1]", "w[2]", "colour"]
    x, y = federation.fetch(np.array([0]))
    assert sorted(x[:, 0]) == [0, 2, 4, 6] and set(y) == {1.5} and (x[:, 4] == x[:, 0] + 2).all()
    cube = {"client": ["a"] * 4, "y": [0, 1] * 2, "x": pa.array(np.arange(24.0).reshape(4, 2, 3).tolist())}
    parquet.write_table(pa.table(cube), tmp_path / "c.parquet")
    assert hs.load(tmp_path / "c.parquet").example()[0].shape == (4, 2, 3)
    with pytest.raises(UserError, match="values of type list in column 'ragged'"):
        hs.load(tmp_path / "t.parquet")


def test_a_frame_in_memory_is_read_as_its_file(tmp_path):
    path = visits(tmp_path / "v.csv", colour=["red", "blue", None, "red"] * 15)
    expected, table = hs.load(path, client="ward", group="tape"), csv.read_csv(path)
    frames = [table, table.to_pydict(), types.SimpleNamespace(__arrow_c_stream__=table.__arrow_c_stream__)]
    frames += [types.SimpleNamespace(to_arrow=lambda: table)]
    if pandas := importlib.util.find_spec("pandas") and importlib.import_module("pandas"):
        frame = pandas.read_csv(path)
        frames += [frame, frame.set_index("ward"), frame.astype({"colour": "category"}), frame[frame.columns[::-1]]]
    for frame in frames:
        federation = hs.from_frame(frame, client="ward", target="y", group="tape", name="v")
        assert (list(federation.ids), federation.sizes.tolist()) == (list(expected.ids), expected.sizes.tolist())
        names = federation.metadata["features"]
        mine, theirs = federation.fetch(np.arange(3))[0], expected.fetch(np.arange(3))[0]
        order = [names.index(name) for name in expected.metadata["features"]]
        np.testing.assert_array_equal(mine[:, order], theirs)
    with pytest.raises(UserError, match=r"the frame has no column 'wrad' \(did you mean 'ward'\?\)"):
        hs.from_frame(table, client="wrad", target="y")
    pictures = {"client": ["a"] * 4, "y": [0, 1] * 2, "x": np.zeros((4, 8, 8), np.uint8)}
    assert hs.from_frame(pictures).example()[0].shape == (4, 8, 8, 1)
    with pytest.raises(UserError, match="columns of different lengths"):
        hs.from_frame(pictures | {"x": np.zeros((3, 8, 8))})
    with pytest.raises(UserError, match="from_frame was given a list"):
        hs.from_frame([1, 2], client="ward")


def test_the_report_says_how_rows_were_split_and_warns(small_run, tmp_path):
    shutil.copytree(small_run, tmp_path / "run")
    path = tmp_path / "run" / "federation.json"
    record = json.loads(path.read_text())
    record["facts"] |= {"split": "by time: of 'day'", "notes": ["near-duplicates: 9 %", "other"]}
    path.write_text(json.dumps(record))
    federation = types.SimpleNamespace(metadata=record["facts"])
    assert data_notes(federation)[:2] == ["rows of each client were split by time: of 'day'", "near-duplicates: 9 %"]
    notices = page._data_notices(hs.open_run(tmp_path / "run"))
    assert notices == ["Rows of each client were split by time: of 'day'.", "Near-duplicates: 9 %."]


def letters(path, texts, **columns):
    csv.write_csv(pa.table({"client": [f"c{i % 4}" for i in range(len(texts))], "line": texts, **columns}), path)
    return path


def decoded(federation, client):
    """The texts of a client, from inputs and last targets; a box for what the vocabulary lacks."""
    labels = [*federation.metadata["labels"]]
    names = {"<pad>": "", "<bos>": "", "<eos>": "", "<oov>": "□"}
    x, y = federation.fetch(np.array([client]))
    rows = np.concatenate([x, y[:, -1:]], axis=1)
    return sorted("".join(names.get(labels[token], labels[token]) for token in row) for row in rows)


def test_own_text_is_numbered_as_training_clients_use_its_characters(tmp_path):
    path = letters(tmp_path / "t.csv", ["да", "ад", "дa", "q□", "ад", "да", "aд", "qд"])
    raw = hs.load(path, text="line")
    federation = characters.fit_characters(raw, np.array([0, 1, 2]))
    assert federation.metadata["labels"] == ["<pad>", "а", "д", "<oov>", "<bos>", "<eos>"]
    assert federation.metadata["classes"] == federation.metadata["vocabulary"] == 6
    assert decoded(federation, 0) == ["ад", "да"] and decoded(federation, 3) == ["□д", "□□"]
    other = letters(tmp_path / "o.csv", ["да", "ад", "дa", "zzz", "ад", "да", "aд", "z"])
    assert characters.fit_characters(hs.load(other, text="line"), np.array([0, 1, 2])).metadata == {
        **federation.metadata,
        "source": "csv o.csv",
    }
    later = datasets.load_as_decided(path, {"text": "line"}, decisions(federation.metadata))
    for mine, theirs in zip(later.fetch(np.arange(4)), federation.fetch(np.arange(4)), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    x, y = federation.fetch(np.array([0]))
    assert x.shape == y.shape == (2, 80) and (x[:, 1:] == y[:, :-1]).all() and x.dtype == np.int32
    printable = hs.load(path, text="line", characters="printable")
    assert len(printable.metadata["labels"]) == 100 and decoded(printable, 3) == ["q□", "q□"]
    long = letters(tmp_path / "long.csv", ["ab" * 100] * 4)
    assert hs.load(long, text="line", characters="ab").sizes.sum(axis=1).tolist() == [3] * 4
    with pytest.raises(UserError, match="has no text in column 'day'; name the column with the text"):
        hs.load(visits(tmp_path / "v.csv"), client="ward", text="day")


def test_a_model_of_own_text_has_its_vocabulary(tmp_path):
    path = letters(tmp_path / "t.csv", ["abba", "baab", "abab", "bbaa"] * 4)
    model = ModelSpec("char_lstm", {"width": 4, "layers": 1, "embedding": 2})
    data = Data(str(path), {"text": "line"}, train=2, validation=1)
    experiment = Experiment("t", data=data, model=model, stages=(stage(),))
    prepared = prepare(experiment)
    assert prepared.task == NextCharacter(0, (0, 3, 4, 5)) and prepared.federation.metadata["classes"] == 6
    x, _ = prepared.federation.example()
    shapes = jax.eval_shape(lambda: prepared.model.apply(prepared.model.init(jax.random.key(0)), x)[0])
    assert shapes.shape == (*x.shape, 6)
    of_nodes = {name: prepared.federation.metadata[name] for name in ("kind", "classes", "labels")}
    assert suited(experiment, replace(prepared.federation, metadata=of_nodes)).task == prepared.task


def stage():
    return Stage("FedAvg", FedAvg(1, learning_rate=0.1, batch_size=4), Optimizer("sgd", 1.0), 2, 2)


def test_text_with_a_target_is_hashed_words(tmp_path):
    path = letters(tmp_path / "t.csv", ["good day", "bad day"] * 4, mood=["up", "down"] * 4)
    federation = hs.load(path, text="line", target="mood")
    assert federation.example()[0].shape == (2, 1024) and federation.metadata["labels"] == ["down", "up"]
    new = letters(tmp_path / "new.csv", ["a good", "day", "DAY", "x"])
    inputs = datasets.load_inputs(new, {"text": "line"}, decisions(federation.metadata))
    np.testing.assert_array_equal(inputs.x, hashed_words(["a good", "day", "day", "x"]))


def test_own_tokens_have_a_vocabulary(tmp_path):
    x = np.arange(24).reshape(8, 3) % 7
    np.savez(tmp_path / "t.npz", client=["a", "b"] * 4, x=x, y=(x + 1) % 7)
    federation = hs.load(tmp_path / "t.npz", vocabulary=7)
    assert federation.metadata["kind"] == "text" and federation.metadata["special"] == {"pad": 0}
    assert "token 0 is padding" in federation.metadata["notes"][0]
    experiment = Experiment("t", data=Data(str(tmp_path / "t.npz"), {"vocabulary": 7}), stages=(stage(),))
    assert suited(experiment, federation).task == NextCharacter(0, (0,))
    inputs = datasets.load_inputs(tmp_path / "t.npz", {}, decisions(federation.metadata))
    assert inputs.x.dtype == np.int32 and inputs.x.tolist() == x.tolist()
    with pytest.raises(UserError, match="has the token 6 in row 3 of x; with vocabulary=6 tokens go from 0 to 5"):
        hs.load(tmp_path / "t.npz", vocabulary=6)
