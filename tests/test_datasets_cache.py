"""The cache: a second load parses nothing, and nothing that happens to it does harm."""

from __future__ import annotations

import os
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import pytest

from headstart.data import cache
from headstart.data import load as datasets
from headstart.data.readers.rows import Rows
from headstart.training.compilation_cache import keep_programs

DATA = Path(__file__).parents[2] / "shared" / "data" / "handwriting62.sqlite.lzma"


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "own.csv"
    path.write_text("client,y,a\nu,0,1.5\nv,1,2.5\n")
    return path


def some_rows(value=1.0):
    x = np.full((3, 2), value, np.float32)
    return Rows(["u", "v"], np.array([[1, 1], [1, 0]]), x, np.arange(3, dtype=np.int32), True, {"labels": ["a"]})


def folders(root):
    return sorted((root / "rows").iterdir())


def values(federation):
    return federation.fetch(np.arange(len(federation)))[0].tolist()


class Builder:
    def __init__(self, value=1.0):
        self.calls, self.value = 0, value

    def __call__(self):
        self.calls += 1
        return some_rows(self.value)


def test_a_second_load_is_mapped_and_builds_nothing(source):
    build = Builder()
    first, second = (cache.cached([source], {}, build) for _ in range(2))
    assert build.calls == 1
    assert isinstance(second.x, np.memmap) and not second.x.flags.writeable
    for rows in (first, second):
        for a, b in zip(rows[1:4], some_rows()[1:4], strict=True):
            np.testing.assert_array_equal(a, b)
        assert (rows.ids, rows.has_predefined_split, rows.metadata) == (["u", "v"], True, {"labels": ["a"]})


def test_other_options_and_a_changed_file_are_built_anew(source, root):
    build = Builder()
    cache.cached([source], {}, build)
    cache.cached([source], {"target": "a"}, build)
    assert build.calls == 2 and len(folders(root)) == 2
    source.write_text(source.read_text() + "w,1,2.0\n")
    cache.cached([source], {}, build)
    assert build.calls == 3 and len(folders(root)) == 2
    os.utime(source, ns=(0, 0))
    cache.cached([source], {}, build)
    assert build.calls == 4


def test_a_source_replaced_by_one_of_the_same_size_and_time_is_built_anew(source):
    first, known = datasets.load(source), source.stat()
    source.write_text(source.read_text().replace("1.5", "9.5"))
    os.utime(source, ns=(known.st_atime_ns, known.st_mtime_ns))
    assert source.stat().st_mtime_ns == known.st_mtime_ns and source.stat().st_size == known.st_size
    assert values(first) == [[1.5], [2.5]] and values(datasets.load(source)) == [[9.5], [2.5]]


def test_of_a_huge_source_pieces_are_hashed(source, monkeypatch):
    monkeypatch.setattr(cache, "_HASHED_WHOLE", 1)
    source.write_bytes(bytes(2**21))
    stamp = cache._stamp(source)
    with source.open("r+b") as file:
        file.seek(2**20)
        file.write(b"1")
    os.utime(source, ns=(stamp[1], stamp[1]))
    assert cache._stamp(source)[:2] == stamp[:2] and cache._stamp(source)[-1] != stamp[-1]


def truncate(folder):
    (folder / "x.npy").write_bytes((folder / "x.npy").read_bytes()[:-1])


def scribble(folder):
    (folder / "y.npy").write_bytes(bytes(len((folder / "y.npy").read_bytes())))


def flip(name):
    """Turns one bit, the last that means anything: of numbers, or of an id."""

    def damage(folder):
        content = bytearray((folder / name).read_bytes())
        position = content.index(b'"u"') + 1 if name == "meta.json" else len(content) - 1
        content[position] ^= 1
        (folder / name).write_bytes(content)

    damage.__name__ = f"flip a bit of {name}"
    return damage


@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        scribble,
        *map(flip, ("x.npy", "y.npy", "sizes.npy", "meta.json")),
        lambda folder: (folder / "meta.json").write_text("{"),
        lambda folder: (folder / "meta.json").write_text("[]"),
        lambda folder: (folder / "sizes.npy").unlink(),
        lambda folder: (folder / "meta.json").unlink(),
    ],
)
def test_a_damaged_cache_is_rebuilt(damage, source, root):
    cache.cached([source], {}, Builder())
    damage(folders(root)[0])
    build = Builder(2.0)
    assert cache.cached([source], {}, build).x.tolist() == [[2, 2]] * 3
    cache.cached([source], {}, build)
    assert build.calls == 1 and len(folders(root)) == 1


def test_where_nothing_can_be_written_rows_stay_in_memory(source, root, monkeypatch):
    root.write_text("a file where the folder would be")
    federation = datasets.load(source)
    assert values(federation) == [[1.5], [2.5]]
    assert root.is_file()


def test_a_full_disk_leaves_nothing_behind(source, root, monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache, "save", full)
    assert cache.cached([source], {}, Builder()).x.tolist() == [[1, 1]] * 3
    assert folders(root) == []


def test_builders_at_once_do_not_meet(source, root):
    at_once = threading.Barrier(6)

    def build():
        at_once.wait()
        return some_rows()

    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda _: cache.cached([source], {}, build), range(6)))
    assert all(rows.x.tolist() == [[1, 1]] * 3 for rows in found)
    assert len(folders(root)) == 1
    again = Builder()
    cache.cached([source], {}, again)
    assert again.calls == 0


def test_what_killed_builders_left_is_swept_after_a_day(source, root):
    names = old, new, others = (".headstart-tmp-0000old0", ".headstart-tmp-0000new0", "building-plans")
    for folder in names:
        (root / "rows" / folder).mkdir(parents=True)
    for folder in (old, others):
        os.utime(root / "rows" / folder, (0, 0))
    cache.cached([source], {}, Builder())
    assert [name for name in names if (root / "rows" / name).exists()] == [new, others]


def test_the_cache_is_where_the_system_keeps_caches(monkeypatch):
    monkeypatch.delenv("HEADSTART_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache.cache_root() == Path("/somewhere/headstart")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.cache_root() == Path.home() / ".cache" / "headstart"


def test_without_a_home_the_cache_is_a_temporary_folder_of_ones_own(monkeypatch, tmp_path):
    def nobody(uid):
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    for name in ("HEADSTART_CACHE", "HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", nobody)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    found = cache.cache_root()
    assert found.parent == tmp_path and found.stat().st_mode & 0o777 == 0o700
    found.chmod(0o777)
    assert not cache.cache_root().exists()


def test_where_the_cache_cannot_be_written_nothing_is_kept(monkeypatch, source):
    monkeypatch.setenv("HEADSTART_CACHE", "/dev/null/cache")
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    before = jax.config.jax_compilation_cache_dir
    keep_programs()
    assert jax.config.jax_compilation_cache_dir == before
    assert cache.cached([source], {}, Builder()).x.tolist() == [[1, 1]] * 3


@pytest.mark.skipif(not DATA.exists(), reason="needs ../shared/data, which is not here")
def test_handwriting_loads_within_a_second_the_second_time(root):
    first = datasets.load(DATA)
    assert len(first) == 317 and first.sizes.sum(axis=0).tolist() == [65493, 7271]
    x, _ = first.fetch(np.arange(317))
    assert x.dtype == np.uint8 and np.median(x[:, 0]) == 255 and not first.metadata["inverted"]
    start = time.process_time()
    datasets.load(DATA)
    assert time.process_time() - start < 1
    shutil.rmtree(root)
