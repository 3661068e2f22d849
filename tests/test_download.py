"""Downloads, from real HTTP servers on the loopback."""

from __future__ import annotations

import hashlib
import lzma
import re
import resource
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from headstart.data import load as datasets
from headstart.data.download import download
from headstart.errors import UserError
from test_datasets import IDS, drawings, speeches, write

CONTENT = np.random.default_rng(0).bytes(700_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@contextmanager
def serving(content=CONTENT, *, path="/file", ranges=True, stop_after=None, etag='"1"', length=True):
    """A server of one file; yields its address and the list of the ranges that were asked for.

    stop_after: how many bytes each answer holds before the connection is cut.
    """
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            wanted = self.headers.get("Range")
            asked.append(wanted)
            if self.path != path:
                return self.send_error(404)
            valid = self.headers.get("If-Range") in (None, etag)
            start = int(re.findall(r"\d+", wanted)[0]) if wanted and ranges and valid else 0
            if start and start >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.send_header("Content-Length", "0")
                return self.end_headers()
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            if length:
                self.send_header("Content-Length", str(len(content) - start))
            if etag:
                self.send_header("ETag", etag)
            self.end_headers()
            self.wfile.write(content[start:][:stop_after])

        def log_message(self, *arguments):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}{path}", asked
        finally:
            server.shutdown()
            thread.join()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("length", [True, False])
def test_a_file_is_fetched_once_and_its_hash_is_recorded(length, tmp_path):
    with serving(length=length) as (url, asked):
        for _ in range(2):
            path = download(url, tmp_path / "deep" / "file.bin")
    assert path.read_bytes() == CONTENT and len(asked) == 1
    assert names(path.parent) == ["file.bin", "file.bin.sha256"]
    assert (tmp_path / "deep" / "file.bin.sha256").read_text() == f"{DIGEST}  file.bin\n"


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("etag", ['"1"', None])
def test_a_cut_connection_is_said_and_the_next_try_goes_on(ranges, etag, tmp_path):
    path = tmp_path / "file.bin"
    with serving(stop_after=300_000, etag=etag) as (url, _), pytest.raises(UserError, match="run it again"):
        download(url, path)
    part = tmp_path / "file.bin.part"
    have = part.stat().st_size
    assert 0 < have <= 300_000 and not path.exists() and part.read_bytes() == CONTENT[:have]
    with serving(ranges=ranges, etag=etag) as (url, asked):
        download(url, path)
    assert path.read_bytes() == CONTENT and asked == [f"bytes={have}-"]
    assert names(tmp_path) == ["file.bin", "file.bin.sha256"]


def test_a_file_that_changed_meanwhile_is_fetched_from_its_start(tmp_path):
    with serving(stop_after=300_000, etag='"old"') as (url, _), pytest.raises(UserError):
        download(url, tmp_path / "file.bin")
    changed = CONTENT[::-1]
    with serving(changed, etag='"new"') as (url, _):
        assert download(url, tmp_path / "file.bin").read_bytes() == changed


def test_a_part_that_is_whole_already_is_placed(tmp_path):
    (tmp_path / "file.bin.part").write_bytes(CONTENT)
    with serving() as (url, asked):
        assert download(url, tmp_path / "file.bin", sha256=DIGEST).read_bytes() == CONTENT
    assert asked == [f"bytes={len(CONTENT)}-"]


def test_a_part_that_is_longer_than_the_file_is_dropped(tmp_path):
    (tmp_path / "file.bin.part").write_bytes(CONTENT + b"more")
    with serving() as (url, _):
        with pytest.raises(UserError, match="no longer the file whose beginning is here; run it again"):
            download(url, tmp_path / "file.bin")
        assert download(url, tmp_path / "file.bin").read_bytes() == CONTENT


def test_a_changed_file_is_noticed_on_later_use(tmp_path):
    with serving() as (url, _):
        path = download(url, tmp_path / "file.bin")
        path.write_bytes(CONTENT[:-1] + b"?")
        with pytest.raises(UserError, match=f"not {DIGEST}; delete it to download it again"):
            download(url, path)
        path.unlink()
        assert download(url, path).read_bytes() == CONTENT


def test_a_file_put_there_by_hand_is_taken_and_recorded(tmp_path):
    (tmp_path / "file.bin").write_bytes(CONTENT)
    download("http://127.0.0.1:9/never", tmp_path / "file.bin")
    assert (tmp_path / "file.bin.sha256").read_text().startswith(DIGEST)


def test_a_file_that_is_not_the_published_one_is_removed(tmp_path):
    with serving() as (url, _), pytest.raises(UserError, match=f"has SHA-256 {DIGEST}, not {'0' * 64}"):
        download(url, tmp_path / "file.bin", sha256="0" * 64)
    assert not (tmp_path / "file.bin").exists() and not (tmp_path / "file.bin.part").exists()


def test_servers_that_do_not_answer_or_refuse_are_named(tmp_path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        with pytest.raises(UserError, match=f"127.0.0.1:{port} does not deliver .*refused.*check the connection"):
            download(f"http://127.0.0.1:{port}/file", tmp_path / "file.bin")
    with serving() as (url, _), pytest.raises(UserError, match="/nothing answered 404 Not Found; check the address"):
        download(url.replace("/file", "/nothing"), tmp_path / "file.bin")
    with pytest.raises(UserError, match="does not deliver"):
        download("nonsense", tmp_path / "file.bin")


def test_a_full_disk_is_said(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with serving() as (url, _):
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        try:
            with pytest.raises(UserError, match=r"cannot be written or read \(File too large\); free some space"):
                download(url, tmp_path / "file.bin")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert download(url, tmp_path / "file.bin").read_bytes() == CONTENT


def test_a_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written or read"):
        download("http://127.0.0.1:9/never", tmp_path / "file" / "file.bin")


def test_downloads_of_one_file_at_once_do_not_meet(tmp_path):
    with serving() as (url, asked), ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: download(url, tmp_path / "file.bin").read_bytes(), range(4)))
    assert found == [CONTENT] * 4 and len(asked) == 1


def test_published_data_sets_come_from_the_address_in_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path))
    with serving(lzma.compress(b"no database", format=lzma.FORMAT_ALONE)) as (url, _):
        monkeypatch.setenv("HEADSTART_DATA_URL", url.removesuffix("/file"))
        with pytest.raises(UserError, match=r"/emnist_all\.sqlite\.lzma answered 404"):
            datasets.load("emnist")
        monkeypatch.setenv("HEADSTART_DATA_URL", url + "?name=")
        with pytest.raises(UserError, match="answered 404"):
            datasets.load("shakespeare")


@pytest.mark.parametrize(("name", "content"), [("emnist_all", drawings()), ("shakespeare", speeches())])
def test_published_data_sets_are_fetched_once_and_read(name, content, tmp_path, monkeypatch):
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))
    packed = write(tmp_path, "tff-lzma", content).read_bytes()
    with serving(packed, path=f"/{name}.sqlite.lzma") as (url, asked):
        monkeypatch.setenv("HEADSTART_DATA_URL", url.rpartition("/")[0])
        found = [datasets.load(name.removesuffix("_all")) for _ in range(2)]
    assert len(asked) == 1
    for federation in found:
        assert federation.has_predefined_split and list(federation.ids) == list(IDS)
        assert federation.name == name.removesuffix("_all")
    first, second = (federation.fetch(np.arange(2)) for federation in found)
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1], second[1])
    if name == "emnist_all":
        np.testing.assert_array_equal(first[1], np.concatenate([fields["label"] for fields in content.values()]))


def test_an_empty_record_of_a_hash_is_written_anew(tmp_path):
    (tmp_path / "file.bin").write_bytes(CONTENT)
    (tmp_path / "file.bin.sha256").write_text("")
    download("http://127.0.0.1:9/never", tmp_path / "file.bin")
    assert (tmp_path / "file.bin.sha256").read_text() == f"{DIGEST}  file.bin\n"
