"""HTML: the few forms a report is made of. `content` and cells are HTML; `text` is not yet."""

from __future__ import annotations

import base64
from collections.abc import Collection, Sequence
from html import escape
from importlib.resources import files
from string import Template


def page(title: str, content: str) -> bytes:
    """A whole document; it needs nothing beside itself."""
    template = Template(files("headstart.reports").joinpath("report.html").read_text(encoding="utf-8"))
    return template.substitute(title=escape(title), body=content).encode()


def section(title: str, *content: str) -> str:
    """A section with its heading; empty if it has no content."""
    return f"<h2>{escape(title)}</h2>\n" + "\n".join(filter(None, content)) if any(content) else ""


def paragraph(text: str, kind: str = "") -> str:
    """Text as a paragraph of a kind ("lead", "note", "notice")."""
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def number(text: str) -> str:
    """A number as it is set: with a true minus sign and unbroken."""
    text = "–" if text == "-" else text.replace("-", "−")
    return f'<span class="number">{escape(text)}</span>'


def two_lines(main: str, small: str) -> str:
    """A cell: a number, and below it a smaller one."""
    return f"{number(main)}<small>{number(small)}</small>" if small else number(main)


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, marks: Collection[str] = (), kind: str = "") -> str:
    """A table that scrolls on narrow screens.

    head: texts. rows: cells. marks: a class for every row, or nothing. kind: "words" sets all columns to the left.
    """
    classes = list(marks) or [""] * len(rows)
    heading = "".join(f"<th>{escape(text)}</th>" for text in head)
    lines = [
        f'<tr class="{mark}">' + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>"
        for mark, row in zip(classes, rows, strict=True)
    ]
    body = "\n".join(lines).replace(' class=""', "")
    parts = f"<thead><tr>{heading}</tr></thead>\n<tbody>{body}</tbody>"
    return f'<div class="scroll"><table class="{kind}">{parts}</table></div>'


def tiles(facts: Sequence[tuple[str, str, str]]) -> str:
    """Large numbers: what it is, the number, what to add in small."""
    each = (
        f'<div class="tile"><span>{escape(name)}</span><b>{number(value)}</b><span>{number(more)}</span></div>'
        for name, value, more in facts
    )
    return f'<div class="tiles">{"".join(each)}</div>'


def picture(light: bytes, dark: bytes, *, width: int, text: str, caption: str) -> str:
    """A figure in two versions, of which the page shows the one that suits; PNG."""
    return (
        f'<figure><picture><source media="(prefers-color-scheme: dark)" srcset="{_data(dark)}">'
        f'<img src="{_data(light)}" width="{width}" alt="{escape(text)}"></picture>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _data(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def collapsed(summary: str, text: str) -> str:
    """Text of fixed width behind a summary that opens it."""
    return f"<details><summary>{escape(summary)}</summary><pre>{escape(text)}</pre></details>"
