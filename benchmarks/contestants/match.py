"""All contestants on one workload with one size of cohort, in alternation."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from .environments import PEERS
from .process import ContestantFailedError, Process
from .workload import Settings

OURS = "headstart"
# How far below the median a contestant's accuracy may be. Orders of examples differ between contestants, and make
# accuracies of the same contestant differ with a standard deviation of 0.015, and of 0.03 for the cnn when it has just
# begun to learn.
TOLERANCE = 0.1
LEARNED = 0.2  # how far above the initial accuracy everybody must be
WARM_UP = 2  # rounds, where accuracy is not compared
_ANSWER_SECONDS = 600.0  # the longest that an answer may take
# How many rounds are trained before accuracy is compared: by the number of clients, and at least how many.
_CHECK = {
    "cnn": (75, 6),
    "cnn_dropout": (75, 6),
    "cnn_lean": (200, 10),
    "lstm": (40, 6),
    "logistic": (200, 10),
    "mlp": (200, 10),
}

Row = dict[str, Any]


class Match:
    """The contestants' processes, and what is measured of them."""

    def __init__(
        self, path: Path, settings: Settings, pythons: dict[str, str | None], seconds: float, repetitions: int
    ) -> None:
        """path: of the workload. pythons: each contestant's interpreter; None where there is none."""
        self.settings, self.seconds, self.repetitions = settings, seconds, repetitions
        self.failed = {name: "no environment" for name, python in pythons.items() if python is None}
        self.path, self.pythons = path, pythons
        self.processes: dict[str, Process] = {}
        self.initial = 0.0
        self.accuracy: dict[str, float] = {}
        self.rounds: dict[str, int] = {}
        self.runs: dict[str, list[Row]] = {name: [] for name in pythons}
        self.memory: dict[str, int] = {}

    def rows(self, *, check: bool) -> list[Row]:
        """Measure; a row for each contestant. check: whether accuracy is compared."""
        self.each(self.start)
        self.each(self.check if check else self.warm_up)
        self.each(self.calibrate)
        for repetition in range(self.repetitions):
            self.each(lambda name, first=100 * (repetition + 1): self.repeat(name, first))
        self.each(self.look_at_memory)
        return [self.row(name) for name in self.pythons]

    def each(self, act: Callable[[str], None]) -> None:
        """Let every contestant that has not failed act; who fails is out."""
        for name in self.pythons:
            if name not in self.failed:
                try:
                    act(name)
                except ContestantFailedError as error:
                    self.failed[name] = str(error)
                    log(f"  {name} failed: {error}")

    def start(self, name: str) -> None:
        """Start it, and wait until it is ready: some try out then which number of threads is the fastest."""
        python = self.pythons[name]
        assert python is not None
        cores = _cores(self.settings.threads)
        self.processes[name] = Process(python, PEERS[name].module, self.path, cores)
        self.processes[name].answer(timeout=_ANSWER_SECONDS)

    def check(self, name: str) -> None:
        """Warm up, and see what it has learnt."""
        clients, least = _CHECK[self.settings.model]
        rounds = max(least, clients // self.settings.cohort)
        self.initial = self.initial or self.ask_accuracy(name)
        self.run(name, 0, rounds)
        self.accuracy[name] = self.ask_accuracy(name)
        log(f"  {name}: accuracy {self.accuracy[name]:.3f} after {rounds} rounds")

    def warm_up(self, name: str) -> None:
        """Train a little, so that what is compiled is compiled."""
        self.run(name, 0, WARM_UP)

    def calibrate(self, name: str) -> None:
        """Find how many rounds last about as long as they should."""
        rounds, seconds = 1, self.run(name, 0, 1)["seconds"]
        while seconds <= min(0.2, self.seconds) and rounds < 64:
            rounds *= 4
            seconds = self.run(name, 0, rounds)["seconds"]
        self.rounds[name] = max(1, min(1000, round(self.seconds * rounds / seconds)))

    def repeat(self, name: str, first: int) -> None:
        """Train some rounds that count."""
        self.runs[name].append(self.run(name, first, self.rounds[name]))

    def look_at_memory(self, name: str) -> None:
        """Ask for the peak of its memory."""
        self.memory[name] = self.processes[name].ask("memory", timeout=_ANSWER_SECONDS)["bytes"]

    def run(self, name: str, first: int, count: int) -> Row:
        """Train some rounds."""
        return self.processes[name].ask(f"run {first} {count}", timeout=_ANSWER_SECONDS)

    def ask_accuracy(self, name: str) -> float:
        """Its current accuracy."""
        return self.processes[name].ask("accuracy", timeout=_ANSWER_SECONDS)["accuracy"]

    def row(self, name: str) -> Row:
        """What was measured of a contestant."""
        found: Row = {"workload": self.settings.model, "cohort": self.settings.cohort, "contestant": name}
        if name in self.failed:
            return {**found, "failed": self.failed[name]}
        speeds = [run["examples"] / run["seconds"] for run in self.runs[name]]
        ours = [run["examples"] / run["seconds"] for run in self.runs[OURS]]
        return {
            **found,
            "runs": self.runs[name],
            "examples_per_second": speeds,
            "rounds_per_second": [run["rounds"] / run["seconds"] for run in self.runs[name]],
            "ratios": [a / b for a, b in zip(ours, speeds, strict=False)],
            "peak_bytes": self.memory[name],
            "initial_accuracy": self.initial,
            "accuracy": self.accuracy.get(name),
            "complaint": self.complaint(name),
        }

    def complaint(self, name: str) -> str:
        """Why its speed is no result, or nothing."""
        if name not in self.accuracy:
            return ""
        middle = median(self.accuracy.values())
        if self.accuracy[name] < middle - TOLERANCE:
            return f"has learnt less than the median, {middle:.3f}"
        return "" if self.accuracy[name] > self.initial + LEARNED else "has not learnt"

    def close(self) -> None:
        """End all processes."""
        for process in self.processes.values():
            process.close()


def log(text: str) -> None:
    """Print a line on the progress."""
    print(text, file=sys.stderr, flush=True)


def _cores(threads: int) -> set[int] | None:
    """The cores that a contestant may use; None for all."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    available = sorted(os.sched_getaffinity(0))
    return None if threads >= len(available) else set(available[:threads])
