"""What one GPU does with headstart: models, lanes, precisions, ways of convolution, PyTorch's loop, the paper's table.

    python benchmarks/gpu.py [--out gpu] [--minutes 12] [--pieces speed torch table1]

Each measurement is written to --out as soon as it is there; what is there is not measured again, so that a second call
resumes where the time of the first was over. `speed` tries every model with a few numbers of lanes, then the best of
them with products in TF32 and bfloat16; the two convolutional networks twice, on headstart's products of patches and on
XLA's own convolution. The share is of this GPU's float32 products, measured beside. `torch` is the plain loop of
benchmarks/peers.py on the GPU, where PyTorch is installed with CUDA. `table1` trains the eight rows of the paper's
Table 1 for 500 rounds on `glyphs` with the lean CNN, each in one process that keeps its programs.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from contestants import federations

import headstart as hs
from headstart.bench.measure import sensible_lanes
from headstart.bench.timing import Trainer, machine_of
from headstart.bench.workload import MODELS, Work, work_of
from headstart.data.device_data import on_device
from headstart.experiment.loading import load
from headstart.files import write_json
from headstart.models.zoo import CNN, as_model
from headstart.training.compilation_cache import ProgramCache
from headstart.training.run import run_into

PIECES = ("speed", "torch", "table1")
PRECISIONS = ("tensorfloat32", "bfloat16")
COHORTS = (20, 100)
REPETITIONS, CALL_SECONDS = 3, 0.5
# The cohorts M and local epochs E of the paper's Table 1.
ROWS = [(m, e) for m in (5, 20) for e in (2, 5, 10, 20)]
ROUNDS = 500


class Plain(nn.Module):
    """The network of `cnn` or `cnn_lean`, as a user of Flax writes it."""

    filters: tuple[int, ...]
    pool_each: bool

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """Logits `[batch, 62]` of images `[batch, height, width, 1]`."""
        for number, filters in enumerate(self.filters):
            x = nn.relu(nn.Conv(filters, (3, 3), padding="VALID")(x))
            if self.pool_each or number == len(self.filters) - 1:
                x = nn.max_pool(x, (2, 2), (2, 2))
        return nn.Dense(62)(nn.relu(nn.Dense(128)(x.reshape(x.shape[0], -1))))


PLAIN = {"cnn": Plain((32, 64), False), "cnn_lean": Plain((16, 32), True)}


class Notes:
    """Measurements by name, each in a file of its own; no new one is begun after the deadline."""

    def __init__(self, folder: Path, minutes: float) -> None:
        self.folder, self.deadline = folder, time.monotonic() + 60 * minutes
        folder.mkdir(parents=True, exist_ok=True)

    def measure(self, name: str, function: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
        """What is measured under the name, now or before; None if there is no time left for it."""
        file = self.folder / f"{name}.json"
        if file.exists():
            return json.loads(file.read_text())
        if time.monotonic() > self.deadline:
            print(f"{name}: no time left", flush=True)
            return None
        began = time.monotonic()
        try:
            found: dict[str, Any] = function()
        except Exception as error:  # one that does not fit the memory must not end the others
            found = {"failed": f"{type(error).__name__}: {str(error).splitlines()[:1]}"}
        found["seconds"] = time.monotonic() - began
        write_json(file, found)
        print(name, found, flush=True)
        return found


def speed(notes: Notes) -> None:
    """Models, cohorts, lanes and precisions."""
    for cohort in COHORTS:
        for name, work in _works(cohort):
            _speeds(notes, f"{name}-{cohort}", work)


def _speeds(notes: Notes, name: str, work: Work) -> None:
    tried: dict[int, float] = {}
    for lanes in sensible_lanes(jax.default_backend(), 1, work.cohort):
        found = notes.measure(f"{name}-lanes{lanes}", lambda lanes=lanes: _trained(work, lanes))
        if found and "examples_per_second" in found:
            tried[lanes] = found["examples_per_second"]
    if tried:
        best = max(tried, key=tried.__getitem__)
        for precision in PRECISIONS:
            with jax.default_matmul_precision(precision):
                notes.measure(f"{name}-{precision}", lambda: _trained(work, best))


def _works(cohort: int) -> Iterator[tuple[str, Work]]:
    for name in MODELS:
        work, image = work_of(name, cohort), np.zeros((1, 28, 28, 1), np.float32)
        if name == "cnn":  # without dropout, so that both ways compute the same
            work = work._replace(model=as_model(CNN(dropout=None), image))
        yield name, work
        if name in PLAIN:
            yield f"{name}-xla", work._replace(model=as_model(PLAIN[name], image, rewrite=False))


def _trained(work: Work, lanes: int) -> dict[str, Any]:
    machine = machine_of(1)
    trainer = Trainer(work, on_device(work.federation, mesh=machine.mesh), lanes)
    rows = [trainer.repeat(number, CALL_SECONDS, machine) for number in range(REPETITIONS)]
    found = zip(rows[0]._fields, np.median(np.array(rows), axis=0), strict=True)
    stats = jax.local_devices()[0].memory_stats() or {}
    return {
        **{name: float(value) for name, value in found},
        "lanes": lanes,
        "compile_seconds": trainer.compile_seconds,
        "product_flops": float(np.median(machine.measured)),
        "peak_bytes": stats.get("peak_bytes_in_use"),
    }


def torch(notes: Notes) -> None:
    """The plain loop in PyTorch."""
    try:
        from contestants.torch_models import trained
        from contestants.with_torch import Loop
        from torch import cuda  # pyright: ignore[reportMissingImports]
    except ImportError:
        print("torch: not installed here")
        return
    if not cuda.is_available():
        print("torch: sees no GPU")
        return

    def looped(name: str, cohort: int) -> dict[str, Any]:
        given = federations.workload_of(name, federations.examples_of(name), cohort, 1)
        loop = Loop(given)
        loop.model.to("cuda")
        loop.x, loop.y = loop.x.to("cuda"), loop.y.to("cuda")
        loop.parameters = [parameter.detach() for parameter in trained(loop.model)]
        loop.run(0, 2)
        speeds = []
        for first in (2, 4, 6):
            cuda.synchronize()
            began = time.perf_counter()
            loop.run(first, 2)
            cuda.synchronize()
            examples = sum(int(given.sizes[given.cohort(n)].sum()) for n in (first, first + 1))
            speeds.append(examples / (time.perf_counter() - began))
        return {"examples_per_second": float(np.median(speeds))}

    for name in ("cnn", "lstm", "mlp", "logistic"):
        notes.measure(f"torch-{name}-20", lambda name=name: looped(name, 20))


def table1(notes: Notes) -> None:
    """The rows of Table 1, by time."""
    cache, folder = ProgramCache(), notes.folder / "table1"
    base = load("fedavg", settings=["evaluate_every=100"])
    base = replace(base, data=hs.Data("glyphs", {"writers": 3400}, train=2500, validation=100))

    def trained(m: int, e: int) -> dict[str, Any]:
        stage = replace(base.stages[0], rounds=ROUNDS, clients_per_round=m, update=hs.FedAvg(e, 0.02, 20))
        experiment = replace(base, name=f"M{m}-E{e}", stages=(stage,))
        options = hs.Options(lanes=m if jax.default_backend() != "cpu" else 1)
        run_into(experiment, folder / experiment.name, options=options, cache=cache)
        accuracy = hs.open_run(folder / experiment.name).summary("test")["accuracy"]
        return {"initial": accuracy["initial"]["mean"], "personalized": accuracy["personalized"]["mean"]}

    for m, e in ROWS:
        notes.measure(f"table1-M{m}-E{e}", lambda m=m, e=e: trained(m, e))


def main() -> None:
    """Measure what is asked for, as far as the time reaches."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu"), help="folder of the measurements (%(default)s)")
    parser.add_argument("--minutes", type=float, default=12, help="after which nothing new is begun (%(default)s)")
    parser.add_argument("--pieces", nargs="+", choices=PIECES, default=list(PIECES))
    given = parser.parse_args()
    notes = Notes(given.out, given.minutes)
    device = jax.local_devices()[0]
    about = {"platform": device.platform, "kind": device.device_kind, "jax": jax.__version__}
    write_json(given.out / "device.json", about)
    for piece in given.pieces:
        {"speed": speed, "torch": torch, "table1": table1}[piece](notes)


if __name__ == "__main__":
    main()
