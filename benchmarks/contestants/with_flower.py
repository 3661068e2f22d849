"""Flower's simulation: messages, Ray, and one actor of one thread for each core.

The clients train with the plain loop in PyTorch, whose process keeps the data. There are as many nodes as clients in a
cohort, and a message says which client a node is: the engine looks after every node ten times a second.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import logging
import os
import sys

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Message
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation

from . import workload
from .flower_client import app, message_to
from .protocol import obey, private_output
from .with_torch import Loop
from .workload import Workload


class Server:
    """Federated averaging through a grid."""

    def __init__(self, given: Workload, grid: Grid) -> None:
        self.given, self.grid, self.loop = given, grid, Loop(given)
        self.nodes = list(grid.get_node_ids())

    def run(self, first: int, count: int) -> None:
        """Train `count` rounds."""
        for number in range(first, first + count):
            self.round(self.given.cohort(number))

    def round(self, clients: np.ndarray) -> None:
        """One round: send the parameters, and average what comes back by examples."""
        arrays = ArrayRecord([parameter.numpy() for parameter in self.loop.parameters])
        to = zip(self.nodes, clients, strict=True)
        messages = [message_to(node, int(client), sys.argv[1], arrays) for node, client in to]
        total = [torch.zeros_like(parameter) for parameter in self.loop.parameters]
        for reply in self.grid.send_and_receive(messages):
            torch._foreach_add_(total, *_weighted(reply))
        torch._foreach_div_(total, float(self.given.sizes[clients].sum()))
        torch._foreach_copy_(self.loop.parameters, total)

    def accuracy(self) -> float:
        """The share of right answers on the test rows."""
        return self.loop.accuracy()


def _weighted(reply: Message) -> list[list[torch.Tensor]]:
    if reply.has_error():
        raise RuntimeError(reply.error.reason)
    weight = np.asarray(reply.content.metric_records["metrics"]["examples"], np.float32)
    return [[torch.from_numpy(value * weight) for value in reply.content.array_records["arrays"].to_numpy_ndarrays()]]


def main() -> None:
    """Obey from within the simulation, so that it starts once."""
    answers, given, server = private_output(), workload.read(sys.argv[1]), ServerApp()
    logging.getLogger("flwr").setLevel(logging.ERROR)

    @server.main()
    def serve(grid: Grid, context: Context) -> None:
        setattr(grid, "pull_interval", 0.005)  # noqa: B010 (the simulation's own; seconds between looks for replies)
        torch.set_num_threads(given.settings.threads)
        obey(given, Server(given, grid), answers)

    resources = {
        "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        "init_args": {"num_cpus": given.settings.threads},
    }
    run_simulation(server, app, num_supernodes=given.settings.cohort, backend_config=resources)


if __name__ == "__main__":
    main()
