"""The operations of a traced program, one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import eval_jaxpr
from jax.extend import core

Array = jax.Array
# Of a program's variables.
Values = dict[Any, Any]
Bind = Callable[[core.JaxprEqn, Sequence[Any]], Sequence[Any]]


def bind_equation(jaxpr: core.Jaxpr, equation: core.JaxprEqn, given: Sequence[Any]) -> list[Any]:
    """The operation of a program as it is."""
    variables = {atom: value for atom, value in zip(equation.invars, given, strict=True) if not is_literal(atom)}
    single = jaxpr.replace(
        constvars=[], invars=list(variables), outvars=equation.outvars, eqns=[equation], effects=equation.effects
    )
    return list(eval_jaxpr(single, (), *variables.values()))


def is_literal(atom: Any) -> bool:
    """Whether an operand is a number, and no variable."""
    return isinstance(atom, core.Literal)


def value_of(atom: Any, values: Mapping[Any, Any]) -> Any:
    """The value of an operand or a result."""
    return atom.val if is_literal(atom) else values[atom]


def is_float(value: Any) -> bool:
    """Whether a value, or the shape of one, has a derivative."""
    dtype = value.dtype if hasattr(value, "dtype") else jnp.result_type(value)
    return jnp.issubdtype(dtype, jnp.inexact)


def evaluate(jaxpr: core.Jaxpr, equations: Iterable[core.JaxprEqn], found: Values, bind: Bind | None = None) -> None:
    """Add to `found` what operations of a program compute of it.

    bind: computes an operation of its operands; by default as it is.
    """
    bind = partial(bind_equation, jaxpr) if bind is None else bind
    for equation in equations:
        outputs = bind(equation, [value_of(atom, found) for atom in equation.invars])
        found |= zip(equation.outvars, outputs, strict=True)


def results(program: core.ClosedJaxpr, given: Sequence[Any], bind: Bind | None = None) -> list[Any]:
    """What a program computes of its arguments; bind: as of `evaluate`."""
    jaxpr, found = program.jaxpr, Values()
    found |= zip([*jaxpr.constvars, *jaxpr.invars], [*program.consts, *given], strict=True)
    evaluate(jaxpr, jaxpr.eqns, found, bind)
    return [value_of(atom, found) for atom in jaxpr.outvars]


def needed_for(wanted: Sequence[core.JaxprEqn], among: Sequence[core.JaxprEqn]) -> list[core.JaxprEqn]:
    """Those operations that the wanted ones need, themselves included, in order."""
    needed, chosen = {id(one) for one in wanted}, []
    read: set[Any] = set()
    for one in reversed(among):
        if id(one) in needed or read & set(one.outvars):
            chosen.append(one)
            read |= {atom for atom in one.invars if not is_literal(atom)}
    return chosen[::-1]
