from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend import core

from headstart.models.rewrite import Rewritten, rewritten
from headstart.models.zoo import CharLSTM, as_model
from tiny import normal

pytestmark = pytest.mark.usefixtures("float64")
same = partial(jax.tree.map, partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-12))


class Network(nn.Module):
    cell: type
    width: int = 5

    @nn.compact
    def __call__(self, x):
        return nn.RNN(self.cell(self.width, param_dtype=float))(x)


def derivatives(function, given):
    """The value, its derivative along the arguments, the gradient, and a derivative of that in both modes."""

    def gradient(given):
        return jax.grad(lambda given: jnp.sin(function(given)).sum())(given)

    def norm(given):
        return sum(jnp.cos(leaf).sum() for leaf in jax.tree.leaves(gradient(given)))

    return (
        jax.jvp(function, (given,), (given,)),
        jax.jvp(gradient, (given,), (given,)),
        jax.vmap(jax.grad(norm))(jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), given)),
    )


@pytest.mark.parametrize("cell", [nn.LSTMCell, nn.GRUCell])
def test_a_recurrent_network_is_that_of_xla(cell):
    model, x = Network(cell), normal(0, 2, 4, 3)
    params = model.init(jax.random.key(0), x)

    def loss(apply):
        return jax.jit(jax.value_and_grad(lambda params, x: jnp.sin(apply(params, x)).sum(), argnums=(0, 1)))

    same(loss(rewritten(model.apply))(params, x), loss(model.apply)(params, x))


def loop(given):
    """A state of a float and a number of steps, wide matrices, a matrix used twice, and what no step multiplies."""

    def step(state, x):
        hidden, count = state
        wide = jnp.tanh(hidden @ (given["wide"] * 2) + x @ given["inputs"])
        hidden = wide.reshape(2, 3, 200)[:, 0, :4] @ given["square"] + jnp.exp(-(hidden**2)) @ given["square"]
        return (hidden, count + 1), (wide[:, :2] * count, count, given["square"])

    start = given["start"], jnp.zeros((), jnp.int32)
    return lax.scan(step, start, given["x"], reverse=True)


def test_any_loop_over_time_is_that_of_xla_in_every_derivative():
    shapes = {"wide": (4, 600), "inputs": (3, 600), "square": (4, 4), "start": (2, 4), "x": (5, 2, 3)}
    given = {name: normal(number, *shape) / 2 for number, (name, shape) in enumerate(shapes.items())}

    def function(given):
        (hidden, _), (first, _, square) = loop(given)
        return jnp.concatenate([hidden.ravel(), first.ravel(), square.ravel()])

    same(rewritten(loop)(given), loop(given))
    same(jax.jit(partial(derivatives, rewritten(function)))(given), jax.jit(partial(derivatives, function))(given))


def products(jaxpr):
    """How many products the program has, those of each loop times its steps."""
    count = 0
    for equation in jaxpr.eqns:
        inside = sum(products(getattr(inner, "jaxpr", inner)) for inner in core.jaxprs_in_params(equation.params))
        count += (equation.primitive.name == "dot_general") + equation.params.get("length", 1) * inside
    return count


def test_gradients_of_matrices_and_products_with_inputs_are_one_product_each():
    model, x = Network(nn.OptimizedLSTMCell), normal(0, 2, 7, 3)
    params = model.init(jax.random.key(0), x)

    def count(apply):
        program = jax.make_jaxpr(jax.grad(lambda params: apply(params).sum()))(params)
        return products(program.jaxpr)

    # At each step two forward, and three for gradients: of two matrices and of the state.
    assert count(lambda params: model.apply(params, x)) == 7 * 5
    # At each step one forward and one for the gradient of the state; once one with the inputs, two for gradients.
    assert count(rewritten(lambda params: model.apply(params, x))) == 7 * 2 + 3


def test_what_has_a_derivative_of_its_own_or_no_state_is_left_alone():
    tokens = np.zeros((1, 6), np.int32)
    assert not isinstance(as_model(CharLSTM(7, 2, 3), tokens).apply, Rewritten)
    assert isinstance(as_model(Network(nn.GRUCell), np.zeros((1, 6, 2))).apply, Rewritten)
    assert not isinstance(as_model(Network(nn.GRUCell), np.zeros((1, 6, 2)), rewrite=False).apply, Rewritten)
    in_turn = as_model((lambda key: jnp.eye(2), lambda w, x: lax.map(lambda row: row @ w, x)), np.zeros((1, 3, 2)))
    assert not isinstance(in_turn.apply, Rewritten)


def test_a_loop_that_prints_is_left_alone(capfd):
    def function(matrix, x):
        def step(state, x):
            jax.debug.print("a step")
            return jnp.tanh(state @ matrix + x), ()

        return lax.scan(step, jnp.zeros_like(x[0]), x)[0].sum()

    printed = []
    for of in (function, rewritten(function)):
        for called in (of, jax.grad(of)):
            called(normal(0, 4, 4), normal(1, 3, 2, 4))
            jax.effects_barrier()
            printed.append(capfd.readouterr().out.count("a step"))
    assert printed[:2] == printed[2:] and printed[0] == 3
