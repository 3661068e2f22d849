"""The models in PyTorch, as its own documentation has them fastest on a CPU: channels last, one fused LSTM."""

# pyright: reportMissingImports=false

from __future__ import annotations

import time
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from .workload import Workload, as_input


class CNN(nn.Module):
    """Two convolutions and a hidden layer; images are given as `[batch, 1, 28, 28]`, channels last in memory."""

    def __init__(self, dropout: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 32, 3), nn.Conv2d(32, 64, 3)
        self.hidden, self.last = nn.Linear(9216, 128), nn.Linear(128, 62)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[batch, 62]`."""
        x = functional.relu(self.second(functional.relu(self.first(x))))
        # Flattened as it lies in memory: height, width, channel.
        x = functional.max_pool2d(x, 2).permute(0, 2, 3, 1).flatten(1)
        if self.dropout:
            x = functional.dropout(x, 0.25, self.training)
        x = functional.relu(self.hidden(x))
        if self.dropout:
            x = functional.dropout(x, 0.5, self.training)
        return self.last(x)


class LeanCNN(nn.Module):
    """Two convolutions, each pooled by two, and a hidden layer; images as for `CNN`."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 16, 3), nn.Conv2d(16, 32, 3)
        self.hidden, self.last = nn.Linear(800, 128), nn.Linear(128, 62)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[batch, 62]`."""
        for convolution in (self.first, self.second):
            # Pooled first, so that relu has less to do.
            x = functional.relu(functional.max_pool2d(convolution(x), 2))
        x = x.permute(0, 2, 3, 1).flatten(1)
        return self.last(functional.relu(self.hidden(x)))


class CharLSTM(nn.Module):
    """Two layers of 256 on an embedding of 8."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(90, 8)
        self.lstm = nn.LSTM(8, 256, 2, batch_first=True)
        self.last = nn.Linear(256, 90)
        # One bias per gate, as in headstart: the second stays 0.
        for name, parameter in self.lstm.named_parameters():
            if name.startswith("bias_hh"):
                parameter.requires_grad_(False).zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[batch, time, 90]`."""
        return self.last(self.lstm(self.embedding(x))[0])


class Dense(nn.Module):
    """Dense layers of these widths with relu between them, on the flattened input."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[batch, classes]`."""
        x = x.flatten(1)
        for layer in self.layers[:-1]:
            x = functional.relu(layer(x))
        return self.layers[-1](x)


def model_of(given: Workload) -> nn.Module:
    """The workload's model, with its initial parameters."""
    name = given.settings.model
    if name == "lstm":
        model = CharLSTM()
    elif name == "cnn_lean":
        model = LeanCNN()
    elif name.startswith("cnn"):
        model = CNN(name == "cnn_dropout")
    else:
        model = Dense(784, 62) if name == "logistic" else Dense(784, 200, 62)
    initial = [torch.from_numpy(value) for value in _ordered(given)]
    with torch.no_grad():
        for parameter, value in zip(trained(model), initial, strict=True):
            parameter.copy_(value)
    return model.to(memory_format=torch.channels_last) if name.startswith("cnn") else model


def trained(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that training changes, in the order the model has them."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def loss_of(logits: Tensor, y: Tensor) -> Tensor:
    """The mean cross-entropy, over examples or over characters."""
    return functional.cross_entropy(logits.flatten(0, -2), y.flatten())


def tensors(given: Workload, x: np.ndarray, y: np.ndarray) -> tuple[Tensor, Tensor]:
    """Examples as the model wants them."""
    inputs = torch.from_numpy(as_input(x))
    if given.settings.model == "lstm":
        inputs = inputs.long()
    elif given.settings.model.startswith("cnn"):
        inputs = inputs.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
    return inputs, torch.from_numpy(y).long()


def use_fastest_threads(given: Workload, model: nn.Module) -> None:
    """Set the number of PyTorch's threads: all that are given or one, whichever takes gradients faster here.

    Where products are small, as in an LSTM, threads cost more than they bring on some machines.
    """
    batch = slice(0, given.settings.batch_size)
    x, y = tensors(given, given.x[batch], given.y[batch])

    def seconds(threads: int) -> float:
        torch.set_num_threads(threads)
        times = []
        for _ in range(8):
            began = time.perf_counter()
            torch.autograd.grad(loss_of(model(x), y), trained(model))
            times.append(time.perf_counter() - began)
        return sum(times[3:])

    torch.set_num_threads(min((given.settings.threads, 1), key=seconds))


@torch.no_grad()
def accuracy_of(given: Workload, model: nn.Module) -> float:
    """The share of right answers on the test rows."""
    was_training = model.training
    model.eval()
    x, y = tensors(given, given.test_x, given.test_y)
    right = sum(int((model(a).argmax(-1) == b).sum()) for a, b in zip(x.split(200), y.split(200), strict=True))
    model.train(was_training)
    return right / y.numel()


def _ordered(given: Workload) -> list[np.ndarray]:
    """Headstart's parameters in the order and the layout of PyTorch's."""
    get = {name.removeprefix("params/"): value for name, value in given.parameters.items()}.__getitem__
    if given.settings.model == "lstm":
        layers = [get(f"LSTM_{i}/{name}") for i in (0, 1) for name in ("kernel", "recurrent_kernel", "bias")]
        return [get("Embed_0/embedding"), *[leaf.T for leaf in layers], get("Dense_0/kernel").T, get("Dense_0/bias")]
    found = []
    for kind, number in (("Conv", 2), ("Dense", 2)):
        for i in range(number):
            if f"params/{kind}_{i}/kernel" in given.parameters:
                kernel = get(f"{kind}_{i}/kernel")
                found += [kernel.transpose(3, 2, 0, 1) if kind == "Conv" else kernel.T, get(f"{kind}_{i}/bias")]
    return [np.ascontiguousarray(value) for value in found]
