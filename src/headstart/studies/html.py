"""Evidence as the content of a page, and as JSON."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from headstart.reports.html import Picture, render
from headstart.reports.style import FigureSpec, save
from headstart.studies.evidence import Choice, Claim, Evidence, Table

MOST_BYTES = 1_000_000
_PALETTE = 64


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


def render_study(template: str, **content: Any) -> bytes:
    """Render the page of a study.

    If it were larger than `MOST_BYTES` it shows the light figures in dark surroundings too, and says so.
    """
    page = render(template, package="headstart.studies", dark=True, **content)
    if len(page) <= MOST_BYTES:
        return page
    return render(template, package="headstart.studies", dark=False, **content)


def paper_says(claims: Iterable[Claim]) -> str:
    """The paper's own words or numbers on these claims."""
    known = dict.fromkeys(claim.paper for claim in claims if claim.paper)
    known.pop("not known", None)
    return "; ".join(known) or "not known"


def as_content(evidence: Evidence, pictures: Sequence[Picture]) -> dict[str, Any]:
    """All that one study found on one federation, as the template `evidence.html` takes it."""
    return {
        "claims": evidence.claims,
        "tables": [(each.title, each.note, _table(each)) for each in evidence.tables],
        "pictures": pictures,
        "notes": evidence.notes,
        "chosen": "; ".join(f"{choice.what}: {choice.chosen}" for choice in evidence.choices),
        "candidates": [row for choice in evidence.choices for row in _candidates(choice)],
        "commands": [f"# {name}\n{command}" for name, command in evidence.commands.items()],
    }


def _table(of: Table) -> tuple[Sequence[str], list[tuple[str, Sequence[str]]], str]:
    """The head, the rows, and the class: a table of numbers, or of words, whose columns are set to the left."""
    numeric = [not any(map(str.isalpha, cell)) for row in of.rows for cell in row[1:]]
    return of.head, [("", row) for row in of.rows], "" if 2 * sum(numeric) >= len(numeric) else "words"


def _candidates(choice: Choice) -> Iterable[tuple[str, list[str]]]:
    """All candidates with their values on validation clients; the chosen one is marked."""
    for index, (candidate, value) in enumerate(choice.values.items()):
        chosen = candidate == choice.chosen
        number = f"{value:.4g}" if math.isfinite(value) else "diverged"
        first = choice.what if index == 0 else ""
        yield "final" if chosen else "", [first, candidate, number, "chosen" if chosen else ""]


def settings_rows(document: Mapping[str, Any], path: str = "") -> list[tuple[str, str, list[str]]]:
    """A document of settings as rows of a table: no mark, the name with those around it, and the value."""
    rows = []
    for key, value in document.items():
        name = f"{path} · {key}" if path else str(key)
        if isinstance(value, Mapping):
            rows += settings_rows(value, name)
        else:
            rows.append(("", name, [", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)]))
    return rows
