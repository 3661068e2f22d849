"""The client updates of arXiv:1909.12488: values that turn what was broadcast and a client's examples into a reply.

A reply's Δ is in the units of the parameters and points uphill like a gradient; the weighted mean of Δ over a cohort is
what the server's optimizer gets. With g_1 … g_{K+1} the gradients along a client's local SGD with learning rate β, the
updates weight its steps (the table of updates in docs/paper.md):

    FedSGD              β g_1, on all of the client's examples
    FedAvg, Reptile     β (g_1 + … + g_K) = θ − θ_K
    FOMAML              β g_{K+1}
    MAML                β ∂/∂θ L(θ_K(θ); batch K+1), through the K steps: the only one that is no sum over steps
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax

from headstart.data.federation import Array, Client, Tree
from headstart.fields import MOST_EPOCHS, MOST_STEPS, at_least
from headstart.learning.local_sgd import LocalSGD, batches_per_epoch, mean_loss, shuffled, step_keys, whole_gradient
from headstart.learning.local_sgd import batch as gather_batch
from headstart.learning.method import ClientUpdate, Reply, Weighting
from headstart.learning.tasks import Sums, Task, add, at_least_float32
from headstart.models.zoo import Model

SearchSpace = Mapping[str, Sequence[Any]]
Scaling = Mapping[str, int]


class Segment(NamedTuple):
    """A stretch of local training: `steps` steps on the examples of `client`, each with the same weight in Δ."""

    client: Client
    steps: Array | int
    weight: float


def weighted_path(local_sgd: LocalSGD, params: Tree, key: Array, *segments: Segment) -> tuple[Tree, Sums]:
    """Δ = β Σ_j w_j g_j over the segments' steps, in float32 at least, and the sums of their metrics.

    Steps of equal weight telescope, so a segment costs one difference of iterates however long it is.
    """
    local_state, delta = local_sgd.init(params), None
    for segment in segments:
        start = local_state.params
        local_state = local_sgd.run(local_state, segment.client, key, steps=segment.steps)
        if segment.weight:
            stretch = jax.tree.map(lambda d, w=segment.weight: w * d, difference(start, local_state.params))
            delta = stretch if delta is None else add(delta, stretch)
    return delta, local_state.metrics


def client_sgd(learning_rate: float, clip: float | None) -> optax.GradientTransformation:
    """The client's SGD; clip: the largest norm of a gradient, which a larger one is shrunk to."""
    sgd = optax.sgd(learning_rate)
    return sgd if clip is None else optax.chain(optax.clip_by_global_norm(clip), sgd)


@dataclass(frozen=True)
class FedSGD(ClientUpdate):
    """Δ = β g_1, one gradient on all of the client's examples.

    batch_size: on the first batch of local SGD instead, for the identity of FedAvg with FedSGD and FOMAML.
    """

    learning_rate: float = at_least(0, 0.02)
    batch_size: int | None = at_least(1, None)

    def __call__(
        self, task: Task, model: Model, broadcast: Tree, client: Client, client_state: Tree, key: Array
    ) -> Reply:
        """A client update; see `ClientUpdate`."""
        if self.batch_size is not None:
            local_sgd = LocalSGD(task, model, optax.sgd(self.learning_rate), self.batch_size)
            return make_reply(client, *weighted_path(local_sgd, broadcast, key, Segment(client, 1, 1.0)))
        gradient, metrics = whole_gradient(task, model, broadcast, client, key, batch_size=32)
        return make_reply(client, jax.tree.map(lambda g: self.learning_rate * g, gradient), metrics)


@dataclass(frozen=True)
class FedAvg(ClientUpdate):
    """Δ = θ − θ_K after E epochs of local SGD; a small client takes fewer steps than a large one.

    clip: the largest norm of a gradient, which a larger one is shrunk to; None leaves all as they are.
    """

    epochs: int = at_least(1, 1, most=MOST_EPOCHS)
    learning_rate: float = at_least(0, 0.02)
    batch_size: int = at_least(1, 20)
    clip: float | None = at_least(0, None, above=True)

    search_space: ClassVar[SearchSpace] = {"epochs": (1, 5)}

    def __call__(
        self, task: Task, model: Model, broadcast: Tree, client: Client, client_state: Tree, key: Array
    ) -> Reply:
        """A client update; see `ClientUpdate`."""
        local_sgd = LocalSGD(task, model, client_sgd(self.learning_rate, self.clip), self.batch_size)
        steps = self.epochs * batches_per_epoch(client, self.batch_size)
        return make_reply(client, *weighted_path(local_sgd, broadcast, key, Segment(client, steps, 1.0)))


@dataclass(frozen=True)
class Reptile(ClientUpdate):
    """Δ = θ − θ_K after K steps of local SGD, the same number for every client.

    clip: as in `FedAvg`.
    """

    steps: int = at_least(1, 10, most=MOST_STEPS)
    learning_rate: float = at_least(0, 0.02)
    batch_size: int = at_least(1, 20)
    clip: float | None = at_least(0, None, above=True)

    weighting: ClassVar[Weighting] = "uniform"
    search_space: ClassVar[SearchSpace] = {"steps": (2, 10)}

    def __call__(
        self, task: Task, model: Model, broadcast: Tree, client: Client, client_state: Tree, key: Array
    ) -> Reply:
        """A client update; see `ClientUpdate`."""
        local_sgd = LocalSGD(task, model, client_sgd(self.learning_rate, self.clip), self.batch_size)
        steps = jnp.where(client.size > 0, self.steps, 0)
        return make_reply(client, *weighted_path(local_sgd, broadcast, key, Segment(client, steps, 1.0)))


@dataclass(frozen=True)
class FOMAML(ClientUpdate):
    """Δ = β g_{K+1}: the gradient after K steps on the query batch, second-order terms dropped.

    query_share: 0 takes the batch after the K steps as the query; otherwise this share of the client's examples is held
        out from the K steps and the query drawn from it. Where the steps run through more than one epoch, a query meets
        examples again.
    """

    steps: int = at_least(1, 10, most=MOST_STEPS)
    learning_rate: float = at_least(0, 0.02)
    batch_size: int = at_least(1, 20)
    query_share: float = at_least(0, 0.0, most=1, constant=True)

    weighting: ClassVar[Weighting] = "uniform"
    search_space: ClassVar[SearchSpace] = {"steps": (1, 5)}

    def __call__(
        self, task: Task, model: Model, broadcast: Tree, client: Client, client_state: Tree, key: Array
    ) -> Reply:
        """A client update; see `ClientUpdate`."""
        local_sgd = LocalSGD(task, model, optax.sgd(self.learning_rate), self.batch_size)
        support, query = support_and_query(client, self.query_share, key, batch_size=self.batch_size)
        segments = Segment(support, self.steps, 0.0), Segment(query, 1, 1.0)
        return make_reply(client, *weighted_path(local_sgd, broadcast, key, *segments), counts=query.size > 0)


@dataclass(frozen=True)
class MAML(ClientUpdate):
    """Δ = β ∂/∂θ L(θ_K(θ); query), differentiated exactly through the K steps; memory and time grow with K.

    query_share: as in `FOMAML`.
    """

    # A loop is differentiated backwards where its number of steps is known beforehand.
    steps: int = at_least(1, 1, most=MOST_STEPS, constant=True)
    learning_rate: float = at_least(0, 0.02)
    batch_size: int = at_least(1, 20)
    query_share: float = at_least(0, 0.0, most=1, constant=True)

    weighting: ClassVar[Weighting] = "uniform"
    search_space: ClassVar[SearchSpace] = {"steps": (1, 3)}

    def __call__(
        self, task: Task, model: Model, broadcast: Tree, client: Client, client_state: Tree, key: Array
    ) -> Reply:
        """A client update; see `ClientUpdate`."""
        local_sgd = LocalSGD(task, model, optax.sgd(self.learning_rate), self.batch_size, differentiable=True)
        support, query = support_and_query(client, self.query_share, key, batch_size=self.batch_size)

        def query_loss(params: Tree) -> tuple[Array, Sums]:
            local_state = local_sgd.run(local_sgd.init(params), support, key, steps=self.steps)
            order_key, model_key = step_keys(key, local_state.step)
            examples = gather_batch(query, local_state.step, order_key, batch_size=self.batch_size)
            loss, (_, metrics) = mean_loss(task, model, local_state.params, examples, model_key)
            return loss, add(local_state.metrics, metrics)

        gradient, metrics = jax.grad(query_loss, has_aux=True)(broadcast)
        delta = jax.tree.map(lambda g: self.learning_rate * g, at_least_float32(gradient))
        return make_reply(client, delta, metrics, counts=query.size > 0)


def support_and_query(
    client: Client, query_share: float, key: Array, *, batch_size: int | None = None
) -> tuple[Client, Client]:
    """The client's examples for the inner steps and for the query; the same ones if `query_share` is 0.

    Otherwise a random part is held out: at least one example if there are two, none if there is only one.

    batch_size: the query is at most this many of the part held out, so that every batch of it is the whole.
    """
    if not query_share:
        return client, client
    rows = client.rows[shuffled(client, jax.random.fold_in(key, 2))]
    held_out = jnp.round(client.size * query_share).astype(client.size.dtype)
    n_support = client.size - jnp.clip(held_out, jnp.minimum(1, client.size // 2), jnp.maximum(client.size - 1, 0))
    support = client._replace(rows=rows, size=n_support)
    size = client.size - n_support
    query = client._replace(
        rows=jnp.roll(rows, -n_support), size=size if batch_size is None else jnp.minimum(size, batch_size)
    )
    return support, query


def make_reply(
    client: Client, delta: Tree, metrics: Sums, *, counts: Array | bool = True, client_state: Tree = None
) -> Reply:
    """The reply of a client whose weight is its number of examples, or 0 if it does not count."""
    return Reply(delta, jnp.where(counts, client.size, 0).astype(jnp.float32), metrics, client_state)


def difference(start: Tree, end: Tree) -> Tree:
    """Δ of local training: the parameters it started from, less those it ended with; in float32 at least."""
    return jax.tree.map(jnp.subtract, at_least_float32(start), at_least_float32(end))


def without(part: Tree, start: Tree, end: Tree) -> Tree:
    """Δ of local training, with zeros in a part (a tree of booleans) that stays with the client."""
    return jax.tree.map(lambda own, d: jnp.zeros_like(d) if own else d, part, difference(start, end))
