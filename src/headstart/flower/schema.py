"""Schemas of documents from the network: each returns a value that is as it must be, or refuses it in a sentence.

A schema is called with a value and with what the value is: `whole(0, 9)(12, "its round")` raises a `UserError`.
"""

from __future__ import annotations

import reprlib
import sys
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from headstart.errors import UserError

Schema = Callable[[Any, str], Any]

# The most characters of a name or an id, and the most items of a list.
LONGEST_NAME, MOST_ITEMS = 1000, 2**20


def expect(holds: bool, value: Any, where: str, what: str) -> Any:
    """The value, if it is as it must be.

    Raises:
        UserError: if it is not.
    """
    if not holds:
        raise UserError(f"{where} is {reprlib.repr(value)}, and must be {what}")
    return value


def boolean(value: Any, where: str) -> Any:
    """True or false."""
    return expect(isinstance(value, bool), value, where, "true or false")


def document(value: Any, where: str) -> Any:
    """Any dictionary; whoever reads it checks what is in it."""
    return expect(isinstance(value, dict), value, where, "a dictionary")


def text(most: int = LONGEST_NAME) -> Schema:
    """Text of at most n characters."""
    what = f"text of at most {most} characters"
    return lambda value, where: expect(isinstance(value, str) and len(value) <= most, value, where, what)


def whole(least: int, most: int) -> Schema:
    """A whole number in a range."""
    what = f"a whole number from {least} to {most}"
    return lambda value, where: expect(type(value) is int and least <= value <= most, value, where, what)


def number(least: float = -sys.float_info.max, most: float = sys.float_info.max) -> Schema:
    """A finite number in a range, as a float."""
    what = f"a number from {least:g} to {most:g}"
    return lambda value, where: float(
        expect(type(value) in (int, float) and least <= value <= most, value, where, what)
    )


def scalar(value: Any, where: str) -> Any:
    """Null, true, false, a number or text."""
    if type(value) in (int, float):
        number()(value, where)
        return value
    return value if value is None or isinstance(value, bool) else text(MOST_ITEMS)(value, where)


def listed(item: Schema, *, least: int = 0, most: int = MOST_ITEMS) -> Schema:
    """A list with a number of items in this range, as a tuple."""
    what = f"a list of {least} to {most} items"

    def check(value: Any, where: str) -> tuple[Any, ...]:
        expect(isinstance(value, list) and least <= len(value) <= most, value, where, what)
        found: list[Any] = []
        try:
            for each in value:
                found.append(item(each, where))
        except UserError:
            # Once more, to say where: that takes as long to write as all else, and is needed here alone.
            item(value[len(found)], f"{where}[{len(found)}]")
        return tuple(found)

    return check


def distinct(items: Schema) -> Schema:
    """A list in which nothing is twice."""

    def check(value: Any, where: str) -> Any:
        found = items(value, where)
        expect(len(set(found)) == len(found), value, where, "a list without repetitions")
        return found

    return check


def fields(schemas: Mapping[str, Schema], *, optional: Mapping[str, Schema] = MappingProxyType({})) -> Schema:
    """A dictionary with these fields, the optional ones or without them, and no others."""

    def check(value: Any, where: str) -> dict[str, Any]:
        document(value, where)
        given = {name: schema for name, schema in {**schemas, **optional}.items() if name in {**schemas, **value}}
        if value.keys() != given.keys():
            other = sorted(value.keys() ^ given.keys())[0]
            raise UserError(
                f"{where} has other fields than in this version of headstart ({reprlib.repr(other)} is missing or"
                " unknown); install the same on all nodes"
            )
        return {name: schema(value[name], f"{where}.{name}") for name, schema in given.items()}

    return check
