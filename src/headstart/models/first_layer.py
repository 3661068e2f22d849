"""A model cut at its first layer, where that is a product of examples, each by itself, with a matrix of parameters."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.core import Tracer
from jax.extend import core

from headstart.models.equations import Values, bind_equation, evaluate, is_literal, needed_for, results, value_of
from headstart.models.zoo import Model

Array = jax.Array
Tree = Any

# Of the batch by which a model is judged: an array of as many rows is taken for one with a row for each example.
_ROWS = 3
# What makes each row of its result of the same row of what it is given.
_ROW_BY_ROW = "reshape", "squeeze", "transpose", "convert_element_type", "add", "sub", "mul", "div", "neg", "max", "min"
_MATRIX_PRODUCT = (((1,), (0,)), ((), ()))


@dataclass(frozen=True)
class FirstLayer:
    """The first layer of a model, x W, and the rest of it.

    model: the whole. variables, x: shapes of its variables and of a batch of its inputs.
    leaf: the number of W, a matrix `[inputs, outputs]`, among the leaves of the variables.
    """

    model: Model
    variables: Tree
    x: Tree
    leaf: int

    @property
    def matrix(self) -> jax.ShapeDtypeStruct:
        """The shape of W, `[inputs, outputs]`."""
        return jax.tree.leaves(self.variables)[self.leaf]

    def features(self, x: Tree) -> Array:
        """What the layer multiplies by W: `[rows, inputs]`, of a batch of inputs."""
        program = Program(self.model, self.variables, x, None)
        values = program.computed(dict(zip(program.inputs, jax.tree.leaves(x), strict=True)))
        return values[program.product(self.leaf).invars[0]]

    def rest(self, variables: Tree, product: Array, key: Array | None) -> tuple[Tree, Tree]:
        """What the model's second function returns, given x W in place of x; W itself is not read."""
        x = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((len(product), *leaf.shape[1:]), leaf.dtype), self.x)
        program = Program(self.model, self.variables, x, key)
        known = dict(zip(program.variables, jax.tree.leaves(variables), strict=True))
        known |= dict(zip(program.keys, jax.tree.leaves(key), strict=True))
        known[program.product(self.leaf).outvars[0]] = product
        return program.results(program.computed(known))


def first_layer(model: Model, variables: Tree, x: Tree) -> FirstLayer | None:
    """The model's first layer; None where it is no such product, or what it multiplies is read elsewhere too.

    variables, x: arrays or shapes; x a batch `[rows, ...]`.
    """
    few = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((_ROWS, *leaf.shape[1:]), leaf.dtype), x)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), variables)
    training, evaluating = (Program(model, shapes, few, key) for key in (jax.random.key(0), None))
    for leaf in range(len(training.variables)):
        ways = [program.way_to(leaf) for program in (training, evaluating)]
        if ways[0] is not None and ways[0] == ways[1]:
            return FirstLayer(model, shapes, few, leaf)
    return None


class Program:
    """A model's second function as operations, those of functions that it calls among them.

    variables, inputs, keys: its arguments. equations: its operations, in order. outputs: its results.
    """

    def __init__(self, model: Model, variables: Tree, x: Tree, key: Array | None) -> None:
        traced = jax.jit(lambda variables, x, key: model.apply(variables, x, key=key)).trace(variables, x, key)
        self._structure = jax.tree.structure(traced.out_info)
        shapes = [variable.aval for variable in traced.jaxpr.jaxpr.invars]
        closed = jax.make_jaxpr(lambda *given: _inlined(traced.jaxpr, given))(*shapes)
        self._program, self._constants = closed.jaxpr, closed.consts
        counts = [len(jax.tree.leaves(each)) for each in (variables, x, key)]
        arguments = iter(self._program.invars)
        self.equations, self.outputs = self._program.eqns, self._program.outvars
        self.variables, self.inputs, self.keys = ([next(arguments) for _ in range(count)] for count in counts)

    def product(self, leaf: int) -> core.JaxprEqn:
        """The operation that multiplies by this leaf of the variables, if it is read by one alone.

        Raises:
            LookupError: if it is not.
        """
        matrix = self.variables[leaf]
        reading = [equation for equation in self._program.eqns if matrix in equation.invars]
        if len(reading) != 1:
            raise LookupError(f"{len(reading)} operations read leaf {leaf}")
        return reading[0]

    def way_to(self, leaf: int) -> tuple[str, list[bytes]] | None:
        """What is done to inputs before they are multiplied by this leaf, with the constants in it.

        None where it is not the model's first layer.
        """
        try:
            product = self.product(leaf)
        except LookupError:
            return None
        if self._program.effects:  # such as printing, which is done once
            return None
        if not _is_product(product, self.variables[leaf]):
            return None
        left, fixed = product.invars[0], self.known([])
        rows, after = self.known(self.inputs) - fixed, self.known([*self.variables, *self.keys, *product.outvars])
        whole = all(is_literal(atom) or atom in after for atom in self._program.outvars)
        if not whole or left not in rows:
            return None
        if not all(_keeps_rows(each, rows) for each in self._program.eqns if rows.issuperset(each.outvars)):
            return None
        way = needed_for([product], self._program.eqns)[:-1]
        read = {atom for equation in way for atom in equation.invars if not is_literal(atom)}
        constants = [
            value for name, value in zip(self._program.constvars, self._constants, strict=True) if name in read
        ]
        if any(isinstance(value, Tracer) for value in constants):
            return None
        constants = [np.asarray(value).tobytes() for value in constants]
        return str(self._program.replace(invars=self.inputs, outvars=[left], eqns=way)), constants

    def _computable(self, known: Iterable[core.Var]) -> list[core.JaxprEqn]:
        """The operations that compute something else of these variables alone."""
        found, equations = {*self._program.constvars, *known}, []
        for equation in self._program.eqns:
            is_ready = all(is_literal(atom) or atom in found for atom in equation.invars)
            if is_ready and not found.issuperset(equation.outvars):
                equations.append(equation)
                found.update(equation.outvars)
        return equations

    def known(self, arguments: Collection[core.Var]) -> set[core.Var]:
        """The variables that can be computed from these alone, and these."""
        computed = (variable for equation in self._computable(arguments) for variable in equation.outvars)
        return {*self._program.constvars, *arguments, *computed}

    def computed(self, known: Mapping[core.Var, Array]) -> dict[Any, Array]:
        """The values of all variables that can be computed from the known ones."""
        values: Values = {**dict(zip(self._program.constvars, self._constants, strict=True)), **known}
        evaluate(self._program, self._computable(known), values)
        return values

    def results(self, values: Mapping[core.Var, Any]) -> Tree:
        """The program's results, of the values of its variables."""
        leaves = [value_of(atom, values) for atom in self._program.outvars]
        return jax.tree.unflatten(self._structure, leaves)


def _is_product(equation: core.JaxprEqn, matrix: core.Var) -> bool:
    if equation.primitive.name != "dot_general" or equation.params["dimension_numbers"] != _MATRIX_PRODUCT:
        return False
    left, right = map(_shape, equation.invars)
    types = {left.dtype, right.dtype, _shape(equation.outvars[0]).dtype}
    # Of half precision a small change is kept beside a matrix, and lost in it; products of inputs may be beyond it.
    is_exact = len(types) == 1 and left.dtype in (np.float32, np.float64)
    return equation.invars[1] is matrix and left.ndim == right.ndim == 2 and is_exact


def _shape(atom: Any) -> Any:
    """The shape and type of an operand or a result."""
    return atom.aval


def _keeps_rows(equation: core.JaxprEqn, rows: Collection[core.Var]) -> bool:
    """Whether each row of the result is made of the same row of the inputs, and all rows in the same way."""
    if any(
        _shape(atom).shape[:1] not in ((), (1,)) for atom in equation.invars if is_literal(atom) or atom not in rows
    ):
        return False
    if any(_shape(variable).shape[:1] != (_ROWS,) for variable in equation.outvars):
        return False
    if equation.primitive.name == "transpose":
        return equation.params["permutation"][0] == 0
    return equation.primitive.name in _ROW_BY_ROW


def _inlined(program: core.ClosedJaxpr, given: Sequence[Array]) -> list[Array]:
    """Evaluate a program; of a function that it calls, its operations are traced, and no call."""

    def bind(equation: core.JaxprEqn, operands: Sequence[Array]) -> list[Array]:
        called = equation.params.get("jaxpr") if equation.primitive.name in ("jit", "pjit") else None
        return bind_equation(program.jaxpr, equation, operands) if called is None else _inlined(called, operands)

    return results(program, given, bind)
