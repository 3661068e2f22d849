"""Which operations of a traced program are needed, however deep: for its results, or to count what it executes.

JAX leaves out of a program what nobody needs, but not what is in a loop of unknown length; a compiler does. A
gradient of which a part is thrown away costs as much as the rest.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from jax.extend import core

from headstart.models.equations import is_float, is_literal

Jaxpr = core.Jaxpr
Equation = core.JaxprEqn
Indices = frozenset[int]

BRANCHES, LOOP, SCAN = "cond", "while", "scan"
PREDICATE = frozenset({0})
# They move numbers, or choose among them.
_FREE = frozenset(
    (
        *("broadcast_in_dim", "concatenate", "convert_element_type", "bitcast_convert_type", "copy", "copy_p"),
        *("device_put", "dynamic_slice", "dynamic_update_slice", "expand_dims", "gather", "iota", "imag", "pad"),
        *("optimization_barrier", "real", "reduce_precision", "reshape", "rev", "scatter", "select_n"),
        *("sharding_constraint", "slice", "sort", "split", "squeeze", "stop_gradient", "top_k", "transpose"),
    )
)
_FROM_ALL_THAT_GOES_IN = ("reduce_", "cum")
# What such an operation does to two numbers is in its settings.
_WHOLE = ("reduce", "scatter", "select_and", "sort", "cum")


class Needed(NamedTuple):
    """What is needed of a program.

    inputs: the positions of its inputs that it then depends on. equations: the operations, in order, each with the
    positions of its outputs that are needed, of what is executed and of what is to be computed to count that.
    """

    inputs: Indices
    equations: tuple[tuple[Equation, Indices, Indices], ...]


class Liveness:
    """What is needed of the programs in a program; each is looked through once."""

    def __init__(self) -> None:
        self._needed: dict[tuple[int, Indices, Indices | None], Needed] = {}
        self._costs: dict[tuple[int, Indices], int] = {}
        self._kept: list[Jaxpr] = []  # so that nothing else gets the identity of one of them

    def executed(self, jaxpr: Jaxpr, live: Indices) -> Needed:
        """What is executed of a program of which these outputs are used."""
        return self._find(jaxpr, live, None)

    def to_count(self, jaxpr: Jaxpr, live: Indices, wanted: Indices = frozenset()) -> Needed:
        """Of what is executed, what has to be computed to count it, and for the wanted outputs."""
        return self._find(jaxpr, live, wanted)

    def _find(self, jaxpr: Jaxpr, live: Indices, wanted: Indices | None) -> Needed:
        key = id(jaxpr), live, wanted
        if key not in self._needed:
            self._kept.append(jaxpr)
            counting = wanted is not None
            outputs = wanted if counting else live
            read = {jaxpr.outvars[index] for index in outputs if not is_literal(jaxpr.outvars[index])}
            everything = [(equation, frozenset(), frozenset()) for equation in jaxpr.eqns]
            chosen = []
            for equation, alive, _ in reversed(self.executed(jaxpr, live).equations if counting else everything):
                used = frozenset(i for i, variable in enumerate(equation.outvars) if variable in read)
                if not used and not (self.is_dynamic(equation, alive) if counting else equation.effects):
                    continue
                inputs = self.inputs(equation, alive, used) if counting else self.inputs(equation, used, None)
                read |= {equation.invars[i] for i in inputs if not is_literal(equation.invars[i])}
                chosen.append((equation, alive, used) if counting else (equation, used, frozenset()))
            inputs = frozenset(index for index, variable in enumerate(jaxpr.invars) if variable in read)
            self._needed[key] = Needed(inputs, tuple(reversed(chosen)))
        return self._needed[key]

    def inputs(self, equation: Equation, live: Indices, wanted: Indices | None) -> Indices:
        """The positions of the inputs of an operation that are needed.

        live: the outputs that are used. wanted: None for what is executed; otherwise the outputs that have to be
            computed, beside what it takes to count the operation.
        """
        if not is_known(equation):
            return frozenset(range(len(equation.invars)))
        inside, within = self.inside(equation, live), self.within(equation, live, wanted)

        def of(program: Jaxpr, live: Indices, wanted: Indices | None) -> Indices:
            return self._find(program, live, wanted).inputs

        if equation.primitive.name == LOOP:
            condition, body = programs(equation)
            first, second = equation.params["cond_nconsts"], equation.params["body_nconsts"]
            carry = inside if within is None else within
            return frozenset(
                [i for i in of(condition, PREDICATE, None if within is None else PREDICATE) if i < first]
                + [first + i for i in of(body, inside, within) if i < second]
                + [first + second + i for i in carry]
            )
        if equation.primitive.name == BRANCHES:
            each = [of(program, inside, within) for program in programs(equation)]
            return frozenset([0, *(1 + i for inputs in each for i in inputs)])
        (program,) = programs(equation)
        inputs = of(program, inside, within)
        if equation.primitive.name == SCAN:
            consts, carries = equation.params["num_consts"], equation.params["num_carry"]
            carry = [i for i in (inside if within is None else within) if i < carries]
            return frozenset([i for i in inputs if not consts <= i < consts + carries] + [consts + i for i in carry])
        return inputs

    def inside(self, equation: Equation, live: Indices) -> Indices:
        """The outputs of the programs of an operation that are used: of a loop what it carries for those of it."""
        return self._carried(equation, live, live, None)

    def within(self, equation: Equation, live: Indices, wanted: Indices | None) -> Indices | None:
        """The outputs of the programs of an operation that have to be computed; None where nothing is counted."""
        return None if wanted is None else self._carried(equation, live, wanted, self.inside(equation, live))

    def _carried(self, equation: Equation, live: Indices, outputs: Indices, inside: Indices | None) -> Indices:
        """These outputs, and of a loop what it carries that they, and its number of turns, depend on.

        inside: None for what is executed; otherwise what is used of the loop's body.
        """
        name = equation.primitive.name
        if name not in (LOOP, SCAN):
            return outputs
        if name == LOOP:
            condition, body = programs(equation)
            first, consts, carries = equation.params["cond_nconsts"], equation.params["body_nconsts"], len(body.outvars)
            decides = self._find(condition, PREDICATE, None if inside is None else PREDICATE).inputs
            outputs = outputs | {index - first for index in decides if index >= first}
        else:
            (body,) = programs(equation)
            consts, carries = equation.params["num_consts"], equation.params["num_carry"]
        while True:
            inputs = self._find(body, outputs if inside is None else inside, None if inside is None else outputs).inputs
            more = outputs | {index - consts for index in inputs if consts <= index < consts + carries}
            if more == outputs:
                return outputs
            outputs = more

    def is_dynamic(self, equation: Equation, live: Indices) -> bool:
        """Whether how many operations it executes depends on values."""
        name = equation.primitive.name
        if name == LOOP or not is_known(equation):
            return name == LOOP
        inside = self.inside(equation, live)
        each = [self.executed(program, inside).equations for program in programs(equation)]
        if any(self.is_dynamic(one, alive) for equations in each for one, alive, _ in equations):
            return True
        return name == BRANCHES and len({self.cost(program, inside) for program in programs(equation)}) > 1

    def cost(self, jaxpr: Jaxpr, live: Indices) -> int:
        """The operations of a program of which these outputs are used, without those of what is dynamic in it."""
        key = id(jaxpr), live
        if key not in self._costs:
            equations = self.executed(jaxpr, live).equations
            self._costs[key] = sum(self._cost_of(equation, alive) for equation, alive, _ in equations)
        return self._costs[key]

    def _cost_of(self, equation: Equation, live: Indices) -> int:
        inner = programs(equation)
        if not inner:
            return _leaf(equation)
        if self.is_dynamic(equation, live):
            return 0
        if not is_known(equation):
            return sum(self.cost(program, frozenset(range(len(program.outvars)))) for program in inner)
        once = self.cost(inner[0], self.inside(equation, live))
        return once * (equation.params["length"] if equation.primitive.name == SCAN else 1)


def is_known(equation: Equation) -> bool:
    """Whether it is a loop, a branch, or the call of a function, whose inputs and outputs are the function's."""
    inner = programs(equation)
    called = len(inner) == 1 and len(inner[0].invars) == len(equation.invars)
    return equation.primitive.name in (LOOP, BRANCHES, SCAN) or called


def programs(equation: Equation) -> list[Jaxpr]:
    """The programs that an operation runs, of a loop its condition and its body; none where it counts as a whole."""
    return [each.jaxpr if isinstance(each, core.ClosedJaxpr) else each for each in with_constants(equation)]


def with_constants(equation: Equation) -> list[Any]:
    """The same with their constants."""
    if equation.primitive.name == LOOP:
        return [equation.params["cond_jaxpr"], equation.params["body_jaxpr"]]
    return [] if equation.primitive.name.startswith(_WHOLE) else list(_programs(equation))


def _programs(equation: Equation) -> Iterator[Any]:
    for value in equation.params.values():
        for each in value if isinstance(value, tuple | list) else (value,):
            if isinstance(each, core.ClosedJaxpr | core.Jaxpr):
                yield each


def _shape(atom: Any) -> tuple[int, ...]:
    return atom.aval.shape


def _size(atom: Any) -> int:
    return math.prod(_shape(atom))


def _leaf(equation: Equation) -> int:
    """The floating-point operations of one that holds no program."""
    name, params = equation.primitive.name, equation.params
    (result, *_) = equation.outvars or [None]
    if result is None or not hasattr(result.aval, "dtype") or not is_float(result.aval) or name in _FREE:
        return 0
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        shape = _shape(equation.invars[0])
        return 2 * _size(result) * math.prod(shape[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel, axes = _shape(equation.invars[1]), params["dimension_numbers"].rhs_spec
        # Of an image that is spread out with zeros between, nothing is multiplied by these.
        spread = math.prod(params["lhs_dilation"])
        return 2 * _size(result) * math.prod(kernel[axis] for axis in axes[1:]) // spread
    if name.startswith("reduce_window"):
        return _size(result) * math.prod(params["window_dimensions"])
    if name.startswith(_FROM_ALL_THAT_GOES_IN):
        return sum(_size(atom) for atom in equation.invars)
    if name.startswith("scatter"):
        return _size(equation.invars[2])
    return sum(_size(variable) for variable in equation.outvars)
