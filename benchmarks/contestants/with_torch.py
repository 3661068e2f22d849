"""A plain loop in PyTorch: one process, all threads if that is faster, one client after another."""

# pyright: reportMissingImports=false

from __future__ import annotations

import numpy as np
import torch

from .protocol import serve
from .torch_models import accuracy_of, loss_of, model_of, tensors, trained, use_fastest_threads
from .workload import Workload


class Loop:
    """Federated averaging by hand."""

    def __init__(self, given: Workload) -> None:
        torch.manual_seed(0)
        self.given, self.model = given, model_of(given)
        self.x, self.y = tensors(given, given.x, given.y)
        self.parameters = [parameter.detach() for parameter in trained(self.model)]

    def run(self, first: int, count: int) -> None:
        """Train `count` rounds."""
        for number in range(first, first + count):
            self.round(self.given.cohort(number))

    def round(self, clients: np.ndarray) -> None:
        """One round: the mean of what the clients end at, weighted by their examples."""
        start = [parameter.clone() for parameter in self.parameters]
        total = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.add_up(clients, start, total)
        torch._foreach_div_(total, float(self.given.sizes[clients].sum()))
        torch._foreach_copy_(self.parameters, total)

    def add_up(self, clients: np.ndarray, start: list[torch.Tensor], total: list[torch.Tensor]) -> None:
        """Add to `total` what each of the clients ends at, times the number of its examples."""
        for client in clients:
            torch._foreach_copy_(self.parameters, start)
            self.train(int(client))
            torch._foreach_add_(total, self.parameters, alpha=float(self.given.sizes[client]))

    def train(self, client: int) -> None:
        """One epoch of SGD on a client."""
        rows, settings, parameters = self.given.rows(client), self.given.settings, trained(self.model)
        order = torch.randperm(rows.stop - rows.start) + rows.start
        for batch in order.split(settings.batch_size):
            loss = loss_of(self.model(self.x[batch]), self.y[batch])
            gradients = torch.autograd.grad(loss, parameters)
            torch._foreach_add_(self.parameters, gradients, alpha=-settings.learning_rate)

    def accuracy(self) -> float:
        """The share of right answers on the test rows."""
        return accuracy_of(self.given, self.model)


def make(given: Workload) -> Loop:
    """The loop on one thread or on all, whichever is faster."""
    loop = Loop(given)
    use_fastest_threads(given, loop.model)
    return loop


if __name__ == "__main__":
    serve(make)
