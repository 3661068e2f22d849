"""The display of a running experiment: live on a terminal, plain lines in a pipe."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from math import isfinite
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.filesize import decimal
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from headstart.console import echo, printable
from headstart.experiment.experiment import Experiment
from headstart.runs.log import OnEvent, Record, format_left_out, personalized_value
from headstart.runs.results import stage_notes


class Follower:
    """The progress of a run so far, in a form to display.

    rounds: of one seed, all stages together. seeds: the number of seeds.
    """

    def __init__(self, *, rounds: int, seeds: int, first_seed: int) -> None:
        self.rounds, self.seeds, self.first_seed = rounds, seeds, first_seed
        self.round: Record = {}
        self.evaluations: dict[int, list[Record]] = {}
        self.note = ""
        self._clients, self._fresh, self._seconds = 0, 0, 0.0
        self._began = time.monotonic()

    def update(self, record: Record) -> None:
        """Add a record."""
        match record["event"]:
            case "round":
                self.round, self.note = record, ""
                if not record.get("past"):
                    self._clients += record["clients"] + record["dropped"]
                    self._seconds += record["seconds"]
                    self._fresh += 1
            case "evaluation":
                self.evaluations.setdefault(record["seed"], []).append(record)
                self.note = ""
            case "progress":
                self.note = f"personalizing {record['group']} clients: {record['clients']} of {record['of']}"
            case "note":
                self.note = record["text"]

    @property
    def done(self) -> int:
        """Rounds done, over all seeds."""
        earlier = (self.round["seed"] - self.first_seed) * self.rounds if self.round else 0
        return earlier + self.round.get("round", 0)

    @property
    def clients_per_second(self) -> float:
        """Clients per second of training."""
        return self._clients / self._seconds if self._seconds else 0.0

    @property
    def time_left(self) -> str:
        """Minutes and seconds to the end, by the pace so far, evaluations included."""
        if not self._fresh:
            return "?"
        left = (time.monotonic() - self._began) / self._fresh * (self.rounds * self.seeds - self.done)
        return f"{int(left) // 60}:{int(left) % 60:02d}"

    @property
    def latest(self) -> Record | None:
        """The newest evaluation."""
        return self.evaluations[max(self.evaluations)][-1] if self.evaluations else None


def describe(record: Record) -> str:
    """A record as one plain line; empty for those not worth one."""
    match record["event"]:
        case "round":
            metrics = " ".join(f"{name} {_format_value(value)}" for name, value in record["training"].items())
            pace = f"{record['clients'] / record['seconds']:.1f} clients/s"
            return ", ".join([f"{_position(record)}: training {metrics}", pace, *_losses(record), *_traffic(record)])
        case "evaluation":
            name, values = next(iter(record["validation"].items()))
            # A stage with a target evaluates the initial model alone.
            personalized = f" personalized {personalized_value(record, name):.4f}" if len(values) > 1 else ""
            return f"{_position(record)}: validation {name} initial {values[0]:.4f}{personalized}"
        case "fault":
            clients = f" (clients {', '.join(record['clients'][:5])})" if record["clients"] else ""
            return f"{_position(record)}: node {record['node']}: {record['reason']}{clients}"
        case "stage":
            ended = f"seed {record['seed']} stage {record['stage']} finished after round {record['round']}"
            return "; ".join([ended, *stage_notes(record)])
        case "note":
            return record["text"]
        case _:
            return ""


def _position(record: Record) -> str:
    return f"seed {record['seed']} round {record['round']} ({record['stage']})"


def _losses(record: Record) -> list[str]:
    """The clients of a round that do not count: their reply was not finite or else refused, or none came."""
    dropped, missing = record["dropped"], record.get("missing", 0)
    everyone = record["clients"] + dropped + missing
    lost = [format_left_out(dropped, everyone, devices="missing" in record)] if dropped else []
    return [*lost, *([f"{missing} of {everyone} did not come"] if missing else [])]


def _traffic(record: Record) -> list[str]:
    """The bytes that crossed the network in a round on devices."""
    if "sent_bytes" not in record:
        return []
    return [f"{decimal(record['sent_bytes'])} sent", f"{decimal(record['received_bytes'])} received"]


def _format_value(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


@contextmanager
def live_display(console: Console, follower: Follower, title: str) -> Iterator[OnEvent]:
    """A listener that displays the records it gets on the console, for the time of the block."""
    if not console.is_terminal:
        yield lambda record: _print_line(console, record)
        return
    bar = Progress(TextColumn("{task.description}"), BarColumn(None), MofNCompleteColumn(), expand=True)
    task = bar.add_task("rounds", total=follower.rounds * follower.seeds)
    with Live(console=console, refresh_per_second=4) as live:

        def on_event(record: Record) -> None:
            follower.update(record)
            bar.update(task, completed=follower.done)
            live.update(Group(Text(title, style="bold"), bar, _status(follower), _curve(follower)))
            if record["event"] in ("stage", "note"):
                text = printable(describe(record), keep="\n")
                console.print(text, style="dim", highlight=False, markup=False)

        yield on_event


def live_display_of(experiment: Experiment, out: Path, seeds: int) -> AbstractContextManager[OnEvent]:
    """The display of a run from Python: on the error stream, so that what a program prints stays its own."""
    follower = Follower(rounds=sum(s.rounds for s in experiment.stages), seeds=seeds, first_seed=experiment.seed)
    console = Console(stderr=True)
    return live_display(console, follower, f"{experiment.name} → {out}")


def _print_line(console: Console, record: Record) -> None:
    line = "" if record.get("past") else describe(record)
    if line:
        echo(console, line)


def _status(follower: Follower) -> Table:
    """Seed, stage, training metrics and pace; then the time left, and the latest note."""
    table = Table.grid(padding=(0, 3))
    training: dict[str, Any] = follower.round.get("training", {})
    metrics = [f"{name} {_format_value(value)}" for name, value in training.items()]
    seed = f"seed {follower.round.get('seed', follower.first_seed)}"
    # Names are the user's, and may hold what looks like markup.
    cells = (seed, follower.round.get("stage", ""), *metrics, f"{follower.clients_per_second:.1f} clients/s")
    table.add_row(*map(Text, cells))
    table.add_row(Text(f"{follower.time_left} left"), Text(printable(follower.note)))
    return table


def _curve(follower: Follower, *, most: int = 8, width: int = 40) -> Table:
    """The newest evaluations as bars: the initial metric, and its gain from personalization."""
    table = Table(box=None, padding=(0, 1))
    latest = follower.latest
    if latest is None:
        return table
    name = next(iter(latest["validation"]))
    newest = follower.evaluations[latest["seed"]][-most:]
    rows = [(r["round"], r["validation"][name][0], personalized_value(r, name)) for r in newest]
    top = max([1.0, *(value for _, *values in rows for value in values if isfinite(value))])
    for column in ("round", f"initial {name}", "personalized"):
        table.add_column(Text(column), justify="right")
    table.add_column("validation clients")
    for number, before, after in rows:
        table.add_row(str(number), f"{before:.4f}", f"{after:.4f}", bar(before / top, after / top, width))
    return table


def bar(first: float, second: float, width: int) -> Text:
    """Two fractions (0 to 1) as one bar: up to the lower one in one colour, from there to the higher one in another."""
    low, high = sorted(min(max(value, 0.0), 1.0) if isfinite(value) else 0.0 for value in (first, second))
    shorter, longer = round(low * width), round(high * width)
    return Text("█" * shorter, style="blue").append("█" * (longer - shorter), style="cyan")
