"""Fields of values: their types, as annotated, and their ranges, which the value itself checks, however it was made."""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from headstart.errors import UserError

# What an int32 counts: steps, rounds and rows are counted so on the devices.
MOST = 2**31 - 1
# Two seeds beyond it may give the same run: JAX keeps the last 32 bits.
MOST_SEED = 2**32 - 1
# Of passes over a client's examples, so that the steps in them can be counted.
MOST_EPOCHS = 10_000
MOST_STEPS = 1_000_000
# How many mistakes one message lists.
MOST_LISTED = 20

_RANGE, _CONSTANT = "range", "constant"
# The metadata of a field that is one, as `is_constant` says.
CONSTANT = {_CONSTANT: True}


@dataclasses.dataclass(frozen=True)
class Range:
    """The numbers that a field accepts.

    above: `least` itself is not accepted. endless: infinity is. whole_from_one: a number of at least 1 is a count.
    """

    least: float
    most: float = math.inf
    above: bool = False
    endless: bool = False
    whole_from_one: bool = False

    def complaint(self, number: float) -> str | None:
        """What a number must be, where it is not; None where it is."""
        if number < self.least or number != number or (self.above and number == self.least):
            return f"must be {'above' if self.above else 'at least'} {self.least}"
        if number > self.most:
            return f"must be at most {self.most}"
        if not self.endless and not _is_finite(number):
            return "must be a finite number"
        if self.whole_from_one and number >= 1 and number != int(number):
            return "must be a share below 1, or a whole number"
        return None


class FieldError(UserError):
    """Fields of a value are of the wrong type or out of their range.

    complaints: by the name of the field, what follows the name in a sentence.
    """

    def __init__(self, kind: type, complaints: Mapping[str, str]) -> None:
        super().__init__(together([f"{kind.__name__}.{name} {complaint}" for name, complaint in complaints.items()]))
        self.complaints = complaints


def at_least(
    least: float,
    default: Any = dataclasses.MISSING,
    *,
    most: float | None = None,
    above: bool = False,
    endless: bool = False,
    whole_from_one: bool = False,
    constant: bool = False,
) -> Any:
    """A dataclass field whose numbers, or those of whose tuple, are in a `Range`; None passes where its type lets it.

    most: by default, of whole numbers, `MOST`. constant: as in `is_constant`.
    """
    given = Range(least, math.inf if most is None else most, above, endless, whole_from_one)
    return dataclasses.field(default=default, metadata={_RANGE: given, _CONSTANT: constant})


def is_constant(field: dataclasses.Field[Any]) -> bool:
    """Whether what a field holds decides shapes or branches, so that compiled programs have it as a constant."""
    return field.name == "batch_size" or bool(field.metadata.get(_CONSTANT))


def check_fields(value: Any) -> None:
    """Refuse a dataclass with fields of the wrong type or out of their range; numpy's numbers become Python's.

    Raises:
        FieldError: for all of them.
    """
    kind = type(value)
    hints = hints_of(kind)
    given = {field.name: getattr(value, field.name) for field in dataclasses.fields(kind) if hasattr(value, field.name)}
    plain = {name: as_plain(item, hints.get(name, Any)) for name, item in given.items()}
    found = complaints(kind, plain)
    if found:
        raise FieldError(kind, found)
    for name, item in plain.items():
        if item is not given[name]:
            object.__setattr__(value, name, item)


def check_argument(name: str, value: Any, hint: Any, accepted: Range | None = None) -> None:
    """Refuse an argument of a function that is of the wrong type or out of its range.

    Raises:
        UserError: if it is.
    """
    wrong = _wrong(value, hint, accepted)
    if wrong:
        raise UserError(f"{name} {wrong}")


def complaints(kind: type, given: Mapping[str, Any], show: Callable[[Any], str] = repr) -> dict[str, str]:
    """What is wrong with values given for fields of a dataclass: by name, what follows the name in a sentence.

    show: how to write a value.
    """
    hints, found = hints_of(kind), {}
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for name, value in given.items():
        hint = hints.get(name, Any)
        default = value is fields[name].default
        wrong = None if default else _wrong(value, hint, fields[name].metadata.get(_RANGE), show)
        if wrong:
            found[name] = wrong
    return found


def _wrong(value: Any, hint: Any, accepted: Range | None, show: Callable[[Any], str] = repr) -> str | None:
    wrong = _complaint(value, hint, _suited(accepted, hint)) if fits(value, hint) else f"must be {described(hint)}"
    return f"is {_short(value, show)}, but {wrong}" if wrong else None


def _suited(accepted: Range | None, hint: Any) -> Range | None:
    """The range, with the largest count for a field of whole numbers that says no other."""
    whole = hint is int or int in typing.get_args(hint)
    if accepted is None or accepted.most < math.inf or not whole:
        return accepted
    return dataclasses.replace(accepted, most=MOST)


def _complaint(value: Any, hint: Any, accepted: Range | None) -> str | None:
    """What a value of the right type must be beside it."""
    if isinstance(value, tuple):
        return next(filter(None, (_complaint(item, hint, accepted) for item in value)), None)
    if isinstance(value, Mapping):
        return "must have numbers where it has nan" if _has_nan(value) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if accepted is not None:
        return accepted.complaint(value)
    # A whole number that nothing bounds may be of any size.
    return None if _is_finite(value) or hint is int else "must be a finite number"


def _has_nan(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_has_nan, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_has_nan, value))
    return isinstance(value, float) and math.isnan(value)


def _is_finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # a whole number beyond all floats
        return False


def _short(value: Any, show: Callable[[Any], str]) -> str:
    try:
        text = show(value)
    except (ValueError, RecursionError):  # a whole number of thousands of digits, or what is nested as deep
        return "too long to be shown"
    return text if len(text) <= 80 else f"{text[:60]}… ({len(text)} characters)"


def refusals(*attempts: Callable[[], object]) -> list[str]:
    """The complaints of those of some attempts that raise a `UserError`."""
    found = []
    for attempt in attempts:
        try:
            attempt()
        except UserError as error:
            found.append(str(error))
    return found


def refuse(problems: typing.Sequence[str]) -> None:
    """Raise one `UserError` for all problems, if there are any."""
    if problems:
        raise UserError(together(problems))


def together(sentences: typing.Sequence[str]) -> str:
    """Several complaints as one."""
    found = list(dict.fromkeys(sentences))
    more = [f"{len(found) - MOST_LISTED} more"] if len(found) > MOST_LISTED else []
    return "; and ".join([*found[:MOST_LISTED], *more])


@functools.cache
def hints_of(kind: type) -> dict[str, Any]:
    """The types of a dataclass's fields, by name; of fields whose annotations cannot be resolved here, none."""
    try:
        return typing.get_type_hints(kind)
    except Exception:  # whatever the annotations of a user's class mean, it is not ours to refuse
        return {}


def as_plain(value: Any, hint: Any) -> Any:
    """The value with Python's numbers for numpy's, and a list as a tuple where the type asks for one."""
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and not value.ndim):
        return value.item()
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    for one in typing.get_args(hint) if union else (hint,):
        if typing.get_origin(one) is tuple and isinstance(value, list | tuple | np.ndarray):
            items = [as_plain(item, Any) for item in value]
            same = isinstance(value, tuple) and all(a is b for a, b in zip(items, value, strict=True))
            return value if same else tuple(items)
    return value


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a type; a whole number is a float too, True is no number, and a traced array may be one."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, one) for one in inner)
    if origin is typing.Literal:
        return any(type(value) is type(one) and value == one for one in inner)
    if origin is tuple:
        return isinstance(value, tuple) and _items_fit(value, inner)
    if origin is typing.Annotated:
        return fits(value, inner[0])
    if hint in (int, float):
        # Under a JAX transformation a number may be an array without a value; it was checked before.
        number = isinstance(value, int | float if hint is float else int) and not isinstance(value, bool)
        return number or getattr(value, "aval", None) is not None
    if getattr(hint, "_is_protocol", False):
        return dataclasses.is_dataclass(value) and not isinstance(value, type)
    kind = list | tuple if origin is list else origin or hint
    try:
        return isinstance(value, kind)
    except TypeError:  # an annotation that is no class
        return True


def _items_fit(items: tuple[Any, ...], inner: tuple[Any, ...]) -> bool:
    if len(inner) == 2 and inner[1] is Ellipsis:
        return all(fits(item, inner[0]) for item in items)
    return len(items) == len(inner) and all(map(fits, items, inner))


def described(hint: Any) -> str:
    """A type in words."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(described(one) for one in inner)
    if origin is typing.Literal:
        return "one of " + ", ".join(map(repr, inner))
    if origin is tuple:
        return f"a list, each {described(inner[0])}"
    names = {float: "a number", int: "a whole number", str: "text", bool: "true or false", type(None): "null"}
    name = str(getattr(hint, "__name__", hint))
    return names.get(hint, f"{'an' if name[:1] in 'AEIOU' else 'a'} {name}")
