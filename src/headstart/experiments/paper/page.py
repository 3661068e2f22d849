"""The page of a reproduction: what the studies found, claim by claim; and the same as JSON."""

from __future__ import annotations

import base64
import io
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any, NamedTuple, get_args

import numpy as np
from PIL import Image

from headstart.experiments.paper.study import Choice, Claim, Evidence, Table
from headstart.files import write_bytes, write_json
from headstart.page import folded, number, paragraph, picture, section, table
from headstart.themes import Drawing, save
from headstart.verdicts import LEAST_SEEDS, LEAST_SEEDS_FOR_SPREAD, POWER, Decision

MOST_BYTES = 1_000_000
_PALETTE = 32
_STYLE = """<style>
h4 { margin: 1.4rem 0 0.3rem; font-size: 0.9rem; }
a { color: inherit; text-decoration: none; }
a:hover, a:hover .verdict { text-decoration: underline; }
.verdict {
  display: inline-block; padding: 0.05rem 0.55rem; border: 1px solid; border-radius: 999px; white-space: nowrap;
  font-size: 0.8rem; font-weight: 600; color: var(--muted);
}
.holds { color: #00694c; background: #e2f5ee; }
.refuted { color: #a03c00; background: #fdebdf; }
.claim { margin: 1.1rem 0; padding-left: 0.9rem; border-left: 3px solid var(--line); }
.claim p { margin: 0.25rem 0; }
.claim ul, .notes { margin: 0.3rem 0; padding-left: 1.2rem; max-width: 85ch; font-size: 0.9rem; }
.claim .note, td .note { margin: 0.15rem 0 0; }
.light img { padding: 0.5rem; border-radius: 8px; background: #ffffff; }
.verdicts td:first-child { width: 40%; color: var(--text); white-space: normal; }
.verdicts td { vertical-align: middle; }
.verdicts .study td { padding-top: 1.1rem; font-weight: 600; border-bottom: 0; }
@media (prefers-color-scheme: dark) {
  .holds { color: #4fd6a8; background: #0f2c23; }
  .refuted { color: #ff9d5c; background: #36200f; }
}
</style>
"""
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
    f" interval excludes zero, and with at least {LEAST_SEEDS_FOR_SPREAD} seeds.",
    "Where the power of a comparison is told, it is the difference that each of the two intervals alone would decide in"
    f" {100 * POWER:.0f} of 100 repetitions.",
    "Two claims are decided otherwise. The rounds to a target are those of validation clients, who are watched along"
    " training; test clients are measured once. The identity is arithmetic: it holds if both sides agree to rounding,"
    " and its claim if also more than half of the pseudo-gradient are FOMAML's terms, by a t-interval over cohorts. No"
    " interval is corrected for the number of comparisons: one in twenty true ties would look decided by either.",
)


class Picture(NamedTuple):
    """A drawn figure: the two PNGs as they are embedded, the width in CSS pixels, and its words."""

    light: bytes
    dark: bytes
    width: int
    text: str


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
    took, if that is known. If the page were larger than `MOST_BYTES`, it shows the light figures in dark surroundings
    too, and says so.
    """
    pictures = {
        (federation, evidence.name): [_draw(federation, evidence, drawing, out) for drawing in evidence.drawings]
        for federation, evidences in found.items()
        for evidence in evidences
    }
    head = _head(found, scale, seconds) + section("What was found", _summary(found), _counts(found))
    head += section("When a claim holds", *map(paragraph, _RULE))
    tail = section("The environment", _environment(environment))
    tail += section("Make this page again", f"<pre>{escape(command)}</pre>")
    for dark in (True, False):
        studies = "\n".join(_study(name, found, pictures, dark) for name in _studies(found))
        note = (
            "" if dark else paragraph("Figures are light only; figures/ beside this page holds the dark ones.", "note")
        )
        document = _document("headstart: a paper reproduced", "\n".join((head, studies, note, tail)))
        if len(document) <= MOST_BYTES:
            break
    path = out / "report.html"
    write_bytes(path, document)
    return path


def write_results(found: Mapping[str, Sequence[Evidence]], out: Path) -> list[Path]:
    """Write `results/study-federation.json` into the folder `out` for every evidence; returns the files."""
    written = []
    for federation, evidences in found.items():
        for evidence in evidences:
            written.append(out / "results" / f"{_slug(evidence.name, federation)}.json")
            write_json(written[-1], as_document(evidence))
    return written


def as_document(evidence: Evidence) -> dict[str, Any]:
    """The evidence as JSON, without its drawings; floats to six significant digits, and null if not finite."""
    return _plain({key: value for key, value in evidence._asdict().items() if key != "drawings"})


def _plain(value: Any) -> Any:
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def _slug(*names: str) -> str:
    """Names as one that suits a file and a link."""
    return "-".join(re.sub(r"[^\w.]+", "-", name).strip("-") for name in names).lower()


def _draw(federation: str, evidence: Evidence, drawing: Drawing, out: Path) -> Picture:
    """Save a figure under a name of its own; what is embedded has fewer colours."""
    rest = _slug(drawing.name).removeprefix(_slug(evidence.name)).strip("-")
    name = _slug(*filter(None, (evidence.name, federation, rest)))
    (light, width), (dark, _) = save(drawing._replace(name=name), out / "figures")
    return Picture(_smaller(light), _smaller(dark), width, drawing.text)


def _smaller(png: bytes) -> bytes:
    file = io.BytesIO()
    with Image.open(io.BytesIO(png)) as image:
        image.convert("RGB").quantize(_PALETTE, dither=Image.Dither.NONE).save(file, "png", optimize=True)
    return min(png, file.getvalue(), key=len)


def _document(title: str, content: str) -> bytes:
    """A whole page in the style of a report, without a report's explanations."""
    style, _, _ = files("headstart").joinpath("report.html").read_text(encoding="utf-8").partition("$body")
    style = Template(style).substitute(title=escape(title)).replace("</head>", f"{_STYLE}</head>")
    return f"{style}{content}\n</body>\n</html>\n".encode()


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


def _verdict(decision: Decision) -> str:
    kind = {"holds": " holds", "does not hold": " refuted"}.get(decision, "")
    return f'<span class="verdict{kind}">{decision}</span>'


def _summary(found: Mapping[str, Sequence[Evidence]]) -> str:
    """A row for every claim, a column for every federation."""
    rows, marks = [], []
    for study in _studies(found):
        asked = _asked(found, study)
        rows.append([f'<a href="#{_slug(study)}">{escape(study)}</a>', *[""] * (1 + len(found))])
        marks.append("study")
        for text in dict.fromkeys(claim.text for _, evidence in asked for claim in evidence.claims):
            claims = {name: claim for name, evidence in asked for claim in evidence.claims if claim.text == text}
            cells = [_linked(claims[name], study, name) if name in claims else "–" for name in found]
            rows.append([escape(text), _paper(claims.values()), *cells])
            marks.append("")
    return table(["claim", "the paper", *found], rows, marks=marks, kind="words verdicts") if rows else ""


def _linked(claim: Claim, study: str, federation: str) -> str:
    return f'<a href="#{_slug(study, federation)}">{_verdict(claim.decision)}</a>'


def _paper(claims: Iterable[Claim]) -> str:
    known = dict.fromkeys(claim.paper for claim in claims if claim.paper)
    known.pop("not known", None)
    return escape("; ".join(known)) or "not known"


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
        content.append(f'<h3 id="{_slug(study, federation)}">{escape(study)} on {escape(federation)}</h3>')
        content += [paragraph(evidence.question, "lead")] if len(questions) > 1 else []
        content.append(_evidence(evidence, pictures[federation, study], dark))
    return section(study, *content).replace("<h2>", f'<h2 id="{_slug(study)}">', 1)


def _evidence(evidence: Evidence, drawn: Sequence[Picture], dark: bool) -> str:
    notes = "".join(f"<li>{escape(note)}</li>" for note in evidence.notes)
    commands = "\n\n".join(f"# {name}\n{command}" for name, command in evidence.commands.items())
    parts = (
        *map(_claim, evidence.claims),
        *map(_table, evidence.tables),
        *(_figure(each, dark) for each in drawn),
        f'<h4>Notes</h4><ul class="notes">{notes}</ul>' if notes else "",
        _choices(evidence.choices) if evidence.choices else "",
        folded(f"The commands of the runs ({len(evidence.commands)})", commands) if commands else "",
    )
    return "\n".join(filter(None, parts))


def _claim(claim: Claim) -> str:
    evidence = "".join(f"<li>{_sentence(sentence)}</li>" for sentence in claim.evidence)
    return (
        f'<div class="claim"><p>{_verdict(claim.decision)} <b>{escape(claim.text)}</b></p>'
        f'<p class="note">The paper: {_paper([claim])}</p>' + (f"<ul>{evidence}</ul>" if evidence else "") + "</div>"
    )


def _sentence(text: str) -> str:
    """A sentence with true minus signs, and without line breaks in its intervals."""
    text = re.sub(r"(?<![\w.])-(?=\d)", "−", text)
    return escape(re.sub(r"\[[^\[\]]*\]", lambda interval: interval[0].replace(" ", "\u00a0"), text))


def _table(of: Table) -> str:
    numeric = [not any(map(str.isalpha, cell)) for row in of.rows for cell in row[1:]]
    kind = "" if 2 * sum(numeric) >= len(numeric) else "words"
    rows = [[_cell(cell) for cell in row] for row in of.rows]
    note = paragraph(of.note, "note") if of.note else ""
    return f"<h4>{escape(of.title)}</h4>" + table(of.head, rows, kind=kind) + note


def _cell(text: str) -> str:
    """A number is set as one; words keep their hyphens."""
    return escape(text) if any(map(str.isalpha, text)) else number(text)


def _figure(drawn: Picture, dark: bool) -> str:
    if dark:
        return picture(drawn.light, drawn.dark, width=drawn.width, text=drawn.text, caption=drawn.text)
    source = f"data:image/png;base64,{base64.b64encode(drawn.light).decode()}"
    return (
        f'<figure class="light"><img src="{source}" width="{drawn.width}" alt="{escape(drawn.text)}">'
        f"<figcaption>{escape(drawn.text)}</figcaption></figure>"
    )


def _choices(choices: Sequence[Choice]) -> str:
    """What was chosen on validation clients, behind a summary: all candidates, the chosen ones marked."""
    rows, marks = [], []
    for choice in choices:
        for place, (candidate, value) in enumerate(choice.values.items()):
            shown = number(f"{value:.4g}") if math.isfinite(value) else "diverged"
            chosen = candidate == choice.chosen
            first = escape(choice.what) if place == 0 else ""
            rows.append([first, escape(candidate), shown, "chosen" if chosen else ""])
            marks.append("final" if chosen else "")
    told = "; ".join(f"{choice.what}: {choice.chosen}" for choice in choices)
    body = table(["what", "candidate", "value", ""], rows, marks=marks, kind="words")
    return f"<details><summary>Chosen on validation clients: {escape(told)}</summary>{body}</details>"


def _environment(environment: Mapping[str, Any]) -> str:
    rows = [[escape(key), escape(value)] for key, value in _flat(environment)]
    return table(["", ""], rows, kind="words") if rows else ""


def _flat(document: Mapping[str, Any], place: str = "") -> Iterable[tuple[str, str]]:
    for key, value in document.items():
        path = f"{place} · {key}" if place else str(key)
        if isinstance(value, Mapping):
            yield from _flat(value, path)
        else:
            yield path, ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
