"""How time, memory and start-up grow with clients, cohort, model and local epochs.

    python benchmarks/growth.py [--points clients cohort-10 …] [--json FILE] [--out DIR] [--from FILE …]
    python benchmarks/growth.py --arithmetic

Every point is a process of its own, which does what `headstart run` does: `headstart.run.run` on an experiment of
`glyphs` (the LSTM: on text of its own) with 20 examples to train on and 1 to test on per client, federated averaging in
batches of 20 (the LSTM: 10), nothing evaluated, nothing saved. It trains for about --seconds after its first round, and
for three rounds at least. Unless the point says otherwise: 1,000 clients, a cohort of 20, the CNN without dropout, one
epoch.

Printed are: seconds per round, the median over the second half of the rounds, by when all is compiled; the same per
client; processor seconds per round, over the same rounds; the process's peak resident memory; seconds from the start of
the process to that of its first round (reading, splitting, placing); and those of the first round, which compiles. With
--repetitions, rows are medians over that many processes, taken in turn.

The line `shards` trains on a folder of Parquet files, 1.9 GB of pictures of 24,000 clients with 100 each, once with all
rows on the devices, and once with a tenth of that for them (`device_bytes`); there, the system forgets after the first
round what it has of the rows in memory. The files are written, and read for the first time, by a process of its own,
whose peak is printed. `grown MB` is by how much the memory in use grew from the first to the last round that counts.

--out draws the curves; --from draws and prints those of earlier --json. --arithmetic trains nothing: it prints what
a model costs by count, and the temporary memory of a compiled round with one and with two lanes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import growth_shards
import h5py
import numpy as np
from growth_models import EXAMPLES, MODELS

from headstart.devices import cores_as_devices
from headstart.experiment.experiment import Data, Experiment, Stage
from headstart.learning.optimizers import Optimizer
from headstart.methods.paper import FedAvg
from headstart.training.run import run
from headstart.training.seed_run import Options

_LEAST_ROUNDS = 3
Row = dict[str, Any]


@dataclass(frozen=True)
class Point:
    """What one process trains. line: the curve that it belongs to."""

    line: str
    clients: int = 1000
    cohort: int = 20
    model: str = "cnn"
    epochs: int = 1
    resident: bool = True

    @property
    def name(self) -> str:
        """The line and the value on it."""
        where = f"{self.model}-{'resident' if self.resident else 'streamed'}"
        values = {"cohort": self.cohort, "model": self.model, "epochs": self.epochs, "shards": where}
        value = values.get(self.line, self.clients)
        return f"{self.line}-{value}"


POINTS = (
    *(Point("clients", clients=10**n) for n in (3, 4, 5, 6)),
    *(Point("clients-mlp", clients=10**n, model="mlp") for n in (3, 4, 5, 6)),
    *(Point("cohort", cohort=n, clients=2000) for n in (10, 30, 100, 300, 1000)),
    *(Point("model", model=name) for name in MODELS),
    *(Point("epochs", epochs=n) for n in (1, 2, 5, 10)),
    *(
        Point("shards", clients=growth_shards.CLIENTS, model=name, resident=resident)
        for name in ("mlp", "cnn")
        for resident in (True, False)
    ),
)


def main() -> None:
    """Measure, print and draw what is asked for."""
    given = _parser().parse_args()
    if given.one:
        print(json.dumps(measured(Point(**json.loads(given.one)), given.seconds)))
        return
    import growth_figures  # only now: a point's start-up and memory are measured without matplotlib

    if given.arithmetic:
        print(growth_figures.arithmetic())
        return
    rows = [row for path in given.earlier for row in json.loads(path.read_text())] or _measure_all(given)
    for row in rows:
        if "failed" in row:
            print(f"{row['name']} failed: {row['failed']}", file=sys.stderr)
    rows = growth_figures.medians([row for row in rows if "failed" not in row])
    print(growth_figures.table(rows))
    if given.out:
        growth_figures.draw(rows, given.out)


def _measure_all(given: argparse.Namespace) -> list[Row]:
    points = [p for p in POINTS if not given.points or any(_asked(p, name) for name in given.points)]
    todo, rows = points * given.repetitions, []
    with tempfile.TemporaryDirectory() as folder:
        if any(point.line == "shards" for point in points):
            _make_shards(Path(folder))
        return _measure_each(todo, rows, given)


def _make_shards(folder: Path) -> None:
    """Write the shards, and have a first process read them; what it keeps of them is there for the points."""
    os.environ.update(HEADSTART_CACHE=str(folder / "cache"), HEADSTART_SHARDS=str(folder / "shards"))
    for _ in range(2):
        subprocess.run([sys.executable, growth_shards.__file__, str(folder / "shards")], check=True)


def _measure_each(todo: Sequence[Point], rows: list[Row], given: argparse.Namespace) -> list[Row]:
    for number, point in enumerate(todo, 1):
        print(f"{number} of {len(todo)}: {point.name}", file=sys.stderr, flush=True)
        row = _in_own_process(point, given.seconds)
        print(f"  {_summary(row)}", file=sys.stderr, flush=True)
        rows.append(row)
        if given.json:
            given.json.write_text(json.dumps(rows, indent=1) + "\n")
    return rows


def _asked(point: Point, name: str) -> bool:
    return name in (point.line, point.name)


def _in_own_process(point: Point, seconds: float) -> Row:
    command = [sys.executable, __file__, "--one", json.dumps(asdict(point)), "--seconds", str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        error = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        return {"name": point.name, **asdict(point), "failed": error[-1]}
    return json.loads(done.stdout.splitlines()[-1])


class Enough(Exception):  # noqa: N818 (it is no error)
    """Enough rounds are measured."""


class Watch:
    """Hears every round of a run, and ends it when there are enough."""

    def __init__(self, seconds: float, *, forget: bool = False) -> None:
        self.patience, self.forget = seconds, forget
        self.rounds: list[float] = []
        self.heard: list[float] = []
        self.processor: list[float] = []
        self.memory: list[int] = []

    def __call__(self, record: Row) -> None:
        """Note a round."""
        if record["event"] != "round":
            return
        self.rounds.append(record["seconds"])
        self.heard.append(_age())
        self.processor.append(time.process_time())
        self.memory.append(_memory("VmRSS"))
        if self.forget and len(self.rounds) == 1:
            growth_shards.forget()
        if len(self.rounds) >= _LEAST_ROUNDS and self.heard[-1] - self.heard[0] >= self.patience:
            raise Enough

    def row(self) -> Row:
        """What was measured."""
        half = max(1, len(self.rounds) // 2)
        return {
            "rounds": len(self.rounds) - half,
            "seconds": median(self.rounds[half:]),
            "processor_seconds": (self.processor[-1] - self.processor[half - 1]) / (len(self.rounds) - half),
            "start_seconds": self.heard[0] - self.rounds[0],
            "first_seconds": self.rounds[0],
            "peak_bytes": _memory("VmHWM"),
            "grown_bytes": self.memory[-1] - self.memory[half - 1],
        }


def measured(point: Point, seconds: float) -> Row:
    """Train a point in this process."""
    cores_as_devices()
    watch = Watch(seconds, forget=not point.resident)
    options = Options(checkpoint_seconds=1e9)
    if point.line == "shards":
        options = replace(options, device_bytes=2**34 if point.resident else growth_shards.LIMIT)
    with tempfile.TemporaryDirectory() as folder:
        experiment = _experiment(point, Path(folder))
        with suppress(Enough):
            run(experiment, Path(folder) / "run", options=options, on_event=watch)
    row = {"name": point.name, **asdict(point), **watch.row()}
    return {**row, "seconds_per_client": row["seconds"] / point.cohort}


def _experiment(point: Point, folder: Path) -> Experiment:
    text = point.model == "lstm"
    # Rounds without end: the listener stops them.
    stage = Stage("FedAvg", FedAvg(point.epochs, 0.02, 10 if text else 20), Optimizer("sgd", 1.0), 10**6, point.cohort)
    if text:
        data = Data(str(_text(folder / "text.h5", point.clients)), {}, point.clients - 20, 10)
    elif point.line == "shards":
        data = Data(os.environ["HEADSTART_SHARDS"], {}, point.clients - 20, 10)
    else:
        options = {"writers": point.clients, "examples": EXAMPLES + 1, "test_fraction": 0.0}
        data = Data("glyphs", options, point.clients - 20, 10)
    return Experiment("growth", (stage,), data, MODELS[point.model], evaluate_every=0, evaluation_clients=0)


def _text(path: Path, clients: int) -> Path:
    """Snippets of 80 random letters in TensorFlow Federated's layout; 21 per client, of which headstart tests on 1."""
    letters = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz ", "S1")
    generator = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for client in range(clients):
            drawn = generator.choice(letters, (EXAMPLES, 70))
            file[f"examples/client{client}/snippets"] = np.array([line.tobytes() for line in drawn])
    return path


def _age() -> float:
    """Seconds since this process was started."""
    ticks = float(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return float(Path("/proc/uptime").read_text().split()[0]) - ticks / 100


def _memory(name: str) -> int:
    """Bytes of memory: `VmHWM` is the most that this process has had, `VmRSS` what it has now."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))


def _summary(row: Row) -> str:
    if "failed" in row:
        return "failed"
    return f"{row['seconds']:.4f} s per round, {row['peak_bytes'] / 1e6:.0f} MB, start {row['start_seconds']:.1f} s"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    lines = list(dict.fromkeys(point.line for point in POINTS))
    names = [*lines, *(point.name for point in POINTS)]
    add = parser.add_argument
    add("--points", nargs="+", choices=names, metavar="NAME", help=f"lines ({', '.join(lines)}) or single points")
    add("--seconds", type=float, default=12, help="about how long a point trains (%(default)s)")
    add("--repetitions", type=int, default=1, help="how often every point is measured (%(default)s)")
    add("--json", type=Path, metavar="FILE", help="write every single measurement there")
    add(
        "--from", dest="earlier", nargs="+", type=Path, default=[], metavar="FILE", help="show what earlier --json hold"
    )
    add("--out", type=Path, metavar="DIR", help="draw the curves there, as PNG")
    add("--arithmetic", action="store_true", help="print parameters, operations and bytes of the models")
    add("--one", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    main()
