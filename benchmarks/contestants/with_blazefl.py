"""BlazeFL's process mode: its own federated averaging, a process of one thread for each core.

Its trainer makes its processes anew in every round. They are forked, which its examples do not do because CUDA forbids
it, and which spares them to import PyTorch in each; so data and models that this process has loaded are there in them.
Parameters travel in shared memory. The largest clients come first, which divides the work best.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import builtins
import functools
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import torch
import torch._dynamo  # by the first optimizer at the latest, which would be in each process
from torch import Tensor, multiprocessing, nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from . import workload
from .protocol import serve
from .torch_models import accuracy_of, model_of, tensors
from .workload import Workload

# BlazeFL 3.0 names this class in its own body, which Python evaluates late from 3.14 on, and at once before. So its
# imports (E402) come after the name.
if sys.version_info < (3, 14):
    setattr(builtins, "RandomStateSnapshot", None)  # noqa: B010 (a name that no type checker knows)

from blazefl.contrib import (
    FedAvgBaseServerHandler,
    FedAvgProcessPoolClientTrainer,
    FedAvgThreadPoolClientTrainer,
)
from blazefl.core import ProcessPoolClientTrainer, ThreadPoolClientTrainer


class PerExample(nn.Module):
    """A model with a row of logits for each example or character, as BlazeFL's own loss wants them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[rows, classes]`."""
        return self.model(x).flatten(0, -2)


class Models:
    """BlazeFL's selector of models: one for each process and thread, since parameters are copied into it anyway."""

    kept = threading.local()

    def select_model(self, model_name: str) -> nn.Module:
        """The workload's model; model_name: the path of the workload."""
        if not hasattr(self.kept, "model"):
            # BlazeFL flattens parameters by `view`, which weights that lie channels last do not allow.
            model = model_of(_given(model_name)).to(memory_format=torch.contiguous_format)
            self.kept.model = PerExample(model)
        return self.kept.model


class Clients:
    """BlazeFL's partitioned data set: batches are cut from arrays in memory. It travels as the workload's path."""

    def __init__(self, path: str) -> None:
        self.path = path

    def get_dataloader(
        self, type_: str, cid: int, batch_size: int, generator: torch.Generator | None = None
    ) -> DataLoader:
        """A client's batches in a new order."""
        dataset = _datasets(self.path)[cid]
        batches = BatchSampler(RandomSampler(dataset, generator=generator), batch_size, drop_last=False)
        return DataLoader(dataset, sampler=batches, batch_size=None, collate_fn=_by_row)

    def set_dataset(self, type_: str, cid: int, dataset: TensorDataset) -> None:
        """Nothing: the examples stay as they are."""


class Server(FedAvgBaseServerHandler):
    """BlazeFL's server, with the cohorts that are given."""

    def __init__(self, path: str) -> None:
        given = _given(path)
        self.given, clients = given, len(given.sizes)
        super().__init__(
            model_selector=Models(),
            model_name=path,
            dataset=Clients(path),
            global_round=sys.maxsize,
            num_clients=clients,
            sample_ratio=min(1.0, (given.settings.cohort + 0.5) / clients),
            device="cpu",
            batch_size=given.settings.batch_size,
            seed=0,
        )

    def sample_clients(self) -> list[int]:
        """The clients of this round."""
        cohort = self.given.cohort(self.round)
        return [int(client) for client in cohort[np.argsort(-self.given.sizes[cohort])]]


class Processes(FedAvgProcessPoolClientTrainer):
    """BlazeFL's trainer, without a bar of progress."""

    progress_fn = ProcessPoolClientTrainer.progress_fn


class Threads(FedAvgThreadPoolClientTrainer):
    """As `Processes`, in threads."""

    progress_fn = ThreadPoolClientTrainer.progress_fn


class BlazeFL:
    """The loop that BlazeFL's users write around a server and a trainer."""

    def __init__(self, given: Workload, trainer: type = Processes, **options: object) -> None:
        torch.set_num_threads(1)
        path, settings = sys.argv[1], given.settings
        self.given, self.server = _given(path), Server(path)
        self.passing_processes = settings.threads if trainer is Processes else 0
        _datasets(path)
        self.trainer = trainer(
            model_selector=Models(),
            model_name=path,
            dataset=Clients(path),
            device="cpu",
            num_clients=len(given.sizes),
            epochs=1,
            batch_size=settings.batch_size,
            lr=settings.learning_rate,
            seed=0,
            num_parallels=settings.threads,
            **options,
        )

    def run(self, first: int, count: int) -> None:
        """Train `count` rounds."""
        for number in range(first, first + count):
            self.server.round = number
            self.trainer.local_process(self.server.downlink_package(), self.server.sample_clients())
            for package in self.trainer.uplink_package():
                self.server.load(package)

    def accuracy(self) -> float:
        """The share of right answers on the test rows."""
        return accuracy_of(self.given, self.server.model.model)


@functools.cache
def _given(path: str) -> Workload:
    return workload.read(path)


@functools.cache
def _datasets(path: str) -> list[TensorDataset]:
    given = _given(path)
    x, y = tensors(given, given.x, given.y)
    rows = [given.rows(client) for client in range(len(given.sizes))]
    return [TensorDataset(x[part], y[part]) for part in rows]


def _by_row(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return batch[0], batch[1].flatten()


def main() -> None:
    """Obey, with a folder for the states of random generators, which BlazeFL keeps in files."""
    multiprocessing.set_start_method("fork")
    with tempfile.TemporaryDirectory() as folder:
        serve(functools.partial(BlazeFL, state_dir=Path(folder)))


if __name__ == "__main__":
    main()
