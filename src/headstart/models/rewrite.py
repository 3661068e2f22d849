"""A traced function with its convolutions, poolings and loops over time replaced by what a CPU computes fast.

Whatever a model is written with, its program names XLA's operations, and those are replaced here: linen, nnx, equinox
and plain functions are served alike, and a derivative is taken of what replaced them. Everything else is left alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from headstart.models import convolution, pooling, recurrence
from headstart.models.equations import Bind, bind_equation, is_float, results

Array = jax.Array
Tree = Any
Rule = Callable[..., Callable[..., Sequence[Array]] | None]

# What may take the place of an operation: a function of (operands, results, settings), None where nothing suits.
RULES: dict[str, Rule] = {"conv_general_dilated": convolution.rule, "scan": recurrence.rule, **pooling.RULES}
OWN_VJP = "custom_vjp_call", "custom_vjp_call_jaxpr"
# In the environment: with 0 nothing is rewritten.
VARIABLE = "HEADSTART_REWRITE"


@dataclass(frozen=True)
class Rewritten:
    """The second function of a model, rewritten where it computes on a CPU; on other devices as it is.

    apply: as it was given.
    """

    apply: Callable[..., tuple[Tree, Tree]]

    def __call__(self, variables: Tree, x: Tree, *, key: Array | None = None) -> tuple[Tree, Tree]:
        """Apply the model to a batch, as `Model` says."""
        if jax.default_backend() != "cpu":
            return self.apply(variables, x, key=key)
        return self._rewritten(variables, x, key)

    @cached_property
    def _rewritten(self) -> Callable[..., tuple[Tree, Tree]]:
        return rewritten(lambda variables, x, key: self.apply(variables, x, key=key))


def is_wanted() -> bool:
    """Whether models are to be rewritten, where nobody says."""
    return os.environ.get(VARIABLE, "1") != "0"


def rewritten(function: Callable[..., Tree]) -> Callable[..., Tree]:
    """The function of trees of arrays, with what `RULES` replaces in it; leaves that pass through stay what they are.

    It is traced once for each kind of arguments.
    """
    traced = jax.jit(function)

    def evaluate(*given: Tree) -> Tree:
        program = traced.trace(*given)
        leaves = [leaf if hasattr(leaf, "dtype") else jnp.asarray(leaf) for leaf in jax.tree.leaves(given)]
        outputs = _evaluate(program.jaxpr, leaves)
        return jax.tree.unflatten(jax.tree.structure(program.out_info), outputs)

    return evaluate


def is_replaceable(jaxpr: core.Jaxpr) -> bool:
    """Whether the program has an operation, however deep, that something takes the place of."""
    return any(_replaces(equation, RULES) for equation in jaxpr.eqns)


def _replaces(equation: core.JaxprEqn, rules: Mapping[str, Rule] = RULES) -> bool:
    if equation.primitive.name in OWN_VJP:
        rules = {name: rule for name, rule in rules.items() if name != "scan"}  # whose derivative is its own
    inside = (one for jaxpr in _inner(equation) for one in jaxpr.eqns)
    return _replacement(equation, rules) is not None or any(_replaces(one, rules) for one in inside)


def _replacement(equation: core.JaxprEqn, rules: Mapping[str, Rule] = RULES) -> Callable[..., Sequence[Array]] | None:
    rule = rules.get(equation.primitive.name)
    operands, results = ([variable.aval for variable in side] for side in (equation.invars, equation.outvars))
    return None if rule is None else rule(operands, results, **equation.params)


def _inner(equation: core.JaxprEqn) -> Iterator[core.Jaxpr]:
    """The programs in an operation's settings: bodies of loops, branches, functions."""
    for value in equation.params.values():
        for inner in value if isinstance(value, tuple | list) else (value,):
            if isinstance(inner, core.ClosedJaxpr | core.Jaxpr):
                yield inner.jaxpr if isinstance(inner, core.ClosedJaxpr) else inner


def _evaluate(program: core.ClosedJaxpr, given: Sequence[Any]) -> list[Any]:
    as_it_is = partial(bind_equation, program.jaxpr)

    def bind(equation: core.JaxprEqn, operands: Sequence[Any]) -> Sequence[Any]:
        return _replaced(equation, as_it_is)(*operands) if _replaces(equation) else as_it_is(equation, operands)

    return results(program, given, bind)


def _replaced(equation: core.JaxprEqn, bind: Bind) -> Callable[..., Sequence[Any]]:
    name = equation.primitive.name
    if name == "custom_jvp_call":
        return _with_own_jvp(equation, bind)
    if name in OWN_VJP:
        return _with_own_vjp(equation, bind)
    params = {key: _rewritten_value(value) for key, value in equation.params.items()}
    equation = equation.replace(params=params)
    return _replacement(equation) or (lambda *given: bind(equation, given))


def _rewritten_value(value: Any) -> Any:
    """A setting of an operation, where it is a program rewritten, with the same inputs and outputs."""
    if isinstance(value, tuple | list):
        return type(value)(map(_rewritten_value, value)) if any(map(_is_program, value)) else value
    if not _is_program(value) or not is_replaceable(value.jaxpr if isinstance(value, core.ClosedJaxpr) else value):
        return value
    closed = value if isinstance(value, core.ClosedJaxpr) else core.ClosedJaxpr(value, ())
    shapes = [variable.aval for variable in closed.jaxpr.invars]
    new = jax.make_jaxpr(lambda *given: _evaluate(closed, given))(*shapes)
    if isinstance(value, core.ClosedJaxpr):
        return new
    return value if new.consts else new.jaxpr


def _is_program(value: Any) -> bool:
    return isinstance(value, core.ClosedJaxpr | core.Jaxpr)


def _with_own_jvp(equation: core.JaxprEqn, bind: Bind) -> Callable[..., Sequence[Any]]:
    """A function with a derivative of its own, which is kept: value and derivative, each rewritten."""
    inside = equation.params["call_jaxpr"]

    @jax.custom_jvp
    def function(*given: Array) -> list[Array]:
        return _evaluate(inside, given)

    @function.defjvp
    def _(primals: tuple[Array, ...], tangents: tuple[Array, ...]) -> tuple[list[Array], list[Array]]:
        moved = tuple(tangent for tangent, value in zip(tangents, primals, strict=True) if is_float(value))

        def derivative(moving: tuple[Array, ...], still: tuple[Array, ...], moved: tuple[Array, ...]) -> Any:
            return jax.jvp(lambda *moving: bind(equation, _merged(primals, moving, still)), moving, moved)

        return rewritten(derivative)(*_floats_and_others(primals), moved)

    return function


def _with_own_vjp(equation: core.JaxprEqn, bind: Bind) -> Callable[..., Sequence[Any]]:
    """The same for a function that has a derivative of its own in reverse mode alone."""
    inside = equation.params["call_jaxpr"]

    @jax.custom_vjp
    def function(*given: Array) -> list[Array]:
        return _evaluate(inside, given)

    def forward(*given: Array) -> tuple[list[Array], tuple[Array, ...]]:
        # Not the function itself, whose derivative has no forward mode.
        return _evaluate(inside, given), given

    def backward(given: tuple[Array, ...], cotangents: list[Array]) -> tuple[Array | None, ...]:
        def derivative(moving: tuple[Array, ...], still: tuple[Array, ...], cotangents: list[Array]) -> Any:
            return jax.vjp(lambda *moving: bind(equation, _merged(given, moving, still)), *moving)[1](cotangents)

        pulled = iter(rewritten(derivative)(*_floats_and_others(given), cotangents))
        return tuple(next(pulled) if is_float(value) else None for value in given)

    function.defvjp(forward, backward)
    return function


def _floats_and_others(given: Sequence[Array]) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """The arguments that have a derivative, and the others: both are inputs of what is traced."""
    return tuple(value for value in given if is_float(value)), tuple(value for value in given if not is_float(value))


def _merged(given: Sequence[Array], moving: Sequence[Array], still: Sequence[Array]) -> list[Array]:
    """Arguments in the order of the given ones, of those that have a derivative and the others."""
    floats, others = iter(moving), iter(still)
    return [next(floats) if is_float(value) else next(others) for value in given]
