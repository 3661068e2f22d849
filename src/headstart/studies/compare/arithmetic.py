"""The cost of a round for a client: floating-point operations, and bytes both ways.

Both are counted, not timed. Operations are those of the update's own program, traced with the real model as it was
given (`models.operations`): second derivatives, steps on a head alone and evaluations of further models cost what they
do. Which arrays an update changes, and how many examples it trains on, does not depend on their sizes, and is seen by
letting it train a model that has one number in place of each array.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from headstart.data.device_data import on_device
from headstart.data.federation import Array, Client, Tree
from headstart.errors import UserError
from headstart.experiment.experiment import Stage
from headstart.experiment.setup import Prepared
from headstart.learning.method import ClientUpdate
from headstart.learning.programs import SharedProgram
from headstart.learning.rounds import client_key, initial_key, round_key, seed_key
from headstart.learning.tasks import Items, Metric, Task
from headstart.models.operations import executions
from headstart.models.zoo import Model, as_given

SAMPLE = 32  # clients whose cost is counted
_COUNT = "examples"
_QUICKLY = {"xla_backend_optimization_level": 0}


class Cost(NamedTuple):
    """The cost of one client in one round, on average.

    operations: floating-point operations that it computes. examples: that it trains on, each as often as it is used.
    down, up: bytes that it receives and sends.
    """

    operations: float
    examples: float
    down: float
    up: float


class Counting(NamedTuple):
    """What is compiled to count costs with, to be used again for other settings.

    replies: which arrays each client changes, and with how many examples it computes. operations: the operations of
    each piece of an update, and how often each client executes it (`models.operations.executions`).
    """

    replies: SharedProgram
    operations: SharedProgram


def cost(stage: Stage, prepared: Prepared, clients: Client, counting: Counting | None = None) -> Cost:
    """The cost of a round of this stage for a training client.

    clients: a sample of them, as `sampled` gives it. counting: what `counting_of` has made, to be used again.

    An array that no client changes is not sent: a head that stays with the client, or one that is never trained. Of
    several models a client sends back those it changed.
    """
    params = _small(prepared.model).init(jax.random.key(0))
    broadcast, client_state = stage.method.init_server(params), stage.method.init_client_state(params)
    counting = counting_of(prepared) if counting is None else counting
    key = round_key(seed_key(0), 1)
    changed, examples = jax.device_get(counting.replies(stage.update, broadcast, client_state, clients, key))
    each, times = (np.asarray(found, np.float64) for found in counting.operations(stage.update, clients, key))
    real = jax.eval_shape(lambda: stage.method.init_server(prepared.model.init(jax.random.key(0))))
    sizes = [leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(real)]
    masks = [np.asarray(mask) for mask in jax.tree.leaves(changed)]
    pairs = list(zip(sizes, masks, strict=True))
    return Cost(
        float((each * times).sum(axis=1).mean()),
        float(np.mean(examples)),
        float(sum(size for size, mask in pairs if mask.any())),
        float(sum(size * mask.mean() for size, mask in pairs)),
    )


def counting_of(prepared: Prepared) -> Counting:
    """What counts the costs of updates of this model."""
    return Counting(_counted_replies(prepared), _counted_operations(prepared))


def _counted_operations(prepared: Prepared) -> SharedProgram:
    task, model = prepared.task, as_given(prepared.model)

    def operations(update: ClientUpdate, clients: Client, key: Array) -> tuple[Array, Array]:
        params = model.init(initial_key(key))
        broadcast, client_state = update.init_server(params), update.init_client_state(params)

        def one(index: Array) -> tuple[Array, Array]:
            def reply(client: Client) -> Tree:
                return update(task, model, broadcast, client, client_state, client_key(key, client))

            return executions(reply, clients.at(index))

        return jax.lax.map(one, jnp.arange(len(clients.size)))

    return SharedProgram(operations, compiler_options=_QUICKLY)


def _counted_replies(prepared: Prepared) -> SharedProgram:
    task, model = _Counting(prepared.task), _small(prepared.model)

    def replies(
        update: ClientUpdate, broadcast: Tree, client_state: Tree, clients: Client, key: Array
    ) -> tuple[Tree, Array]:
        def one(index: Array) -> tuple[Tree, Array]:
            client = clients.at(index)
            reply = update(task, model, broadcast, client, client_state, client_key(key, client))
            if _COUNT not in reply.metrics:
                raise UserError(
                    f"{type(update).__name__} replies without metrics, by which its examples are counted;"
                    " give Reply the metrics of LocalSGD.run"
                )
            return jax.tree.map(lambda leaf: leaf != 0, reply.delta), reply.metrics[_COUNT][1]

        return jax.lax.map(one, jnp.arange(len(clients.size)))

    return SharedProgram(replies, compiler_options=_QUICKLY)


@dataclass(frozen=True)
class _Counting:
    """The task with its own loss, and the number of examples as its metric."""

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
    """Training clients whose cost stands for that of all."""
    federation = prepared.federation
    return on_device(federation, limit=0)(representative(prepared), federation.training_part)


def representative(prepared: Prepared) -> np.ndarray:
    """The training clients, int `[clients]`, in the middle of equal parts of all of them, ordered by size."""
    train = np.asarray(prepared.groups.train)
    by_size = train[np.argsort(prepared.federation.training_sizes[train], kind="stable")]
    count = min(SAMPLE, len(by_size))
    return by_size[((np.arange(count) + 0.5) / count * len(by_size)).astype(int)]


def _small(model: Model) -> Model:
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
