"""Text on a terminal."""

from __future__ import annotations

from rich.console import Console


def echo(console: Console, text: str, *, style: str | None = None) -> None:
    """Print text as it is: no colours of its own, no line breaks put in, brackets left alone."""
    console.print(text, style=style, highlight=False, soft_wrap=True, markup=False)


def printable(text: str, *, most: int = 1000, keep: str = "") -> str:
    """Text from elsewhere for a terminal or a log: what would control it is escaped, and what is too long is cut.

    most: characters. keep: control characters that stay, such as a line break.
    """
    cut = text if len(text) <= most else f"{text[:most]}… ({len(text)} characters)"
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in cut)
