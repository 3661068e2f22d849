"""What methods ask of data, model, task and machine for each client by itself, found before anything runs."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp

from headstart.data.federation import Block, Client, Federation, Tree, shapes
from headstart.devices import host_memory
from headstart.errors import UserError
from headstart.experiment.experiment import Centralized, Experiment, Stage
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


def check_client_states(experiment: Experiment, model: Model, clients: int) -> None:
    """Refuse stages whose clients' states would not fit this machine's memory.

    clients: how many train. One that is never drawn has no state.
    """
    there = host_memory()
    for stage in experiment.stages:
        if not stage.method.is_stateful:
            continue

        def client_state(method: Method = stage.method) -> Tree:
            return method.init_client_state(model.init(jax.random.key(0)))

        each = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(jax.eval_shape(client_state)))
        drawn = most_with_state(stage, clients)
        if each * drawn > there:
            raise UserError(
                f"the method of stage {stage.name!r} keeps something of every client: {each / 1e6:,.1f} MB of each, and"
                f" {each * drawn / 1e9:,.1f} GB of the {drawn:,} that train, more than this machine's memory of"
                f" {there / 1e9:,.1f} GB; choose a smaller model, fewer training clients or another method"
            )


def most_with_state(stage: Stage | Centralized, clients: int) -> int:
    """How many clients may come to have a state in a stage, of those that train."""
    return min(clients, stage.rounds * stage.cohort) if isinstance(stage, Stage) and stage.method.is_stateful else 0


def _any_client(federation: Federation) -> Client:
    """The shapes of a client."""
    x, y = shapes(federation.example())
    few = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((_ROWS, *leaf.shape[1:]), leaf.dtype), Block(x, y))
    whole, words = partial(jax.ShapeDtypeStruct, dtype=jnp.int32), jax.ShapeDtypeStruct((2,), jnp.uint32)
    return Client(few, whole((_ROWS,)), whole(()), words)  # pyright: ignore[reportArgumentType]
