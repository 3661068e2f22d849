"""Text on a terminal."""

from __future__ import annotations

from rich.console import Console


def echo(console: Console, text: str, *, style: str | None = None) -> None:
    """Print text as it is: no colours of its own, no line breaks put in, brackets left alone."""
    console.print(text, style=style, highlight=False, soft_wrap=True, markup=False)
