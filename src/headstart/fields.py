"""Fields of values with a least value, which the value itself checks, however it was made."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from headstart.errors import UserError

_LEAST = "at_least"


class FieldError(UserError):
    """A field of a value is out of its range.

    field: its name. complaint: what follows its name in a sentence.
    """

    def __init__(self, value: Any, field: str, complaint: str) -> None:
        super().__init__(f"{type(value).__name__}.{field} {complaint}")
        self.field, self.complaint = field, complaint


def at_least(least: float, default: Any = dataclasses.MISSING) -> Any:
    """A dataclass field whose numbers are finite and not below `least`; None and other types pass."""
    return dataclasses.field(default=default, metadata={_LEAST: least})


def check_fields(value: Any) -> None:
    """Refuse a dataclass one of whose fields is below the least value that `at_least` gave it.

    Raises:
        FieldError: for the first one.
    """
    for field in dataclasses.fields(value):
        number, least = getattr(value, field.name), field.metadata.get(_LEAST)
        # Under a JAX transformation a field may be an array without a value; it was checked before.
        if least is None or not isinstance(number, int | float):
            continue
        if not (math.isfinite(number) and number >= least):
            raise FieldError(value, field.name, f"is {number}, but must be at least {least}")
