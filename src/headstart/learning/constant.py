"""Constant predictions: of classes by how often each is met, of quantities their mean. What learns must beat them."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from headstart.data.federation import Array, Client, Examples, Tree
from headstart.learning.local_sgd import fold_batches
from headstart.learning.method import Method
from headstart.learning.tasks import Classification, Regression, Task, add
from headstart.models.zoo import Model

BATCH = 128
# Of a class, so that one that is never met has a probability.
LEAST_SHARE = 1e-6


def has_constants(task: Task) -> bool:
    """Whether constant predictions are known for a task."""
    return isinstance(task, Classification | Regression)


def constant_model(task: Task, shape: tuple[int, ...]) -> Model:
    """The model whose parameters, of the shape of an output, are its prediction: shares of classes, or a mean."""

    def apply(variables: Tree, x: Tree, *, key: Array | None = None) -> tuple[Tree, Tree]:
        output = jnp.log(jnp.maximum(variables, LEAST_SHARE)) if isinstance(task, Classification) else variables
        return jnp.broadcast_to(output, (jax.tree.leaves(x)[0].shape[0], *shape)), variables

    return Model(lambda key: jnp.zeros(shape, jnp.float32), apply)


def constant_of(task: Task, client: Client, otherwise: Array) -> Array:
    """The constant of a client's examples; without any, another one of this shape.

    Of classes that one counts as one more example, so that it decides among those that are met as often.
    """
    weight = 1.0 if isinstance(task, Classification) else 1e-6

    def total(examples: Examples) -> tuple[Array, Array]:
        if isinstance(task, Classification):
            values = jax.nn.one_hot(examples.y, otherwise.shape[-1], dtype=otherwise.dtype)
        else:
            values = examples.y.reshape(-1, *otherwise.shape).astype(otherwise.dtype)
        mask = examples.mask.reshape(-1, *[1] * (values.ndim - 1))
        return jnp.where(mask, values, 0).sum(axis=0), examples.mask.sum().astype(otherwise.dtype)

    def accumulate(sums: tuple[Array, Array], examples: Examples, _: Array) -> tuple[Array, Array]:
        return add(sums, total(examples))

    nothing = jnp.zeros_like(otherwise), jnp.zeros((), otherwise.dtype)
    sums, count = fold_batches(client, BATCH, accumulate, nothing)
    return (sums + weight * otherwise) / (count + weight)


class OwnConstant(Method):
    """Every client's initial model is the constant of its own support examples."""

    def personal_init(self, task: Task, model: Model, broadcast: Tree, client: Client, key: Array) -> Tree:
        """See `Method.personal_init`; broadcast is the federation's constant."""
        return constant_of(task, client, broadcast)
