"""The committed studies say what the rule of verdicts makes of their own numbers."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parents[1]
AGAIN = runpy.run_path(str(HERE / "reproduction" / "decide_again.py"), run_name="decide_again")
STUDIES = sorted(HERE.glob("reproduction/*/results/*.json"))


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_a_study_is_decided_as_its_intervals_say(path: Path) -> None:
    document = json.loads(path.read_text(encoding="utf-8"))
    evidence = AGAIN["evidence_again"](document)
    assert [claim.decision for claim in evidence.claims] == [claim["decision"] for claim in document["claims"]]
    assert [list(claim.evidence) for claim in evidence.claims] == [claim["evidence"] for claim in document["claims"]]
    page = (path.parents[1] / "report.html").read_text(encoding="utf-8")
    assert all(claim.text in page.replace("&gt;", ">") for claim in evidence.claims)


@pytest.mark.parametrize("path", sorted(HERE.glob("comparison/*/leaderboard.json")), ids=lambda path: path.parent.name)
def test_a_leaderboard_is_decided_as_its_errors_say(path: Path) -> None:
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    rows = AGAIN["rows_again"](document)
    assert [row.decided for row in rows] == [row["decided"] for row in document["rows"]]
    assert [row.over_fedavg_decided for row in rows] == [row["over_fedavg_decided"] for row in document["rows"]]


def test_what_two_intervals_leave_open_is_inconclusive_and_marked() -> None:
    """Both exclude zero, and squared and added they do not: 2.28 ± (1.75² + 1.52²)½ = 2.28 ± 2.32."""
    sentence = "FedAvg over momentum: +2.28 points, [+0.53, +4.03] over 10 seeds, [+0.76, +3.80] over 149 clients"
    again, sign = AGAIN["decided_again"](sentence)
    assert sign == 0 and "[-0.04, +4.60] two-way at most" in again and again.endswith("clients (open)")
    assert AGAIN["decided_again"](again) == (again, 0)
