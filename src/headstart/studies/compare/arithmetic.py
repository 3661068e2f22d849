"""What a round costs a client: gradients of single examples, and bytes both ways.

Both are counted, not timed, by letting the update train a model that has one number in place of each array of the
real one: how many steps a client takes, and which arrays it changes, does not depend on their sizes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from headstart.data.device_data import on_device
from headstart.data.federation import Array, Client, Tree
from headstart.errors import UserError
from headstart.experiment.experiment import Stage
from headstart.experiment.setup import Prepared
from headstart.learning.rounds import client_key, round_key, seed_key
from headstart.learning.tasks import Items, Metric, Task
from headstart.models.zoo import Model

# So many clients are looked at.
SAMPLE = 32
_COUNT = "examples"


class Cost(NamedTuple):
    """Of one client in one round, on average.

    gradients: how many gradients of single examples it computes. down, up: bytes it gets and sends.
    """

    gradients: float
    down: float
    up: float


def cost(stage: Stage, prepared: Prepared, drawn: Client) -> Cost:
    """What a round of this stage costs a training client.

    drawn: some that stand for all of them, as `sampled` draws them.

    An array that no client changes is not sent: a head that stays with the client, or one that is never trained. Of
    several models a client sends back those it changed. `extra_gradients` of the method adds what is no step on a
    batch, such as second derivatives.
    """
    task, model = _Counting(prepared.task), _small(prepared.model, drawn)
    params = model.init(jax.random.key(0))
    shared, client_state = stage.method.init_server(params), stage.method.init_client_state(params)

    @partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def replies(shared: Tree, client_state: Tree, drawn: Client, key: Array) -> tuple[Tree, Array]:
        def one(place: Array) -> tuple[Tree, Array]:
            client = drawn.at(place)
            reply = stage.update(task, model, shared, client, client_state, client_key(key, client))
            if _COUNT not in reply.metrics:
                raise UserError(
                    f"{type(stage.update).__name__} replies without what its steps measured, by which its cost is"
                    " counted; give Reply the metrics of LocalSGD.run"
                )
            return jax.tree.map(lambda leaf: leaf != 0, reply.delta), reply.metrics[_COUNT][1]

        return jax.lax.map(one, jnp.arange(len(drawn.size)))

    changed, counts = replies(shared, client_state, drawn, round_key(seed_key(0), 1))
    gradients = [
        count + stage.method.extra_gradients(float(size)) for count, size in zip(counts, drawn.size, strict=True)
    ]
    real = jax.eval_shape(lambda: stage.method.init_server(prepared.model.init(jax.random.key(0))))
    sizes = [leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(real)]
    masks = [np.asarray(mask) for mask in jax.tree.leaves(changed)]
    pairs = list(zip(sizes, masks, strict=True))
    return Cost(
        float(np.mean(gradients)),
        float(sum(size for size, mask in pairs if mask.any())),
        float(sum(size * mask.mean() for size, mask in pairs)),
    )


@dataclass(frozen=True)
class _Counting:
    """A task with its own loss, which measures how many examples there were."""

    task: Task

    def loss(self, output: Tree, y: Tree) -> Items:
        return self.task.loss(output, y)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        def ones(output: Tree, y: Tree) -> Items:
            each = jnp.ones(len(jax.tree.leaves(y)[0]), jax.tree.leaves(output)[0].dtype)
            return each, each

        return (Metric(_COUNT, "", True, ones),)


def sampled(prepared: Prepared) -> Client:
    """Some training clients, whose cost stands for that of all."""
    federation = prepared.federation
    return on_device(federation, limit=0)(representative(prepared), federation.training_part)


def representative(prepared: Prepared) -> np.ndarray:
    """Those training clients, int `[clients]`, that are in the middle of equal parts, by size."""
    train = np.asarray(prepared.groups.train)
    by_size = train[np.argsort(prepared.federation.training_sizes[train], kind="stable")]
    count = min(SAMPLE, len(by_size))
    return by_size[((np.arange(count) + 0.5) / count * len(by_size)).astype(int)]


def _small(model: Model, drawn: Client) -> Model:
    """A model with a number in place of every array, all of which its output depends on."""
    like = jax.eval_shape(model.init, jax.random.key(0))

    def init(key: Array) -> Tree:
        return jax.tree.map(lambda leaf: jnp.zeros((), leaf.dtype), like)

    def apply(variables: Tree, x: Tree, *, key: Array | None = None) -> tuple[Tree, Tree]:
        shapes = jax.eval_shape(lambda params, x: model.apply(params, x)[0], like, x)

        def output(shape: Any) -> Array:
            generator = np.random.default_rng(0)
            weights = [generator.normal(size=shape.shape[1:]).astype(shape.dtype) for _ in jax.tree.leaves(like)]
            total = sum(w * leaf for w, leaf in zip(weights, jax.tree.leaves(variables), strict=True))
            return jnp.broadcast_to(jnp.asarray(total, shape.dtype), shape.shape)

        return jax.tree.map(output, shapes), variables

    return Model(init, apply)
