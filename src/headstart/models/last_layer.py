"""A model cut at its last layer, a product of features of each example with a matrix of parameters."""

from __future__ import annotations

from typing import Any

import jax
from jax.extend import core

from headstart.errors import UserError
from headstart.models.equations import is_literal, value_of
from headstart.models.first_layer import Program
from headstart.models.zoo import Model

Array = jax.Array
Tree = Any


def features_and_output(model: Model, variables: Tree, x: Tree) -> tuple[Array, Tree]:
    """What the model's last layer multiplies, `[rows, features]`, and its output, of a batch of inputs `[rows, ...]`.

    The last layer is the last product of such rows with what is made of the variables alone, through which goes all
    that the output has of the inputs.

    Raises:
        UserError: if the model has no such layer.
    """
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), variables)
    program = Program(model, shapes, x, None)
    known = dict(zip(program.variables, jax.tree.leaves(variables), strict=True))
    values = program.computed(known | dict(zip(program.inputs, jax.tree.leaves(x), strict=True)))
    return value_of(_features(program, len(jax.tree.leaves(x)[0])), values), program.results(values)[0]


def _features(program: Program, rows: int) -> core.Var:
    of_variables = program.known(program.variables)
    for equation in reversed(program.equations):
        if equation.primitive.name != "dot_general":
            continue
        left, right = equation.invars
        ((contracted, _), _) = equation.params["dimension_numbers"]
        is_dense = not is_literal(left) and left not in of_variables and (is_literal(right) or right in of_variables)
        if not is_dense or left.aval.ndim != 2 or left.aval.shape[0] != rows or tuple(contracted) != (1,):
            continue
        after = program.known([*program.variables, *equation.outvars])
        if all(is_literal(atom) or atom in after for atom in program.outputs):
            return left
    raise UserError(
        "the model has no last dense layer whose inputs, a row for each example, could be its features; choose a model"
        " that ends with one, such as mlp or cnn"
    )
