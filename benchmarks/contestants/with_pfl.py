"""pfl: its PyTorch model adapter, its federated data set in memory, no callbacks, no privacy."""

# pyright: reportMissingImports=false

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.hyperparam.base import NNTrainHyperParams
from pfl.model.pytorch import PyTorchModel
from torch import Tensor, nn

from .protocol import serve
from .torch_models import accuracy_of, loss_of, model_of, tensors, trained, use_fastest_threads
from .workload import Workload


class Adapted(nn.Module):
    """A model with the two methods that pfl asks for."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """The mean cross-entropy."""
        return loss_of(self.model(x), y)

    def metrics(self, x: Tensor, y: Tensor) -> dict:
        """Nothing: accuracy is measured outside."""
        return {}


class Pfl:
    """One algorithm, kept from call to call: the first iteration of each new one would evaluate every client."""

    def __init__(self, given: Workload) -> None:
        torch.manual_seed(0)
        settings = given.settings
        self.given, self.module = given, model_of(given)
        use_fastest_threads(given, self.module)
        self.model = PyTorchModel(
            Adapted(self.module),
            functools.partial(torch.optim.SGD, foreach=True),
            torch.optim.SGD(trained(self.module), lr=1.0),
        )
        self.train = NNTrainHyperParams(
            local_num_epochs=1, local_learning_rate=settings.learning_rate, local_batch_size=settings.batch_size
        )
        self.members: Iterator[int] = iter(())
        data = FederatedDataset(_clients(given).__getitem__, lambda: next(self.members))
        self.backend = SimulatedBackend(data, data, postprocessors=[WeightByDatapoints()])
        self.algorithm, self.done = FederatedAveraging(), 0

    def run(self, first: int, count: int) -> None:
        """Train `count` rounds."""
        self.members = (int(client) for number in range(first, first + count) for client in self.given.cohort(number))
        self.done += count
        self.algorithm.run(
            NNAlgorithmParams(
                central_num_iterations=self.done,
                evaluation_frequency=2**31,
                train_cohort_size=self.given.settings.cohort,
                val_cohort_size=None,
            ),
            self.backend,
            self.model,
            self.train,
            send_metrics_to_platform=False,
        )

    def accuracy(self) -> float:
        """The share of right answers on the test rows."""
        return accuracy_of(self.given, self.module)


def _clients(given: Workload) -> list[PyTorchTensorDataset]:
    x, y = tensors(given, given.x, given.y)
    rows = [given.rows(client) for client in range(len(given.sizes))]
    return [PyTorchTensorDataset((x[part], y[part])) for part in rows]


if __name__ == "__main__":
    serve(Pfl)
