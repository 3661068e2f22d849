"""The models of the growth benchmark, and what they cost by count."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from headstart.bench.workload import ARITHMETIC
from headstart.data.federation import Block, Client
from headstart.experiment.experiment import ModelSpec
from headstart.learning.parallel import Parallel
from headstart.learning.rounds import Cohort, federated
from headstart.learning.tasks import Classification, NextCharacter
from headstart.methods.paper import FedAvg
from headstart.models.zoo import ALIASES, Model, as_model, count_parameters

EXAMPLES = 20
MODELS = {
    "logistic": ModelSpec("logistic"),
    "mlp": ModelSpec("mlp", {"widths": [200]}),
    "cnn": ModelSpec("cnn", {"dropout": None}),
    "lstm": ModelSpec("char_lstm"),
}


def flops(name: str) -> int:
    """Operations of training on one example."""
    return ARITHMETIC[MODELS[name].path].training


def parameters(name: str) -> int:
    """How many numbers the model learns."""
    return count_parameters(jax.eval_shape(_model_of(name).init, jax.random.key(0)))


def _model_of(name: str) -> Model:
    path, options = MODELS[name].path, MODELS[name].options
    module: Callable[..., Any] = ALIASES[path]
    if name == "lstm":
        return as_model(module(**options), jnp.zeros((1, 80), jnp.int32))
    return as_model(module(**options, classes=62), jnp.zeros((1, 28, 28, 1)))


def working_bytes(name: str, lanes: int) -> int:
    """What one device needs beside the block and the states to work on clients, by the compiler's own account."""
    text, model = name == "lstm", _model_of(name)
    task, batch_size = (NextCharacter(), 10) if text else (Classification(), 20)
    algorithm = federated(task, model, FedAvg(1, 0.02, batch_size), optax.sgd(1.0), parallel=Parallel(lanes))
    rows = 4 * EXAMPLES
    x, y = (
        (jnp.zeros((rows, 80), jnp.int32),) * 2
        if text
        else (jnp.zeros((rows, 28, 28, 1), jnp.uint8), jnp.zeros(rows, int))
    )
    clients = Client(
        Block(x, y), jnp.zeros((4, EXAMPLES), jnp.int32), jnp.zeros(4, jnp.int32), jnp.zeros((4, 2), jnp.uint32)
    )
    key = jax.random.key(0)
    state = jax.eval_shape(lambda key: algorithm.init(model.init(key)), key)
    analysis = jax.jit(algorithm.step).lower(state, Cohort(clients), key).compile().memory_analysis()
    return analysis.temp_size_in_bytes if analysis else 0
