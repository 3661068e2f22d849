"""Models: two functions, whatever they were written with; and the built-in ones."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from headstart.errors import UserError
from headstart.models.conv import conv_general_dilated, convolve_and_pool, max_pool
from headstart.models.dropout import Dropout
from headstart.models.lstm import LSTM, dot_general
from headstart.models.rewrite import Rewritten, is_replaceable, is_wanted

Array = jax.Array
Tree = Any


class Apply(Protocol):
    """The second of a model's two functions."""

    def __call__(self, variables: Tree, x: Tree, *, key: Array | None = None) -> tuple[Tree, Tree]:
        """Apply the model to a batch, as `Model` says."""
        ...


class Model(NamedTuple):
    """A model as two functions.

    init: key -> variables, a tree of arrays.
    apply: (variables, x, *, key=None) -> (output, variables). x is a batch `[batch, ...]`. Without a key it evaluates:
        no dropout, running statistics, the variables as they were. With a key it trains: dropout draws from the key,
        and the variables returned carry updated batch statistics. Parameters never change here.
    """

    init: Callable[[Array], Tree]
    apply: Apply


def as_model(thing: Any, example_x: Tree, *, rewrite: bool | None = None) -> Model:
    """The `Model` that a value stands for.

    thing: a `Model`; a pair of functions `init(key) -> params` and `apply(params, x) -> output`, which may also take
        `key=`; a Flax linen module; a Flax nnx module, or what makes one when called with `rngs=`. An nnx module
        that is made already has its own parameters: every key gives them.
    example_x: a tree of arrays `[batch, ...]`, read for shapes and dtypes only.
    rewrite: whether its convolutions, poolings and loops over time are replaced by what a CPU computes fast
        (`models/rewrite.py`); by default they are, unless `HEADSTART_REWRITE` is 0 in the environment.

    Raises:
        UserError: if the value is none of these, or fails on inputs like the example.
    """
    # Made on the host: an array that JAX makes is a program to compile.
    example_x = jax.tree.map(lambda leaf: jax.device_put(np.zeros((1, *leaf.shape[1:]), leaf.dtype)), example_x)
    try:
        model = _adapt(thing, example_x)
        # A mistake is best found before anything runs, and tracing finds it.
        traced = jax.jit(model.apply).trace(jax.eval_shape(model.init, jax.random.key(0)), example_x)
    except UserError:
        raise
    except Exception as error:  # whatever the user's own code raises
        raise UserError(_complaint(thing, example_x, error)) from error
    if isinstance(model.apply, Rewritten) or not (is_wanted() if rewrite is None else rewrite):
        return model
    return Model(model.init, Rewritten(model.apply)) if is_replaceable(traced.jaxpr.jaxpr) else model


def as_given(model: Model) -> Model:
    """The model with the function that it was given with, where `as_model` rewrote it."""
    return model._replace(apply=model.apply.apply) if isinstance(model.apply, Rewritten) else model


def count_parameters(variables: Tree) -> int:
    """How many numbers there are to learn: those under `params` if the variables have collections, else all."""
    if isinstance(variables, dict) and "params" in variables:
        variables = variables["params"]
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables))


class CNN(nn.Module):
    """Two convolutions and a hidden layer: 1,206,590 parameters by default, on images of 28 x 28.

    dropout: the rates after pooling and after the hidden layer; None for none. A rate of 0 draws no random bits.
    """

    classes: int = 62
    filters: tuple[int, ...] = (32, 64)
    hidden: int = 128
    dropout: tuple[float, float] | None = (0.25, 0.5)

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        """Logits `[batch, classes]` of images `[batch, height, width, channels]`; dropout only if it trains."""
        after_pooling, after_hidden = self.dropout or (0.0, 0.0)
        for filters in self.filters:
            x = nn.relu(_convolution(filters)(x))
        x = max_pool(x)
        x = Dropout(after_pooling)(x, train=train)
        x = nn.relu(_dense(self.hidden)(_flat(x)))
        x = Dropout(after_hidden)(x, train=train)
        return _dense(self.classes)(x)


class LeanCNN(nn.Module):
    """Two convolutions, each pooled by two, and a hidden layer: 115,326 parameters by default, on images of 28 x 28.

    It learns the built-in and the published images nearly as well as `CNN`, at about a tenth of the arithmetic.
    """

    classes: int = 62
    filters: tuple[int, ...] = (16, 32)
    hidden: int = 128

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Logits `[batch, classes]` of images `[batch, height, width, channels]`."""
        for filters in self.filters:
            # The maximum of a square is found before bias and relu, which keep the order.
            x = nn.relu(_convolution(filters, convolve_and_pool)(x))
        x = nn.relu(_dense(self.hidden)(_flat(x)))
        return _dense(self.classes)(x)


class CharLSTM(nn.Module):
    """A recurrent model of the next character: 820,522 parameters by default."""

    vocabulary: int = 90
    embedding: int = 8
    width: int = 256
    layers: int = 2

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Logits `[batch, time, vocabulary]` of int tokens `[batch, time]`."""
        x = nn.Embed(self.vocabulary, self.embedding, embedding_init=_around_zero)(x)
        for _ in range(self.layers):
            x = LSTM(self.width)(x)
        return _dense(self.vocabulary, dot_general=dot_general)(x)


class Logistic(nn.Module):
    """Logistic regression on the flattened input."""

    classes: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Logits `[batch, classes]` of inputs `[batch, ...]`."""
        return _dense(self.classes)(_flat(x))


class Linear(nn.Module):
    """Linear regression on the flattened input."""

    outputs: int = 1

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Predictions `[batch, outputs]` of inputs `[batch, ...]`."""
        return _dense(self.outputs)(_flat(x))


class MLP(nn.Module):
    """Dense layers with relu between them, on the flattened input; for classes or, without them, for quantities."""

    classes: int | None = None
    widths: tuple[int, ...] = (200,)
    outputs: int = 1

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Logits `[batch, classes]` or predictions `[batch, outputs]` of inputs `[batch, ...]`."""
        x = _flat(x)
        for width in self.widths:
            x = nn.relu(_dense(width)(x))
        return _dense(self.outputs if self.classes is None else self.classes)(x)


ALIASES: dict[str, type[nn.Module]] = {
    "cnn": CNN,
    "cnn_lean": LeanCNN,
    "char_lstm": CharLSTM,
    "logistic": Logistic,
    "linear": Linear,
    "mlp": MLP,
}


def _dense(features: int, **options: Any) -> nn.Dense:
    return nn.Dense(features, kernel_init=nn.initializers.glorot_uniform(), **options)


def _convolution(filters: int, function: Callable[..., Array] = conv_general_dilated) -> nn.Conv:
    return nn.Conv(
        filters,
        (3, 3),
        padding="VALID",
        kernel_init=nn.initializers.glorot_uniform(),
        conv_general_dilated=function,
    )


def _flat(x: Array) -> Array:
    return x.reshape(x.shape[0], -1)


def _around_zero(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    return jax.random.uniform(key, shape, dtype, minval=-0.05, maxval=0.05)


def _adapt(thing: Any, example_x: Tree) -> Model:
    if isinstance(thing, Model):
        return thing
    if isinstance(thing, nn.Module):
        return _from_linen(thing, example_x)
    if isinstance(thing, nnx.Module):
        return _from_nnx(lambda _: thing)
    if isinstance(thing, tuple | list) and len(thing) == 2 and all(map(callable, thing)):
        return _from_functions(*thing)
    # The class of an nnx module, bare or in a partial, shows no more of its signature than `**kwargs`.
    if callable(thing) and _parameters(thing) & {"rngs", "kwargs"}:
        return _from_nnx(lambda key: cast(nnx.Module, thing(rngs=nnx.Rngs(key))))
    raise UserError(
        f"{_name(thing)} is no model: give a Model, a pair of functions (init, apply), an instance of a Flax linen"
        " module, or a Flax nnx module or what makes one from rngs="
    )


def _complaint(thing: Any, example_x: Tree, error: Exception) -> str:
    shapes = ", ".join(f"{leaf.dtype}{list(leaf.shape)}" for leaf in jax.tree.leaves(example_x))
    reason = next(iter(str(error).splitlines()), "")
    return (
        f"the model {_name(thing)} fails on a batch of {shapes} ({type(error).__name__}: {reason});"
        " choose a model for such inputs"
    )


def _name(thing: Any) -> str:
    return thing.__name__ if isinstance(thing, type) else type(thing).__name__


def _parameters(function: Callable[..., Any]) -> set[str]:
    try:
        return set(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # some callables written in C have no signature
        return set()


def _mode(function: Callable[..., Any], train: bool) -> dict[str, Any]:
    """The training flag of a Flax module's `__call__`, under the name that it has there."""
    named = {"train": train, "training": train, "deterministic": not train}
    return {name: value for name, value in named.items() if name in _parameters(function)}


def _from_functions(init: Callable[..., Tree], apply: Callable[..., Tree]) -> Model:
    takes_key = "key" in _parameters(apply)

    def apply_model(variables: Tree, x: Tree, *, key: Array | None = None) -> tuple[Tree, Tree]:
        return (apply(variables, x, key=key) if takes_key else apply(variables, x)), variables

    return Model(init, apply_model)


def _from_linen(module: nn.Module, example_x: Tree) -> Model:
    call = type(module).__call__

    # Compiled, it makes the parameters alone; otherwise it would run the module too.
    @jax.jit
    def init(key: Array) -> Tree:
        params, dropout = jax.random.split(key)
        return module.init({"params": params, "dropout": dropout}, example_x, **_mode(call, train=False))

    def apply(variables: Tree, x: Tree, *, key: Array | None = None) -> tuple[Tree, Tree]:
        statistics = [name for name in variables if name != "params"]
        mode = _mode(call, train=key is not None)
        if key is None:
            return module.apply(variables, x, **mode), variables
        output, updated = module.apply(variables, x, rngs={"dropout": key}, mutable=statistics, **mode)
        return output, {**variables, **updated}

    return Model(init, apply)


def _from_nnx(make: Callable[[Array], nnx.Module]) -> Model:
    def split(module: nnx.Module) -> tuple[Any, ...]:
        return nnx.split(module, nnx.Param, nnx.RngState, ...)

    @jax.jit
    def init(key: Array) -> Tree:
        _, params, _, rest = split(make(key))
        return {"params": nnx.to_pure_dict(params), "rest": nnx.to_pure_dict(rest)}

    # The structure, without the numbers: an adapted model holds no parameters of its own.
    graph, *states = split(make(jax.random.key(0)))
    params, random, rest = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), states)

    def apply(variables: Tree, x: Tree, *, key: Array | None = None) -> tuple[Tree, Tree]:
        seeded = _seeded(random, jax.random.key(0) if key is None else key)
        module = nnx.merge(graph, _filled(params, variables["params"]), seeded, _filled(rest, variables["rest"]))
        (module.eval if key is None else module.train)()
        output = module(x, **_mode(type(module).__call__, train=key is not None))
        if key is None:
            return output, variables
        return output, {**variables, "rest": nnx.to_pure_dict(split(module)[3])}

    return Model(init, apply)


def _filled(state: Any, values: Tree) -> Any:
    state = jax.tree.map(lambda leaf: leaf, state)
    nnx.replace_by_pure_dict(state, values)
    return state


def _seeded(random: Any, key: Array) -> Any:
    """The state of an nnx module's streams of random numbers: a key of its own for each, and nothing drawn yet."""
    key = key if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else jax.random.wrap_key_data(key)
    leaves, structure = jax.tree.flatten(random)
    fresh = [
        jax.random.split(jax.random.fold_in(key, number), leaf.shape)
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        else jnp.zeros(leaf.shape, leaf.dtype)
        for number, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(structure, fresh)
