"""Models in hand: the initial model of a run, and one that a client has made its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from headstart.data.federation import Block, Tree
from headstart.learning.prediction import CAPACITIES, one_client, predict_client
from headstart.learning.tasks import Classification, NextCharacter, Regression, Task
from headstart.models.zoo import Model

ROWS_AT_ONCE = 4096


def outputs_of(model: Model) -> Callable[[Tree, Tree], np.ndarray]:
    """A model's `(params, x [rows, ...]) -> outputs [rows, ...]`, compiled for a few numbers of rows."""

    @jax.jit
    def compiled(params: Tree, x: Tree, size: jax.Array) -> Tree:
        return predict_client(model, params, one_client(Block(x, ()), size))

    def outputs(params: Tree, x: Tree) -> np.ndarray:
        x = jax.tree.map(np.asarray, x)
        rows = len(jax.tree.leaves(x)[0])
        most = next((capacity for capacity in CAPACITIES if capacity >= min(rows, ROWS_AT_ONCE)), ROWS_AT_ONCE)
        parts = []
        for start in range(0, max(rows, 1), most):
            size = min(most, rows - start)
            part = jax.tree.map(lambda leaf, start=start: _filled(leaf[start : start + most], most), x)
            parts.append(np.asarray(compiled(params, part, jnp.int32(size)))[:size])
        return np.concatenate(parts)

    return outputs


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
        return outputs_of(self.model)(self.params, self.prepare(x))

    def predict(self, x: Tree) -> np.ndarray:
        """Predictions for inputs `[rows, ...]`: the label of the likeliest class, or the values themselves."""
        outputs = self.outputs(x)
        if not isinstance(self.task, Classification | NextCharacter):
            return self.task.in_own_units(outputs) if isinstance(self.task, Regression) else outputs
        classes = outputs.argmax(axis=-1)
        return np.array(list(self.labels))[classes] if len(self.labels) else classes


def _filled(rows: np.ndarray, most: int) -> np.ndarray:
    """The rows with zeros below, so that few programs are compiled; as the device holds them."""
    if rows.dtype == np.float64 and not jax.config.read("jax_enable_x64"):
        rows = rows.astype(np.float32)
    return np.concatenate([rows, np.zeros((most - len(rows), *rows.shape[1:]), rows.dtype)])
