"""Ctrl-C as a request: the loop finishes its round, saves and leaves; a second one leaves at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType


class Interrupt:
    """A context in which Ctrl-C sets `requested`; outside the main thread, where no signal arrives, it does nothing."""

    def __init__(self) -> None:
        self.requested = False
        self._before = None

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, *error: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
