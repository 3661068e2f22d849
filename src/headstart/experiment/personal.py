"""What methods with a personalization of their own ask of data, model and task, found before anything runs."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp

from headstart.data.federation import Block, Client, Federation, Tree, shapes
from headstart.experiment.experiment import Experiment
from headstart.learning.method import Method
from headstart.learning.personalization import client_curves
from headstart.learning.tasks import Task
from headstart.models.zoo import Model

_ROWS = 2


def check_personalization(experiment: Experiment, task: Task, model: Model, federation: Federation) -> None:
    """Try the personalization of methods that have one of their own, without computing anything.

    Raises:
        UserError: what a method raises for this task or model, such as one without a head.
    """
    recipe, key = replace(experiment.personalization, pulls=None).at_most(1), jax.random.key(0)
    client = _any_client(federation)
    for method in (stage.method for stage in experiment.stages):
        if not method.has_own_training:
            continue

        def curves(client: Client, method: Method = method) -> Tree:
            params = method.init_server(model.init(key))
            return client_curves(task, model, recipe, params, client, client, key, method, dual=False)

        jax.eval_shape(curves, client)


def _any_client(federation: Federation) -> Client:
    """The shapes of a client."""
    x, y = shapes(federation.example())
    few = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((_ROWS, *leaf.shape[1:]), leaf.dtype), Block(x, y))
    whole, words = partial(jax.ShapeDtypeStruct, dtype=jnp.int32), jax.ShapeDtypeStruct((2,), jnp.uint32)
    return Client(few, whole((_ROWS,)), whole(()), words)  # pyright: ignore[reportArgumentType]
