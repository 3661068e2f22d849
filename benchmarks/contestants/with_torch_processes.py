"""The plain loop in PyTorch on several processes: one of one thread for each core, with a share of the clients."""

# pyright: reportMissingImports=false

from __future__ import annotations

import contextlib
import sys
from multiprocessing.connection import Connection

import numpy as np
import torch
from torch import multiprocessing

from . import workload
from .protocol import serve
from .torch_models import accuracy_of
from .with_torch import Loop
from .workload import Workload


class Pool:
    """Federated averaging by hand; parameters and sums lie in memory that the processes share."""

    def __init__(self, given: Workload) -> None:
        torch.set_num_threads(1)
        self.loop, self.given = Loop(given), given
        self.start = [parameter.clone().share_memory_() for parameter in self.loop.parameters]
        self.workers = [_Worker(self.start) for _ in range(given.settings.threads)]

    def run(self, first: int, count: int) -> None:
        """Train `count` rounds."""
        for number in range(first, first + count):
            self.round(self.given.cohort(number))

    def round(self, clients: np.ndarray) -> None:
        """One round: every process adds up its clients, and this one divides."""
        for worker, share in zip(self.workers, shares(self.given, clients, len(self.workers)), strict=True):
            worker.pipe.send(share)
        for worker in self.workers:
            worker.pipe.recv()
        torch._foreach_copy_(self.start, self.workers[0].total)
        for worker in self.workers[1:]:
            torch._foreach_add_(self.start, worker.total)
        torch._foreach_div_(self.start, float(self.given.sizes[clients].sum()))

    def accuracy(self) -> float:
        """The share of right answers on the test rows."""
        torch._foreach_copy_(self.loop.parameters, self.start)
        return accuracy_of(self.given, self.loop.model)


def shares(given: Workload, clients: np.ndarray, count: int) -> list[list[int]]:
    """The clients in `count` parts of about as many steps each: the largest first, each to who has least to do."""
    found: list[list[int]] = [[] for _ in range(count)]
    load = [0] * count
    for client in sorted(map(int, clients), key=lambda client: -given.sizes[client]):
        index = load.index(min(load))
        found[index].append(client)
        load[index] += -(-int(given.sizes[client]) // given.settings.batch_size)
    return found


class _Worker:
    """A process, and the sum that it writes."""

    def __init__(self, start: list[torch.Tensor]) -> None:
        self.total = [torch.zeros_like(parameter).share_memory_() for parameter in start]
        self.pipe, theirs = multiprocessing.Pipe()
        arguments = (sys.argv[1], theirs, start, self.total)
        self.process = multiprocessing.Process(target=_work, args=arguments, daemon=True)
        self.process.start()


def _work(path: str, pipe: Connection, start: list[torch.Tensor], total: list[torch.Tensor]) -> None:
    torch.set_num_threads(1)
    loop = Loop(workload.read(path))
    with contextlib.suppress(EOFError):  # the other end is gone
        while True:
            clients = pipe.recv()
            torch._foreach_zero_(total)
            loop.add_up(clients, start, total)
            pipe.send(True)


if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    serve(Pool)
