"""Floating-point operations of a traced program, counted and not timed.

A product of matrices or a convolution has two for each multiplication and addition, anything elementwise one for each
number that it makes, a sum one for each number that goes into it. Moving numbers, comparing them and whole numbers are
free, and so is what nobody needs. A loop of a known length counts as often. How often a loop turns whose length
depends on values, and which branch is taken, is computed: by the program itself, cut down to what its loops and
branches depend on, so that no model is applied to learn how many steps a client takes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from headstart.models.equations import Values, bind_equation, is_literal, value_of
from headstart.models.liveness import (
    BRANCHES,
    LOOP,
    PREDICATE,
    SCAN,
    Equation,
    Indices,
    Jaxpr,
    Liveness,
    is_known,
    programs,
    with_constants,
)

Array = jax.Array
Tree = Any
# Values of a program's inputs or outputs, those that are needed, by position.
Some = Mapping[int, Any]
# int32 `[pieces]`; None inside of what is counted already.
Times = Array | None


def operations(function: Callable[..., Tree], *arguments: Tree) -> float:
    """The floating-point operations of `function(*arguments)`."""
    costs, times = jax.jit(lambda *given: executions(function, *given))(*arguments)
    return float(np.asarray(costs, np.float64) @ np.asarray(times, np.float64))


def executions(function: Callable[..., Tree], *arguments: Tree) -> tuple[Array, Array]:
    """The operations of each piece of a function, and how often it is executed: float32 and int32 `[pieces]`.

    A piece is what is always executed together: the whole but its loops and branches, a turn of a loop, a branch. To
    be called under `jax.jit`, which leaves out whatever the number of executions does not depend on.
    """
    program = jax.make_jaxpr(function)(*arguments)
    everything = frozenset(range(len(program.jaxpr.outvars)))
    counter = _Counter()
    whole = counter.add(program.jaxpr, everything)
    times = jnp.zeros(len(counter.costs), jnp.int32).at[whole].add(1)
    leaves = jax.tree.leaves(arguments)
    given = {index: leaves[index] for index in counter.alive.to_count(program.jaxpr, everything).inputs}
    counted = counter.run(program, given, everything, frozenset(), times)[1]
    assert counted is not None
    return jnp.asarray(counter.costs, jnp.float32), counted


class _Counter:
    """The pieces of a program: `costs` of each; and what counts how often each is executed.

    A program is another one for each choice of which of its outputs are used, `live`.
    """

    def __init__(self) -> None:
        self.alive = Liveness()
        self.costs: list[int] = []
        self._index: dict[tuple[int, Indices], int] = {}

    def add(self, jaxpr: Jaxpr, live: Indices, more: int = 0) -> int:
        """The number of the piece that a program is; those of its loops and branches come after it.

        more: operations that are executed with it each time.
        """
        key = id(jaxpr), live
        if key not in self._index:
            self._index[key] = len(self.costs)
            self.costs.append(self.alive.cost(jaxpr, live) + more)
            for equation, alive, _ in self.alive.executed(jaxpr, live).equations:
                if self.alive.is_dynamic(equation, alive):
                    inside, inner = self.alive.inside(equation, alive), programs(equation)
                    more = 0
                    if equation.primitive.name == LOOP:
                        condition, *inner = inner
                        more = self.alive.cost(condition, PREDICATE)
                    for program in inner:
                        self.add(program, inside, more)
        return self._index[key]

    def run(
        self, program: Any, given: Some, live: Indices, wanted: Indices, times: Times
    ) -> tuple[dict[int, Any], Times]:
        """The wanted outputs of a program, and `times` with what it executes added."""
        jaxpr, consts = (program.jaxpr, program.consts) if isinstance(program, core.ClosedJaxpr) else (program, ())
        found = Values(zip(jaxpr.constvars, consts, strict=True))
        found |= {jaxpr.invars[index]: value for index, value in given.items()}
        for equation, alive, used in self.alive.to_count(jaxpr, live, wanted).equations:
            if not is_known(equation):
                values = bind_equation(jaxpr, equation, [value_of(atom, found) for atom in equation.invars])
                found |= zip(equation.outvars, values, strict=True)
                continue
            counted = times if self.alive.is_dynamic(equation, alive) else None
            if counted is None and not used:
                continue
            inputs = {i: value_of(equation.invars[i], found) for i in self.alive.inputs(equation, alive, used)}
            run = {BRANCHES: self._branch, LOOP: self._loop, SCAN: self._scan}.get(equation.primitive.name, self._call)
            values, counted = run(equation, inputs, alive, used, counted)
            times = times if counted is None else counted
            found |= {equation.outvars[index]: value for index, value in values.items()}
        outputs = {index: jaxpr.outvars[index] for index in wanted}
        return {i: atom.val if is_literal(atom) else found[atom] for i, atom in outputs.items()}, times

    def _piece(self, program: Any, given: Some, live: Indices, wanted: Indices, times: Times) -> tuple[Any, Times]:
        """`run`, with this execution of the program counted."""
        if times is not None:
            jaxpr = program.jaxpr if isinstance(program, core.ClosedJaxpr) else program
            times = times.at[self._index[id(jaxpr), live]].add(1)
        return self.run(program, given, live, wanted, times)

    def _inputs(self, program: Any, live: Indices, wanted: Indices) -> Indices:
        jaxpr = program.jaxpr if isinstance(program, core.ClosedJaxpr) else program
        return self.alive.to_count(jaxpr, live, wanted).inputs

    def _call(
        self, equation: Equation, given: Some, live: Indices, wanted: Indices, times: Times
    ) -> tuple[dict[int, Any], Times]:
        (program,) = with_constants(equation)
        return self._piece(program, given, live, wanted, times)

    def _branch(
        self, equation: Equation, given: Some, live: Indices, wanted: Indices, times: Times
    ) -> tuple[dict[int, Any], Times]:
        order = sorted(wanted)

        def branch(program: Any) -> Callable[..., Any]:
            def run(given: Some, times: Times) -> tuple[list[Any], Times]:
                inputs = {index: given[1 + index] for index in self._inputs(program, live, wanted)}
                values, times = self._piece(program, inputs, live, wanted, times)
                return [values[index] for index in order], times

            return run

        branches = [branch(program) for program in with_constants(equation)]
        # A branch is chosen by a number, or by whether something holds.
        index = jnp.clip(jnp.asarray(given[0]).astype(jnp.int32), 0, len(branches) - 1)
        values, times = jax.lax.switch(index, branches, given, times)
        return dict(zip(order, values, strict=True)), times

    def _loop(
        self, equation: Equation, given: Some, live: Indices, wanted: Indices, times: Times
    ) -> tuple[dict[int, Any], Times]:
        first, second = equation.params["cond_nconsts"], equation.params["body_nconsts"]
        condition, body = with_constants(equation)
        inside, within = self.alive.inside(equation, live), self.alive.within(equation, live, wanted) or frozenset()
        order = sorted(within)

        def goes_on(carry: tuple[list[Any], Times]) -> Any:
            values = dict(zip(order, carry[0], strict=True))
            needed = self._inputs(condition, PREDICATE, PREDICATE)
            inputs = {index: given[index] if index < first else values[index - first] for index in needed}
            return self.run(condition, inputs, PREDICATE, PREDICATE, None)[0][0]

        def turn(carry: tuple[list[Any], Times]) -> tuple[list[Any], Times]:
            values = dict(zip(order, carry[0], strict=True))
            needed = self._inputs(body, inside, within)
            inputs = {index: given[first + index] if index < second else values[index - second] for index in needed}
            values, times = self._piece(body, inputs, inside, within, carry[1])
            return [values[index] for index in order], times

        start = [given[first + second + index] for index in order], times
        values, times = jax.lax.while_loop(goes_on, turn, start)
        return {index: value for index, value in zip(order, values, strict=True) if index in wanted}, times

    def _scan(
        self, equation: Equation, given: Some, live: Indices, wanted: Indices, times: Times
    ) -> tuple[dict[int, Any], Times]:
        consts, carries = equation.params["num_consts"], equation.params["num_carry"]
        (body,) = with_constants(equation)
        inside, within = self.alive.inside(equation, live), self.alive.within(equation, live, wanted) or frozenset()
        order, rows = sorted(i for i in within if i < carries), sorted(i for i in within if i >= carries)
        needed = self._inputs(body, inside, within)

        def turn(carry: tuple[list[Any], Times], each: Some) -> tuple[tuple[list[Any], Times], list[Any]]:
            values = {consts + index: value for index, value in zip(order, carry[0], strict=True)}
            inputs = {i: given[i] if i < consts else values[i] if i < consts + carries else each[i] for i in needed}
            outputs, times = self._piece(body, inputs, inside, within, carry[1])
            return ([outputs[index] for index in order], times), [outputs[index] for index in rows]

        start = [given[consts + index] for index in order], times
        stacked = {index: given[index] for index in needed if index >= consts + carries}
        (values, times), more = jax.lax.scan(
            turn, start, stacked, length=equation.params["length"], reverse=equation.params["reverse"]
        )
        found = dict(zip([*order, *rows], [*values, *more], strict=True))
        return {index: found[index] for index in wanted}, times
