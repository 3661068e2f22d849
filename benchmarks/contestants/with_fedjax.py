"""FedJAX: its own federated averaging, over its for_each_client compiled by `jit`, the default backend.

Its batches are always full: the last one of an epoch is filled with examples that the epoch has had. They are counted
once, like everybody's.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from .protocol import serve
from .workload import Workload, as_input

# FedJAX 0.0.17 is older than the removal of these names from JAX, and asks for them while it is imported. So the
# imports below (E402) come after them.
for _name in ("map", "leaves", "reduce", "flatten", "unflatten", "structure", "transpose"):
    if not hasattr(jax, f"tree_{_name}"):
        setattr(jax, f"tree_{_name}", getattr(jax.tree_util, f"tree_{_name}"))

import fedjax  # noqa: E402 (after the names above)
from fedjax.algorithms import fed_avg  # noqa: E402 (after the names above)

from .jax_models import logits_of  # noqa: E402 (after the names above)

Tree = dict


class FedJax:
    """Federated averaging by FedJAX."""

    def __init__(self, given: Workload) -> None:
        settings = given.settings
        self.given = given
        self.clients = _clients(given)
        hparams = fedjax.ShuffleRepeatBatchHParams(batch_size=settings.batch_size, num_epochs=1)
        client, server = (fedjax.optimizers.sgd(learning_rate) for learning_rate in (settings.learning_rate, 1.0))
        self.algorithm = fed_avg.federated_averaging(_gradient(settings.model), client, server, hparams)
        self.state = self.algorithm.init({name: jnp.asarray(value) for name, value in given.parameters.items()})

    def run(self, first: int, count: int) -> None:
        """Train `count` rounds."""
        for number in range(first, first + count):
            clients = self.given.cohort(number)
            keys = jax.random.split(jax.random.key(number), len(clients))
            cohort = [(client, self.clients[client], key) for client, key in zip(clients, keys, strict=True)]
            self.state, _ = self.algorithm.apply(self.state, cohort)
        jax.block_until_ready(self.state.params)

    def accuracy(self) -> float:
        """The share of right answers on the test rows."""
        predict = jax.jit(lambda params, x: logits_of(self.given.settings.model, params, x).argmax(-1))
        return float((np.asarray(predict(self.state.params, as_input(self.given.test_x))) == self.given.test_y).mean())


def _gradient(name: str):
    def loss(params: Tree, batch: Tree, key: jax.Array) -> jax.Array:
        logits = logits_of(name, params, batch["x"], key)
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), batch["y"][..., None], axis=-1).mean()

    return jax.grad(loss)


def _clients(given: Workload) -> list[fedjax.ClientDataset]:
    x = as_input(given.x)
    rows = [given.rows(client) for client in range(len(given.sizes))]
    return [fedjax.ClientDataset({"x": x[part], "y": given.y[part]}) for part in rows]


if __name__ == "__main__":
    serve(FedJax)
