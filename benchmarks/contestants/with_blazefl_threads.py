"""BlazeFL's thread mode, which its authors recommend: one thread for each core; best without a global lock."""

from __future__ import annotations

import functools

from .protocol import serve
from .with_blazefl import BlazeFL, Threads

if __name__ == "__main__":
    serve(functools.partial(BlazeFL, trainer=Threads))
