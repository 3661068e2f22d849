"""Loops over time whose products are those a CPU computes fast: before the loop, after it, or in blocks of columns.

What a step of `lax.scan` computes of the loop's constants alone is computed once, products with the inputs of all steps
are one product, and the gradients of matrices that the state is multiplied by are one product each, after the loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from headstart.models.equations import Values, bind_equation, evaluate, is_float, is_literal, needed_for, value_of

Array = jax.Array
Replacement = Callable[[core.JaxprEqn, Array], Array]

# The columns of a matrix that is multiplied at once: more outgrow a core's second-level cache.
COLUMNS = 256
CONSTANT, INPUT, STATE = range(3)
# Functions whose derivative is a function of their value.
SLOPES: dict[str, Callable[[Array], Array]] = {
    "exp": lambda value: value,
    "logistic": lambda value: value * (1 - value),
    "tanh": lambda value: 1 - value * value,
}


def rule(
    operands: Sequence[Any],
    results: Sequence[Any],
    *,
    jaxpr: core.ClosedJaxpr,
    num_consts: int,
    num_carry: int,
    length: int,
    reverse: bool,
    **_: Any,
) -> Callable[..., Sequence[Array]] | None:
    """What takes the place of a scan: None where no step multiplies by a matrix of the loop's constants."""
    if length < 2 or jaxpr.effects or any(map(_is_key, (*operands, *results))):
        return None
    loop = Loop(jaxpr, num_consts, num_carry, length, reverse)
    return loop.run if loop.products else None


@dataclass(frozen=True)
class Loop:
    """A scan: the program of a step, of (constants, state, inputs) -> (state, outputs)."""

    step: core.ClosedJaxpr
    constants: int
    states: int
    length: int
    reverse: bool

    @cached_property
    def levels(self) -> dict[Any, int]:
        """What each value of a step depends on at most: the loop's constants, its inputs or its state."""
        jaxpr, states = self.step.jaxpr, self.constants + self.states
        levels: dict[Any, int] = dict.fromkeys(jaxpr.constvars, CONSTANT)
        for number, variable in enumerate(jaxpr.invars):
            levels[variable] = CONSTANT if number < self.constants else STATE if number < states else INPUT
        for equation in jaxpr.eqns:
            read = [levels[atom] for atom in equation.invars if not is_literal(atom)]
            level = max(read, default=CONSTANT)
            levels |= dict.fromkeys(equation.outvars, level)
        return levels

    @cached_property
    def products(self) -> list[core.JaxprEqn]:
        """Products of what depends on the state with a constant matrix."""
        return [one for one in self.step.jaxpr.eqns if self._multiplies(one, STATE)]

    @cached_property
    def functions(self) -> list[core.JaxprEqn]:
        """Functions of `SLOPES` of what depends on the state."""
        return [
            one
            for one in self.step.jaxpr.eqns
            if one.primitive.name in SLOPES and self._level(one) == STATE and is_float(one.outvars[0].aval)
        ]

    @cached_property
    def early_products(self) -> list[core.JaxprEqn]:
        """Products of what depends on the inputs alone with a constant matrix."""
        return [one for one in self.step.jaxpr.eqns if self._multiplies(one, INPUT)]

    def _multiplies(self, equation: core.JaxprEqn, level: int) -> bool:
        if equation.primitive.name != "dot_general":
            return False
        left, right = operands = list[Any](equation.invars)
        if any(is_literal(atom) for atom in operands):
            return False
        plain = equation.params["dimension_numbers"] == (((left.aval.ndim - 1,), (0,)), ((), ()))
        dtypes = {atom.aval.dtype for atom in (*operands, *list[Any](equation.outvars))}
        matrices = plain and left.aval.ndim > 1 and right.aval.ndim == 2 and len(dtypes) == 1 and is_float(left.aval)
        return matrices and (self.levels[left], self.levels[right]) == (level, CONSTANT)

    @cached_property
    def once(self) -> list[core.JaxprEqn]:
        """What is computed of constants alone."""
        return [one for one in self.step.jaxpr.eqns if self._level(one) == CONSTANT]

    @cached_property
    def early(self) -> list[core.JaxprEqn]:
        """The products with inputs, and what they need of the inputs."""
        return needed_for(self.early_products, [one for one in self.step.jaxpr.eqns if self._level(one) == INPUT])

    @cached_property
    def rest(self) -> list[core.JaxprEqn]:
        """What stays in the loop."""
        elsewhere = {id(one) for one in (*self.once, *self.early)}
        return [one for one in self.step.jaxpr.eqns if id(one) not in elsewhere]

    def _level(self, equation: core.JaxprEqn) -> int:
        return self.levels[equation.outvars[0]] if equation.outvars else STATE

    def run(self, *given: Array) -> Sequence[Array]:
        """The last state and the outputs of all steps."""
        jaxpr, states = self.step.jaxpr, self.constants + self.states
        known: Values = dict(zip(jaxpr.constvars, self.step.consts, strict=True))
        known |= zip(jaxpr.invars[: self.constants], given[: self.constants], strict=True)
        evaluate(jaxpr, self.once, known)
        inputs: Values = dict(zip(jaxpr.invars[states:], given[states:], strict=True))
        first = list(inputs)

        def of_a_step(*values: Array) -> list[Array]:
            found = known | dict(zip(first, values, strict=True))
            evaluate(jaxpr, self.early, found)
            return [found[variable] for variable in made]

        read = {atom for one in self.rest for atom in one.invars if not is_literal(atom)}
        read |= {atom for atom in jaxpr.outvars if not is_literal(atom)}
        made = [variable for one in self.early for variable in one.outvars if variable in read]
        if made:
            inputs |= zip(made, jax.vmap(of_a_step)(*inputs.values()), strict=True)
        matrices = [known[one.invars[1]] for one in self.products]
        constants = {variable: value for variable, value in known.items() if variable in read}
        inputs = {variable: value for variable, value in inputs.items() if variable in read or variable in first}
        return _Steps(self, list(constants), list(inputs)).run(
            matrices, list(constants.values()), list(given[self.constants : states]), list(inputs.values())
        )


@dataclass(frozen=True)
class _Steps:
    """The steps of a loop. constants, inputs: what they read that does not depend on the state."""

    loop: Loop
    constants: list[core.Var]
    inputs: list[core.Var]

    def run(
        self, matrices: list[Array], constants: list[Array], state: list[Array], inputs: list[Array]
    ) -> list[Array]:
        """The last state and the outputs, differentiable in every mode."""

        @jax.custom_jvp
        def scan(matrices: list[Array], constants: list[Array], state: list[Array], inputs: list[Array]) -> Any:
            return self._scan(matrices, constants, state, inputs, record=False)[0]

        @scan.defjvp
        def _(primals: Any, tangents: Any) -> Any:
            return self._derivative(primals, tangents)

        return scan(matrices, constants, state, inputs)

    def _step(self, replacement: Replacement, constants: Sequence[Array], state: Sequence[Array], inputs: Any) -> Any:
        """A step, with its products and functions by the replacement: its new state and its outputs."""
        loop, jaxpr = self.loop, self.loop.step.jaxpr
        found: Values = dict(zip([*self.constants, *self.inputs], [*constants, *inputs], strict=True))
        found |= zip(jaxpr.invars[loop.constants : loop.constants + loop.states], state, strict=True)
        replaced = {id(one) for one in self._replaced}

        def bind(equation: core.JaxprEqn, given: Sequence[Array]) -> Sequence[Array]:
            if id(equation) in replaced:
                return [replacement(equation, given[0])]
            return bind_equation(jaxpr, equation, given)

        evaluate(jaxpr, loop.rest, found, bind)
        outputs = [value_of(atom, found) for atom in jaxpr.outvars]
        shapes: list[Any] = [atom.aval for atom in jaxpr.outvars]
        outputs = [jnp.asarray(value, aval.dtype) for value, aval in zip(outputs, shapes, strict=True)]
        return outputs[: loop.states], outputs[loop.states :]

    def _scan(self, matrices: Any, constants: Any, state: Any, inputs: Any, *, record: bool) -> Any:
        """(last state and outputs, what was recorded of each step: its state, the factors and the results)."""
        loop = self.loop
        blocks = {id(one): _blocks(matrix) for one, matrix in zip(loop.products, matrices, strict=True)}

        def step(state: list[Array], inputs: list[Array]) -> Any:
            factors: dict[int, Array] = {}
            made: dict[int, Array] = {}

            def replacement(equation: core.JaxprEqn, operand: Array) -> Array:
                key = id(equation)
                if key in blocks:
                    factors[key] = operand
                    made[key] = jnp.concatenate([operand @ block for block in blocks[key]], axis=-1)
                else:
                    # Fused with others XLA computes them several times as long.
                    made[key] = jax.lax.optimization_barrier(bind_equation(loop.step.jaxpr, equation, [operand])[0])
                return made[key]

            after, outputs = self._step(replacement, constants, state, inputs)
            kept = state, [factors[id(one)] for one in loop.products], [made[id(one)] for one in self._replaced]
            return after, (outputs, kept if record else ())

        after, (outputs, kept) = jax.lax.scan(step, state, inputs, loop.length, loop.reverse)
        return [*after, *outputs], kept

    @property
    def _replaced(self) -> list[core.JaxprEqn]:
        return [*self.loop.products, *self.loop.functions]

    def _derivative(self, primals: Any, tangents: Any) -> Any:
        """A second loop has the derivative of each step at what the first one recorded."""
        matrices, constants, _, inputs = primals
        results, (states, factors, made) = self._scan(*primals, record=True)
        turned = [[jax.lax.optimization_barrier(block.T) for block in _blocks(matrix)] for matrix in matrices]
        moved = [_product_of_all(left, moved) for left, moved in zip(factors, tangents[0], strict=True)]
        moved_constants, moved_inputs = _floats(tangents[1], constants), _floats(tangents[3], inputs)
        numbers = {id(one): number for number, one in enumerate(self._replaced)}

        def step(moved_state: list[Array], given: Any) -> Any:
            state, inputs, made, moved, moved_inputs = given

            def outcome(constants_: Any, state_: Any, inputs_: Any, added: list[Array]) -> list[Array]:
                def replacement(equation: core.JaxprEqn, operand: Array) -> Array:
                    number = numbers[id(equation)]
                    if number < len(turned):
                        return _product(operand, turned[number], made[number], added[number])
                    return _function(equation.primitive.name, operand, made[number])

                whole = _merged(constants, constants_), _merged(state, state_), _merged(inputs, inputs_)
                after, outputs = self._step(replacement, *whole)
                return [value for value in (*after, *outputs) if is_float(value)]

            at = *(_floats(values, values) for values in (constants, state, inputs)), made[: len(turned)]
            found = jax.jvp(outcome, at, (moved_constants, moved_state, moved_inputs, moved))[1]
            return found[: len(moved_state)], found[len(moved_state) :]

        given = states, inputs, made, moved, moved_inputs
        # Nothing is kept of a step: what its transpose needs is recorded, or quick to compute there.
        step = jax.checkpoint(step, prevent_cse=False)
        after, outputs = jax.lax.scan(
            step, _floats(tangents[2], primals[2]), given, self.loop.length, self.loop.reverse
        )
        floats = iter([*after, *outputs])
        return results, [next(floats) if is_float(one) else np.zeros(one.shape, jax.dtypes.float0) for one in results]


def _floats(values: Sequence[Array], like: Sequence[Array]) -> list[Array]:
    """Those of the values whose counterpart has a derivative."""
    return [value for value, other in zip(values, like, strict=True) if is_float(other)]


def _merged(whole: Sequence[Array], floats: Sequence[Array]) -> list[Array]:
    """The values, with these in place of those that have a derivative."""
    given = iter(floats)
    return [next(given) if is_float(value) else value for value in whole]


@jax.custom_jvp
def _product(left: Array, turned: list[Array], product: Array, added: Array) -> Array:
    """The product of `left` and a matrix, known already.

    turned: the matrix's blocks of columns, each transposed: so the transpose of the derivative is a plain product.
    added: moves as the matrix does, times `left`.
    """
    return product


@_product.defjvp
def _(primals: Any, tangents: Any) -> tuple[Array, Array]:
    left, turned = tangents[0], primals[1]
    along = [jax.lax.dot_general(left, block, (((left.ndim - 1,), (1,)), ((), ()))) for block in turned]
    return primals[2], jnp.concatenate(along, axis=-1) + tangents[3]


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _function(name: str, operand: Array, value: Array) -> Array:
    """A function of `SLOPES`, its value known already."""
    return value


@_function.defjvp
def _(name: str, primals: Any, tangents: Any) -> tuple[Array, Array]:
    return primals[1], tangents[0] * SLOPES[name](primals[1])


def _product_of_all(left: Array, matrix: Array) -> Array:
    """Products of all steps `[time, …, features]` with a matrix, whose gradient is one product then."""
    columns = jax.lax.optimization_barrier(left.reshape(-1, left.shape[-1]).T)
    product = jax.lax.dot_general(columns, matrix, (((0,), (0,)), ((), ())))
    return product.reshape(*left.shape[:-1], matrix.shape[1])


def _blocks(matrix: Array) -> list[Array]:
    """Equal blocks of at most `COLUMNS` columns, which the barrier has made once; or the matrix whole."""
    parts = -(-matrix.shape[1] // COLUMNS)
    if parts == 1 or matrix.shape[1] % parts:
        return [matrix]
    return list(jax.lax.optimization_barrier(tuple(jnp.split(matrix, parts, axis=1))))


def _is_key(value: Any) -> bool:
    return jnp.issubdtype(value.dtype, jax.dtypes.extended)
