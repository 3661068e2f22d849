"""JSON from elsewhere: a value that is safe to walk, print and write, or a refusal."""

from __future__ import annotations

import json
from typing import Any

# Characters of a document, and how deeply its lists and dictionaries may be nested.
LARGEST, DEEPEST = 2**24, 64
# What has nothing in it, and no text that could be unfit for a file.
_PLAIN = {int, float, bool, type(None)}


def parse_json(text: str | bytes, *, largest: int = LARGEST, deepest: int = DEEPEST) -> Any:
    """The value of a JSON document (RFC 8259): numbers are finite, names are unique, text is valid Unicode.

    Raises:
        ValueError: for anything else, and for a document that is larger or nested more deeply than allowed.
    """
    if len(text) > largest:
        raise ValueError(f"it has {len(text)} characters, more than {largest}")
    try:
        value = json.loads(text, **_HOOKS)
    except RecursionError:
        raise ValueError(f"it is nested more than {deepest} deep") from None
    check_plain(value, deepest=deepest)
    return value


def check_plain(value: Any, *, deepest: int = DEEPEST) -> None:
    """Refuse a value of JSON that is nested too deeply, or has text that no file can hold.

    Raises:
        ValueError: if it is so.
    """
    level = [value]
    for depth in range(deepest + 1):
        inner: list[Any] = []
        for item in level:
            if type(item) in _PLAIN:
                continue
            if isinstance(item, str):
                _check_text(item)
            elif isinstance(item, dict | list | tuple):
                if depth == deepest:
                    raise ValueError(f"it is nested more than {deepest} deep")
                inner += [*item, *item.values()] if isinstance(item, dict) else item
        level = inner


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"the text {text[:40]!a} is not valid Unicode") from None


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no number of JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if number in (float("inf"), float("-inf")):
        raise ValueError(f"{digits[:40]} is beyond the largest number")
    return number


def unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The `object_pairs_hook` of `json.load` that refuses, by a ValueError, a name that occurs twice."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"it has {name[:40]!a} twice")
        found[name] = value
    return found


_HOOKS: Any = {
    "parse_constant": _refuse,
    "parse_float": _finite,
    "object_pairs_hook": unique_names,
}
