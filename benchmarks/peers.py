"""headstart beside pfl, FedJAX, Flower's simulation and a plain loop in PyTorch: the same work, in alternation.

    python benchmarks/peers.py [--workloads cnn lstm logistic mlp] [--cohorts 5 20 100] [--peers torch pfl …]

Every peer gets an environment of its own, made on first use. All train the same model from the same parameters with
federated averaging, on the same clients in the same rounds: one epoch of SGD in batches of 20 (lstm: 10), and a mean
weighted by examples. Sizes of clients are like FEMNIST's, 104 examples on average (lstm: 16 snippets of 80 characters).

First everybody trains the same number of rounds, which warms up what is compiled, and must reach about the same
accuracy: a contestant that learns less than the others has failed. Then the contestants train in turn, each for some
whole rounds that last about --seconds, which is repeated. Data lie in memory, nothing is evaluated meanwhile, and who
waits does not compute. Printed are medians over the repetitions; a ratio is headstart's examples per second divided by
the contestant's in the same repetition, its median and range. Memory is the peaks of all processes of a contestant,
summed; pages that they share count once for each.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from contestants import federations, workload
from contestants.environments import PEERS, EnvironmentFailedError, interpreter
from contestants.process import ContestantFailedError, Process

OURS = "headstart"
TOLERANCE = 0.1  # how far below the best accuracy a contestant may be
LEARNED = 0.1  # how far above the initial accuracy everybody must be
_PATIENCE = 600.0  # seconds that an answer may take
_COHORTS = {"cnn": (5, 20), "cnn_dropout": (5, 20), "lstm": (5, 20), "logistic": (5, 20, 100), "mlp": (5, 20, 100)}
# How many rounds are trained before accuracy is compared: so many clients', but at least so many.
_CHECK = {"cnn": (60, 4), "cnn_dropout": (60, 4), "lstm": (60, 6), "logistic": (200, 10), "mlp": (200, 10)}

Row = dict[str, Any]


def main() -> None:
    """Measure what is asked for, and print a table."""
    given = _parser().parse_args()
    pythons, rows = _pythons(given), []
    for name in given.workloads:
        examples = federations.examples_of(name)
        for cohort in given.cohorts or _COHORTS[name]:
            _tell(f"{name}, cohorts of {cohort}")
            made = federations.workload_of(name, examples, cohort, given.threads)
            with tempfile.TemporaryDirectory() as folder:
                workload.write(Path(folder) / "workload.npz", made)
                match = Match(Path(folder) / "workload.npz", made, pythons, given)
                try:
                    rows += match.rows()
                finally:
                    match.close()
            if given.json:
                given.json.write_text(json.dumps(rows, indent=1))
    print(table(rows))


class Match:
    """All contestants on one workload with one size of cohort."""

    def __init__(
        self, path: Path, made: workload.Workload, pythons: dict[str, str | None], given: argparse.Namespace
    ) -> None:
        settings = made.settings
        self.given, self.settings = given, settings
        clients, least = _CHECK[settings.model]
        self.rounds_checked = max(least, clients // settings.cohort)
        self.failed = {name: "no environment" for name, python in pythons.items() if python is None}
        cores = _cores(given.threads)
        self.processes = {
            name: Process(python, PEERS[name].module, path, cores) for name, python in pythons.items() if python
        }
        self.initial = 0.0
        self.accuracy: dict[str, float] = {}
        self.runs: dict[str, list[Row]] = {name: [] for name in self.processes}
        self.memory: dict[str, int] = {}

    def rows(self) -> list[Row]:
        """Measure; a row for each contestant."""
        self.each(self.start)
        self.each(self.check)
        rounds: dict[str, int] = {}
        self.each(lambda name: rounds.update({name: self.calibrate(name)}))
        for repetition in range(self.given.repetitions):
            _tell(f"  repetition {repetition + 1} of {self.given.repetitions}")
            first = 100 * (repetition + 1)
            self.each(lambda name, first=first: self.repeat(name, first, rounds[name]))
        self.each(self.look_at_memory)
        return [self.row(name) for name in [*self.processes, *(self.failed.keys() - self.processes.keys())]]

    def each(self, act: Callable[[str], None]) -> None:
        """Let every contestant that has not failed act; who fails is out."""
        for name in self.processes:
            if name not in self.failed:
                try:
                    act(name)
                except ContestantFailedError as error:
                    self.failed[name] = str(error)
                    _tell(f"  {name} failed: {error}")

    def start(self, name: str) -> None:
        """Wait until it is ready."""
        self.processes[name].answer(timeout=_PATIENCE)
        if not self.accuracy:
            self.initial = self.processes[name].ask("accuracy", timeout=_PATIENCE)["accuracy"]

    def check(self, name: str) -> None:
        """Warm up, and see what it has learnt."""
        self.run(name, 0, self.rounds_checked)
        self.accuracy[name] = self.processes[name].ask("accuracy", timeout=_PATIENCE)["accuracy"]
        _tell(f"  {name}: accuracy {self.accuracy[name]:.3f} after {self.rounds_checked} rounds")

    def calibrate(self, name: str) -> int:
        """How many rounds last about as long as they should."""
        rounds = 1
        while True:
            seconds = self.run(name, 0, rounds)["seconds"]
            if seconds > 0.2 or rounds >= 64:
                return max(1, min(1000, round(self.given.seconds * rounds / seconds)))
            rounds *= 4

    def run(self, name: str, first: int, count: int) -> Row:
        """Train some rounds."""
        return self.processes[name].ask(f"run {first} {count}", timeout=_PATIENCE)

    def repeat(self, name: str, first: int, count: int) -> None:
        """Train some rounds that count."""
        self.runs[name].append(self.run(name, first, count))

    def look_at_memory(self, name: str) -> None:
        """Ask for the peak of its memory."""
        self.memory[name] = self.processes[name].ask("memory", timeout=_PATIENCE)["bytes"]

    def row(self, name: str) -> Row:
        """What was measured of a contestant."""
        found: Row = {"workload": self.settings.model, "cohort": self.settings.cohort, "contestant": name}
        if name in self.failed:
            return {**found, "failed": self.failed[name]}
        runs, ours = self.runs[name], self.runs.get(OURS, [])
        rates = [run["examples"] / run["seconds"] for run in runs]
        our_rates = [run["examples"] / run["seconds"] for run in ours]
        return {
            **found,
            "examples_per_second": rates,
            "rounds_per_second": [run["rounds"] / run["seconds"] for run in runs],
            "ratios": [a / b for a, b in zip(our_rates, rates, strict=False)],
            "peak_bytes": self.memory[name],
            "initial_accuracy": self.initial,
            "accuracy": self.accuracy[name],
            "complaint": self.complaint(name),
        }

    def complaint(self, name: str) -> str:
        """Why its speed is no result, or nothing."""
        best = max(self.accuracy.values())
        if self.accuracy[name] < best - TOLERANCE:
            return f"has not learnt: the best reached {best:.3f}"
        return "" if self.accuracy[name] > self.initial + LEARNED else "has not learnt"

    def close(self) -> None:
        """End all processes."""
        for process in self.processes.values():
            process.close()


def table(rows: list[Row]) -> str:
    """The rows as text."""
    heads = (
        "workload",
        "cohort",
        "contestant",
        "examples/s",
        "rounds/s",
        "headstart is × [min, max]",
        "MB",
        "accuracy",
    )
    lines = ["{:12} {:>6}  {:16} {:>10} {:>9} {:>26} {:>6} {:>8}".format(*heads)]
    for row in rows:
        start = f"{row['workload']:12} {row['cohort']:6}  {row['contestant']:16} "
        lines.append(start + (f"failed: {row['failed']}" if "failed" in row else _measured(row)))
    return "\n".join(lines)


def _measured(row: Row) -> str:
    examples, rounds, ratios = row["examples_per_second"], row["rounds_per_second"], row["ratios"]
    spread = f"{median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]" if ratios else ""
    megabytes = row["peak_bytes"] / 1e6
    numbers = f"{median(examples):10.0f} {median(rounds):9.2f} {spread:>26} {megabytes:6.0f} {row['accuracy']:8.3f}"
    return f"{numbers}  {row['complaint']}".rstrip()


def _pythons(given: argparse.Namespace) -> dict[str, str | None]:
    """The interpreter of each contestant; None where there is none."""
    found: dict[str, str | None] = {}
    for name in dict.fromkeys((OURS, *given.peers)):
        try:
            found[name] = interpreter(name, given.environments)
        except EnvironmentFailedError as error:
            _tell(f"{name} is left out: {error}")
            found[name] = None
    return found


def _cores(threads: int) -> set[int] | None:
    """The cores that a contestant may use; None for all."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    available = sorted(os.sched_getaffinity(0))
    return None if threads >= len(available) else set(available[:threads])


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    folder = Path.home() / ".cache" / "headstart" / "peers"
    default = [name for name in federations.WORKLOADS if name != "cnn_dropout"]
    add = parser.add_argument
    add("--workloads", nargs="+", choices=federations.WORKLOADS, default=default, metavar="NAME", help="of %(choices)s")
    add("--cohorts", nargs="+", type=int, metavar="N", help="clients per round; 5 20, and 100 where a round is short")
    add("--peers", nargs="+", choices=list(PEERS), default=list(PEERS), metavar="NAME", help="of %(choices)s")
    add("--repetitions", type=int, default=5, help="how often everybody trains (%(default)s)")
    add("--seconds", type=float, default=1.5, help="about how long each time, at least one round (%(default)s)")
    add("--threads", type=int, default=cores, help="cores that a contestant may use (all)")
    add(
        "--environments",
        type=Path,
        default=folder,
        metavar="DIR",
        help="where the peers' environments are (%(default)s)",
    )
    add("--json", type=Path, metavar="FILE", help="write everything measured there too")
    return parser


if __name__ == "__main__":
    main()
