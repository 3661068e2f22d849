"""Compiled programs whose settings are arguments: values that differ in numbers alone share one.

Rates, strengths and numbers of epochs or steps are handed to the program, in float32 and int32 as JAX takes Python's
numbers; everything else of a value is in it as a constant, and makes another program.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from headstart.fields import MOST, is_constant

Path = tuple[str, ...]
Numbers = Mapping[Path, float]
# float32 has no more, and on a CPU no smaller ones: these stay in the program as they are.
_LEAST, _MOST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)


# XLA compiles without Python's lock, so that Python traces the next program, or calls another, meanwhile.
_compilers = ThreadPoolExecutor(1, thread_name_prefix="compile")


def ahead(function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    """Trace a compiled function for such a call now, and compile it on another thread.

    Returns what waits for that, before the call; at once for a function that is not compiled as a whole.
    """
    lower = getattr(function, "lower", None)
    return (lambda: None) if lower is None else _compilers.submit(lower(*arguments).compile).result


class SharedProgram:
    """A compiled `(settings, *arguments) -> result`, one for all settings that differ in numbers alone.

    function: what is compiled. It meets the settings, a dataclass or a mapping, with traced numbers; where it cannot
        take one, because it decides a shape or a branch in Python, that one becomes a constant.
    donate: the positions of the arguments whose memory the result may take.
    """

    def __init__(self, function: Callable[..., Any], *, donate: Collection[int] = (), **options: Any) -> None:
        self._function = function
        self._options = {"donate_argnums": tuple(1 + index for index in donate), **options}
        self._programs: dict[Hashable, Any] = {}
        self._constants: dict[Hashable, frozenset[Path]] = {}

    def __call__(self, settings: Any, *arguments: Any) -> Any:
        """The result for these settings; traced and compiled where none like them has been."""
        return self._with_program(settings, arguments, lambda program, *given: program(*given))

    def ahead(self, settings: Any, *arguments: Any) -> Callable[[], Any]:
        """Trace for such a call now, and compile on another thread; returns what waits for that, before the call."""
        if template(settings, numbers_of(settings)) in self._constants:
            return lambda: None
        return self._with_program(settings, arguments, ahead)

    def _with_program(self, settings: Any, arguments: tuple[Any, ...], use: Callable[..., Any]) -> Any:
        """What `use` makes of the program for these settings, their numbers and the arguments."""
        numbers = numbers_of(settings)
        kind = template(settings, numbers)
        constants = self._constants.get(kind, frozenset())
        program, traced = self._program(settings, numbers, constants)
        try:
            result = use(program, traced, *arguments)
        except Exception:  # whatever a user's code makes of a number without a value, in this branch or for this shape
            refused = self._refused(settings, traced, arguments)
            if not refused:
                raise
            constants |= refused
            program, traced = self._program(settings, numbers, constants)
            result = use(program, traced, *arguments)
        self._constants[kind] = constants
        return result

    def _program(self, settings: Any, numbers: Numbers, constants: Collection[Path]) -> tuple[Any, Numbers]:
        """The program for such settings, and the numbers that it takes."""
        traced = {path: number for path, number in numbers.items() if path not in constants}
        key = template(settings, traced)
        if key not in self._programs:
            # Without `self`, which would keep itself, and all that is compiled, from being let go.
            function = self._function

            def run(numbers: Numbers, *arguments: Any) -> Any:
                return function(with_numbers(settings, numbers), *arguments)

            self._programs[key] = jax.jit(run, **self._options)
        return self._programs[key], traced

    def _refused(self, settings: Any, numbers: Numbers, arguments: tuple[Any, ...]) -> frozenset[Path]:
        """The numbers that cannot be traced, each tried alone; none where that is not what is wrong.

        Raises:
            Exception: what is raised for the numbers as they are, too, which says more than that of traced ones.
        """

        def trace(numbers: Numbers) -> None:
            jax.eval_shape(
                lambda given, *rest: self._function(with_numbers(settings, given), *rest), numbers, *arguments
            )

        def traces(numbers: Numbers) -> bool:
            try:
                trace(numbers)
            except Exception:  # whatever a user's code raises
                return False
            return True

        if traces(numbers):
            return frozenset()
        trace({})
        alone = frozenset(path for path, number in numbers.items() if not traces({path: number}))
        return (
            alone
            if alone and traces({path: n for path, n in numbers.items() if path not in alone})
            else frozenset(numbers)
        )


def numbers_of(settings: Any) -> dict[Path, float]:
    """The numbers of a dataclass or mapping, and of those in it, that may be arguments of a program, by their path."""
    return dict(_numbers((), settings))


def _numbers(path: Path, value: Any) -> Iterator[tuple[Path, float]]:
    for name, item in _items(value):
        if isinstance(item, int | float) and not isinstance(item, bool):
            if item == 0 or _LEAST <= abs(item) <= (_MOST if isinstance(item, float) else MOST):
                yield (*path, name), item
        else:
            yield from _numbers((*path, name), item)


def _items(value: Any) -> Iterator[tuple[str, Any]]:
    """What a dataclass or a mapping holds by name, without fields that are always constants."""
    if isinstance(value, Mapping):
        yield from ((name, item) for name, item in value.items() if isinstance(name, str))
    elif _is_told_by_fields(value):
        yield from (
            (field.name, getattr(value, field.name))
            for field in dataclasses.fields(value)
            if field.init and not is_constant(field)
        )


def with_numbers(settings: Any, numbers: Mapping[Path, Any]) -> Any:
    """The settings with other numbers, which may be traced, at these paths; made anew, with what they make of them."""
    if () in numbers:
        return numbers[()]
    if not numbers:
        return settings
    names = {path[0] for path in numbers}
    new = {
        name: with_numbers(item, {path[1:]: number for path, number in numbers.items() if path[0] == name})
        for name, item in _items(settings)
        if name in names
    }
    return {**settings, **new} if isinstance(settings, Mapping) else dataclasses.replace(settings, **new)


def template(value: Any, numbers: Collection[Path], path: Path = ()) -> Hashable:
    """What settings have beside the numbers at these paths: equal where one program serves both.

    An object that cannot be compared is itself alone; the program that was made for it keeps it from being another.
    """
    if path in numbers:
        return float if isinstance(value, float) else int
    if isinstance(value, Mapping):
        parts = [(_plain(name), template(item, numbers, (*path, name))) for name, item in value.items()]
        return type(value), tuple(sorted(parts, key=repr))
    if isinstance(value, list | tuple):
        return type(value), tuple(template(item, (), ()) for item in value)
    if _is_told_by_fields(value):
        fields = [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
        return type(value), tuple((name, template(item, numbers, (*path, name))) for name, item in fields)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return type(value), id(value)
    return _plain(value)


def _is_told_by_fields(value: Any) -> bool:
    """Whether a value is a dataclass that holds its fields and nothing beside them, as a derived class may."""
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return False
    return set(getattr(value, "__dict__", {})) <= {field.name for field in dataclasses.fields(value)}


def _plain(value: Any) -> Hashable:
    try:
        hash(value)
    except TypeError:
        return type(value), id(value)
    return type(value), value
