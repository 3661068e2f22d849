"""Readers of the public layouts: tiny files written here, and the fixtures beside the repository if they are there."""

from __future__ import annotations

import gzip
import json
import lzma
import sqlite3
import struct
import sys
import zlib
from contextlib import closing
from pathlib import Path
from typing import Any

import h5py
import msgpack
import numpy as np
import pytest

from headstart.data import load as datasets
from headstart.data.readers import tfexample
from headstart.errors import UserError

SHARED = Path(__file__).parents[2] / "shared"
FIXTURES = SHARED / "fixtures"
IDS = ("f0000_14", "f0001_41")
WHITE = 255
IMAGE_LAYOUTS = ("tff-sqlite", "tff-lzma", "tff-h5", "fedjax", "leaf")
TEXT_LAYOUTS = ("tff-sqlite", "tff-lzma", "tff-h5", "fedjax")

needs_fixtures = pytest.mark.skipif(not FIXTURES.exists(), reason="needs ../shared/fixtures, which is not here")
needs_data = pytest.mark.skipif(not (SHARED / "data").exists(), reason="needs ../shared/data, which is not here")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))


def drawings(seed=0):
    """{(client, split): {"pixels": uint8, "label": int}}: dark marks on white, two clients, both splits."""
    generator = np.random.default_rng(seed)
    found = {}
    for client, sizes in zip(IDS, ((3, 2), (2, 1)), strict=True):
        for split, size in zip(("train", "test"), sizes, strict=True):
            pixels = np.full((size, 28, 28), WHITE, np.uint8)
            pixels[:, 4:24, 4:24] = generator.integers(0, 256, (size, 20, 20))
            found[client, split] = {"pixels": pixels, "label": generator.integers(0, 62, size)}
    return found


def speeches():
    texts = {
        (IDS[0], "train"): [b"Ay, marry.", b"x" * 100],
        (IDS[0], "test"): [b"No~"],
        (IDS[1], "train"): [b""],
        (IDS[1], "test"): [b"y" * 79, b"z" * 80],
    }
    return {key: {"snippets": snippets} for key, snippets in texts.items()}


def as_floats(fields):
    if "pixels" not in fields:
        return fields
    return {"pixels": fields["pixels"].astype(np.float32) / 255, "label": np.asarray(fields["label"])}


def varint(value):
    value &= (1 << 64) - 1
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def message(*fields):
    return b"".join(varint(number << 3 | 2) + varint(len(data)) + data for number, data in fields)


def proto(packed=True, **features):
    entries = []
    for name, value in features.items():
        if isinstance(value, bytes):
            feature = message((1, message((1, value))))
        elif isinstance(value, int | np.integer):
            feature = message((3, message((1, varint(int(value)))) if packed else b"\x08" + varint(int(value))))
        else:
            floats = [struct.pack("<f", v) for v in np.ravel(value)]
            feature = message((2, message((1, b"".join(floats))) if packed else b"".join(b"\x0d" + f for f in floats)))
        entries.append((1, message((1, name.encode()), (2, feature))))
    return message((1, message(*entries)))


def write_tff(path: Path, content, *, names=("all_train", "all_test"), announced=None):
    split_names = dict(zip(("train", "test"), names, strict=True))
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE examples (split_name TEXT, client_id TEXT, serialized_example_proto BLOB)")
        database.execute("CREATE TABLE client_metadata (client_id TEXT, split_name TEXT, num_examples INTEGER)")
        for (client, split), fields in content.items():
            rows = [dict(zip(fields, row, strict=True)) for row in zip(*as_floats(fields).values(), strict=True)]
            protos = [(split_names[split], client, proto(**row)) for row in rows]
            database.executemany("INSERT INTO examples VALUES (?, ?, ?)", protos)
            count = len(rows) if announced is None else announced
            database.execute("INSERT INTO client_metadata VALUES (?, ?, ?)", (client, split_names[split], count))
        database.commit()
    return path


def write_h5(path, content, split):
    with h5py.File(path, "w") as file:
        for (client, part), fields in content.items():
            if part == split:
                group = file.create_group(f"examples/{client}")
                for name, values in as_floats(fields).items():
                    kind = h5py.string_dtype() if name == "snippets" else None
                    group.create_dataset(name, data=values, dtype=kind)
    return path


def write_fedjax(path, content, split):
    def pack(values):
        if isinstance(values, list):
            return msgpack.ExtType(4, msgpack.packb(([len(values)], values)))
        return msgpack.ExtType(1, msgpack.packb((values.shape, values.dtype.name, values.tobytes())))

    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE federated_data (client_id BLOB, data BLOB, num_examples INTEGER)")
        for (client, part), fields in content.items():
            if part == split:
                data: Any = msgpack.packb({name: pack(values) for name, values in as_floats(fields).items()})
                key = f"{zlib.crc32(client.encode()):016x}:{client}".encode()
                row = (key, zlib.compress(data), len(next(iter(fields.values()))))
                database.execute("INSERT INTO federated_data VALUES (?, ?, ?)", row)
        database.commit()
    return path


def write_leaf(path, content, split):
    users = {client: as_floats(fields) for (client, part), fields in content.items() if part == split}
    data = {
        user: {"x": fields["pixels"].reshape(-1, 784).round(4).tolist(), "y": fields["label"].tolist()}
        for user, fields in users.items()
    }
    sizes = [len(data[user]["y"]) for user in users]
    path.write_text(json.dumps({"users": list(users), "num_samples": sizes, "user_data": data}))
    return path


def write(folder, layout, content):
    """Write `content` in a layout; the file to name."""
    text = "snippets" in next(iter(content.values()))
    names = ("train", "test") if text else ("all_train", "all_test")
    if layout == "tff-sqlite":
        return write_tff(folder / "data.sqlite", content, names=names)
    if layout == "tff-lzma":
        packed = folder / "data.sqlite.lzma"
        plain = write_tff(folder / "plain", content, names=names)
        packed.write_bytes(lzma.compress(Path(plain).read_bytes(), format=lzma.FORMAT_ALONE))
        return packed
    writer, suffix = {
        "tff-h5": (write_h5, "h5"), "fedjax": (write_fedjax, "sqlite"), "leaf": (write_leaf, "json")
    }[layout]  # fmt: skip
    writer(folder / f"data_test.{suffix}", content, "test")
    return writer(folder / f"data_train.{suffix}", content, "train")


@pytest.mark.parametrize("layout", IMAGE_LAYOUTS)
def test_images_of_every_layout_are_those_that_were_written(layout, tmp_path):
    content = drawings()
    federation = datasets.load(write(tmp_path, layout, content))
    assert list(federation.ids) == list(IDS)
    assert federation.sizes.tolist() == [[3, 2], [2, 1]]
    assert federation.has_predefined_split
    x, y = federation.fetch(np.arange(2))
    assert x.dtype == np.uint8 and y.dtype == np.int32
    np.testing.assert_array_equal(x[..., 0], np.concatenate([fields["pixels"] for fields in content.values()]))
    np.testing.assert_array_equal(y, np.concatenate([fields["label"] for fields in content.values()]))
    assert federation.metadata["labels"] == "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    assert (federation.metadata["kind"], federation.metadata["classes"], federation.metadata["inverted"]) == (
        "image",
        62,
        False,
    )


@pytest.mark.parametrize("layout", TEXT_LAYOUTS)
def test_text_of_every_layout_is_cut_as_published(layout, tmp_path):
    federation = datasets.load(write(tmp_path, layout, speeches()))
    # 100 characters with bos and eos need two rows of 81; 79 fit in one exactly, 80 do not.
    assert federation.sizes.tolist() == [[3, 1], [1, 3]]
    x, y = federation.fetch(np.arange(2))
    assert x.shape == y.shape == (8, 80) and x.dtype == y.dtype == np.int32
    np.testing.assert_array_equal(x[:, 1:], y[:, :-1])
    vocabulary = "\0dhlptx@DHLPTX $(,048cgkoswCGKOSW[_#'/37;?bfjnrvzBFJNRVZ\"&*.26:\naeimquyAEIMQUY]!%)-159\r"
    expected = [88, *(vocabulary.index(character) for character in "Ay, marry."), 89]
    assert x[0, :12].tolist() == expected and not x[0, 12:].any()
    assert [x[1, 0], *y[1]] == [88] + [vocabulary.index("x")] * 80
    assert x[2, :22].tolist() == [vocabulary.index("x")] * 20 + [89, 0]
    assert x[3, :5].tolist() == [88, vocabulary.index("N"), vocabulary.index("o"), 87, 89]
    assert x[4, :3].tolist() == [88, 89, 0]
    assert y[5, 79] == 89 and x[7, :2].tolist() == [89, 0]
    assert (
        federation.metadata["vocabulary"] == federation.metadata["classes"] == len(federation.metadata["labels"]) == 90
    )
    assert federation.metadata["special"] == {"pad": 0, "oov": 87, "bos": 88, "eos": 89}


@pytest.mark.parametrize("layout", IMAGE_LAYOUTS)
def test_black_backgrounds_are_inverted(layout, tmp_path):
    content = drawings()
    expected = np.concatenate([fields["pixels"] for fields in content.values()])
    for fields in content.values():
        fields["pixels"] = 255 - fields["pixels"]
    federation = datasets.load(write(tmp_path, layout, content))
    assert federation.metadata["inverted"] and "were inverted" in federation.metadata["notes"][0]
    np.testing.assert_array_equal(federation.fetch(np.arange(2))[0][..., 0], expected)


def test_grey_backgrounds_are_refused(tmp_path):
    content = drawings()
    for fields in content.values():
        fields["pixels"] = np.full_like(fields["pixels"], 128)
    with pytest.raises(UserError, match=r"median of 0\.50, neither a white"):
        datasets.load(write(tmp_path, "tff-sqlite", content))


def test_leaf_windows_become_shifted_rows(tmp_path):
    text = "".join(chr(97 + i % 26) for i in range(90))
    data = {"u": {"x": [text[i : i + 80] for i in range(3)], "y": [text[i + 80] for i in range(3)]}}
    with gzip.open(tmp_path / "roles_train.json.gz", "wt") as file:
        json.dump({"users": ["u"], "num_samples": [3], "user_data": data}, file)
    federation = datasets.load(tmp_path / "roles_train.json.gz")
    assert not federation.has_predefined_split and federation.sizes.sum() == 2
    x, y = federation.fetch(np.arange(1))
    labels = federation.metadata["labels"]
    order = np.argsort((x == 0).sum(axis=1))
    assert ["".join(labels[i] for i in x[row] if i) for row in order] == [text[:80], text[80:83]]
    assert ["".join(labels[i] for i in y[row] if i) for row in order] == [text[1:81], text[81:83]]


def test_leaf_passages_are_never_both_adapted_to_and_tested_on(tmp_path):
    # Three characters give a position in the passage: one counts on, two count its turns.
    alphabet = "abcdefghijklmnopqrstuvwxyz"
    passages = [
        "".join(alphabet[i % 26] + first + alphabet[i // 26] for i in range(n)) for first, n in (("A", 150), ("B", 200))
    ]
    x = [text[i : i + 80] for text in passages for i in range(len(text) - 80)]
    y = [text[i + 80] for text in passages for i in range(len(text) - 80)]
    content = {"users": ["u"], "num_samples": [len(x)], "user_data": {"u": {"x": x, "y": y}}}
    (tmp_path / "roles.json").write_text(json.dumps(content))
    federation = datasets.load(tmp_path / "roles.json")
    rows, targets = federation.fetch(np.arange(1))
    labels = federation.metadata["labels"]
    adapt, test = (
        [positions("".join(labels[i] for i in (row[0], *target) if i), passages) for row, target in part]
        for part in np.split(list(zip(rows, targets, strict=True)), [federation.sizes[0, 0]])
    )
    adapt, test = (set().union(*part) for part in (adapt, test))
    assert test and not adapt & test
    assert adapt | test == {(k, i) for k, text in enumerate(passages) for i in range(1, len(text))}


def positions(row, passages):
    """Where in which passage the characters that this row predicts stand."""
    number = next(k for k, text in enumerate(passages) if row in text)
    start = passages[number].index(row)
    assert passages[number].count(row) == 1
    return {(number, start + i) for i in range(1, len(row))}


def test_leaf_files_that_separate_users_are_one_federation_without_a_split(tmp_path, monkeypatch):
    content = drawings()
    for split, client in zip(("train", "test"), IDS, strict=True):
        (tmp_path / split).mkdir()
        own = {(client, split): content[client, "train"]}
        write_leaf(tmp_path / split / f"x_{split}.json", own, split)
    monkeypatch.chdir(tmp_path / "train")
    federation = datasets.load("x_train.json")
    assert list(federation.ids) == list(IDS) and not federation.has_predefined_split
    assert federation.sizes.sum(axis=1).tolist() == [3, 2] and federation.sizes.min() == 1


def test_examples_with_fields_in_any_order_packed_or_not_are_read():
    generator = np.random.default_rng(0)
    pixels = generator.random((9, 784), np.float32)
    labels = [0, 1, 2, 61, 5, 300, -1, 7, 8]
    orders = [
        proto(packed=i != 4, **({"pixels": p, "label": n} if i % 2 else {"label": n, "pixels": p}))
        for i, (p, n) in enumerate(zip(pixels, labels, strict=True))
    ]
    found_pixels, found_labels = tfexample.images(orders, size=784)
    np.testing.assert_array_equal(found_pixels, pixels)
    assert found_labels.tolist() == labels


@pytest.mark.parametrize("cut", [1, 5, 40, 1000, 3174])
def test_cut_examples_raise_value_error(cut):
    whole = proto(label=3, pixels=np.ones(784))
    with pytest.raises(ValueError):
        tfexample.images([whole[:cut]], size=784)


def test_only_the_digits_are_taken_on_request(tmp_path):
    content = drawings()
    for fields in content.values():
        fields["label"] = np.asarray(fields["label"]) % 10
    path = write_tff(tmp_path / "d.sqlite", content, names=("digits_only_train", "digits_only_test"))
    federation = datasets.load(path, digits_only="true")
    assert (federation.metadata["classes"], federation.metadata["labels"]) == (10, "0123456789")
    with pytest.raises(UserError, match="has the splits digits_only_test, digits_only_train, not all_train or train"):
        datasets.load(path)
    with pytest.raises(UserError, match="neither true nor false"):
        datasets.load(path, digits_only="perhaps")


@pytest.mark.parametrize("layout", ["tff-h5", "fedjax", "leaf"])
def test_either_file_of_a_pair_or_its_folder_will_do(layout, tmp_path):
    train = write(tmp_path, layout, drawings())
    test = train.with_name(train.name.replace("train", "test"))
    given = [datasets.load(path) for path in (train, test, tmp_path)]
    assert all(federation.sizes.tolist() == [[3, 2], [2, 1]] for federation in given)
    assert {federation.name for federation in given} == {"data"}
    test.rename(tmp_path / "elsewhere")
    alone = datasets.load(train)
    assert not alone.has_predefined_split and alone.sizes.sum(axis=1).tolist() == [3, 2]


def test_leaf_folders_of_several_files_are_one_data_set(tmp_path):
    content = drawings()
    for number, client in enumerate(IDS):
        for split in ("train", "test"):
            (tmp_path / split).mkdir(exist_ok=True)
            own = {key: fields for key, fields in content.items() if key[0] == client}
            write_leaf(tmp_path / split / f"all_data_{number}_keep_0_{split}_9.json", own, split)
    assert datasets.load(tmp_path).sizes.tolist() == [[3, 2], [2, 1]]
    assert datasets.load(tmp_path / "test" / "all_data_1_keep_0_test_9.json").sizes.tolist() == [[2, 1]]


def test_the_name_of_a_file_does_not_matter(tmp_path):
    path = write(tmp_path, "tff-lzma", drawings())
    assert datasets.load(path.rename(tmp_path / "pictures.csv")).sizes.sum() == 8


def spoil(path, *, start, data):
    content = bytearray(path.read_bytes())
    content[start : start + len(data)] = data
    path.write_bytes(content)


@pytest.mark.parametrize("layout", IMAGE_LAYOUTS)
@pytest.mark.parametrize("part", [0, 0.3, 0.9])
def test_cut_files_get_one_sentence(layout, part, tmp_path):
    path = write(tmp_path, layout, drawings())
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
    with pytest.raises(UserError, match=r"is empty|damaged, cut short") as caught:
        datasets.load(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_cut_gzip_gets_one_sentence(tmp_path):
    path = write(tmp_path, "leaf", drawings())
    packed = gzip.compress(path.read_bytes())
    path.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(UserError, match="damaged, cut short"):
        datasets.load(path)


@pytest.mark.parametrize("content", [b"\x89PNG\r\n\x1a\n", b"one word", b"\0\0\0,\0", "ä,ö".encode("latin-1")])
def test_unknown_formats_are_refused(content, tmp_path):
    path = tmp_path / "data.sqlite"
    path.write_bytes(content)
    with pytest.raises(UserError, match="of no format that headstart knows; give TFF sqlite"):
        datasets.load(path)


def test_other_databases_and_other_json_are_refused(tmp_path):
    with closing(sqlite3.connect(tmp_path / "songs.db")) as database:
        database.execute("CREATE TABLE songs (name TEXT)")
    with pytest.raises(UserError, match="SQLite with the tables songs, neither TFF's"):
        datasets.load(tmp_path / "songs.db")
    (tmp_path / "a.json").write_text('{"users": []}')
    with pytest.raises(UserError, match="is JSON, but not LEAF's"):
        datasets.load(tmp_path / "a.json")


@pytest.mark.parametrize("layout", IMAGE_LAYOUTS)
@pytest.mark.parametrize("value", [np.nan, -0.1, 1.5, np.inf])
def test_pixels_that_are_no_grey_name_the_client(layout, value, tmp_path, monkeypatch):
    content = {key: as_floats(fields) for key, fields in drawings().items()}
    content[IDS[1], "train"]["pixels"][1, 13, 2] = value
    monkeypatch.setattr(sys.modules[__name__], "as_floats", lambda fields: fields)
    with pytest.raises(UserError, match=rf"client f0001_41 has an image with a pixel of {value:g}; pixels are numbers"):
        datasets.load(write(tmp_path, layout, content))


@pytest.mark.parametrize("layout", IMAGE_LAYOUTS)
@pytest.mark.parametrize("label", [-1, 62, 1000])
def test_labels_out_of_range_name_the_client(layout, label, tmp_path):
    content = drawings()
    content[IDS[1], "train"]["label"][1] = label
    with pytest.raises(UserError, match=f"client f0001_41 has an example with label {label}; with 62 classes"):
        datasets.load(write(tmp_path, layout, content))


@pytest.mark.parametrize("layout", IMAGE_LAYOUTS)
def test_an_empty_client_is_named(layout, tmp_path):
    content = drawings()
    for split in ("train", "test"):
        content["idle", split] = {"pixels": np.zeros((0, 28, 28), np.uint8), "label": np.zeros(0, np.int64)}
    with pytest.raises(UserError, match="client idle has no examples"):
        datasets.load(write(tmp_path, layout, content))


@pytest.mark.parametrize("layout", IMAGE_LAYOUTS)
def test_a_client_of_one_split_only_is_kept(layout, tmp_path):
    content = drawings()
    del content[IDS[1], "test"]
    assert datasets.load(write(tmp_path, layout, content)).sizes.tolist() == [[3, 2], [2, 0]]


def test_counts_that_are_announced_must_be_there(tmp_path):
    with pytest.raises(UserError, match="announces 4; get it again"):
        datasets.load(write_tff(tmp_path / "d.sqlite", drawings(), announced=4))


def test_unknown_names_and_options_are_refused(tmp_path):
    with pytest.raises(UserError, match="neither a file nor a data set's name; the names are glyphs, emnist"):
        datasets.load("emnits")
    with pytest.raises(UserError, match="is a folder with no data file"):
        datasets.load(tmp_path)
    with pytest.raises(UserError, match=r"\(LEAF JSON\) has no option 'client'; it accepts none"):
        datasets.load(write(tmp_path, "leaf", drawings()), client="a")
    with pytest.raises(UserError, match=r"\(TFF sqlite\) has no option 'digits'; it accepts digits_only"):
        datasets.load(write(tmp_path, "tff-sqlite", drawings()), digits=True)
    with pytest.raises(UserError, match="files that are not one data set"):
        datasets.load(tmp_path)


def assert_same(one, other):
    assert list(one.ids) == list(other.ids)
    np.testing.assert_array_equal(one.sizes, other.sizes)
    for a, b in zip(one.fetch(np.arange(len(one))), other.fetch(np.arange(len(one))), strict=True):
        np.testing.assert_array_equal(a, b)


@needs_fixtures
def test_the_fixtures_hold_one_federation_of_images():
    names = (
        "emnist_all.sqlite.lzma", "fed_emnist_test.h5", "federated_emnist_train.sqlite",
        "leaf_femnist_all_data_0_niid_0_keep_0_train_9.json.gz",
    )  # fmt: skip
    first, *others = [datasets.load(FIXTURES / name) for name in names]
    assert first.sizes.tolist() == [[12, 2]] * 3
    for other in others:
        assert_same(first, other)
    digits = datasets.load(FIXTURES / names[0], digits_only=True)
    assert digits.sizes.sum(axis=1).tolist() == [4, 2, 1] and not digits.has_predefined_split


@needs_fixtures
def test_the_fixtures_hold_one_federation_of_text():
    names = ("shakespeare.sqlite.lzma", "shakespeare_train.h5", "shakespeare_test.sqlite")
    first, *others = [datasets.load(FIXTURES / name) for name in names]
    for other in others:
        assert_same(first, other)
    labels = first.metadata["labels"]
    porter = first.fetch(np.array([list(first.ids).index("MACBETH_PORTER")]))[0]
    passage = "".join(labels[i] for i in porter[0, 1:])
    leaf = datasets.load(FIXTURES / "leaf_shakespeare_all_data_niid_0_keep_0_train_9.json.gz")
    windows = leaf.fetch(np.array([list(leaf.ids).index("MACBETH_PORTER")]))[0]
    # LEAF writes a space where a line ends.
    assert passage.replace("\n", " ") == "".join(labels[i] for i in windows[0])[:79]


@needs_data
def test_the_whole_text_is_read():
    federation = datasets.load(SHARED / "data" / "shakespeare.sqlite.lzma")
    assert len(federation) == 1137 and federation.has_predefined_split
    x, _ = federation.fetch(np.arange(1137))
    assert (x == 88).sum() == 24_810 + 5_968


def leaf_content(x, y):
    return {"users": ["u"], "num_samples": [len(x)], "user_data": {"u": {"x": x, "y": y}}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (leaf_content(["1.jpg", "2.jpg"], [0, 1]), "none of FEMNIST, Shakespeare, Synthetic"),
        (leaf_content([None], [0]), "none of FEMNIST, Shakespeare, Synthetic"),
        (leaf_content([{}], [0]), "none of FEMNIST, Shakespeare, Synthetic"),
        ({"users": None, "num_samples": [1], "user_data": {}}, "of another structure"),
        ({"users": ["u"], "num_samples": [1], "user_data": {"u": [1]}}, "of another structure"),
    ],
)
def test_other_leaf_data_get_one_sentence(content, message, tmp_path):
    (tmp_path / "all.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        datasets.load(tmp_path / "all.json")


def test_other_fedjax_and_hdf5_data_get_one_sentence(tmp_path):
    other = {("u", "train"): {"x": np.zeros((2, 3)), "y": np.zeros(2)}}
    with pytest.raises(UserError, match="another data set: its clients have the fields x, y, not pixels"):
        datasets.load(write_fedjax(tmp_path / "b.sqlite", other, "train"))
    with h5py.File(tmp_path / "c.h5", "w") as file:
        file.create_dataset("examples", data=np.zeros(3))
    with h5py.File(tmp_path / "d.h5", "w") as file:
        file.create_dataset("weights", data=np.zeros(3))
    with h5py.File(tmp_path / "e.h5", "w") as file:
        file.create_dataset("examples/u/image", data=np.zeros((3, 2)))
    for name, message in (
        ("c", "with examples and no group"),
        ("d", "with weights and no group"),
        ("e", "fields image"),
    ):
        with pytest.raises(UserError, match=message):
            datasets.load(tmp_path / f"{name}.h5")


def test_a_path_that_is_too_long_is_said():
    with pytest.raises(UserError, match="too long for the name of a file"):
        datasets.load("a" * 5000)


def test_glyphs_take_the_options_of_their_maker():
    with pytest.raises(UserError, match="glyphs has no option 'writers_per_font'; it accepts "):
        datasets.load("glyphs", writers_per_font=3)
    with pytest.raises(UserError, match="option writers='many' of glyphs is not a number"):
        datasets.load("glyphs", writers="many")
    assert len(datasets.load("glyphs", writers="3")) == 3
