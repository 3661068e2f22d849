"""Files written whole, names for them, and locks between writers, where the file system has them and where not."""

import errno
import json
import math
import threading
from pathlib import Path

import filelock
import pytest

from headstart import UserError
from headstart.files import atomic, file_name, file_names, locked, whole_folder, write_bytes, write_json


def test_a_second_holder_is_refused_or_waits(tmp_path):
    path, order = tmp_path / ".lock", []

    def second():
        with locked(path, wait=True):
            order.append("second")

    waiting = threading.Thread(target=second)
    with locked(path, wait=False):
        with pytest.raises(TimeoutError), locked(path, wait=False):
            pass
        waiting.start()
        waiting.join(0.2)
        order.append("first")
    waiting.join()
    assert order == ["first", "second"]


def test_a_lock_is_free_again_after_a_block_that_failed(tmp_path):
    with pytest.raises(ZeroDivisionError), locked(tmp_path / ".lock", wait=False):
        1 / 0  # noqa: B018
    with locked(tmp_path / ".lock", wait=False):
        pass


@pytest.mark.parametrize("error", [OSError(errno.ENOLCK, "no locks"), NotImplementedError("no flock")])
def test_without_locks_the_work_goes_on_with_a_note(error, monkeypatch, tmp_path):
    def refuse(self, **options):
        raise error

    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    notes, entered = [], False
    with locked(tmp_path / ".lock", wait=True, on_note=notes.append):
        entered = True
    assert entered and len(notes) == 1 and "without locks" in notes[0]


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError), locked(tmp_path / "file" / ".lock", wait=False):
        pass


def test_a_failing_clean_up_does_not_hide_the_error(monkeypatch, tmp_path):
    def refuse(self, **options):
        raise PermissionError(errno.EPERM, "not now")

    monkeypatch.setattr(filelock.FileLock, "release", refuse)
    with pytest.raises(ZeroDivisionError), locked(tmp_path / ".lock", wait=False):
        1 / 0  # noqa: B018
    monkeypatch.setattr("pathlib.Path.unlink", refuse)
    with pytest.raises(ZeroDivisionError), atomic(tmp_path / "file"):
        1 / 0  # noqa: B018


@pytest.mark.parametrize("path", ["/dev/null/x", "/dev/null/x/y.json", f"/tmp/{'n' * 300}"])
def test_what_cannot_be_written_is_a_sentence(path):
    with pytest.raises(UserError, match=r"cannot write /.*: (Not a directory|File exists|File name too long)"):
        write_bytes(Path(path), b"")
    with pytest.raises(UserError, match="cannot write the folder"), whole_folder(Path(path)):
        pass


def test_a_name_of_255_bytes_can_be_written(tmp_path):
    write_bytes(tmp_path / ("n" * 255), b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["n" * 255]


def test_numbers_that_json_has_not_are_null(tmp_path):
    write_json(tmp_path / "a.json", {"a": [math.nan, (1.5, -math.inf)], "b": "\ud800é"})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=pytest.fail) == {"a": [None, [1.5, None]], "b": "\ud800é"}


def test_every_id_has_a_file_name_of_its_own():
    russian = [f"Городская клиническая больница номер {i} имени Дмитрия Плетнёва" for i in range(3)]
    ids = ["client-01", "a/b", "a%2Fb", "Anna", "anna", "ANNA", "", ".", "..", "x" * 500, "x" * 501, "\ud800", *russian]
    names = file_names(ids)
    assert len({name.casefold() for name in names}) == len(ids)
    assert max(len(f"{name}.safetensors".encode()) for name in names) < 255
    assert not [name for name in names if "/" in name or not name]
    assert names[:3] == ["client-01", "a%2Fb", "a%252Fb"]
    assert file_names(["Anna", "b"]) == ["Anna", "b"]


@pytest.mark.parametrize(
    "name", ["../../evil", "/etc/passwd", "..", "", ".", "a\nb\0c", "C:\\x", "x" * 5000, "й" * 400]
)
def test_an_experiments_name_is_one_name_of_a_file(name):
    made = file_name(name)
    assert made and Path(made).name == made and len(made.encode()) <= 200 and made.isprintable()
