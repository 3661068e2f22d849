"""Personalization in dual coordinates, which cost less where a client has fewer examples than a model has inputs.

The first layer of a model of rows, x W, is trained by steps that add products of the client's own rows, Xᵀ δ, to W. So
W is W₀ + Xᵀ A, with a row of A for each of the client's examples, and the layer is x W₀ + (x Xᵀ) A: with x W₀ and x Xᵀ
computed once, a step multiplies rows of as many numbers as the client has examples, not as the model has inputs. It is
what kernel machines call the dual form; what is computed is the same to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from headstart.data.federation import Array, Client, Examples, Tree
from headstart.learning.local_sgd import collect_batches
from headstart.models.first_layer import first_layer
from headstart.models.zoo import Model

# The dual form is taken where it has at most this share of the operations: small products are less fast.
_SHARE = 2 / 3
# Rows that are put into dual coordinates at once.
_BLOCK = 32


class Form(NamedTuple):
    """A model, the parameters that local training starts from, and a client's examples, in some coordinates."""

    model: Model
    start: Tree
    adapt: Client
    test: Client


class DualRows(NamedTuple):
    """Examples in dual coordinates.

    start: `[rows, outputs]`, x W₀. products: `[rows, capacity]`, x Xᵀ. number: int32 `[rows]`, of the row in X; of rows
    that are not in it any.
    """

    start: Array
    products: Array
    number: Array


def dual_form(model: Model, start: Tree, adapt: Client, test: Client, *, epochs: float) -> Form:
    """A model and a client in dual coordinates; as given where the model has no such first layer, or it saves little.

    start: the parameters that local training starts from. epochs: of it, at most.
    """
    as_given, inputs = Form(model, start, adapt, test), _examples(adapt).x
    sizes = {math.prod(leaf.shape[1:]) for leaf in jax.tree.leaves(inputs)}
    matrices = [leaf.shape for leaf in jax.tree.leaves(start) if leaf.ndim == 2 and leaf.shape[0] in sizes]
    saves = partial(_saves, capacity=len(adapt.rows), tested=len(test.rows), epochs=epochs)
    if not any(saves(*matrix) for matrix in matrices):
        return as_given
    first = first_layer(model, start, inputs)
    if first is None or not saves(*first.matrix.shape):
        return as_given
    leaves, structure = jax.tree.flatten(start)
    own, matrix = first.features(inputs), leaves[first.leaf]
    leaves[first.leaf] = jnp.zeros((len(own), matrix.shape[1]), matrix.dtype)

    def apply(variables: Tree, x: DualRows, *, key: Array | None = None) -> tuple[Tree, Tree]:
        return first.rest(variables, _product(*x, jax.tree.leaves(variables)[first.leaf]), key)

    def rows(examples: Examples) -> tuple[Array, Array]:
        features = first.features(examples.x)
        # No step has been along a row that is not finite, as along padding, and none before the first.
        products = jnp.nan_to_num(jnp.where(jnp.arange(len(own)) < adapt.size, features @ own.T, 0))
        return features @ matrix, products

    dual = Model(model.init, apply)
    return Form(dual, jax.tree.unflatten(structure, leaves), *(_in_rows(client, rows) for client in (adapt, test)))


def _in_rows(client: Client, rows: Callable[[Examples], tuple[Array, Array]]) -> Client:
    """The client with its examples in dual coordinates, some rows at a time, so that little is done for padding."""
    start, products = collect_batches(client, _BLOCK, rows)
    numbers = jnp.arange(len(client.rows), dtype=jnp.int32)
    block = client.block._replace(x=DualRows(start, products, numbers), y=_examples(client).y)
    return client._replace(block=block, rows=numbers)


@jax.custom_vjp
def _product(start: Array, products: Array, number: Array, change: Array) -> Array:
    """The layer's product x W, `[rows, outputs]`, where W is W₀ + Xᵀ change."""
    return start + products @ change


def _forward(start: Array, products: Array, number: Array, change: Array) -> tuple[Array, tuple[Array, Array]]:
    return _product(start, products, number, change), (number, change)


def _backward(residuals: tuple[Array, Array], cotangent: Array) -> tuple[None, None, None, Array]:
    """The gradient of W, which is xᵀ δ, in the same coordinates: δ in the rows of the batch."""
    number, change = residuals
    return None, None, None, jnp.zeros_like(change).at[number].add(cotangent)


_product.defvjp(_forward, _backward)


def _examples(client: Client) -> Examples:
    positions = jnp.arange(len(client.rows))
    return client.examples(positions, positions < client.size)


def _saves(inputs: int, outputs: int, capacity: int, tested: int, epochs: float) -> bool:
    """Whether the dual form takes much fewer operations, of clients that fill half of the room for their examples."""
    trained, measured = epochs * capacity / 2, (epochs + 1) * tested / 2
    primal = (2 * trained + measured) * inputs * outputs
    preparing = (capacity + tested) / 2 * inputs * (outputs + capacity)
    return preparing + (trained + measured) * capacity * outputs < _SHARE * primal
