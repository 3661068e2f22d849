"""Models in hand: the initial model of a run, and one that a client has made its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from headstart.data.federation import Tree, as_input
from headstart.learning.tasks import Classification, NextCharacter, Regression, Task
from headstart.models.zoo import Model

ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class TrainedModel:
    """A model with its parameters.

    params: a plain tree of arrays. labels: the names of the classes, where the data have some.
    prepare: brings a user's inputs to the form of those trained on.
    """

    params: Tree
    model: Model
    task: Task
    labels: Sequence[Any] = ()
    prepare: Callable[[Tree], Tree] = lambda x: x

    def outputs(self, x: Tree) -> np.ndarray:
        """What the model says of inputs `[rows, ...]`: logits `[rows, classes]`, or values `[rows, outputs]`."""
        x = self.prepare(x)
        rows = len(jax.tree.leaves(x)[0])
        chunks = range(0, max(rows, 1), ROWS_AT_ONCE)
        apply = jax.jit(lambda params, x: self.model.apply(params, jax.tree.map(as_input, x))[0])
        parts = [apply(self.params, jax.tree.map(lambda leaf, i=i: _rows(leaf, i), x)) for i in chunks]
        return np.concatenate([np.asarray(part) for part in parts])

    def predict(self, x: Tree) -> np.ndarray:
        """Predictions for inputs `[rows, ...]`: the label of the likeliest class, or the values themselves."""
        outputs = self.outputs(x)
        if not isinstance(self.task, Classification | NextCharacter):
            return self.task.in_own_units(outputs) if isinstance(self.task, Regression) else outputs
        classes = outputs.argmax(axis=-1)
        return np.array(list(self.labels))[classes] if len(self.labels) else classes


def _rows(leaf: Any, start: int) -> jax.Array:
    array = np.asarray(leaf)[start : start + ROWS_AT_ONCE]
    return jnp.asarray(array if array.dtype != np.float64 or jax.config.read("jax_enable_x64") else array.astype("f4"))
