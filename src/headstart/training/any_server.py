"""One optimizer in place of several, by a number that may be traced, so that stages of any of them share a program."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from headstart.data.federation import Array, Tree
from headstart.experiment.experiment import Stage
from headstart.learning.optimizers import Optimizer
from headstart.learning.rounds import State
from headstart.learning.tasks import at_least_float32

# The kinds of servers that comparisons try.
USUAL = (Optimizer("sgd"), Optimizer("sgd", options={"momentum": 0.9}), Optimizer("adam"))
# Of parameters, up to which their server may keep the states of all kinds.
MOST_BYTES = 2**25


class OneOf(NamedTuple):
    """The state of `one_of`: those of all optimizers, of which one counts."""

    states: tuple[Tree, ...]


def one_of(optimizers: Sequence[optax.GradientTransformation], number: Array | int) -> optax.GradientTransformation:
    """One of several optimizers, by its number, which may be traced; it keeps the states of all."""

    def init(params: Tree) -> OneOf:
        return OneOf(tuple(optimizer.init(params) for optimizer in optimizers))

    def update(updates: Tree, state: Any, params: Tree = None) -> tuple[Tree, Any]:
        each = [one.update(updates, own, params) for one, own in zip(optimizers, state.states, strict=True)]
        chosen = jax.tree.map(lambda *leaves: jax.lax.select_n(jnp.int32(number), *leaves), *(new for new, _ in each))
        return chosen, OneOf(tuple(own for _, own in each))

    return optax.GradientTransformation(init, update)


def usual_number(stage: Stage) -> int | None:
    """The number of a stage's server among the usual ones, whatever its learning rate and schedule; None if it is none.

    None, too, where a user's method makes something of the server, which may be for that one alone.
    """
    if not type(stage.method).server_optimizer.__module__.startswith("headstart."):
        return None
    kinds = [(each.name, dict(each.options)) for each in USUAL]
    kind = stage.server.name, dict(stage.server.options)
    return kinds.index(kind) if kind in kinds else None


def usual_server(optimizer: Optimizer, number: Array | int) -> optax.GradientTransformation:
    """The usual optimizer of this number, with the learning rate and the schedule of another."""
    return one_of([replace(optimizer, name=each.name, options=each.options).build() for each in USUAL], number)


def with_all_states(stage: Stage, state: State, number: int) -> State:
    """The state of a stage whose server is the usual one of this number, with zeros for what the others keep."""
    server = stage.method.server_optimizer(usual_server(stage.server, number), 1.0)
    shapes = jax.eval_shape(lambda params: server.init(at_least_float32(params)), state.params)
    blank = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)

    def fill(blank: Any, own: Tree) -> Tree:
        if not _is_one_of(blank):
            return own
        return OneOf(tuple(own if index == number else each for index, each in enumerate(blank.states)))

    return state._replace(optimizer=jax.tree.map(fill, blank, state.optimizer, is_leaf=_is_one_of))


def with_own_state(state: State, number: int) -> State:
    """The state with that of the usual optimizer of this number alone."""

    def pick(part: Any) -> Tree:
        return part.states[number] if _is_one_of(part) else part

    return state._replace(optimizer=jax.tree.map(pick, state.optimizer, is_leaf=_is_one_of))


def _is_one_of(part: Any) -> bool:
    return isinstance(part, OneOf)
