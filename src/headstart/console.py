"""Text on a terminal, and in tables that other programs open."""

from __future__ import annotations

import re

from rich.console import Console

_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]+)?")


def echo(console: Console, text: str, *, style: str | None = None) -> None:
    """Print text as it is: no colours of its own, no line breaks put in, brackets left alone.

    What a name from a file may hold to control the terminal is escaped, all but line breaks and tabs.
    """
    text = printable(text, most=len(text), keep="\n\t")
    console.print(text, style=style, highlight=False, soft_wrap=True, markup=False)


def printable(text: str, *, most: int = 1000, keep: str = "") -> str:
    """Text from elsewhere for a terminal or a log: what would control it is escaped, and what is too long is cut.

    most: characters. keep: control characters that stay, such as a line break.
    """
    cut = text if len(text) <= most else f"{text[:most]}… ({len(text)} characters)"
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in cut)


def csv_cell(text: str) -> str:
    """Text from elsewhere for a cell of a table that a spreadsheet may open: printable, and no formula.

    What a spreadsheet would take for a formula gets an apostrophe before it; a number stays one.

    >>> csv_cell("=1+1"), csv_cell("-3.5"), csv_cell("ward 7")
    ("'=1+1", '-3.5', 'ward 7')
    """
    formula = text[:1] in ("\t", "\r") or text.lstrip()[:1] in ("=", "+", "-", "@")
    return ("'" if text and formula and not _NUMBER.fullmatch(text) else "") + printable(text, most=len(text))
