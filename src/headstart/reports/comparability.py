"""Which runs can be compared: those on the same clients with the same examples, tested on the same of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from headstart.data.fingerprint import differing
from headstart.reports.format import format_count
from headstart.runs.contents import federation_document
from headstart.runs.run import Run


def comparable_groups(runs: Sequence[Run]) -> list[list[Run]]:
    """The runs in groups of the same data and test clients, in their order; what is not known parts nobody."""
    groups: list[list[Run]] = []
    for run in runs:
        own = next((group for group in groups if not _difference(group[0], run)), None)
        if own is None:
            groups.append([run])
        else:
            own.append(run)
    return groups


def incomparable_notice(groups: Sequence[Sequence[Run]]) -> str:
    """Why groups of runs are not compared with each other, in sentences; empty if there is one."""
    if len(groups) < 2:
        return ""
    what = "; ".join(f"{', '.join(run.label for run in group)}: {_data(group[0])}" for group in groups)
    return (
        "These runs are not of the same data or test clients, so they are not ranked or compared with each other"
        f" ({_difference(groups[0][0], groups[1][0])}). They are shown apart: {what}."
    )


def _difference(one: Run, other: Run) -> str:
    """What the data of two runs differ in, in words; empty if in nothing that is known."""
    mine, theirs = data_record(one), data_record(other)
    if "fingerprint" in mine and "fingerprint" in theirs:
        changed = differing(mine["fingerprint"], theirs["fingerprint"])
        if changed:
            return f"they differ in {changed}"
    elif mine.get("sha256") != theirs.get("sha256") and "sha256" in mine and "sha256" in theirs:
        return "they differ in the clients or how many examples these have"
    tested = _tested(one), _tested(other)
    return "other clients were tested" if None not in tested and tested[0] != tested[1] else ""


def data_record(run: Run) -> dict[str, Any]:
    """What the run folder says of its data; nothing where it says nothing."""
    path = run.path / "federation.json"
    return federation_document(path) if path.exists() else {}


def _tested(run: Run) -> list[str] | None:
    if run.stage_results:
        return run.stage_results[-1].ids
    return None if run.members is None else run.members["test"]


def _data(run: Run) -> str:
    record = data_record(run)
    tested = _tested(run)
    clients = f" of {format_count(record['clients'], 'client')}" if "clients" in record else ""
    return f"{record.get('name', 'data')}{clients}{f', {len(tested)} of them tested' if tested else ''}"
