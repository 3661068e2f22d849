"""What a method may bring beside its client update, and what stands in where it brings nothing.

A method is the value that trains a client (`updates.ClientUpdate`). One that shares more than a model, keeps something
with the client, or personalizes in a way of its own has a method of the same name as the field below, and nothing
else of headstart need know of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import optax

from headstart.data import Array, Client, Tree
from headstart.models import Model
from headstart.tasks import Task

Bend = Callable[[Tree, Tree], Tree]


def _same(params: Tree) -> Tree:
    return params


def _server(optimizer: optax.GradientTransformation, participation: float) -> optax.GradientTransformation:
    return optimizer


def _broadcast(task: Task, model: Model, broadcast: Tree, client: Client, key: Array) -> Tree:
    return broadcast


def _nothing(params: Tree) -> None:
    return None


class Hooks(NamedTuple):
    """A method's ways, each with that of an update which shares a model and keeps nothing.

    share: maps the parameters a stage starts from to what the server holds and broadcasts.
    serve: maps the stage's server optimizer, and the share of all training clients that is in a cohort, to the
        optimizer that steps what is shared.
    keep: maps the parameters a stage starts from to what a client keeps before its first round, a tree of arrays.
    begin: `(task, model, broadcast, client, key)` to the parameters from which a client that keeps nothing, as every
        held-out client, personalizes; they are also its initial model. It may look at the examples it adapts on.
    bend: maps those parameters to a function `(gradient, params) -> gradient` that personalization descends by.
    """

    share: Callable[[Tree], Tree] = _same
    serve: Callable[[optax.GradientTransformation, float], optax.GradientTransformation] = _server
    keep: Callable[[Tree], Tree] = _nothing
    begin: Callable[[Task, Model, Tree, Client, Array], Tree] = _broadcast
    bend: Callable[[Tree], Bend | None] = _nothing

    @property
    def shares_a_model(self) -> bool:
        """Whether what is broadcast is a model, from which every client starts."""
        return self.share is _same and self.begin is _broadcast

    @property
    def remembers(self) -> bool:
        """Whether clients keep something between rounds."""
        return self.keep is not _nothing


PLAIN = Hooks()


def hooks_of(method: Any) -> Hooks:
    """What this method brings."""
    return Hooks(**{name: getattr(method, name) for name in Hooks._fields if callable(getattr(method, name, None))})
