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

--out draws the curves; --from draws and prints those of earlier --json. --arithmetic trains nothing: it prints what
a model costs by count, and the temporary memory of a compiled round with one and with two lanes.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

EXAMPLES = 20
MODELS = ("logistic", "mlp", "cnn", "lstm")
# Multiplications with an addition in one forward pass of one example, layer by layer; of text, of all 80 characters,
# whose embeddings are looked up without any.
MULTIPLICATIONS = {
    "logistic": (784 * 62,),
    "mlp": (784 * 200, 200 * 62),
    "cnn": (26**2 * 9 * 32, 24**2 * 288 * 64, 9216 * 128, 128 * 62),
    "lstm": tuple(80 * n for n in (0, 8 * 1024, 256 * 1024, 256 * 1024, 256 * 1024, 256 * 90)),
}
_LEAST_ROUNDS = 3
_MODULES: dict[str, tuple[str, dict[str, Any]]] = {
    "logistic": ("logistic", {}),
    "mlp": ("mlp", {"widths": [200]}),
    "cnn": ("cnn", {"dropout": None}),
    "lstm": ("char_lstm", {}),
}

Row = dict[str, Any]


@dataclass(frozen=True)
class Point:
    """What one process trains. line: the curve that it belongs to."""

    line: str
    clients: int = 1000
    cohort: int = 20
    model: str = "cnn"
    epochs: int = 1

    @property
    def name(self) -> str:
        """The line and the place on it."""
        place = {"cohort": self.cohort, "model": self.model, "epochs": self.epochs}.get(self.line, self.clients)
        return f"{self.line}-{place}"


POINTS = (
    *(Point("clients", clients=10**n) for n in (3, 4, 5, 6)),
    *(Point("clients-mlp", clients=10**n, model="mlp") for n in (3, 4, 5, 6)),
    *(Point("cohort", cohort=n, clients=2000) for n in (10, 30, 100, 300, 1000)),
    *(Point("model", model=name) for name in MODELS),
    *(Point("epochs", epochs=n) for n in (1, 2, 5, 10)),
)


def main() -> None:
    """Measure, print and draw what is asked for."""
    given = _parser().parse_args()
    if given.one:
        print(json.dumps(measured(Point(**json.loads(given.one)), given.seconds)))
        return
    if given.arithmetic:
        print(arithmetic())
        return
    rows = [row for path in given.earlier for row in json.loads(path.read_text())] or _measure_all(given)
    rows = medians(rows)
    print(table(rows))
    if given.out:
        draw(rows, given.out)


def _measure_all(given: argparse.Namespace) -> list[Row]:
    points = [p for p in POINTS if not given.points or any(_asked(p, name) for name in given.points)]
    todo, rows = points * given.repetitions, []
    for number, point in enumerate(todo, 1):
        print(f"{number} of {len(todo)}: {point.name}", file=sys.stderr, flush=True)
        row = _in_own_process(point, given.seconds)
        print(f"  {_told(row)}", file=sys.stderr, flush=True)
        rows.append(row)
        if given.json:
            given.json.write_text(json.dumps(rows, indent=1) + "\n")
    return rows


def _asked(point: Point, name: str) -> bool:
    return name in (point.line, point.name)


def _in_own_process(point: Point, seconds: float) -> Row:
    command = [sys.executable, __file__, "--one", json.dumps(asdict(point)), "--seconds", str(seconds)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        return {"name": point.name, **asdict(point), "failed": f"exit status {done.returncode}"}
    return json.loads(done.stdout.splitlines()[-1])


class Enough(Exception):  # noqa: N818 (it is no error)
    """Enough rounds are measured."""


class Watch:
    """Hears every round of a run, and ends it when there are enough."""

    def __init__(self, seconds: float) -> None:
        self.patience = seconds
        self.rounds: list[float] = []
        self.heard: list[float] = []
        self.processor: list[float] = []

    def __call__(self, record: Row) -> None:
        """Note a round."""
        if record["event"] != "round":
            return
        self.rounds.append(record["seconds"])
        self.heard.append(_age())
        self.processor.append(time.process_time())
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
            "peak_bytes": _peak_bytes(),
        }


def measured(point: Point, seconds: float) -> Row:
    """Train a point in this process."""
    from headstart.lanes import cores_as_devices
    from headstart.run import Options, run

    cores_as_devices()
    watch = Watch(seconds)
    with tempfile.TemporaryDirectory() as folder:
        experiment = _experiment(point, Path(folder))
        with suppress(Enough):
            run(experiment, Path(folder) / "run", options=Options(checkpoint_seconds=1e9), listen=watch)
    row = {"name": point.name, **asdict(point), **watch.row()}
    return {**row, "seconds_per_client": row["seconds"] / point.cohort}


def _experiment(point: Point, folder: Path) -> Any:
    from headstart.experiment import Data, Experiment, Imported, Stage
    from headstart.optimizers import Optimizer
    from headstart.updates import FedAvg

    text = point.model == "lstm"
    # Rounds without end: the listener stops them.
    stage = Stage("FedAvg", FedAvg(point.epochs, 0.02, 10 if text else 20), Optimizer("sgd", 1.0), 10**6, point.cohort)
    if text:
        data = Data(str(_text(folder / "text.h5", point.clients)), {}, point.clients - 20, 10)
    else:
        options = {"writers": point.clients, "examples": EXAMPLES + 1, "test_fraction": 0.0}
        data = Data("glyphs", options, point.clients - 20, 10)
    model = Imported(*_MODULES[point.model])
    return Experiment("growth", (stage,), data, model, evaluate_every=0, evaluation_clients=0)


def _text(path: Path, clients: int) -> Path:
    """Snippets of 80 random letters in TensorFlow Federated's layout; 21 per client, of which headstart tests on 1."""
    import h5py
    import numpy as np

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


def _peak_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def medians(rows: Sequence[Row]) -> list[Row]:
    """One row per point."""
    found = []
    for name in dict.fromkeys(row["name"] for row in rows):
        same = [row for row in rows if row["name"] == name and "failed" not in row]
        if same:
            numbers = {key: median(row[key] for row in same) for key, value in same[0].items() if value != str(value)}
            found.append({**same[0], **numbers})
    return found


def table(rows: Sequence[Row]) -> str:
    """The rows as text."""
    heads = "seconds/round", "ms/client", "CPU s/round", "peak MB", "start s", "first s"
    lines = [f"{'':20}" + "".join(f"{head:>14}" for head in heads)]
    for row in rows:
        numbers = (
            f"{row['seconds']:.4f}",
            f"{1e3 * row['seconds_per_client']:.2f}",
            f"{row['processor_seconds']:.4f}",
            f"{row['peak_bytes'] / 1e6:.0f}",
            f"{row['start_seconds']:.1f}",
            f"{row['first_seconds']:.1f}",
        )
        lines.append(f"{row['name']:20}" + "".join(f"{number:>14}" for number in numbers))
    return "\n".join(lines)


def _told(row: Row) -> str:
    if "failed" in row:
        return row["failed"]
    return f"{row['seconds']:.4f} s per round, {row['peak_bytes'] / 1e6:.0f} MB, start {row['start_seconds']:.1f} s"


def flops(model: str) -> int:
    """Operations of training on one example: forward, gradients of weights, gradients of all inputs but the first."""
    layers = MULTIPLICATIONS[model]
    return 2 * (3 * sum(layers) - layers[0])


def arithmetic() -> str:
    """Parameters, operations and bytes of every model, as text."""
    heads = "parameters", "FLOPs/example", "bytes down", "bytes up", "1 lane, MB", "2 lanes, MB"
    lines = [f"{'':10}" + "".join(f"{head:>15}" for head in heads)]
    for name in MODELS:
        count = _parameters(name)
        numbers = f"{count:,}", f"{flops(name):,}", f"{4 * count:,}", f"{4 * count:,}"
        memory = (f"{working_bytes(name, lanes) / 1e6:.1f}" for lanes in (1, 2))
        lines.append(f"{name:10}" + "".join(f"{number:>15}" for number in (*numbers, *memory)))
    return "\n".join(lines)


def _parameters(name: str) -> int:
    import jax

    from headstart.models import count_parameters

    return count_parameters(jax.eval_shape(_model_of(name).init, jax.random.key(0)))


def _model_of(name: str) -> Any:
    import jax.numpy as jnp

    from headstart.models import ALIASES, as_model

    path, options = _MODULES[name]
    module: Callable[..., Any] = ALIASES[path]
    if name == "lstm":
        return as_model(module(**options), jnp.zeros((1, 80), jnp.int32))
    return as_model(module(**options, classes=62), jnp.zeros((1, 28, 28, 1)))


def working_bytes(name: str, lanes: int) -> int:
    """What one device needs beside the block and the states to work on clients, by the compiler's own account."""
    import jax
    import jax.numpy as jnp
    import optax

    from headstart.data import Block, Client
    from headstart.rounds import Cohort, federated
    from headstart.tasks import Classification, NextCharacter
    from headstart.updates import FedAvg

    text, model = name == "lstm", _model_of(name)
    task, batch_size = (NextCharacter(), 10) if text else (Classification(), 20)
    algorithm = federated(task, model, FedAvg(1, 0.02, batch_size), optax.sgd(1.0), lanes=lanes)
    rows = 4 * EXAMPLES
    x, y = (
        (jnp.zeros((rows, 80), jnp.int32),) * 2
        if text
        else (jnp.zeros((rows, 28, 28, 1), jnp.uint8), jnp.zeros(rows, int))
    )
    clients = Client(
        Block(x, y), jnp.zeros((4, EXAMPLES), jnp.int32), jnp.zeros(4, jnp.int32), jnp.zeros((4, 2), jnp.uint32)
    )
    key = jax.random.key(0)
    state = jax.eval_shape(lambda key: algorithm.init(model.init(key)), key)
    analysis = jax.jit(algorithm.step).lower(state, Cohort(clients), key).compile().memory_analysis()
    return analysis.temp_size_in_bytes if analysis else 0


def draw(rows: Sequence[Row], folder: Path) -> None:
    """Draw the lines whose points are there."""
    from headstart.themes import LIGHT, Drawing, save

    folder.mkdir(parents=True, exist_ok=True)
    for line, figure in (("clients", _clients), ("cohort", _cohort), ("model", _model), ("epochs", _epochs)):
        if sum(row["line"] == line for row in rows) > 1:
            save(Drawing(f"growth-{line}", "", partial(figure, rows)), folder, themes=(LIGHT,))


def _clients(rows: Sequence[Row], theme: Any) -> Any:
    figure, panels = _panels(3)
    for number, (line, label) in enumerate((("clients", "CNN"), ("clients-mlp", "MLP"))):
        mine = [row for row in rows if row["line"] == line]
        at = [row["clients"] for row in mine]
        for panel, key, scale in zip(panels, ("seconds", "peak_bytes", "start_seconds"), (1e3, 1e-6, 1), strict=True):
            _curve(panel, at, [scale * row[key] for row in mine], theme, number, label)
    _axes(panels[0], "clients", "time per round (ms)", log="both")
    _axes(panels[1], "clients", "peak memory (MB)")
    _axes(panels[2], "clients", "start-up (s)")
    panels[1].axhline(1500, color=theme.muted, linewidth=1, linestyle=":")
    panels[1].text(1000, 1480, "1.5 GB", color=theme.muted, va="top")
    panels[1].set_ylim(0, 1650)
    panels[0].legend(loc="center left")
    return _with_title(figure, "A thousand to a million clients, cohorts of 20")


def _cohort(rows: Sequence[Row], theme: Any) -> Any:
    figure, panels = _panels(3)
    mine = [row for row in rows if row["line"] == "cohort"]
    at = [row["cohort"] for row in mine]
    _curve(panels[0], at, [row["seconds"] for row in mine], theme, 0)
    _curve(panels[1], at, [1e3 * row["seconds_per_client"] for row in mine], theme, 0)
    _curve(panels[2], at, [row["peak_bytes"] / 1e6 for row in mine], theme, 0)
    _axes(panels[0], "clients in a cohort", "time per round (s)", log="both")
    _axes(panels[1], "clients in a cohort", "time per client (ms)")
    _axes(panels[2], "clients in a cohort", "peak memory (MB)")
    return _with_title(figure, "Cohorts of 10 to 1,000 clients, CNN")


def _model(rows: Sequence[Row], theme: Any) -> Any:
    figure, panels = _panels(2)
    for number, row in enumerate(row for row in rows if row["line"] == "model"):
        work, bytes_sent = flops(row["model"]) * EXAMPLES, 4 * _parameters(row["model"])
        for panel, x, y in (
            (panels[0], work / 1e6, 1e3 * row["seconds_per_client"]),
            (panels[1], bytes_sent / 1e6, row["peak_bytes"] / 1e6),
        ):
            _curve(panel, [x], [y], theme, number)
            place = {"xytext": (0, 7 if number % 2 else -14), "textcoords": "offset points", "ha": "center"}
            panel.annotate(row["model"], (x, y), color=theme.text, **place)
    _axes(panels[0], "arithmetic per client (million operations)", "time per client (ms)", log="both")
    _axes(panels[1], "parameters (MB)", "peak memory (MB)", log="")
    low, high = panels[0].get_xlim()
    panels[0].set_xlim(low / 1.5, high * 1.5)
    panels[1].set_xlim(0, 1.15 * panels[1].get_xlim()[1])
    return _with_title(figure, "Four models, cohorts of 20")


def _epochs(rows: Sequence[Row], theme: Any) -> Any:
    figure, panels = _panels(2)
    mine = [row for row in rows if row["line"] == "epochs"]
    at = [row["epochs"] for row in mine]
    _curve(panels[0], at, [row["seconds"] for row in mine], theme, 0)
    _curve(panels[1], at, [row["peak_bytes"] / 1e6 for row in mine], theme, 0)
    _axes(panels[0], "local epochs", "time per round (s)", log="")
    _axes(panels[1], "local epochs", "peak memory (MB)", log="")
    return _with_title(figure, "One to ten local epochs, CNN, cohorts of 20")


def _panels(count: int) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.6 * count, 3.3))
    return figure, figure.subplots(1, count)


def _curve(
    panel: Any, x: Sequence[float], y: Sequence[float], theme: Any, number: int, label: str | None = None
) -> None:
    from headstart.themes import series_color

    panel.plot(x, y, marker="o", markersize=5, color=series_color(theme, number), label=label)


def _axes(panel: Any, x: str, y: str, *, log: str = "x") -> None:
    """Names of the axes; y begins at zero unless it is logarithmic."""
    from matplotlib.ticker import FuncFormatter, NullLocator

    plain = FuncFormatter(lambda value, _: f"{value / 1e6:g} M" if value >= 1e6 else f"{value:,.10g}")
    panel.set(xlabel=x, ylabel=y)
    if log:
        panel.set_xscale("log")
        panel.xaxis.set_major_formatter(plain)
        panel.xaxis.set_minor_locator(NullLocator())
    if log == "both":
        panel.set_yscale("log")
        panel.yaxis.set_minor_locator(NullLocator())
        low, high = panel.get_ylim()
        panel.set_ylim(10 ** math.floor(math.log10(low)), 10 ** math.ceil(math.log10(high)))
    else:
        panel.set_ylim(0, 1.15 * panel.get_ylim()[1])
    panel.yaxis.set_major_formatter(plain)


def _with_title(figure: Any, title: str) -> Any:
    from headstart.themes import titled

    titled(figure, title)
    return figure


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
