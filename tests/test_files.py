"""Locks between writers, where the file system has them and where it has none."""

import errno
import threading

import filelock
import pytest

from headstart.files import locked


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
