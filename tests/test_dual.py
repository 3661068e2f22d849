"""Personalization in dual coordinates is the same personalization."""

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import headstart as hs
from headstart.data.federation import Block, Client
from headstart.learning.dual import DualRows, dual_form
from headstart.learning.method import PLAIN, Method
from headstart.learning.personalization import Personalization, client_curves
from headstart.methods.ditto import Ditto
from headstart.methods.fedrep import FedRep
from headstart.methods.partial import proximal
from headstart.models.first_layer import first_layer
from headstart.models.zoo import CNN, MLP, Logistic, Model, as_model

TASK = hs.Classification()
INPUTS, CLASSES, CAPACITY = 60, 4, 12


def clients(size: int = 9) -> tuple[Client, Client]:
    """A client's examples to train on and to test on, 9 and 5 among the rows of others, with padding."""
    draws = np.random.default_rng(0)
    x, y = draws.normal(size=(40, 3, 20)), draws.integers(0, CLASSES, 40)
    block, order = Block(jnp.asarray(x), jnp.asarray(y, jnp.int32)), draws.permutation(40).astype(np.int32)
    key = jnp.array([1, 2], jnp.uint32)
    adapt, test = jnp.asarray(order[:CAPACITY]), jnp.asarray(order[CAPACITY : 2 * CAPACITY])
    return Client(block, adapt, jnp.int32(size), key), Client(block, test, jnp.int32(5), key)


def model_of(module: Any) -> tuple[Model, Any]:
    """A model for such inputs, and its parameters, in float64 where the test is."""
    model, wide = as_model(module, jnp.zeros((1, 3, 20))), jnp.zeros(()).dtype
    return model, jax.tree.map(lambda leaf: leaf.astype(wide), model.init(jax.random.key(0)))


def curves(method: Method, module: Any, recipe: Personalization, *, dual: bool, size: int = 9) -> Any:
    model, params = model_of(module)
    broadcast = method.init_server(params)

    def run(adapt: Client, test: Client) -> Any:
        return client_curves(TASK, model, recipe, broadcast, adapt, test, jax.random.key(3), method, dual=dual)

    return jax.jit(run)(*clients(size))


def is_dual(module: Any, *, epochs: float = 5) -> bool:
    """Whether such a client of this model is put into dual coordinates."""
    model, params = model_of(module)
    return isinstance(dual_form(model, params, *clients(), epochs=epochs).adapt.block.x, DualRows)


def assert_same(one: Any, other: Any) -> None:
    """Equal to rounding of float64, infinite and missing numbers too."""
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9), one, other)


def check_same(method: Method, module: Any, recipe: Personalization, **client: int) -> None:
    assert_same(*(curves(method, module, recipe, dual=dual, **client) for dual in (False, True)))


PLAINLY = Personalization(hs.Optimizer("sgd", 0.3), 4, 5)
# Batches of one row have no shorter ones beside them, which are to be compiled too.
QUICKLY = Personalization(hs.Optimizer("sgd", 0.3), 1, 5)
RECIPES = {
    "epochs": PLAINLY,
    "momentum": Personalization(hs.Optimizer("sgd", 0.3, {"momentum": 0.9, "nesterov": True}), 4, 5),
    "steps": Personalization(hs.Optimizer("sgd", 0.3), 4, steps=12),
}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())
def test_curves_in_dual_coordinates_are_the_same(float64, recipe: Personalization):
    assert is_dual(MLP(CLASSES, (20,)))
    check_same(PLAIN, MLP(CLASSES, (20,)), recipe)


@pytest.mark.parametrize("method", [Ditto(strength=0.3), FedRep()], ids=lambda one: type(one).__name__)
def test_methods_that_personalize_in_their_own_way_do_so_in_dual_coordinates(float64, method: Method):
    check_same(method, MLP(CLASSES, (20,)), QUICKLY)


@pytest.mark.parametrize("size", [0, CAPACITY])
def test_clients_of_any_size(float64, size: int):
    check_same(PLAIN, Logistic(CLASSES), QUICKLY, size=size)


class Net(nn.Module):
    """Two dense layers, with what a test puts before them, beside them and into them."""

    before: Any = staticmethod(lambda x: x)
    beside: Any = staticmethod(lambda x: 0.0)
    dropout: float = 0.0
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Any, *, train: bool = False) -> Any:
        flat = self.before(x).reshape(x.shape[0], -1)
        flat = nn.Dropout(self.dropout)(flat, deterministic=not train)
        hidden = nn.relu(nn.Dense(20, dtype=self.dtype, param_dtype=self.param_dtype)(flat)) + self.beside(flat)
        return nn.Dense(CLASSES)(nn.Dropout(0.5)(hidden, deterministic=not train))


def standardized(x: Any) -> Any:
    """Inputs by the mean and the deviation of each, known beforehand."""
    return (x - np.linspace(-1, 1, 60).reshape(3, 20)) / 2


def test_inputs_are_standardized_before_and_dropout_comes_after(float64):
    module = Net(before=standardized)
    assert is_dual(module)
    check_same(PLAIN, module, QUICKLY)


REFUSED = {
    "rows of a batch are centred": Net(before=lambda x: x - x.mean(axis=0)),
    "rows differ by their place": Net(before=lambda x: x * jnp.arange(x.shape[0]).reshape(-1, 1, 1)),
    "rows are turned round": Net(before=lambda x: x[::-1]),
    "inputs are read elsewhere": Net(beside=lambda flat: flat[:, :20]),
    "inputs are dropped": Net(dropout=0.5),
    "another precision": Net(dtype=jnp.bfloat16),
    "half precision": Net(dtype=jnp.bfloat16, param_dtype=jnp.bfloat16),
    "something is printed": Net(before=lambda x: (jax.debug.print("{}", x[0, 0, 0]), x)[1]),
    "a convolution": CNN(CLASSES, (2, 2), 8),
}


@pytest.mark.parametrize("module", REFUSED.values(), ids=REFUSED.keys())
def test_models_without_such_a_first_layer_are_left_alone(float64, module: nn.Module):
    x = jnp.zeros((2, 8, 8, 1) if isinstance(module, CNN) else (2, 3, 20))
    model = as_model(module, x)
    params = model.init(jax.random.key(0))
    if module is not REFUSED["half precision"]:
        params = jax.tree.map(lambda leaf: leaf.astype(x.dtype), params)
    assert first_layer(model, params, x) is None


def test_a_matrix_that_is_used_twice_is_left_alone(float64):
    def init(key: Any) -> Any:
        return {"w": jax.random.normal(key, (60, CLASSES))}

    def apply(params: Any, x: Any) -> Any:
        return x.reshape(x.shape[0], -1) @ params["w"] + (params["w"] ** 2).sum()

    model, params = model_of((init, apply))
    assert first_layer(model, params, jnp.zeros((2, 3, 20))) is None
    model, params = model_of((init, lambda params, x: x.reshape(x.shape[0], -1) @ params["w"]))
    assert first_layer(model, params, jnp.zeros((2, 3, 20))) is not None


def test_many_examples_or_few_epochs_are_not_worth_it(float64):
    assert not is_dual(MLP(CLASSES, (20,)), epochs=0)
    assert not is_dual(Logistic(CLASSES), epochs=1)


@dataclass(frozen=True)
class Decayed(Method):
    """Personalizes with a proximal term around zero, which dual coordinates do not keep."""

    def personal_gradient(self, start: Any) -> Any:
        return proximal(0.5, jax.tree.map(jnp.zeros_like, start))


@dataclass(frozen=True)
class Clipped(Method):
    """Personalizes by gradients of a bounded norm, which dual coordinates do not keep."""

    def personal_gradient(self, start: Any) -> Any:
        def transform(gradient: Any, params: Any) -> Any:
            norm = jnp.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(gradient)))
            return jax.tree.map(lambda leaf: leaf / jnp.maximum(1, 10 * norm), gradient)

        return transform


ADAM = Personalization(hs.Optimizer("adam", 0.1), 1, 5)


@pytest.mark.parametrize(("method", "recipe"), [(Clipped(), QUICKLY), (Decayed(), QUICKLY), (PLAIN, ADAM)])
def test_steps_that_other_coordinates_would_change_are_left_alone(float64, method: Method, recipe: Personalization):
    one, other = (curves(method, Logistic(CLASSES), recipe, dual=dual) for dual in (False, True))
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_a_row_that_is_not_finite_breaks_what_it_broke_before(float64):
    adapt, test = clients()
    broken = adapt.block.x.at[adapt.rows[2], 0, 0].set(jnp.nan)
    model, params = model_of(Logistic(CLASSES))
    given = [each._replace(block=each.block._replace(x=broken)) for each in (adapt, test)]
    found = [
        jax.jit(
            lambda adapt, test, dual=dual: client_curves(
                TASK, model, QUICKLY, params, adapt, test, jax.random.key(3), dual=dual
            )
        )(*given)
        for dual in (False, True)
    ]
    assert np.isfinite(found[1][0]["loss"][0][0]) and not np.isfinite(found[1][0]["loss"][0][-1])
    assert_same(*found)
