"""The log of a run, `metrics.jsonl`: what a round and an evaluation leave there, and what it says of them later."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from headstart.errors import UserError
from headstart.files import as_json, from_null, write_bytes
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

    def cut(self, done: int | None, is_evaluated: Callable[[int], bool] = lambda number: True) -> list[Record]:
        """Keep the records up to round `done` (None: none), as they were when that round was saved; returns them.

        What cannot be read is passed over, and rounds may be missing; a note says how much.

        is_evaluated: whether validation clients are evaluated after a round, if that has changed since.
        """
        records, unreadable = ([], 0) if self._path is None else read_log(self._path)
        kept = [
            {**record, "seed": self._seed}
            for record in records
            if done is not None
            and record["round"] <= done
            and (record["event"] != "evaluation" or is_evaluated(record["round"]))
        ]
        if self._path is not None:
            for text in complaints(self._path, kept, unreadable, done or 0):
                self._on_event({"event": "note", "seed": self._seed, "text": text})
            write_bytes(self._path, b"".join(_line(record) for record in kept))
        return kept

    def records(self) -> list[Record]:
        """What is written so far."""
        return [] if self._path is None else read_records(self._path)

    def evaluated(self, task: Task, number: int) -> float | None:
        """What is written of the initial model after this round: the first metric on validation clients."""
        found = [r for r in self.records() if r["event"] == "evaluation" and r["round"] == number]
        return found[-1]["validation"][task.metrics[0].name][0] if found else None

    def stagnant(self, task: Task, start: int, patience: int) -> bool:
        """Whether the initial model's loss on validation clients has not improved in the last n evaluations.

        start: the round that the stage started after; earlier evaluations do not count.
        """
        metric = next((each for each in task.metrics if each.items == task.loss), task.metrics[0])
        found = [r for r in self.records() if r["event"] == "evaluation" and r["round"] >= start]
        values = [metric.sign * float(record["validation"][metric.name][0]) for record in found]
        return len(values) > patience and max(values[:-patience]) >= max(values[-patience:])

    def __call__(self, record: Record) -> None:
        """Write a record and hand it to the listener."""
        record = {**record, "seed": self._seed}
        try:
            if self._path is not None:
                with self._path.open("ab") as file:
                    file.write(_line(record))
        except FileNotFoundError as error:
            raise UserError(
                f"cannot write {self._path}: its folder was removed or renamed during the run; repeat the command"
            ) from error
        except OSError as error:
            raise UserError(
                f"cannot write {self._path}: {error.strerror}; make room, then repeat the command"
            ) from error
        self._on_event(record)


def _line(record: Record) -> bytes:
    return (json.dumps(as_json(record), allow_nan=False) + "\n").encode()


def read_records(path: Path) -> list[Record]:
    """The whole records of a log; what cannot be read is passed over."""
    return read_log(path)[0]


def read_log(path: Path) -> tuple[list[Record], int]:
    """The whole records of a log, and how many lines are none; a half-written last line does not count.

    Raises:
        UserError: if there is something that is no file, or may not be read.
    """
    try:
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    found = [_record(line) for line in lines]
    records = [record for record in found if record is not None]
    return records, len(found) - len(records)


def complaints(path: Path, records: Sequence[Record], unreadable: int, done: int) -> list[str]:
    """What is wrong with a log, as sentences; done: the rounds that are done by other evidence."""
    missing = set(range(1, done + 1)) - {record["round"] for record in records if record["event"] == "round"}
    texts = []
    if unreadable:
        texts.append(
            f"{path} has {unreadable} {'line' if unreadable == 1 else 'lines'} that cannot be read: passed over"
        )
    if missing:
        texts.append(f"{path} lacks {len(missing)} of {done} rounds, the first of them {min(missing)}")
    return texts


def _record(line: bytes) -> Record | None:
    """The record in a line, with NaN for null in what is measured on validation clients; None if it is none."""
    try:
        record = json.loads(line)
        whole = isinstance(record["event"], str) and isinstance(record["stage"], str) and _is_round(record["round"])
        match record["event"]:
            case "round":
                values = [value for value in record["training"].values() if value is not None]
                counts = [record["clients"], record["dropped"], record["seconds"], record.get("items", 0)]
                whole = whole and all(map(_is_number, [*values, *counts]))
            case "evaluation":
                record["validation"] = from_null(record["validation"])
                record["clients_values"] = from_null(record.get("clients_values", []))
                curves = [*record["validation"].values(), *record["clients_values"]]
                whole = whole and all(len(curve) and all(map(_is_number, curve)) for curve in curves)
            case "fault":
                whole = whole and all(isinstance(record[name], str) for name in ("node", "reason"))
                whole = whole and all(isinstance(client, str) for client in record["clients"])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return record if whole else None


def _is_round(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**53


def _is_number(value: Any) -> bool:
    return type(value) is float or (type(value) is int and abs(value) < 2**1000)


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


def left_out(records: Sequence[Record], rounds: range) -> Record:
    """What the end of a stage records of the replies that did not count in its rounds; empty where all did."""
    mine = [record for record in records if record["event"] == "round" and record["round"] in rounds]
    dropped = sum(record["dropped"] for record in mine)
    replies = sum(record["clients"] + record["dropped"] + record.get("missing", 0) for record in mine)
    found = {"dropped": dropped, "replies": replies, "devices": any("missing" in record for record in mine)}
    return {"left_out": found} if dropped else {}


def format_left_out(dropped: int, replies: int, *, devices: bool = False) -> str:
    """The replies that do not count, in words; of devices, some may have been refused for other reasons."""
    reason = "not finite, or refused," if devices else "not finite"
    return f"{dropped} of {replies} {'reply was' if replies == 1 else 'replies were'} {reason} and left out"


@np.errstate(over="ignore")  # the perplexity of a run that diverges
def means(task: Task, sums: Sums) -> dict[str, float | None]:
    """What is reported of summed metrics; None where nothing was counted."""
    report = {}
    for metric in task.metrics:
        total, count = sums[metric.name]
        report[metric.name] = float(metric.finish(total / count)) if count > 0 else None
    return report


def personalized_value(record: Record, metric: str) -> float:
    """What an evaluation says of personalized models, by a metric, while their epochs are not chosen yet."""
    values = record["validation"][metric]
    return values[min(record.get("middle", len(values) - 1), len(values) - 1)]


def evaluation_record(
    task: Task, stage: str, number: int, curves: Curves, seconds: float, *, middle: int | None = None
) -> Record:
    """What an evaluation leaves in the log, of validation clients that have query examples.

    middle: which epochs (or pulls) of the curves to show while none are chosen; by default the last.
    """
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
        **({} if middle is None else {"middle": middle}),
    }
