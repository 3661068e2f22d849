"""Federations, models and a task so small that numpy can follow every step."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from headstart.data.device_data import on_device
from headstart.data.federation import Client, Federation, from_arrays
from headstart.learning.local_sgd import LocalSGD, LocalState, batch, step_keys
from headstart.learning.tasks import Metric
from headstart.models.zoo import Model

FEATURES, CLASSES = 3, 4
SIZES = ((7, 3), (1, 2), (12, 5), (0, 4), (5, 0))
CURVATURE = np.array([[2.0, 0.5, 0.0], [0.5, 1.0, 0.3], [0.0, 0.3, 0.7]])


def federation(sizes: Sequence[Sequence[int]] = SIZES, *, seed: int = 0, shift: float = 0.0) -> Federation:
    """Clients "a", "b", … with features `[rows, 3]` and one of 4 classes."""
    total, generator = int(np.sum(sizes)), np.random.default_rng(seed)
    x = generator.normal(shift, 1.0, (total, FEATURES))
    y = generator.integers(0, CLASSES, total).astype(np.int32)
    ids = [chr(ord("a") + i) for i in range(len(sizes))]
    return from_arrays("tiny", ids, np.array(sizes), x, y, metadata={"kind": "features", "classes": CLASSES})


def normal(seed: int, *shape: int) -> jax.Array:
    """Normal draws of a shape."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def _linear(variables, x, *, key=None):
    theta = variables["theta"].reshape(FEATURES + 1, -1)
    return x @ theta[:-1] + theta[-1], variables


SOFTMAX = Model(lambda key: {"theta": 0.3 * jax.random.normal(key, ((FEATURES + 1) * CLASSES,))}, _linear)


def theta(seed: int = 1, count: int = (FEATURES + 1) * CLASSES) -> dict[str, jax.Array]:
    """Parameters of `SOFTMAX` (or of a quadratic, with another count)."""
    return {"theta": jnp.asarray(np.random.default_rng(seed).normal(0, 0.5, count))}


def _point(variables, x, *, key=None):
    return jnp.broadcast_to(variables["theta"], (x.shape[0], 3)), variables


POINT = Model(lambda key: {"theta": jnp.zeros(3)}, _point)


@dataclass(frozen=True)
class Quadratic:
    """Of outputs and centres `[batch, 3]`: 1/2 (output - y)' A (output - y)."""

    def loss(self, output, y):
        difference = output - y
        values = 0.5 * jnp.einsum("bi,ij,bj->b", difference, jnp.asarray(CURVATURE, output.dtype), difference)
        return values, jnp.ones_like(values)

    @property
    def metrics(self):
        return (Metric("loss", "nothing", False, self.loss),)


def quadratic_federation(centres: np.ndarray, sizes: Sequence[int]) -> Federation:
    """Clients whose examples are all their own centre, a row of `centres`."""
    y = np.repeat(centres, sizes, axis=0)
    pairs = np.stack([np.array(sizes), np.zeros(len(sizes), int)], axis=1)
    return from_arrays("quadratic", [str(i) for i in range(len(sizes))], pairs, y[:, :1], y)


def one(federation: Federation, client: int, part: str = "adapt") -> Client:
    """A single client, without a leading axis; all clients of a federation have the same shapes."""
    clients = on_device(federation)(np.array([client]), part)
    return jax.tree.map(lambda leaf: leaf[0], clients._replace(block=None))._replace(block=clients.block)


gather_batch = jax.jit(batch, static_argnames="batch_size")


@partial(jax.jit, static_argnums=0)
def descend(local_sgd: LocalSGD, local_state: LocalState, client: Client, key: jax.Array, steps: int) -> LocalState:
    """`local_sgd.run`, compiled once for every number of steps."""
    return local_sgd.run(local_state, client, key, steps=steps)


def drawn(client: Client, key: jax.Array, numbers: Sequence[int], batch_size: int) -> list[tuple]:
    """The batches of these numbers on a client's path, as numpy `(x, y)` of the real rows alone."""
    order_key, _ = step_keys(key, 0)
    found = []
    for number in numbers:
        examples = gather_batch(client, number, order_key, batch_size=batch_size)
        mask = np.asarray(examples.mask)
        found.append((np.asarray(examples.x)[mask], np.asarray(examples.y)[mask]))
    return found


def flat(tree) -> np.ndarray:
    """All numbers of a tree in one vector."""
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
