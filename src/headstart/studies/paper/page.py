"""The page of a reproduction: what the studies found, claim by claim; and the same as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from headstart.files import write_bytes, write_json
from headstart.reports.html import Picture
from headstart.statistics.verdicts import LEAST_SEEDS, LEAST_SEEDS_FOR_SPREAD, POWER, Decision
from headstart.studies.evidence import Claim, Evidence
from headstart.studies.html import as_content, as_document, draw, paper_says, render_study, settings_rows, slug

Pictures = Mapping[tuple[str, str], Sequence[Picture]]


def write_page(
    found: Mapping[str, Sequence[Evidence]],
    out: Path,
    *,
    scale: str,
    command: str,
    environment: Mapping[str, Any],
    seconds: float | None,
    pictures: Pictures | None = None,
    remarks: Sequence[str] = (),
) -> Path:
    """Write `report.html` into the folder `out`, and its figures, light and dark, into `figures/`; returns the page.

    found: the evidences of every federation, by its name. command: what makes the page again. seconds: how long it all
    took, if that is known. pictures: in place of those that are drawn. remarks: sentences that belong to the rules of
    this page alone.
    """
    pictures = pictures or {
        (federation, evidence.name): [
            draw(federation, evidence, figure_spec, out) for figure_spec in evidence.figure_specs
        ]
        for federation, evidences in found.items()
        for evidence in evidences
    }
    content = render_study(
        "paper.html",
        title="headstart: reproduction of arXiv:1909.12488",
        federations=list(found),
        scale=scale,
        duration=None if seconds is None else _duration(seconds),
        studies=[_study(name, found, pictures) for name in _studies(found)],
        counts=_counts(found),
        least_seeds=LEAST_SEEDS,
        least_seeds_for_spread=LEAST_SEEDS_FOR_SPREAD,
        power=f"{100 * POWER:.0f}",
        remarks=remarks,
        environment=settings_rows(environment),
        command=command,
    )
    path = out / "report.html"
    write_bytes(path, content)
    return path


def write_results(found: Mapping[str, Sequence[Evidence]], out: Path) -> list[Path]:
    """Write `results/study-federation.json` into the folder `out` for every evidence; returns the files."""
    written = []
    for federation, evidences in found.items():
        for evidence in evidences:
            written.append(out / "results" / f"{slug(evidence.name, federation)}.json")
            write_json(written[-1], as_document(evidence))
    return written


def _studies(found: Mapping[str, Sequence[Evidence]]) -> list[str]:
    return list(dict.fromkeys(evidence.name for evidences in found.values() for evidence in evidences))


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def _counts(found: Mapping[str, Sequence[Evidence]]) -> str:
    decisions = Counter(c.decision for evidences in found.values() for e in evidences for c in e.claims)
    return ", ".join(f"{decision}: {decisions[decision]}" for decision in get_args(Decision))


def _study(study: str, found: Mapping[str, Sequence[Evidence]], pictures: Pictures) -> dict[str, Any]:
    """All that a study found, federation after federation; a question that they share is asked once."""
    by_federation = {name: each for name, evidences in found.items() for each in evidences if each.name == study}
    questions = {evidence.question for evidence in by_federation.values()}
    claims: dict[str, dict[str, Claim]] = {}
    for name, evidence in by_federation.items():
        for claim in evidence.claims:
            claims.setdefault(claim.text, {})[name] = claim
    return {
        "id": slug(study),
        "name": study,
        "question": questions.pop() if len(questions) == 1 else "",
        "claims": [
            (text, paper_says(each.values()), [_verdict(study, name, each.get(name)) for name in found])
            for text, each in claims.items()
        ],
        "evidences": [
            (slug(study, name), name, evidence.question, as_content(evidence, pictures[name, study]))
            for name, evidence in by_federation.items()
        ],
    }


def _verdict(study: str, federation: str, claim: Claim | None) -> tuple[str, Decision] | None:
    """The place of a claim on the page, and its decision."""
    return (slug(study, federation), claim.decision) if claim else None
