"""A contestant's process, seen from the driver."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parent.parent


class ContestantFailedError(Exception):
    """A contestant broke down or fell silent; the message is the reason, in one line."""


class Process:
    """A contestant that obeys `protocol`, in a session of its own, so that its children end with it."""

    def __init__(self, python: str, module: str, workload: Path, cores: set[int] | None) -> None:
        """cores: what it may run on; None for all."""
        paths = [str(_ROOT), os.environ.get("PYTHONPATH", "")]
        self.errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 (as long as self)
        self.process = subprocess.Popen(
            [python, "-m", f"{__package__}.{module}", str(workload)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
            start_new_session=True,
        )
        if cores is not None:
            os.sched_setaffinity(self.process.pid, cores)
        self.answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        threading.Thread(target=self._read_answers, daemon=True).start()

    def ask(self, command: str, *, timeout: float) -> dict[str, Any]:
        """Send a command and wait for the answer.

        Raises:
            ContestantFailedError: if it has ended, or does not answer within `timeout` seconds.
        """
        try:
            assert self.process.stdin is not None
            self.process.stdin.write(command + "\n")
            self.process.stdin.flush()
        except OSError:
            raise ContestantFailedError(self._reason()) from None
        return self.answer(timeout=timeout)

    def answer(self, *, timeout: float) -> dict[str, Any]:
        """Wait for the next answer; as `ask`."""
        try:
            line = self.answers.get(timeout=timeout)
        except queue.Empty:
            raise ContestantFailedError(f"no answer within {timeout:.0f} s") from None
        if line is None:
            raise ContestantFailedError(self._reason())
        return json.loads(line)

    def close(self) -> None:
        """Have it quit, and end what is left of it."""
        with contextlib.suppress(OSError, ValueError):
            assert self.process.stdin is not None
            self.process.stdin.write("quit\n")
            self.process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.errors.close()

    def _read_answers(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.answers.put(line)
        self.answers.put(None)

    def _reason(self) -> str:
        self.errors.seek(0)
        said = [line.strip() for line in self.errors if line.strip()]
        return said[-1][:300] if said else f"ended with status {self.process.poll()}"
