"""The optimum of a convex model on a client's examples, beside a pull to given parameters.

Minimized is the sum of the losses of the client's examples + pull / 2 · ‖w - center‖², so that a pull is worth a number
of examples: it moves a client with many of them little. The method is Newton's, its steps found by conjugate
gradients, which need no more than products with the Hessian, and halved until the objective falls.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from headstart.data.federation import Array, Client, Examples, Tree
from headstart.learning.local_sgd import fold_batches
from headstart.learning.tasks import Task, add, at_least_float32, total_loss
from headstart.models.zoo import Model

# From strong to weak. The strongest leave a client of a hundred examples nearly at the initial model.
PULLS = (300.0, 100.0, 30.0, 10.0, 3.0, 1.0, 0.3, 0.1, 0.03)
# The number of examples of which losses and their derivatives are computed together.
BATCH = 128
MOST_STEPS, MOST_PRODUCTS, MOST_HALVINGS = 30, 250, 20
# A step that promises less than this for every example is the last; the next one would promise about its square.
LEAST_GAIN = 1e-7
# Of the gradient, what conjugate gradients may leave.
RESIDUAL = 1e-4
# What a pull on an intercept is of that on a weight: how often a class or a level is met differs most between clients.
INTERCEPT = 0.1


class _Iterate(NamedTuple):
    """A point of the descent: the parameters (flat), the objective, its gradient, steps so far, and whether to stop."""

    point: Array
    value: Array
    gradient: Array
    steps: Array
    ends: Array


def pulled_optimum(
    task: Task, model: Model, start: Tree, center: Tree, client: Client, strength: Array | float
) -> Tree:
    """The parameters that minimize the client's losses and the pull to the center; without examples, the center's.

    start: where the search begins. strength: of the pull, above 0.
    """
    point, as_params = ravel_pytree(at_least_float32(start))
    middle = ravel_pytree(at_least_float32(center))[0]
    weights = jnp.asarray(strength, point.dtype) * ravel_pytree(jax.tree.map(_share, at_least_float32(center)))[0]

    def losses(point: Array, examples: Examples) -> Array:
        output, _ = model.apply(as_params(point), examples.x)
        return total_loss(task, output, examples)[0].astype(point.dtype)

    def over_client(function: Callable[[Examples], Tree], zero: Tree) -> Tree:
        return fold_batches(client, BATCH, lambda sums, examples, _: add(sums, function(examples)), zero)

    def objective(point: Array) -> tuple[Array, Array]:
        nothing = jnp.zeros((), point.dtype), jnp.zeros_like(point)
        value, gradient = over_client(lambda examples: jax.value_and_grad(losses)(point, examples), nothing)
        away = point - middle
        return value + jnp.sum(weights * away**2) / 2, gradient + weights * away

    def curvature(point: Array, vector: Array) -> Array:
        def product(examples: Examples) -> Array:
            return jax.jvp(lambda at: jax.grad(losses)(at, examples), (point,), (vector,))[1]

        return over_client(product, jnp.zeros_like(point)) + weights * vector

    return _typed(as_params(_descend(objective, curvature, point, LEAST_GAIN * client.size)), center)


def _share(leaf: Array) -> Array:
    """What the pull on each number of a leaf is of the pull: all of it on weights, little on intercepts."""
    return jnp.full_like(leaf, 1.0 if leaf.ndim > 1 else INTERCEPT)


def _typed(params: Tree, like: Tree) -> Tree:
    return jax.tree.map(lambda leaf, old: leaf.astype(old.dtype), params, like)


def _descend(
    objective: Callable[[Array], tuple[Array, Array]],
    curvature: Callable[[Array, Array], Array],
    point: Array,
    least_gain: Array,
) -> Array:
    """Newton's method from a point, until a step promises less than the least gain or none is found."""
    first = _Iterate(point, *objective(point), jnp.zeros((), jnp.int32), jnp.zeros((), bool))

    def step(now: _Iterate) -> _Iterate:
        direction, _ = jax.scipy.sparse.linalg.cg(
            lambda vector: curvature(now.point, vector), -now.gradient, tol=RESIDUAL, maxiter=MOST_PRODUCTS
        )
        slope = jnp.sum(direction * now.gradient)
        next_one = _along(objective, now, direction, slope)
        better = next_one.value <= now.value
        best = jax.tree.map(lambda new, old: jnp.where(better, new, old), next_one, now)
        return best._replace(steps=now.steps + 1, ends=~better | (-slope / 2 <= least_gain))

    return jax.lax.while_loop(lambda now: ~now.ends & (now.steps < MOST_STEPS), step, first).point


def _along(
    objective: Callable[[Array], tuple[Array, Array]], now: _Iterate, direction: Array, slope: Array
) -> _Iterate:
    """The first point on the way, of the whole step, half of it, a quarter and so on, where the objective falls."""
    # Two points whose sums differ by less are equal but for rounding.
    noise = 8 * jnp.finfo(now.value.dtype).eps * jnp.abs(now.value)

    def attempt(length: Array) -> _Iterate:
        point = now.point + length * direction
        return _Iterate(point, *objective(point), now.steps, now.ends)

    def too_long(carry: tuple[Array, _Iterate]) -> Array:
        length, found = carry
        falls = found.value <= now.value + 1e-4 * length * slope + noise
        return ~falls & (length > 0.5**MOST_HALVINGS)

    def halved(carry: tuple[Array, _Iterate]) -> tuple[Array, _Iterate]:
        return carry[0] / 2, attempt(carry[0] / 2)

    whole = jnp.ones((), now.value.dtype)
    return jax.lax.while_loop(too_long, halved, (whole, attempt(whole)))[1]
