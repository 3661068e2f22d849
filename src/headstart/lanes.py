"""Lanes: how many clients a device works on side by side.

A lane runs its clients one after another, each with its own dynamic number of steps, so a small client costs little;
lanes run beside each other under `vmap`. On a CPU one lane wastes nothing; an accelerator wants many.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from headstart.data import Client, Tree

Member = tuple[Client, Tree]
Step = Callable[[Tree, Member], tuple[Tree, Tree]]


def over_clients(step: Step, zero: Tree, clients: Client, extra: Tree = None, *, lanes: int = 1) -> tuple[Tree, Tree]:
    """Fold `step` over the clients: `(sum of the lanes' carries, outputs [clients, ...])`.

    step: maps `(carry, (client, extra))` to `(carry, output)`.
    zero: the carry each lane starts with; carries of lanes are added, so it must be the zero of a sum.
    extra: a tree with the clients' leading axis, handed over client by client.
    """
    block, members = clients.block, (clients._replace(block=None), extra)
    count = clients.size.shape[0]
    lanes = min(lanes, count)

    def one(carry: Tree, member: Member) -> tuple[Tree, Tree]:
        client, extra = member
        return step(carry, (client._replace(block=block), extra))

    if lanes == 1:
        return jax.lax.scan(one, zero, members)
    spread = jax.tree.map(lambda leaf: _spread(leaf, lanes), members)
    carries, outputs = jax.vmap(lambda members: jax.lax.scan(one, zero, members))(spread)
    gathered = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:count], outputs)
    return jax.tree.map(lambda leaf: leaf.sum(axis=0), carries), gathered


def _spread(leaf: jax.Array, lanes: int) -> jax.Array:
    """`[clients, ...]` as `[lanes, clients per lane, ...]`; zeros, that is clients without examples, fill it up."""
    per_lane = -(-leaf.shape[0] // lanes)
    padding = jnp.zeros((lanes * per_lane - leaf.shape[0], *leaf.shape[1:]), leaf.dtype)
    return jnp.concatenate([leaf, padding]).reshape(lanes, per_lane, *leaf.shape[1:])
