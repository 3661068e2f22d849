"""TensorBoard events of a run, as an option: the extra `headstart[tensorboard]`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from headstart.errors import UserError
from headstart.runs.log import OnEvent, Record


@contextmanager
def also_events(on_event: OnEvent, out: Path) -> Iterator[OnEvent]:
    """A listener that passes every record on and writes training and validation metrics as events under `out/seed-n`.

    Raises:
        UserError: if the extra is not installed.
    """
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise UserError("--tensorboard needs an extra package; install headstart[tensorboard]") from error
    writers: dict[int, Any] = {}

    def write_events(record: Record) -> None:
        on_event(record)
        scalars = _scalars(record)
        if not scalars or record.get("past"):
            return
        seed = record["seed"]
        if seed not in writers:
            writers[seed] = SummaryWriter(str(out / f"seed-{seed}" / "events"))
        for name, value in scalars.items():
            writers[seed].add_scalar(name, value, record["round"])

    try:
        yield write_events
    finally:
        for writer in writers.values():
            with suppress(OSError):  # the error that ended the run is the one to see
                writer.close()


def _scalars(record: Record) -> dict[str, float]:
    match record["event"]:
        case "round":
            return {f"training/{_tag(name)}": value for name, value in record["training"].items() if value is not None}
        case "evaluation":
            ends = {"initial": 0, "personalized": -1}
            curves = record["validation"].items()
            return {
                f"validation/{when}_{_tag(name)}": curve[end] for name, curve in curves for when, end in ends.items()
            }
        case _:
            return {}


def _tag(name: str) -> str:
    """A metric's name as TensorBoard takes it, without spaces."""
    return name.replace(" ", "_")
