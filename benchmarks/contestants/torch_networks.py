"""The networks of `flax_networks.py` in PyTorch: trains the one whose name it reads, and writes examples per second.

python torch_networks.py THREADS
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

STEPS, BATCH = 8, 20


class ConvNet(nn.Module):
    """Convolutions, each pooled by two, and a hidden layer."""

    def __init__(self, filters: tuple[int, ...] = (32, 64), size: int = 5, hidden: int = 512) -> None:
        super().__init__()
        pairs = zip((1, *filters), filters, strict=False)
        self.convolutions = nn.ModuleList(nn.Conv2d(before, after, size, padding="same") for before, after in pairs)
        self.hidden, self.last = nn.Linear(49 * filters[-1], hidden), nn.Linear(hidden, 62)

    def forward(self, x: Tensor) -> Tensor:
        """Its output."""
        for convolution in self.convolutions:
            x = functional.max_pool2d(functional.relu(convolution(x)), 2)
        return self.last(functional.relu(self.hidden(x.flatten(1))))


class Residual(nn.Module):
    """A residual block."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.path = nn.Sequential(*_convolution(before, after, stride), nn.ReLU(), *_convolution(after, after, 1))
        same = before == after and stride == 1
        self.short = nn.Identity() if same else nn.Sequential(*_convolution(before, after, stride, size=1))

    def forward(self, x: Tensor) -> Tensor:
        """Its output."""
        return functional.relu(self.path(x) + self.short(x))


class Pooled(nn.Module):
    """Layers, the mean over an image, and the classes."""

    def __init__(self, layers: list[nn.Module], width: int) -> None:
        super().__init__()
        self.layers, self.last = nn.Sequential(*layers), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Its output."""
        return self.last(self.layers(x).mean((2, 3)))


class Recurrent(nn.Module):
    """A recurrent layer over embedded characters."""

    def __init__(self, kind: type[nn.GRU] | type[nn.LSTM]) -> None:
        super().__init__()
        self.embedding, self.layer, self.last = nn.Embedding(90, 8), kind(8, 256, batch_first=True), nn.Linear(256, 90)

    def forward(self, x: Tensor) -> Tensor:
        """Its output."""
        return self.last(self.layer(self.embedding(x))[0])


class Attention(nn.Module):
    """A block of causal attention."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.inputs, self.output = nn.LayerNorm(64), nn.Linear(64, 192), nn.Linear(64, 64)
        self.dense = nn.Sequential(
            nn.LayerNorm(64), nn.Linear(64, 256), nn.GELU(approximate="tanh"), nn.Linear(256, 64)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Its output."""
        query, key, value = self.inputs(self.before(x)).view(*x.shape[:2], 3, 4, 16).permute(2, 0, 3, 1, 4)
        y = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.output(y.transpose(1, 2).reshape(x.shape))
        return x + self.dense(x)


class Transformer(nn.Module):
    """Two blocks of causal attention."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.positions = nn.Embedding(90, 64), nn.Parameter(torch.randn(80, 64) * 0.02)
        self.layers = nn.Sequential(Attention(), Attention(), nn.LayerNorm(64), nn.Linear(64, 90))

    def forward(self, x: Tensor) -> Tensor:
        """Its output."""
        return self.layers(self.embedding(x) + self.positions)


def _convolution(before: int, after: int, stride: int, *, size: int = 3, groups: int = 1) -> list[nn.Module]:
    return [
        nn.Conv2d(before, after, size, stride, size // 2, groups=groups, bias=False),
        nn.GroupNorm(8, after),
    ]


def _resnet() -> nn.Module:
    blocks = [Residual(16, 16, 1), Residual(16, 32, 2), Residual(32, 64, 2)]
    return Pooled([*_convolution(3, 16, 1), nn.ReLU(), *blocks], 64)


def _mobile() -> nn.Module:
    layers, width = [*_convolution(3, 32, 1), nn.ReLU()], 32
    for after, stride in ((64, 1), (128, 2), (128, 1), (256, 2)):
        layers += [*_convolution(width, width, stride, groups=width), nn.ReLU()]
        layers += [*_convolution(width, after, 1, size=1), nn.ReLU()]
        width = after
    return Pooled(layers, width)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "lean": (lambda: ConvNet((16, 32), 3, 128), (1, 28, 28)),
    "mcmahan": (ConvNet, (1, 28, 28)),
    "leaf": (lambda: ConvNet(hidden=2048), (1, 28, 28)),
    "resnet": (_resnet, (3, 32, 32)),
    "mobile": (_mobile, (3, 32, 32)),
    "gru": (lambda: Recurrent(nn.GRU), (80,)),
    "lstm": (lambda: Recurrent(nn.LSTM), (80,)),
    "transformer": (Transformer, (80,)),
}


@functools.cache
def _trainer(name: str) -> Callable[[], float]:
    make, shape = NETWORKS[name]
    model = make()
    if len(shape) == 1:
        x, y = (torch.randint(0, 90, (STEPS, BATCH, *shape)) for _ in range(2))
    else:
        model = model.to(memory_format=torch.channels_last)
        x, y = torch.rand(STEPS, BATCH, *shape), torch.randint(0, 10, (STEPS, BATCH))
    params = list(model.parameters())

    def step(batch: Tensor, labels: Tensor) -> None:
        if batch.dim() == 4:
            batch = batch.contiguous(memory_format=torch.channels_last)
        logits = model(batch)
        for param in params:
            param.grad = None
        functional.cross_entropy(logits.flatten(0, -2), labels.flatten()).backward()
        with torch.no_grad():
            torch._foreach_add_(params, [param.grad for param in params], alpha=-0.02)

    def run() -> float:
        start = time.perf_counter()
        for batch, labels in zip(x, y, strict=True):
            step(batch, labels)
        return STEPS * BATCH / (time.perf_counter() - start)

    return run


def main() -> None:
    """Train until nothing is asked for."""
    torch.set_num_threads(int(sys.argv[1]))
    for line in sys.stdin:
        print(_trainer(line.strip())(), flush=True)


if __name__ == "__main__":
    main()
