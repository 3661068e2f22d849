"""How a contestant obeys: a command per line on its standard input, an answer in JSON per line on its standard output.

run FIRST COUNT   trains the model further in the rounds from FIRST on   {"seconds": …, "rounds": …, "examples": …}
accuracy          of the current model on the test rows                  {"accuracy": …}
memory            peak, with all child processes                         {"bytes": …}
quit
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TextIO

from . import workload
from .workload import Workload


class Contestant(Protocol):
    """A library that trains. Where its processes end after each round, `passing_processes` says how many there are."""

    def run(self, first: int, count: int) -> None:
        """Continue training with the cohorts of the rounds `first … first + count - 1`; return when that is done."""
        ...

    def accuracy(self) -> float:
        """The share of right answers of the current model on the test rows."""
        ...


def serve(make: Callable[[Workload], Contestant]) -> None:
    """Make a contestant for the workload named on the command line, and have it obey until the command to quit."""
    answers = private_output()
    given = workload.read(sys.argv[1])
    obey(given, make(given), answers)


def private_output() -> TextIO:
    """The standard output, for answers alone: what libraries print goes to standard error from now on."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return answers


def obey(given: Workload, contestant: Contestant, answers: TextIO) -> None:
    """Carry out commands until `quit` or the end of the input."""
    _answer(answers, {"ready": True})
    for line in sys.stdin:
        command, *arguments = line.split()
        if command == "quit":
            return
        if command == "run":
            first, count = map(int, arguments)
            began = time.perf_counter()
            contestant.run(first, count)
            seconds = time.perf_counter() - began
            _answer(answers, {"seconds": seconds, "rounds": count, "examples": given.examples(first, count)})
        elif command == "accuracy":
            _answer(answers, {"accuracy": contestant.accuracy()})
        elif command == "memory":
            _answer(answers, {"bytes": peak_memory(getattr(contestant, "passing_processes", 0))})


def _answer(answers: TextIO, value: dict[str, Any]) -> None:
    answers.write(json.dumps(value) + "\n")
    answers.flush()


def peak_memory(passing: int = 0) -> int:
    """Bytes: the sum of the peaks of this process and of all that descend from it and still live.

    Pages that processes share count once for each. passing: how many processes work at a time that have ended by now;
    for each of them counts the largest peak of an ended one.
    """
    if not Path("/proc/self/status").exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    status = {pid: fields for pid in filter(str.isdigit, os.listdir("/proc")) if (fields := _status(pid))}
    family, grown = {str(os.getpid())}, True
    while grown:
        more = {pid for pid, fields in status.items() if fields.get("PPid") in family} - family
        family, grown = family | more, bool(more)
    living = sum(int(status[pid].get("VmHWM", "0 kB").split()[0]) for pid in family)
    return (living + passing * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) * 1024


def _status(pid: str) -> dict[str, str]:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:  # it has ended meanwhile
        return {}
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
