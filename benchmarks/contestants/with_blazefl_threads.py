"""BlazeFL's thread mode, which its authors recommend: one thread for each core, on a Python without a global lock."""

# pyright: reportMissingImports=false

from __future__ import annotations

import functools

from blazefl.contrib import FedAvgThreadPoolClientTrainer
from blazefl.core import ThreadPoolClientTrainer

from .protocol import serve
from .with_blazefl import BlazeFL  # before BlazeFL itself, which it makes importable


class Threads(FedAvgThreadPoolClientTrainer):
    """BlazeFL's trainer, without a bar of progress."""

    progress_fn = ThreadPoolClientTrainer.progress_fn


if __name__ == "__main__":
    serve(functools.partial(BlazeFL, trainer=Threads))
