"""Rounds: aggregate the replies of a cohort, and let the server's optimizer step.

A round aggregates with a monoid, (Σ w·Δ, Σ w, Σ metrics), so its result is the same, to rounding, in any order of the
clients and on any number of lanes. It sums in float32 at least, whatever the type of the parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from headstart.data.federation import Array, Client, Examples, Tree
from headstart.fields import Range, check_argument
from headstart.learning.local_sgd import fold_batches, gradient_at, optimizer_step
from headstart.learning.method import ClientUpdate, Reply, Weighting, method_of
from headstart.learning.parallel import Parallel, map_reduce_clients
from headstart.learning.tasks import Sums, Task, add, at_least_float32, mean, no_sums, sum_type
from headstart.models.zoo import Model


class State(NamedTuple):
    """What the server holds between rounds: the parameters it broadcasts and its optimizer's state.

    The state is that of the parameters in float32 at least, as of `local_sgd.optimizer_step`.
    """

    params: Tree
    optimizer: Tree


class Cohort(NamedTuple):
    """The clients of a round.

    clients: a `Client` with a leading axis of clients.
    client_state: the state of each, a tree with the same leading axis, or None.
    """

    clients: Client
    client_state: Tree = None


class Info(NamedTuple):
    """Diagnostics of one round.

    metrics: `{name: (sum, count)}` over the training steps of all clients that count.
    clients: how many replies counted. dropped: how many were left out because they were not finite.
    finite: whether the new parameters are.
    client_state: the new state of each client of the cohort, in the cohort's order, or None.
    """

    metrics: Sums
    clients: Array
    dropped: Array
    finite: Array
    client_state: Tree = None


class Algorithm(NamedTuple):
    """A training algorithm, federated or not: `init(params) -> State` and `step(state, cohort, key) -> (State, Info)`.

    init: takes the parameters of a model; the state holds what the method's `init_server` makes of them.
    """

    init: Callable[[Tree], State]
    step: Callable[[State, Cohort, Array], tuple[State, Info]]


class Totals(NamedTuple):
    """The monoid that a round aggregates with: Σ w·Δ in float32 at least, Σ w, Σ metrics, and numbers of clients."""

    delta: Tree
    weight: Array
    metrics: Sums
    clients: Array
    dropped: Array


def federated(
    task: Task,
    model: Model,
    update: ClientUpdate,
    server: optax.GradientTransformation,
    *,
    weighting: Weighting | None = None,
    transform: Callable[[Reply], Reply] = lambda reply: reply,
    participation: float = 1.0,
    parallel: Parallel = Parallel(),
) -> Algorithm:
    """Rounds of a client update under a server optimizer.

    server: gets the weighted mean of Δ as its gradient; `optax.sgd(1.0)` is plain averaging.
    weighting: of the replies: by number of examples, or uniform over the clients that have any; None for that of the
        method's paper.
    transform: changes each reply before it is aggregated (clip, quantise, mask).
    participation: the share of all training clients that is in a cohort, for methods that want to know.
    parallel: how many clients are trained at once.

    Raises:
        UserError: if the update is no method, or there is no such weighting or participation.
    """
    check_argument("participation", participation, float, Range(0, 1, above=True))
    aggregate = aggregate_clients(task, model, update, weighting=weighting, transform=transform, parallel=parallel)
    method = method_of(update)
    server = method.server_optimizer(server, participation)

    def init(params: Tree) -> State:
        shared = method.init_server(params)
        return State(shared, server.init(at_least_float32(shared)))

    def step(state: State, cohort: Cohort, key: Array) -> tuple[State, Info]:
        return server_step(server, state, *aggregate(state.params, cohort, key))

    # Whoever traces it twice, for its shapes and for its program, traces it once.
    return Algorithm(init, jax.jit(step, inline=True))


AggregateClients = Callable[[Tree, Cohort, Array], tuple[Totals, Tree]]


def aggregate_clients(
    task: Task,
    model: Model,
    update: ClientUpdate,
    *,
    weighting: Weighting | None = None,
    transform: Callable[[Reply], Reply] = lambda reply: reply,
    parallel: Parallel = Parallel(),
) -> AggregateClients:
    """The clients' half of a round: `(params, cohort, key of the round) -> (totals, client states)`.

    The arguments are those of `federated`. Totals of parts of a cohort add up to those of the whole, wherever the
    parts are.
    """
    weighting = method_of(update).weighting if weighting is None else weighting
    check_argument("weighting", weighting, Weighting)

    def aggregate(params: Tree, cohort: Cohort, key: Array) -> tuple[Totals, Tree]:
        def one(shared: tuple[Tree, Array], totals: Totals, member: tuple[Client, Tree]) -> tuple[Totals, Tree]:
            (broadcast, key), (client, client_state) = shared, member
            reply = transform(update(task, model, broadcast, client, client_state, client_key(key, client)))
            if weighting == "uniform":
                reply = reply._replace(weight=(reply.weight > 0).astype(jnp.float32))
            # A client's state must not be spoiled by a reply that is left out.
            new_state = reply.client_state
            if client_state is not None:
                usable = all_finite((reply.delta, reply.client_state)) & (reply.weight > 0)
                new_state = jax.tree.map(lambda new, old: jnp.where(usable, new, old), reply.client_state, client_state)
            return add(totals, to_totals(reply)), new_state

        shared, zero = (params, key), no_totals(params, task)
        return map_reduce_clients(one, shared, zero, cohort.clients, cohort.client_state, parallel=parallel)

    return aggregate


Rounds = Callable[[State, Cohort, Array, Array | int, Array | int], tuple[State, Info]]


def run_rounds(algorithm: Algorithm) -> Rounds:
    """Rounds in one compiled program: `(state, cohorts, key, first, count) -> (state, infos)`.

    cohorts: of `capacity` rounds, every field of their clients but `block`, and their states, with a leading axis
        `[capacity, ...]`. A client with a state is in one of them only: rounds do not hand it on.
    key: of the seed. first: the number of the first round. count: how many rounds, at most `capacity`; the same program
        and the same bits whatever it is.
    infos: an `Info` with a leading axis `[capacity]`; only its first `count` entries are valid. `state` is donated.
    """
    return jax.jit(compose_rounds(algorithm), donate_argnums=0)


def compose_rounds(algorithm: Algorithm) -> Rounds:
    """As `run_rounds`, to be compiled as a part of something else."""

    def run(state: State, cohorts: Cohort, key: Array, first: Array | int, count: Array | int) -> tuple[State, Info]:
        def step(state: State, index: Array | int) -> tuple[State, Info]:
            client_state = jax.tree.map(lambda leaf: leaf[index], cohorts.client_state)
            return algorithm.step(state, Cohort(cohorts.clients.at(index), client_state), round_key(key, first + index))

        def one(index: Array, carry: tuple[State, Info]) -> tuple[State, Info]:
            state, info = step(carry[0], index)
            return state, jax.tree.map(lambda infos, new: infos.at[index].set(new), carry[1], info)

        capacity = cohorts.clients.size.shape[0]
        shapes = jax.eval_shape(step, state, 0)[1]
        infos = jax.tree.map(lambda leaf: jnp.zeros((capacity, *leaf.shape), leaf.dtype), shapes)
        return jax.lax.fori_loop(0, count, one, (state, infos))

    return run


def seed_key(seed: int) -> Array:
    """The key of a seed, from which all others derive."""
    return jax.random.key(seed, impl="threefry2x32")


def initial_key(root: Array) -> Array:
    """The key the parameters are initialized with, from the key of the seed."""
    return jax.random.fold_in(root, 0)


def round_key(root: Array, number: Array | int) -> Array:
    """The key of a round, from the key of the seed."""
    return jax.random.fold_in(jax.random.fold_in(root, 1), number)


def personal_key(root: Array) -> Array:
    """The key of personalization, from the key of the seed."""
    return jax.random.fold_in(root, 2)


def client_key(key: Array, client: Client) -> Array:
    """The client's own key in a round, which depends on its id and on nothing else of the cohort."""
    return jax.random.fold_in(jax.random.fold_in(key, client.key_data[0]), client.key_data[1])


def no_totals(params: Tree, task: Task) -> Totals:
    """The zero of the monoid."""
    zero, none = jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32)
    return Totals(jax.tree.map(jnp.zeros_like, at_least_float32(params)), zero, no_sums(task), none, none)


def to_totals(reply: Reply) -> Totals:
    """One reply as totals. A reply that is not finite counts for nothing but one dropped client."""
    finite = all_finite(reply.delta)
    weight = jnp.where(finite, reply.weight, 0).astype(jnp.float32)
    counts, own = weight > 0, at_least_float32(reply.delta)
    delta = jax.tree.map(lambda leaf: jnp.where(counts, weight.astype(leaf.dtype) * leaf, 0), own)
    metrics = jax.tree.map(lambda leaf: jnp.where(counts, leaf, 0).astype(sum_type()), reply.metrics)
    dropped = ~finite & (reply.weight > 0)
    return Totals(delta, weight, metrics, counts.astype(jnp.int32), dropped.astype(jnp.int32))


def all_finite(tree: Tree) -> Array:
    """Whether every number of a tree is finite."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))


def server_step(
    server: optax.GradientTransformation, state: State, totals: Totals, client_state: Tree = None
) -> tuple[State, Info]:
    """The server's half of a round: its optimizer takes the weighted mean of Δ for a gradient."""
    delta = jax.tree.map(lambda leaf: mean(leaf, totals.weight.astype(leaf.dtype)), totals.delta)
    stepped = State(*optimizer_step(server, delta, state.optimizer, state.params))
    # A round without replies that count changes nothing: momentum must not carry the model on.
    state = jax.tree.map(lambda new, old: jnp.where(totals.weight > 0, new, old), stepped, state)
    return state, Info(totals.metrics, totals.clients, totals.dropped, all_finite(state.params), client_state)


def centralized(
    task: Task, model: Model, optimizer: optax.GradientTransformation, *, batch_size: int = 20
) -> Algorithm:
    """Training as in a datacenter, behind the same contract: one pool of examples, one optimizer, no clients.

    A cohort is a single `Client` (leading axis 1) that holds the examples of this round in the order to be taken; the
    round is one pass over them in batches.

    Raises:
        UserError: if the batch size is none.
    """
    check_argument("batch_size", batch_size, int, Range(1))

    def step(state: State, cohort: Cohort, key: Array) -> tuple[State, Info]:
        def descend(carry: tuple[State, Sums], examples: Examples, number: Array) -> tuple[State, Sums]:
            (state, metrics), model_key = carry, jax.random.fold_in(key, number)
            gradient, (params, measured) = gradient_at(task, model, state.params, examples, model_key)
            stepped = State(*optimizer_step(optimizer, gradient, state.optimizer, params))
            return stepped, add(metrics, measured)

        state, metrics = fold_batches(cohort.clients.at(0), batch_size, descend, (state, no_sums(task)))
        one, none = jnp.ones((), jnp.int32), jnp.zeros((), jnp.int32)
        return state, Info(metrics, one, none, all_finite(state.params))

    return Algorithm(lambda params: State(params, optimizer.init(at_least_float32(params))), step)
