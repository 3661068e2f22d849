"""Networks as users write them in Flax, and examples for them."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import numpy as np

Array = jax.Array

STEPS, BATCH = 8, 20


class ConvNet(nn.Module):
    """Convolutions, each pooled by two, and a hidden layer: LEAF's and McMahan's, and a lean one."""

    filters: tuple[int, ...] = (32, 64)
    size: int = 5
    hidden: int = 512

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Logits `[batch, 62]` of images."""
        for filters in self.filters:
            x = nn.max_pool(nn.relu(nn.Conv(filters, (self.size, self.size))(x)), (2, 2), (2, 2))
        return nn.Dense(62)(nn.relu(nn.Dense(self.hidden)(x.reshape(x.shape[0], -1))))


class ResNet(nn.Module):
    """Three residual blocks with group norm."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Logits `[batch, 10]` of images."""
        x = nn.relu(_norm()(_conv(16)(x)))
        for number, width in enumerate((16, 32, 64)):
            stride = 2 if number else 1
            y = nn.relu(_norm()(_conv(width, stride)(x)))
            y = _norm()(_conv(width)(y))
            if x.shape != y.shape:
                x = _norm()(nn.Conv(width, (1, 1), stride, use_bias=False)(x))
            x = nn.relu(x + y)
        return nn.Dense(10)(x.mean(axis=(1, 2)))


class Mobile(nn.Module):
    """Depthwise separable blocks with group norm."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Logits `[batch, 10]` of images."""
        x = nn.relu(_norm()(_conv(32)(x)))
        for width, stride in ((64, 1), (128, 2), (128, 1), (256, 2)):
            depthwise = nn.Conv(x.shape[-1], (3, 3), stride, feature_group_count=x.shape[-1], use_bias=False)
            x = nn.relu(_norm()(depthwise(x)))
            x = nn.relu(_norm()(nn.Conv(width, (1, 1), use_bias=False)(x)))
        return nn.Dense(10)(x.mean(axis=(1, 2)))


class Recurrent(nn.Module):
    """A recurrent layer over embedded characters."""

    cell: Any = nn.GRUCell

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Logits `[batch, time, 90]` of tokens `[batch, time]`."""
        return nn.Dense(90)(nn.RNN(self.cell(256))(nn.Embed(90, 8)(x)))


class Transformer(nn.Module):
    """Two blocks of causal attention."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Logits `[batch, time, 90]` of tokens `[batch, time]`."""
        mask = nn.make_causal_mask(x)
        x = nn.Embed(90, 64)(x) + self.param("positions", nn.initializers.normal(0.02), (x.shape[1], 64))
        for _ in range(2):
            y = nn.LayerNorm()(x)
            x = x + nn.MultiHeadDotProductAttention(num_heads=4)(y, y, mask=mask)
            x = x + nn.Dense(64)(nn.gelu(nn.Dense(256)(nn.LayerNorm()(x))))
        return nn.Dense(90)(nn.LayerNorm()(x))


# The network, and the shape of an example.
NETWORKS = {
    "lean": (lambda: ConvNet((16, 32), 3, 128), (28, 28, 1)),
    "mcmahan": (ConvNet, (28, 28, 1)),
    "leaf": (lambda: ConvNet(hidden=2048), (28, 28, 1)),
    "resnet": (ResNet, (32, 32, 3)),
    "mobile": (Mobile, (32, 32, 3)),
    "gru": (Recurrent, (80,)),
    "lstm": (lambda: Recurrent(nn.OptimizedLSTMCell), (80,)),
    "transformer": (Transformer, (80,)),
}


def examples(name: str, devices: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and labels `[devices, steps, batch, ...]`."""
    random, shape = np.random.default_rng(0), (devices, STEPS, BATCH, *NETWORKS[name][1])
    if len(shape) == 4:
        return random.integers(0, 90, shape), random.integers(0, 90, shape)
    return random.random(shape, np.float32), random.integers(0, 10, shape[:3])


def _norm() -> nn.GroupNorm:
    return nn.GroupNorm(num_groups=8)


def _conv(width: int, stride: int = 1) -> nn.Conv:
    return nn.Conv(width, (3, 3), stride, use_bias=False)
