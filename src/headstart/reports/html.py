"""HTML pages from templates, escaped throughout; a page needs nothing beside itself."""

from __future__ import annotations

import base64
import re
from functools import cache
from typing import Any, NamedTuple

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from headstart.reports.format import typeset


class Cell(NamedTuple):
    """A cell of a table: its text, below it smaller lines, and in another colour a warning."""

    text: str
    small: tuple[str, ...] = ()
    warning: str = ""


class Picture(NamedTuple):
    """A figure as a page embeds it: two PNGs, the width in CSS pixels, what it shows, and what stands below it."""

    light: bytes
    dark: bytes
    width: int
    text: str
    caption: str = ""


def render(template: str, *, package: str = "headstart.reports", **content: Any) -> bytes:
    """Render a page.

    package: its folder `templates` is looked in first, then that of the reports.
    """
    return _environment(package).get_template(template).render(content).encode()


@cache
def _environment(package: str) -> Environment:
    packages = dict.fromkeys((package, "headstart.reports"))
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(name) for name in packages]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {"typeset": _typeset, "data": _data}
    return environment


def _typeset(text: str) -> Markup:
    """Text as it is set: a number with its unit is not broken, words may be."""
    made, number = escape(typeset(text)), not any(map(str.isalpha, text)) or re.match(r"[+-]?\d.{0,20}$", text)
    return Markup('<span class="number">{}</span>').format(made) if text and number else made


def _data(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
