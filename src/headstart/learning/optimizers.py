"""Optimizers as values: any optimizer of optax by name, with its options and a schedule."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import optax

from headstart.data.federation import Tree
from headstart.errors import UserError
from headstart.fields import at_least, check_fields


@dataclass(frozen=True)
class Schedule:
    """A schedule of the learning rate over rounds: one of optax by name.

    name: for instance "cosine_decay_schedule", "exponential_decay", "linear_schedule".
    options: its keyword arguments; the initial value is the optimizer's learning rate.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self)

    def build(self, learning_rate: float) -> optax.Schedule:
        """The optax schedule, one step per server step.

        Raises:
            UserError: if optax has no such schedule, or it refuses the options.
        """
        options = {name: _whole_keys(value) for name, value in self.options.items()}
        return _call("schedule", self.name, {"init_value": learning_rate, **options})


def _whole_keys(option: Any) -> Any:
    """The option with numbers for keys, such as boundaries in steps, which JSON holds as text."""
    if not isinstance(option, Mapping):
        return option
    return {int(key) if str(key).isdigit() else key: value for key, value in option.items()}


@dataclass(frozen=True)
class Optimizer:
    """An optimizer of optax by name.

    name: "sgd", "adam", "yogi", "adagrad" or any other that takes a `learning_rate`. Momentum is sgd's option
        `momentum`, undamped: v <- momentum · v + g, as in arXiv:1909.12488.
    options: further keyword arguments, such as `momentum`, `b1`, `b2`, `eps`.
    """

    name: str = "sgd"
    learning_rate: float = at_least(0, 1.0)
    options: Mapping[str, Any] = field(default_factory=dict)
    schedule: Schedule | None = None

    def __post_init__(self) -> None:
        check_fields(self)

    def build(self) -> optax.GradientTransformation:
        """The optax optimizer.

        Raises:
            UserError: if optax has no such optimizer, or it refuses the options.
        """
        learning_rate = self.learning_rate if self.schedule is None else self.schedule.build(self.learning_rate)
        return _call("optimizer", self.name, {"learning_rate": learning_rate, **self.options})

    def try_on(self, params: Tree) -> None:
        """Try a step from parameters (a tree of shapes), without computing anything.

        Raises:
            UserError: if the optimizer cannot take it, as with an option of the wrong type.
        """
        optimizer = self.build()
        try:
            jax.eval_shape(lambda params: optimizer.update(params, optimizer.init(params), params), params)
        except Exception as error:  # whatever optax makes of the options
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise UserError(f"optimizer {self.name!r} refuses its options {dict(self.options)}: {reason}") from error


def _call(kind: str, name: str, options: Mapping[str, Any]) -> Any:
    function = getattr(optax, name, None)
    accepted = list(inspect.signature(function).parameters) if callable(function) else []
    if callable(function) and next(iter(options)) not in accepted:
        function = None
    if not callable(function):
        raise UserError(
            f"optax has no {kind} named {name!r}; see the list of its {kind}s in the documentation of optax"
        )
    unknown = sorted(set(options) - set(accepted))
    if unknown:
        raise UserError(f"{kind} {name!r} has no option {unknown[0]!r}; it accepts {', '.join(accepted)}")
    try:
        return function(**options)
    except (TypeError, ValueError) as error:
        raise UserError(f"{kind} {name!r} refuses its options {dict(options)}: {error}") from error
