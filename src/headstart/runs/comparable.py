"""Whether two runs can be compared: on the same clients with the same examples, tested on the same of them."""

from __future__ import annotations

from typing import Any

from headstart.data.fingerprint import differing
from headstart.runs.contents import federation_document
from headstart.runs.run import Run


def difference_of_data(one: Run, other: Run) -> str:
    """What the data of two runs differ in, in words; empty if in nothing that is known."""
    mine, theirs = data_record(one), data_record(other)
    if "fingerprint" in mine and "fingerprint" in theirs:
        changed = differing(mine["fingerprint"], theirs["fingerprint"])
        if changed:
            return f"they differ in {changed}"
    elif mine.get("sha256") != theirs.get("sha256") and "sha256" in mine and "sha256" in theirs:
        return "they differ in the clients or how many examples these have"
    both = test_clients(one), test_clients(other)
    return "other clients were tested" if None not in both and both[0] != both[1] else ""


def data_record(run: Run) -> dict[str, Any]:
    """What the run folder says of its data; nothing where it says nothing."""
    path = run.path / "federation.json"
    return federation_document(path) if path.exists() else {}


def test_clients(run: Run) -> list[str] | None:
    """The ids of a run's test clients; None where they are not known."""
    if run.stage_results:
        return run.stage_results[-1].ids
    return None if run.members is None else run.members["test"]
