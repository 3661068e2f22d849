"""How fast the convolutional and the recurrent model train, beside this machine's own matrix products.

    python benchmarks/layers.py [--repetitions 9]

One client's local training as a round does it: steps of SGD in one compiled loop, here with plain XLA and with
headstart's layers. Between them, in the same run, a float32 product of [11520 x 288] by [288 x 64]. Only useful
arithmetic counts: the direct form's 2 operations for each multiplication and addition, three times the forward pass
(without the input gradient of the first layer). Printed are medians; `CPU share` compares processor time instead of
time, which other programs on the machine disturb less.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from headstart.bench.workload import ARITHMETIC
from headstart.models import conv
from headstart.models import lstm as recurrent
from headstart.models.zoo import CNN, CharLSTM

STEPS = 8
PRODUCTS = 8
PRODUCT_FLOPS = 2 * 11520 * 288 * 64


class Candidate(NamedTuple):
    """`items` examples of `flops` useful operations each, in one call of `run`."""

    run: Callable[[], Any]
    items: int
    flops: int


def main() -> None:
    """Measure in alternation and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=9)
    candidates = _candidates()
    measured = _measure(candidates, parser.parse_args().repetitions)
    print(f"{'':32} {'items/s':>9} {'GFLOP/s':>9} {'share':>7} {'CPU share':>9}")
    for name, rows in measured.items():
        speed, share, cpu_share = np.median(np.array(rows), axis=0)
        print(f"{name:32} {speed:9.1f} {speed * candidates[name].flops / 1e9:9.1f} {share:7.2f} {cpu_share:9.2f}")
    products = [
        speed / share * candidates[name].flops / 1e9 for name, rows in measured.items() for speed, share, _ in rows
    ]
    print(f"matrix product: {np.median(products):.1f} GFLOP/s")


def _candidates() -> dict[str, Candidate]:
    images = np.random.default_rng(0).random((STEPS, 20, 28, 28, 1), np.float32)
    labels = np.random.default_rng(1).integers(0, 62, (STEPS, 20))
    text = np.random.default_rng(2).integers(0, 90, (STEPS, 10, 80))
    cnn = {
        "CNN": (CNN(dropout=None), conv.convolve),
        "CNN, products of patches": (CNN(dropout=None), conv._multiply),
        "CNN with dropout": (CNN(), conv.convolve),
    }
    lstm = {"LSTM": recurrent.recur, "LSTM, autodiff of a scan": _scanned}
    found = {
        name: Candidate(
            _trainer(model, images, labels, (conv, "convolve", function)), 20 * STEPS, ARITHMETIC["cnn"].training
        )
        for name, (model, function) in cnn.items()
    }
    for name, function in lstm.items():
        run = _trainer(CharLSTM(), text, text, (recurrent, "recur", function))
        found[name] = Candidate(run, 10 * STEPS, ARITHMETIC["char_lstm"].training)
    return found


def _trainer(model: nn.Module, x: np.ndarray, y: np.ndarray, replaced: tuple[Any, str, Any]) -> Callable[[], Any]:
    """Compile the loop while `replaced` is (module, name, function) in force."""

    def loss(params: Any, x: jax.Array, y: jax.Array, key: jax.Array) -> jax.Array:
        train: dict[str, Any] = {"train": True} if isinstance(model, CNN) else {}
        logits = jnp.asarray(model.apply(params, x, rngs={"dropout": key}, **train))
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), y[..., None], axis=-1).mean()

    @jax.jit
    def train(params: Any, x: jax.Array, y: jax.Array) -> Any:
        def step(t: jax.Array, params: Any) -> Any:
            gradient = jax.grad(loss)(params, x[t], y[t], jax.random.fold_in(jax.random.key(0), t))
            return jax.tree.map(lambda a, b: a - 0.02 * b, params, gradient)

        return jax.lax.fori_loop(0, STEPS, step, params)

    given = jax.jit(model.init)(jax.random.key(0), x[0]), jnp.asarray(x), jnp.asarray(y)
    module, name, function = replaced
    original = getattr(module, name)
    setattr(module, name, function)
    compiled = train.lower(*given).compile()
    setattr(module, name, original)
    return lambda: compiled(*given)


def _scanned(inputs: jax.Array, weights: jax.Array) -> jax.Array:
    return recurrent._forward(inputs, weights)[0]


def _measure(candidates: dict[str, Candidate], repetitions: int) -> dict[str, list[tuple[float, float, float]]]:
    """For each candidate and repetition (items per second, share of the product's rate, the same by CPU time)."""
    left, right = jnp.ones((11520, 288)), jnp.ones((288, 64))
    product = jax.jit(jnp.matmul)
    measured: dict[str, list[tuple[float, float, float]]] = {name: [] for name in candidates}
    for repetition in range(-1, repetitions):
        for name, (run, items, flops) in candidates.items():
            before = _timed(lambda: [product(left, right) for _ in range(PRODUCTS)])
            wall, cpu = _timed(run)
            after = _timed(lambda: [product(left, right) for _ in range(PRODUCTS)])
            ideal = flops * items / (PRODUCTS * PRODUCT_FLOPS) * (np.array(before) + np.array(after)) / 2
            if repetition >= 0:  # the first is the warm-up
                measured[name].append((items / wall, ideal[0] / wall, ideal[1] / cpu))
    return measured


def _timed(run: Callable[[], Any]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    jax.block_until_ready(run())
    return time.perf_counter() - wall, time.process_time() - cpu


if __name__ == "__main__":
    main()
