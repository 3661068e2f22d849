"""The page of a reproduction: what the studies found, claim by claim; and the same as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, get_args

from headstart.files import write_bytes, write_json
from headstart.reports.html import paragraph, section, table
from headstart.statistics.verdicts import LEAST_SEEDS, LEAST_SEEDS_FOR_SPREAD, POWER, Decision
from headstart.studies.evidence import Claim, Evidence
from headstart.studies.html import (
    Picture,
    as_document,
    draw,
    environment_table,
    paper_says,
    shown,
    slug,
    verdict,
    whole,
)

_RULE = (
    "Every comparison is a paired difference: the same test clients and the same seeds under both. It is decided only"
    " if two 95 % intervals exclude zero on the same side: a t-interval over seeds of the clients' mean, which asks"
    " whether another training run would say the same, and a bootstrap over clients of the seeds' mean, which asks"
    f" whether other clients would. With fewer than {LEAST_SEEDS} seeds, or a single client, nothing is decided.",
    "A claim holds if all of its comparisons are decided in its favour, and does not hold if one is decided against"
    " it. A claim about a tendency holds if at least half of them are decided in its favour and none against it, and"
    " does not hold in the reverse case. Everything else is not decided.",
    "How widely two quantities spread over the same seeds is compared by the correlation of their sum and their"
    " difference (Pitman 1939, Morgan 1939), which is positive if the first spreads more widely; decided if its 95 %"
    " interval over seeds and that by a bootstrap over clients exclude zero on the same side, and with at least"
    f" {LEAST_SEEDS_FOR_SPREAD} seeds.",
    "Beside an accuracy in a table stands its 95 % t-interval over seeds.",
    "Where the power of a comparison is told, it is the difference that each of the two intervals alone would decide in"
    f" {100 * POWER:.0f} of 100 repetitions.",
    "Two claims are decided otherwise. The rounds to a target are those of validation clients, who are watched along"
    " training; test clients are measured once. The identity is arithmetic: it holds if both sides agree to rounding,"
    " and its claim if also more than half of the pseudo-gradient are FOMAML's terms, by a t-interval over cohorts. No"
    " interval is corrected for the number of comparisons: one in twenty true ties would look decided by either.",
)


Pictures = Mapping[tuple[str, str], Sequence[Picture]]


def write_page(
    found: Mapping[str, Sequence[Evidence]],
    out: Path,
    *,
    scale: str,
    command: str,
    environment: Mapping[str, Any],
    seconds: float | None,
) -> Path:
    """Write `report.html` into the folder `out`, and its figures, light and dark, into `figures/`; returns the page.

    found: the evidences of every federation, by its name. command: what makes the page again. seconds: how long it all
    took, if that is known.
    """
    pictures = {
        (federation, evidence.name): [
            draw(federation, evidence, figure_spec, out) for figure_spec in evidence.figure_specs
        ]
        for federation, evidences in found.items()
        for evidence in evidences
    }
    head = _head(found, scale, seconds) + section("What was found", _summary(found), _counts(found))
    head += section("When a claim holds", *map(paragraph, _RULE))
    tail = section("The environment", environment_table(environment))
    tail += section("Make this page again", f"<pre>{escape(command)}</pre>")

    def content(dark: bool) -> str:
        return "\n".join((head, *(_study(name, found, pictures, dark) for name in _studies(found)), tail))

    path = out / "report.html"
    write_bytes(path, whole("headstart: a paper reproduced", content))
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


def _asked(found: Mapping[str, Sequence[Evidence]], study: str) -> list[tuple[str, Evidence]]:
    """The federations that a study was asked of, and what it found there."""
    return [(name, evidence) for name, evidences in found.items() for evidence in evidences if evidence.name == study]


def _head(found: Mapping[str, Sequence[Evidence]], scale: str, seconds: float | None) -> str:
    took = "" if seconds is None else f" The runs took {_duration(seconds)} in all, one core each."
    lead = (
        "Improving Federated Learning Personalization via Model Agnostic Meta Learning (Jiang, Konečný, Rush, Kannan;"
        " arXiv:1909.12488): its claims, and whether they hold here."
        f" Federations: {', '.join(found) or 'none'}. Scale: {scale}.{took}"
    )
    return "<h1>A paper reproduced</h1>\n" + paragraph(lead, "lead")


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def _summary(found: Mapping[str, Sequence[Evidence]]) -> str:
    """A row for every claim, a column for every federation."""
    rows, marks = [], []
    for study in _studies(found):
        asked = _asked(found, study)
        rows.append([f'<a href="#{slug(study)}">{escape(study)}</a>', *[""] * (1 + len(found))])
        marks.append("study")
        for text in dict.fromkeys(claim.text for _, evidence in asked for claim in evidence.claims):
            claims = {name: claim for name, evidence in asked for claim in evidence.claims if claim.text == text}
            cells = [_linked(claims[name], study, name) if name in claims else "–" for name in found]
            rows.append([escape(text), paper_says(claims.values()), *cells])
            marks.append("")
    return table(["claim", "the paper", *found], rows, marks=marks, kind="words verdicts") if rows else ""


def _linked(claim: Claim, study: str, federation: str) -> str:
    return f'<a href="#{slug(study, federation)}">{verdict(claim.decision)}</a>'


def _counts(found: Mapping[str, Sequence[Evidence]]) -> str:
    decisions = Counter(c.decision for evidences in found.values() for e in evidences for c in e.claims)
    told = ", ".join(f"{decision}: {decisions[decision]}" for decision in get_args(Decision))
    return paragraph(f"Verdicts in all: {told}. The paper's full text could not be had.", "note")


def _study(study: str, found: Mapping[str, Sequence[Evidence]], pictures: Pictures, dark: bool) -> str:
    """All that a study found, one federation after the other; a question that they share is told once."""
    asked = _asked(found, study)
    questions = list(dict.fromkeys(evidence.question for _, evidence in asked))
    content = [paragraph(questions[0], "lead")] if len(questions) == 1 else []
    for federation, evidence in asked:
        content.append(f'<h3 id="{slug(study, federation)}">{escape(study)} on {escape(federation)}</h3>')
        content += [paragraph(evidence.question, "lead")] if len(questions) > 1 else []
        content.append(shown(evidence, pictures[federation, study], dark))
    return section(study, *content).replace("<h2>", f'<h2 id="{slug(study)}">', 1)
