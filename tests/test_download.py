"""Downloads, from real HTTP servers on the loopback."""

from __future__ import annotations

import hashlib
import json
import lzma
import re
import resource
import socket
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
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
def serving(
    content=CONTENT,
    *,
    path="/file",
    ranges=True,
    stop_after=None,
    etag='"1"',
    length=True,
    code=200,
    headers=(),
    drip=0,
):
    """A server of one file; yields its address and the list of the ranges that were asked for.

    stop_after: how many bytes each answer holds before the connection is cut. code: of an answer to what is there.
    headers: further ones. drip: seconds between a byte and the next.
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
            self.send_response(206 if start else code)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            if length:
                self.send_header("Content-Length", str(len(content) - start))
            if etag:
                self.send_header("ETag", etag)
            for name, value in headers:
                self.send_header(name, value)
            self.end_headers()
            with suppress(OSError):
                for block in [content[start:][:stop_after]] if not drip else content[start:].hex():
                    self.wfile.write(block.encode() if drip else block)
                    time.sleep(drip)

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
            path = download(url, tmp_path / "deep" / "file.bin", sha256=None if length else DIGEST)
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
    # Another port is another address, so the record of it is moved there.
    record = tmp_path / "file.bin.part.etag"
    with serving(ranges=ranges, etag=etag) as (url, asked):
        record.write_text(json.dumps({**json.loads(record.read_text()), "url": url}))
        download(url, path)
    # Without an ETag nobody knows whether it is still the same file.
    assert path.read_bytes() == CONTENT and asked == [f"bytes={have}-" if etag else None]
    assert names(tmp_path) == ["file.bin", "file.bin.sha256"]


OLD, NEW = "Mon, 01 Jan 2024 00:00:00 GMT", "Tue, 02 Jan 2024 00:00:00 GMT"


def begun(tmp_path, url, **said):
    """A part of the file, and what its server said of it."""
    (tmp_path / "file.bin.part").write_bytes(CONTENT[:1000])
    (tmp_path / "file.bin.part.etag").write_text(json.dumps({"url": url, "total": str(len(CONTENT)), **said}))


@pytest.mark.parametrize("same", [{"etag": '"old"'}, {"modified": OLD}, {"etag": 'W/"1"'}, {}])
def test_a_file_that_changed_meanwhile_is_fetched_from_its_start(same, tmp_path):
    changed = CONTENT[::-1]
    with serving(changed, etag='"new"') as (url, _):
        begun(tmp_path, url, **same)
        assert download(url, tmp_path / "file.bin").read_bytes() == changed


@pytest.mark.parametrize(
    ("said", "options"),
    [
        ({"etag": '"old"'}, {"etag": '"new"'}),
        ({"etag": '"old"'}, {"etag": None}),
        ({"modified": OLD}, {"etag": None, "headers": [("Last-Modified", NEW)]}),
        ({"modified": OLD, "total": "699999"}, {"etag": None}),
    ],
)
def test_halves_of_two_versions_are_not_joined_though_the_server_sends_the_rest(said, options, tmp_path, monkeypatch):
    changed = CONTENT[::-1]
    # A server that does not know what If-Range is.
    add_header = urllib.request.Request.add_header
    monkeypatch.setattr(
        urllib.request.Request, "add_header", lambda self, n, v: None if n == "If-Range" else add_header(self, n, v)
    )
    with serving(changed, **options) as (url, _):
        begun(tmp_path, url, **said)
        with pytest.raises(UserError, match="sent a part of another file than the one whose beginning is here"):
            download(url, tmp_path / "file.bin")
        assert download(url, tmp_path / "file.bin").read_bytes() == changed


@pytest.mark.parametrize("record", ["", "[1]", '{"url": 3}', "[" * 100_000, '{"etag": "\\"1\\""}'])
def test_a_damaged_record_of_a_part_begins_anew(record, tmp_path):
    with serving() as (url, asked):
        begun(tmp_path, url)
        (tmp_path / "file.bin.part.etag").write_text(record)
        assert download(url, tmp_path / "file.bin").read_bytes() == CONTENT and asked == [None]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": False}, "does not say how long the file is, so nobody could see it cut short"),
        ({"code": 204}, "answered 204 No Content, and no file"),
        ({"code": 206}, "answered 206 Partial Content, and no file"),
        ({"headers": [("Content-Encoding", "gzip")]}, "packs the file on its way, which was not asked for"),
        ({"length": False, "headers": [("Content-Length", str(10**15))]}, "has 1,000,000,000,000,000 bytes, and"),
        ({"length": False, "headers": [("Content-Length", "many")]}, "does not deliver"),
        ({"drip": 0.01}, "took too long, [1-9][0-9]* bytes are here; run it again to resume"),
    ],
)
def test_other_answers_are_refused(options, message, tmp_path):
    with serving(**options) as (url, _), pytest.raises(UserError, match=message):
        download(url, tmp_path / "file.bin", seconds=0.3)
    assert not (tmp_path / "file.bin").exists()


def test_mirrors_are_tried_in_their_order(tmp_path):
    with serving(code=204) as (first, asked), serving() as (second, _), serving() as (third, never):
        assert download([first, second, third], tmp_path / "file.bin").read_bytes() == CONTENT
        assert (len(asked), len(never)) == (1, 0)
        with pytest.raises(UserError, match=r"answered 204 .*; and .*answered 404"):
            download([first, f"{second}/no"], tmp_path / "other.bin")


def test_a_mirror_of_another_file_is_passed_over(tmp_path):
    with serving(CONTENT[::-1]) as (wrong, _), serving() as (right, _):
        assert download([wrong, right], tmp_path / "file.bin", sha256=DIGEST).read_bytes() == CONTENT
    with pytest.raises(UserError, match="'12' is no SHA-256; give 64 hexadecimal digits"):
        download("http://127.0.0.1:9/never", tmp_path / "file.bin", sha256="12")


def test_a_beginning_is_completed_from_a_mirror_where_the_digest_is_known(tmp_path):
    (tmp_path / "file.bin.part").write_bytes(CONTENT[:1000])
    with serving() as (url, asked):
        assert download(url, tmp_path / "file.bin", sha256=DIGEST).read_bytes() == CONTENT
    assert asked == ["bytes=1000-"]


def test_a_part_that_is_whole_already_is_placed(tmp_path):
    (tmp_path / "file.bin.part").write_bytes(CONTENT)
    with serving() as (url, asked):
        assert download(url, tmp_path / "file.bin", sha256=DIGEST).read_bytes() == CONTENT
    assert asked == [f"bytes={len(CONTENT)}-"]


def test_a_part_that_is_longer_than_the_file_is_dropped(tmp_path):
    with serving() as (url, _):
        begun(tmp_path, url, etag='"1"')
        (tmp_path / "file.bin.part").write_bytes(CONTENT + b"more")
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
        monkeypatch.setenv("HEADSTART_DATA_URL", f"{url}?a=, {url}?b=")
        with pytest.raises(UserError, match=r"a=/shakespeare.* answered 404 .*; and .*b=/shakespeare.* answered 404"):
            datasets.load("shakespeare")


def test_a_digest_of_a_published_data_set_can_be_stated(tmp_path, monkeypatch):
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path))
    with serving(path="/shakespeare.sqlite.lzma") as (url, _):
        monkeypatch.setenv("HEADSTART_DATA_URL", url.rpartition("/")[0])
        monkeypatch.setenv("HEADSTART_DATA_SHA256", f"emnist={DIGEST} shakespeare={'0' * 64}")
        with pytest.raises(UserError, match=f"has SHA-256 {DIGEST}, not {'0' * 64}"):
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
