"""Parallelism over clients: how many a machine works on at once, and in which order.

A lane runs its clients one after another, each with its own dynamic number of steps, so a small client costs little.
Devices split the clients of a cohort among them; on each, lanes run beside each other under `vmap`. A CPU is at its
best with one lane on each of its cores, which JAX takes for devices then; an accelerator wants many lanes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from headstart.data.federation import Client, Tree
from headstart.devices import block_spec, device_count
from headstart.fields import at_least, check_fields

# Every lane holds some clients and a copy of the model.
MOST_LANES = 10_000


@dataclass(frozen=True)
class Parallel:
    """How many clients are worked on at once. A matter of speed: results agree to rounding.

    lanes: clients side by side on each device.
    mesh: the devices that share the clients, as `devices.all_devices` gives them; None works on one.
    """

    lanes: int = at_least(1, 1, most=MOST_LANES)
    mesh: Mesh | None = None

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def devices(self) -> int:
        """The number of devices that share the clients."""
        return device_count(self.mesh)


Member = tuple[Client, Tree]
Step = Callable[[Tree, Tree, Member], tuple[Tree, Tree]]


def assign_clients(clients: np.ndarray, sizes: np.ndarray, parallel: Parallel = Parallel()) -> np.ndarray:
    """The clients (int `[n]`) in the order of the slots they are assigned to: int `[slots]`, -1 for an empty slot.

    Clients of one size run side by side, so that lanes wait little for each other, and every device gets about as
    much to do.
    """
    devices = parallel.devices
    lanes = min(parallel.lanes, -(-len(sizes) // devices))
    order = np.argsort(-np.asarray(sizes), kind="stable")
    per_device = -(-len(order) // (devices * lanes))
    assigned, load = np.full((devices, lanes, per_device), -1), np.zeros(devices)
    used = np.zeros(devices, int)
    for start in range(0, len(order), lanes):
        beside = order[start : start + lanes]
        # The largest that are left go to the device that has least to do.
        device = int(np.argmin(np.where(used < per_device, load, np.inf)))
        assigned[device, : len(beside), used[device]] = clients[beside]
        load[device] += sizes[beside[0]]
        used[device] += 1
    return assigned.reshape(-1)


def map_reduce_clients(
    step: Step, shared: Tree, zero: Tree, clients: Client, extra: Tree = None, *, parallel: Parallel = Parallel()
) -> tuple[Tree, Tree]:
    """Fold `step` over the clients: `(sum of the lanes' carries, outputs [clients, ...])`.

    step: maps `(shared, carry, (client, extra))` to `(carry, output)`; any array it needs must be among these.
    shared: a tree that every client gets whole. extra: a tree with the clients' leading axis, handed over one by one.
    zero: the carry each lane starts with; carries of lanes are added, so it must be the zero of a sum.
    """
    members, lanes, mesh = (clients._replace(block=None), extra), parallel.lanes, parallel.mesh
    if mesh is None:
        return _on_one(step, (shared, zero), clients.block, members, lanes)
    count = clients.size.shape[0]
    members = jax.tree.map(lambda leaf: _filled(leaf, mesh.size), members)

    def on_each(work: Tree, block: Tree, members: Tree) -> tuple[Tree, Tree]:
        carry, outputs = _on_one(step, work, block, members, lanes)
        return jax.lax.psum(carry, "clients"), outputs

    given = P(), block_spec(mesh), P("clients")
    split = jax.shard_map(on_each, mesh=mesh, in_specs=given, out_specs=(P(), P("clients")), check_vma=False)
    carry, outputs = split((shared, zero), clients.block, members)
    return carry, jax.tree.map(lambda leaf: leaf[:count], outputs)


def _on_one(step: Step, work: tuple[Tree, Tree], block: Tree, members: Tree, lanes: int) -> tuple[Tree, Tree]:
    """The fold on one device; `work` is (shared, zero)."""
    shared, zero = work
    count = jax.tree.leaves(members)[0].shape[0]
    lanes = min(lanes, count)

    def one(carry: Tree, member: Member) -> tuple[Tree, Tree]:
        client, extra = member
        return step(shared, carry, (client._replace(block=block), extra))

    if lanes == 1:
        return jax.lax.scan(one, zero, members)
    spread = jax.tree.map(lambda leaf: _filled(leaf, lanes).reshape(lanes, -1, *leaf.shape[1:]), members)
    carries, outputs = jax.vmap(lambda members: jax.lax.scan(one, zero, members))(spread)
    gathered = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:count], outputs)
    return jax.tree.map(lambda leaf: leaf.sum(axis=0), carries), gathered


def _filled(leaf: jax.Array, parts: int) -> jax.Array:
    """`[clients, ...]` with zeros, that is clients without examples, up to a number that falls into equal parts."""
    missing = -leaf.shape[0] % parts
    return jnp.concatenate([leaf, jnp.zeros((missing, *leaf.shape[1:]), leaf.dtype)]) if missing else leaf
