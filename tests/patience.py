"""How long a test may wait: for events without hurry, and for seconds as long as this machine now takes.

A wait for an event ends with the event, so that its limit costs nothing and may be long: it ends tests that hang.
Where the product counts seconds, a test multiplies them by `factor`, measured when it is asked for.
"""

import time
from collections.abc import Callable
from functools import cache

# Longer than anything takes on a machine that is ten times too busy; a test that waits so long hangs.
HANGS = 900.0
# Seconds that `_work` takes on an idle core of a machine of today.
_REFERENCE = 0.1


def until(condition: Callable[[], object], alive: Callable[[], bool] = lambda: True, *, seconds: float = HANGS) -> None:
    """Wait until this is so, as long as somebody lives who could make it so."""
    end = time.monotonic() + seconds
    while not condition():
        assert alive(), "whoever was waited for has ended"
        assert time.monotonic() < end, f"nothing has come of it in {seconds:g} s"
        time.sleep(0.05)


@cache
def factor() -> float:
    """How many times slower than an idle machine this one is now, at least 1."""
    began = time.monotonic()
    _work()
    return max(1.0, (time.monotonic() - began) / _REFERENCE)


def _work() -> int:
    total = 0
    for number in range(2_000_000):
        total += number & 7
    return total
