"""The log of a run, `metrics.jsonl`: what a round and an evaluation leave there, and what it says of them later."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from headstart.errors import UserError
from headstart.files import write_bytes
from headstart.learning.personalization import Curves, mean_over_clients
from headstart.learning.rounds import Info
from headstart.learning.tasks import Sums, Task

Record = dict[str, Any]
OnEvent = Callable[[Record], None]


class Log:
    """`metrics.jsonl`: a record per line. Every record is also handed to a listener.

    path: None writes nothing, as in those processes of a cluster that only on_event.
    """

    def __init__(self, path: Path | None, on_event: OnEvent, seed: int) -> None:
        self._path, self._on_event, self._seed = path, on_event, seed

    def cut(self, done: int | None) -> list[Record]:
        """Keep the records up to round `done` (None: none), as they were when that round was saved; returns them."""
        kept = [] if done is None else [r for r in self.records() if r["round"] <= done]
        if self._path is not None:
            write_bytes(self._path, b"".join(_line(record) for record in kept))
        return kept

    def records(self) -> list[Record]:
        """What is written so far."""
        return [] if self._path is None else read_records(self._path)

    def evaluated(self, task: Task, number: int) -> float | None:
        """What is written of the initial model after this round: the first metric on validation clients."""
        found = [r for r in self.records() if r["event"] == "evaluation" and r["round"] == number]
        return found[-1]["validation"][task.metrics[0].name][0] if found else None

    def __call__(self, record: Record) -> None:
        """Write a record and hand it to the listener."""
        record = {**record, "seed": self._seed}
        try:
            if self._path is not None:
                with self._path.open("ab") as file:
                    file.write(_line(record))
        except OSError as error:
            raise UserError(
                f"cannot write {self._path}: {error.strerror}; make room, then repeat the command"
            ) from error
        self._on_event(record)


def _line(record: Record) -> bytes:
    return (json.dumps(record) + "\n").encode()


def read_records(path: Path) -> list[Record]:
    """The whole records of a log; a half-written last line is passed over."""
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def round_record(task: Task, stage: str, number: int, info: Info, seconds: float) -> Record:
    """What a round leaves in the log."""
    return {
        "event": "round",
        "round": number,
        "stage": stage,
        "training": means(task, info.metrics),
        "items": float(next(iter(info.metrics.values()))[1]),
        "clients": int(info.clients),
        "dropped": int(info.dropped),
        "seconds": seconds,
    }


@np.errstate(over="ignore")  # the perplexity of a run that diverges
def means(task: Task, sums: Sums) -> dict[str, float | None]:
    """What is reported of summed metrics; None where nothing was counted."""
    report = {}
    for metric in task.metrics:
        total, count = sums[metric.name]
        report[metric.name] = float(metric.finish(total / count)) if count > 0 else None
    return report


def evaluation_record(task: Task, stage: str, number: int, curves: Curves, seconds: float) -> Record:
    """What an evaluation leaves in the log, of validation clients that have query examples."""
    first = task.metrics[0]
    tested = curves.metrics[first.name][1] > 0
    return {
        "event": "evaluation",
        "round": number,
        "stage": stage,
        "validation": {metric.name: mean_over_clients(curves, metric).tolist() for metric in task.metrics},
        "clients": int(tested.sum()),
        "clients_values": [[float(f"{value:.6g}") for value in row] for row in curves.means(first)[tested]],
        "seconds": seconds,
    }
