"""The parent of a process of a cluster, which explains how its child ended.

When the process that coordinates a cluster is lost, JAX's runtime aborts the others from C++, where nothing can be
caught, and prints a page of its own log. So `headstart run` does its work in a child, and this parent reports for it.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import IO, NoReturn

from headstart.training.cluster import LOST

_PARENT = "HEADSTART_PARENT"
# The start of a line of the runtime's log: severity, date, time.
_RUNTIME = re.compile(rb"^[EFW]\d{4} \d\d:\d\d:\d\d")
# The start of an error of the child's own, which the runtime may cut short.
_ERROR = b"Traceback "


def is_child() -> bool:
    """Whether this process has a parent that reports for it."""
    return _PARENT in os.environ


def follow_parent() -> None:
    """End this process when its parent is gone: half of a killed process must not keep running."""
    parent = int(os.environ.get(_PARENT, os.getppid()))

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(LOST)

    threading.Thread(target=watch, daemon=True).start()


def leave(status: int) -> NoReturn:
    """End this process; a member of a cluster at once, since the usual way out waits for the others."""
    if is_child():
        # Every process gets to print its reason, before the first that leaves takes the others with it.
        time.sleep(2)
        os._exit(status)
    sys.exit(status)


def supervise(arguments: Sequence[str]) -> int:
    """Run `headstart` with these arguments in a child; returns its exit status, after one sentence if it was lost."""
    environment = {**os.environ, _PARENT: str(os.getpid())}
    command = [sys.executable, "-m", "headstart", *arguments]
    # In a session of its own, the child gets the terminal's Ctrl-C from here, once.
    child = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, start_new_session=True)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: child.send_signal(number))
    assert child.stderr is not None
    with child.stderr:
        withheld = _pass_on(child.stderr)
    status = child.wait()
    if status == -signal.SIGABRT and any(map(_RUNTIME.match, withheld)):
        print(
            "headstart: the process that coordinates the cluster is gone, or another one does not answer; what was"
            " saved last is kept: start all processes again with the same commands to resume",
            file=sys.stderr,
        )
        return LOST
    if status not in (0, LOST, 130) or (withheld and withheld[0].startswith(_ERROR) and status != LOST):
        sys.stderr.write(b"".join(withheld).decode(errors="replace"))
    return status if status >= 0 else 128 - status


def _pass_on(stream: IO[bytes]) -> list[bytes]:
    """Pass on what the child writes, up to the log of a crash, which is withheld; returns the withheld lines."""
    withheld = []
    for line in stream:
        own = line.startswith(b"headstart")
        if not own and (withheld or _RUNTIME.match(line) or line.startswith(_ERROR)):
            withheld.append(line)
        else:
            sys.stderr.buffer.write(line)
            sys.stderr.buffer.flush()
    return withheld
