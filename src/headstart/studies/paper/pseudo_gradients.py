"""The parts of a pseudo-gradient: the gradients of a local path one by one, and the updates as sums of them.

FedAvg's Δ(K) is β (g_1 + … + g_K), in the mean over a cohort. Of it g_1 is FedSGD's part, on the path's first batch,
and g_2 … g_K are those of FOMAML(1) … FOMAML(K - 1): the central identity of arXiv:1909.12488. Shares and angles of
all of them follow from the inner products of the mean gradients.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from headstart.data.federation import Array, Client, Tree
from headstart.learning.local_sgd import LocalSGD, batch, step_keys
from headstart.learning.method import ClientUpdate
from headstart.learning.parallel import map_reduce_clients
from headstart.learning.rounds import client_key, round_key, seed_key
from headstart.learning.tasks import Task, add
from headstart.methods.paper import FOMAML, MAML, FedSGD, Reptile
from headstart.models.zoo import Model

# The identity is checked on this many clients of a cohort, since every one of its terms walks a path of its own.
WITNESSES = 5


@dataclass(frozen=True)
class Local:
    """Local training by plain SGD with learning rate β."""

    task: Task
    model: Model
    learning_rate: float
    batch_size: int

    def delta(self, update: ClientUpdate, params: Tree, client: Client, key: Array) -> Tree:
        """Δ of a client by one of the public updates."""
        return update(self.task, self.model, params, client, None, key).delta

    def gradients(self, params: Tree, client: Client, key: Array, *, count: int) -> Tree:
        """g_1 … g_count, each at its own iterate: a tree of `[count, ...]`."""
        local_sgd = LocalSGD(self.task, self.model, optax.sgd(self.learning_rate), self.batch_size)

        def one(params: Tree, number: Array) -> tuple[Tree, Tree]:
            order_key, model_key = step_keys(key, number)
            examples = batch(client, number, order_key, batch_size=self.batch_size)
            gradient, (params, _) = local_sgd.gradient(examples, params, model_key)
            return jax.tree.map(lambda p, g: p - self.learning_rate * g, params, gradient), gradient

        return jax.lax.scan(one, params, jnp.arange(count))[1]


@partial(jax.jit, static_argnames=("local", "count"))
def mean_gradients(local: Local, params: Tree, clients: Client, key: Array, *, count: int) -> Tree:
    """The cohort's mean of g_1 … g_count: a tree of `[count, ...]`. The key is that of a round."""
    return _mean(partial(local.gradients, count=count), params, clients, key)


@partial(jax.jit, static_argnames="local")
def mean_fomaml(local: Local, steps: Array | int, params: Tree, clients: Client, key: Array) -> Tree:
    """The cohort's mean of FOMAML's Δ; one program for every number of steps."""
    return _mean_delta(local, FOMAML, steps, params, clients, key)


@partial(jax.jit, static_argnames=("local", "steps"))
def mean_maml(local: Local, steps: int, params: Tree, clients: Client, key: Array) -> Tree:
    """The cohort's mean of exact MAML's Δ."""
    return _mean_delta(local, MAML, steps, params, clients, key)


def _mean_delta(local: Local, kind: type[FOMAML | MAML], steps: Any, params: Tree, clients: Client, key: Array) -> Tree:
    update = kind(steps, local.learning_rate, local.batch_size)
    return _mean(partial(local.delta, update), params, clients, key)


def _mean(of: Callable[[Tree, Client, Array], Tree], params: Tree, clients: Client, key: Array) -> Tree:
    def one(shared: tuple[Tree, Array], total: Tree, member: tuple[Client, Tree]) -> tuple[Tree, None]:
        (params, key), (client, _) = shared, member
        return add(total, of(params, client, client_key(key, client))), None

    shapes = jax.eval_shape(of, params, clients.at(0), key)
    zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    total, _ = map_reduce_clients(one, (params, key), zero, clients)
    return jax.tree.map(lambda leaf: leaf / clients.size.shape[0], total)


@jax.jit
def products(stacked: Tree) -> Array:
    """`[n, n]`: the inner products of the rows of a tree of `[n, ...]`."""
    flat = [leaf.reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(stacked)]
    return sum((jnp.matmul(rows, rows.T, precision="highest") for rows in flat), jnp.zeros((), flat[0].dtype))


class Parts(NamedTuple):
    """The parts of Δ(K) for K = 1 … steps, each `[..., steps]`.

    fedsgd_share, fomaml_share: the parts of Δ along Δ that g_1 and F = g_2 + … + g_K are, <·, Δ> / <Δ, Δ>; they add up
        to 1.
    norm_ratio: ‖F‖ / ‖Δ‖.
    fedsgd_cosine, fomaml_cosine: of g_1, and of FOMAML(K), which is g_{K+1}, with Δ(K).
    cosine_between: of g_1 with g_{K+1}.
    """

    fedsgd_share: np.ndarray
    fomaml_share: np.ndarray
    norm_ratio: np.ndarray
    fedsgd_cosine: np.ndarray
    fomaml_cosine: np.ndarray
    cosine_between: np.ndarray


def parts(products: np.ndarray) -> Parts:
    """The parts, from the products `[..., steps + 1, steps + 1]` of the mean gradients g_1 … g_{steps + 1}."""
    products = np.asarray(products, np.float64)
    steps = products.shape[-1] - 1
    # The weights of the gradients on the path, a row for each K: FedSGD (1, 0, …), FedAvg (1, …, 1), FOMAML (0, …, 1).
    total = np.tri(steps, steps + 1)
    fedsgd = np.eye(1, steps + 1).repeat(steps, axis=0)
    terms, fomaml = total - fedsgd, np.eye(steps, steps + 1, 1)

    def dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.einsum("ki,...ij,kj->...k", a, products, b)

    def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return dot(a, b) / np.sqrt(dot(a, a) * dot(b, b))

    square = dot(total, total)
    return Parts(
        dot(fedsgd, total) / square,
        dot(terms, total) / square,
        np.sqrt(dot(terms, terms) / square),
        cosine(fedsgd, total),
        cosine(fomaml, total),
        cosine(fedsgd, fomaml),
    )


@partial(jax.jit, static_argnames=("local", "lengths"))
def identity_errors(local: Local, params: Tree, clients: Client, key: Array, *, lengths: tuple[int, ...]) -> Array:
    """`[clients, lengths, 2]`: the distance of each client's Δ_FedAvg(K) from its sum of terms, relative to its norm.

    The sum is made of the public updates FedSGD and FOMAML(j), each of which walks its own path, and, beside it, of the
    gradients taken one by one. The left side is Reptile(K), which is FedAvg with its steps counted.
    """
    learning_rate, size = local.learning_rate, local.batch_size

    def one(shared: tuple[Tree, Array], carry: tuple, member: tuple[Client, Tree]) -> tuple[tuple, Array]:
        (params, key), (client, _) = shared, member
        key = client_key(key, client)
        # A term for every j below the longest K, and at least one: nothing can be stacked out of none.
        count = max(*lengths, 2) - 1
        terms = jax.lax.map(
            lambda j: local.delta(FOMAML(j, learning_rate, size), params, client, key), 1 + jnp.arange(count)
        )
        fedsgd = local.delta(FedSGD(learning_rate, size), params, client, key)
        deltas = jax.lax.map(
            lambda k: local.delta(Reptile(k, learning_rate, size), params, client, key), jnp.array(lengths)
        )
        gradients = local.gradients(params, client, key, count=max(lengths))
        steps = jax.tree.map(lambda leaf: learning_rate * leaf, gradients)
        return carry, distances(deltas, fedsgd, terms, steps, lengths)

    return map_reduce_clients(one, (params, key), (), clients)[1]


def distances(deltas: Tree, fedsgd: Tree, terms: Tree, steps: Tree, lengths: Sequence[int]) -> Array:
    """`[lengths, 2]`: distances of Δ(K) from FedSGD's part plus FOMAML terms, and from the sum of the steps β g_j.

    deltas: trees of `[lengths, ...]`. fedsgd: of `[...]`. terms: of `[≥ K - 1, ...]`. steps: of `[≥ K, ...]`.
    """
    errors = []
    for index, k in enumerate(lengths):
        delta = jax.tree.map(lambda leaf, index=index: leaf[index], deltas)
        by_updates = jax.tree.map(lambda a, b, k=k: a + b[: k - 1].sum(axis=0), fedsgd, terms)
        by_gradients = jax.tree.map(lambda leaf, k=k: leaf[:k].sum(axis=0), steps)
        errors.append(jnp.stack([_distance(by_updates, delta), _distance(by_gradients, delta)]))
    return jnp.stack(errors)


def _distance(a: Tree, b: Tree) -> Array:
    """‖a - b‖ / ‖b‖."""
    norms = [sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree)) for tree in (jax.tree.map(jnp.subtract, a, b), b)]
    return jnp.sqrt(norms[0] / norms[1])


class Beside(NamedTuple):
    """Exact MAML(K) beside FOMAML(K), for the cohort's mean of Δ.

    cosine: between the two. norm_ratio: ‖MAML‖ / ‖FOMAML‖. seconds: that FOMAML and MAML took.
    """

    cosine: float
    norm_ratio: float
    seconds: tuple[float, float]


def beside(local: Local, steps: int, params: Tree, clients: Client, key: Array) -> Beside:
    """Compute and time both, one after the other. The first call with this K and these shapes compiles too."""
    found, seconds = [], []
    for mean_delta in (mean_fomaml, mean_maml):
        start = time.perf_counter()
        found.append(jax.block_until_ready(mean_delta(local, steps, params, clients, key)))
        seconds.append(time.perf_counter() - start)
    (first, between), (_, second) = np.asarray(products(jax.tree.map(lambda *each: jnp.stack(each), *found)), float)
    return Beside(between / np.sqrt(first * second), np.sqrt(second / first), (seconds[0], seconds[1]))


class Measured(NamedTuple):
    """Measurements along training; `[checkpoints, repetitions]` lead every array.

    rounds: of the checkpoints. lengths: the K at which the identity is checked and MAML stands beside FOMAML.
    products: `[..., steps + 1, steps + 1]`, of the cohort's mean gradients. errors: `[..., clients, lengths, 2]`, as
    `identity_errors` has them. cosines, norm_ratios: `[..., lengths]`, of MAML(K) and FOMAML(K). seconds:
    `[..., lengths, 2]`, of FOMAML and MAML.
    """

    rounds: tuple[int, ...]
    lengths: tuple[int, ...]
    products: np.ndarray
    errors: np.ndarray
    cosines: np.ndarray
    norm_ratios: np.ndarray
    seconds: np.ndarray


def measure(
    local: Local,
    steps: int,
    lengths: tuple[int, ...],
    cohorts: Sequence[Client],
    rounds: Sequence[int],
    params_of: Callable[[int, int], Tree],
) -> Measured:
    """Decompose pseudo-gradients of K = 1 … steps; a cohort is a repetition.

    params_of: `(rounds, repetition)` gives the model.
    """
    for k in lengths:
        beside(local, k, params_of(rounds[0], 0), cohorts[0], _key(0))  # compiles, so that what follows can be timed
    rows = []
    for repetition, clients in enumerate(cohorts):
        key, witnesses = _key(repetition), clients.at(jnp.arange(min(WITNESSES, clients.size.shape[0])))
        for number in rounds:
            params = params_of(number, repetition)
            gradients = mean_gradients(local, params, clients, key, count=steps + 1)
            errors = identity_errors(local, params, witnesses, key, lengths=lengths)
            # Nothing else may be under way when times are taken.
            before = [np.asarray(each) for each in (products(gradients), errors)]
            compared = (beside(local, k, params, clients, key) for k in lengths)
            rows.append((*before, *map(np.array, zip(*compared, strict=True))))
    # Repetition after repetition, and in each of them the checkpoints: so the times of all are taken in turns.
    arrays = [np.stack(each).reshape(len(cohorts), len(rounds), *each[0].shape) for each in zip(*rows, strict=True)]
    return Measured(tuple(rounds), lengths, *(array.swapaxes(0, 1) for array in arrays))


def _key(repetition: int) -> Array:
    """The key of a round that is never trained: rounds are counted from 1."""
    return round_key(seed_key(repetition), 0)
