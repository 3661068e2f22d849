"""Evidence as parts of a page: verdicts, claims, tables, figures, choices; and as JSON."""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from headstart.reports.html import collapsed, number, paragraph, picture, table
from headstart.reports.style import FigureSpec, save
from headstart.statistics.verdicts import Decision
from headstart.studies.evidence import Choice, Claim, Evidence, Table

MOST_BYTES = 1_000_000
_PALETTE = 64
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


class Picture(NamedTuple):
    """A drawn figure: the two PNGs as they are embedded, the width in CSS pixels, and its words."""

    light: bytes
    dark: bytes
    width: int
    text: str


def as_document(evidence: Evidence) -> dict[str, Any]:
    """The evidence as JSON, without its figure_specs."""
    return plain({key: value for key, value in evidence._asdict().items() if key != "figure_specs"})


def plain(value: Any) -> Any:
    """A tree of values as JSON has them: floats to six significant digits, and null if not finite."""
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def slug(*names: str) -> str:
    """Names as one that suits a file and a link."""
    return "-".join(re.sub(r"[^\w.]+", "-", name).strip("-") for name in names).lower()


def draw(federation: str, evidence: Evidence, figure_spec: FigureSpec, out: Path) -> Picture:
    """Save a figure under a name of its own; what is embedded has fewer colours."""
    rest = slug(figure_spec.name).removeprefix(slug(evidence.name)).strip("-")
    name = slug(*filter(None, (evidence.name, federation, rest)))
    (light, width), (dark, _) = save(figure_spec._replace(name=name), out / "figures")
    return Picture(_smaller(light), _smaller(dark), width, figure_spec.text)


def _smaller(png: bytes) -> bytes:
    file = io.BytesIO()
    with Image.open(io.BytesIO(png)) as image:
        # The usual choice of colours goes by area, and would give two thin lines one colour.
        palette = image.convert("RGB").quantize(_PALETTE, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        palette.save(file, "png", optimize=True)
    return min(png, file.getvalue(), key=len)


def whole(title: str, content: Callable[[bool], str]) -> bytes:
    """A whole page.

    content: whether figures are shown dark in dark surroundings -> HTML. If the page were larger than `MOST_BYTES` it
        shows the light figures there too, and says so.
    """
    page = _document(title, content(True))
    if len(page) <= MOST_BYTES:
        return page
    note = paragraph("Figures are light only; figures/ beside this page holds the dark ones.", "note")
    return _document(title, content(False) + note)


def _document(title: str, content: str) -> bytes:
    """In the style of a report, without a report's explanations."""
    style, _, _ = files("headstart.reports").joinpath("report.html").read_text(encoding="utf-8").partition("$body")
    style = Template(style).substitute(title=escape(title)).replace("</head>", f"{_STYLE}</head>")
    return f"{style}{content}\n</body>\n</html>\n".encode()


def verdict(decision: Decision) -> str:
    """A decision as a coloured word."""
    kind = {"holds": " holds", "does not hold": " refuted"}.get(decision, "")
    return f'<span class="verdict{kind}">{decision}</span>'


def paper_says(claims: Iterable[Claim]) -> str:
    """The paper's own words or numbers on these claims."""
    known = dict.fromkeys(claim.paper for claim in claims if claim.paper)
    known.pop("not known", None)
    return escape("; ".join(known)) or "not known"


def shown(evidence: Evidence, drawn: Sequence[Picture], dark: bool) -> str:
    """All that one study found on one federation.

    drawn: its figures. dark: whether they are shown dark in dark surroundings.
    """
    notes = "".join(f"<li>{escape(note)}</li>" for note in evidence.notes)
    commands = "\n\n".join(f"# {name}\n{command}" for name, command in evidence.commands.items())
    parts = (
        *map(_claim, evidence.claims),
        *map(_table, evidence.tables),
        *(_figure(each, dark) for each in drawn),
        f'<h4>Notes</h4><ul class="notes">{notes}</ul>' if notes else "",
        _choices(evidence.choices) if evidence.choices else "",
        collapsed(f"The commands of the runs ({len(evidence.commands)})", commands) if commands else "",
    )
    return "\n".join(filter(None, parts))


def _claim(claim: Claim) -> str:
    paper = f'<p class="note">The paper: {paper_says([claim])}</p>' if claim.paper is not None else ""
    evidence = "".join(f"<li>{sentence(each)}</li>" for each in claim.evidence)
    listed = f"<ul>{evidence}</ul>" if evidence else ""
    return f'<div class="claim"><p>{verdict(claim.decision)} <b>{escape(claim.text)}</b></p>{paper}{listed}</div>'


def sentence(text: str) -> str:
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
    return sentence(text) if any(map(str.isalpha, text)) else number(text)


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


def environment_table(environment: Mapping[str, Any]) -> str:
    """What `folder.environment` tells, nested names joined."""
    rows = [[escape(key), escape(value)] for key, value in _flat(environment)]
    return table(["", ""], rows, kind="words") if rows else ""


def _flat(document: Mapping[str, Any], place: str = "") -> Iterable[tuple[str, str]]:
    for key, value in document.items():
        path = f"{place} · {key}" if place else str(key)
        if isinstance(value, Mapping):
            yield from _flat(value, path)
        else:
            yield path, ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
