"""Optimizers as values: any optimizer of optax by name, with its options and a schedule."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from headstart.data.federation import Tree
from headstart.errors import UserError
from headstart.fields import CONSTANT, at_least, check_fields


@dataclass(frozen=True)
class Schedule:
    """A schedule of the learning rate over rounds: one of optax by name.

    name: for instance "cosine_decay_schedule", "exponential_decay", "linear_schedule".
    options: its keyword arguments; the initial value is the optimizer's learning rate.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict, metadata=CONSTANT)

    def __post_init__(self) -> None:
        check_fields(self)

    def build(self, learning_rate: float) -> optax.Schedule:
        """The optax schedule, one step per server step.

        Raises:
            UserError: if optax has no such schedule, or it refuses the options.
        """
        options = {name: _whole_keys(value) for name, value in self.options.items()}
        return _call("schedule", self.name, {"init_value": learning_rate, **options})

    def try_on(self, learning_rate: float, steps: int) -> None:
        """Try the schedule at some of its steps, the first and the last among them.

        Raises:
            UserError: if it has no learning rate there, or one below 0.
        """
        schedule = self.build(learning_rate)
        for step in (*(10**power - 1 for power in range(9) if 10**power < steps), steps - 1):
            found = float(np.real(schedule(step)))
            if not 0 <= found < float("inf"):
                raise UserError(
                    f"schedule {self.name!r} with its options {dict(self.options)} has the learning rate {found:g} at"
                    f" step {step}; rates are at least 0"
                )


def _whole_keys(option: Any) -> Any:
    """The option with numbers for keys, such as boundaries in steps, which JSON holds as text."""
    if not isinstance(option, Mapping):
        return option
    return {int(key) if str(key).isascii() and str(key).isdigit() else key: value for key, value in option.items()}


@dataclass(frozen=True)
class RateTable(Schedule):
    """A schedule as a table of the learning rates of all its steps, which may be traced; beyond it the last one."""

    values: Any = ()

    def build(self, learning_rate: float) -> optax.Schedule:
        """The optax schedule."""
        return lambda step: self.values[jnp.minimum(step, self.values.shape[0] - 1)]


# The least length of a table of learning rates.
LEAST_TABLE = 256


@dataclass(frozen=True)
class Optimizer:
    """An optimizer of optax by name.

    name: "sgd", "adam", "yogi", "adagrad" or any other that takes a `learning_rate`. Momentum is sgd's option
        `momentum`, undamped: v <- momentum · v + g, as in arXiv:1909.12488.
    options: further keyword arguments, such as `momentum`, `b1`, `b2`, `eps`.
    """

    name: str = "sgd"
    learning_rate: float = at_least(0, 1.0)
    options: Mapping[str, Any] = field(default_factory=dict, metadata=CONSTANT)
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

    def tabulated(self, steps: int) -> np.ndarray:
        """The learning rates of a schedule's first steps, and of some beyond them, so that tables have few lengths.

        Float `[n]`, n a power of two that is at least `steps` and `LEAST_TABLE`.
        """
        assert self.schedule is not None
        numbers = np.arange(max(LEAST_TABLE, 1 << (steps - 1).bit_length()), dtype=np.int32)
        schedule = self.schedule.build(self.learning_rate)
        # Some schedules are a number where nothing changes.
        return np.asarray(jax.vmap(lambda step: jnp.asarray(schedule(step)))(numbers))

    def try_on(self, params: Tree, steps: int) -> None:
        """Try a step from parameters (a tree of shapes), without computing it, and the learning rates of all steps.

        Raises:
            UserError: if the optimizer cannot take it, as with an option of the wrong type, or has no such rate.
        """
        optimizer = self.build()
        try:
            jax.eval_shape(lambda params: optimizer.update(params, optimizer.init(params), params), params)
        except Exception as error:  # whatever optax makes of the options
            raise _refused("optimizer", self.name, self.options, error) from error
        if self.schedule is not None:
            self.schedule.try_on(self.learning_rate, steps)


def _call(kind: str, name: str, options: Mapping[str, Any]) -> Any:
    function = getattr(optax, name, None)
    accepted = _parameters(function)
    if function is None or next(iter(options)) not in accepted:
        raise UserError(
            f"optax has no {kind} named {name!r}; see the list of its {kind}s in the documentation of optax"
        )
    unknown = sorted(set(options) - set(accepted))
    if unknown:
        raise UserError(f"{kind} {name!r} has no option {unknown[0]!r}; it accepts {', '.join(accepted)}")
    for option, value in options.items():
        if isinstance(accepted[option].default, bool) and not isinstance(value, bool):
            raise UserError(f"option {option!r} of {kind} {name!r} is {value!r}, but must be true or false")
    try:
        return function(**options)
    except Exception as error:  # whatever optax makes of the options
        raise _refused(kind, name, options, error) from error


def _parameters(function: Any) -> Mapping[str, inspect.Parameter]:
    """The parameters of a function, by name; none of what is no function."""
    try:
        return inspect.signature(function).parameters if callable(function) else {}
    except ValueError:
        return {}


def _refused(kind: str, name: str, options: Mapping[str, Any], error: Exception) -> UserError:
    reason = next(iter(str(error).splitlines()), type(error).__name__)
    return UserError(f"{kind} {name!r} refuses its options {dict(options)}: {reason}")
