"""Ctrl-C as a request: the loop finishes its round, saves and ends; a second Ctrl-C ends it at once.

In a process of a cluster SIGTERM is the same request, however often it arrives: a queue sends it to every process.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

from headstart.training.supervisor import is_child


class Interrupt:
    """A context in which Ctrl-C sets `requested`; outside the main thread, where no signal arrives, it does nothing."""

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            self._before = {signal.SIGINT: signal.signal(signal.SIGINT, self._request)}
            if is_child():
                self._before[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._request)
        return self

    def __exit__(self, *error: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
