"""How fast networks train that users write, with and without what headstart replaces in them, and in PyTorch.

    python benchmarks/networks.py [--networks lean mcmahan …] [--torch PYTHON] [--repetitions 5] [--without-xla]

One client's local training as a round does it: steps of SGD in batches of 20 in one compiled loop, one such loop on
each core. The networks are written in Flax as a user writes them. `--torch` is a Python that has PyTorch; its loop is
one process of as many threads, images channels last. The contestants compute in turn. Printed are
examples per second, medians over the repetitions, and headstart's over the others'.
"""

from __future__ import annotations

import argparse
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from contestants.flax_networks import BATCH, NETWORKS, STEPS, examples
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from headstart.devices import cores, cores_as_devices
from headstart.models.zoo import as_model

Run = Callable[[], float]


def main() -> None:
    """Measure in alternation and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--torch", metavar="PYTHON", help="a Python that has PyTorch")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--without-xla", action="store_true", help="leave out the networks as they are")
    given = parser.parse_args()
    cores_as_devices()
    torch = None if given.torch is None else _Torch(given.torch)
    print(f"{'':12} {'headstart':>10} {'as it is':>10} {'PyTorch':>10}   compiled in, as it is in (s)")
    for name in given.networks:
        runs: dict[str, tuple[Run, float]] = {"headstart": _trainer(name, rewrite=True)}
        if not given.without_xla:
            runs["as it is"] = _trainer(name, rewrite=False)
        if torch is not None:
            runs["PyTorch"] = (lambda name=name: torch.speed(name)), 0.0
        _print(name, runs, given.repetitions)


def _print(name: str, runs: dict[str, tuple[Run, float]], repetitions: int) -> None:
    found: dict[str, list[float]] = {contestant: [] for contestant in runs}
    for repetition in range(-1, repetitions):
        for contestant, (run, _) in runs.items():
            speed = run()
            if repetition >= 0:  # the first is the warm-up
                found[contestant].append(speed)
    speeds = {contestant: float(np.median(values)) for contestant, values in found.items()}
    cells = [
        f"{speeds[contestant]:10.0f}" if contestant in speeds else " " * 10
        for contestant in ("headstart", "as it is", "PyTorch")
    ]
    compiled = ", ".join(f"{seconds:.1f}" for contestant, (_, seconds) in runs.items() if contestant != "PyTorch")
    others = [
        f"{speeds['headstart'] / speed:.2f} x {contestant}"
        for contestant, speed in speeds.items()
        if contestant != "headstart"
    ]
    print(f"{name:12} {' '.join(cells)}   {compiled}   {', '.join(others)}", flush=True)


def _trainer(name: str, *, rewrite: bool) -> tuple[Run, float]:
    """What trains on every core and says how many examples per second that were, and the seconds it was compiled in."""
    mesh = jax.make_mesh((len(jax.devices()),), ("clients",))
    x, y = examples(name, len(jax.devices()))
    model = as_model(NETWORKS[name][0](), x[0, 0], rewrite=rewrite)

    def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        logits = jax.nn.log_softmax(model.apply(params, x)[0])
        return -jnp.take_along_axis(logits, y[..., None], axis=-1).mean()

    def train(params: Any, x: jax.Array, y: jax.Array) -> Any:
        def step(t: jax.Array, params: Any) -> Any:
            gradient = jax.grad(loss)(params, x[0, t], y[0, t])
            return jax.tree.map(lambda a, b: a - 0.02 * b, params, gradient)

        return jax.tree.map(lambda leaf: leaf[None], jax.lax.fori_loop(0, STEPS, step, params))

    split, whole = NamedSharding(mesh, P("clients")), NamedSharding(mesh, P())
    params = jax.device_put(jax.jit(model.init)(jax.random.key(0)), whole)
    given = params, jax.device_put(x, split), jax.device_put(y, split)
    specs = {"in_specs": (P(), P("clients"), P("clients")), "out_specs": P("clients"), "check_vma": False}
    start = time.perf_counter()
    compiled = jax.jit(jax.shard_map(train, mesh=mesh, **specs)).lower(*given).compile()
    seconds = time.perf_counter() - start

    def run() -> float:
        start = time.perf_counter()
        jax.block_until_ready(compiled(*given))
        return len(jax.devices()) * STEPS * BATCH / (time.perf_counter() - start)

    return run, seconds


class _Torch:
    """A process with PyTorch, which trains the network whose name it reads."""

    def __init__(self, python: str) -> None:
        script = Path(__file__).parent / "contestants" / "torch_networks.py"
        command = [python, str(script), str(len(cores()))]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def speed(self, name: str) -> float:
        """Examples per second of the network."""
        assert self._process.stdin is not None and self._process.stdout is not None
        print(name, file=self._process.stdin, flush=True)
        return float(self._process.stdout.readline())


if __name__ == "__main__":
    main()
