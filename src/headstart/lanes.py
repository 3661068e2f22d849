"""Lanes: how many clients a machine works on side by side.

A lane runs its clients one after another, each with its own dynamic number of steps, so a small client costs little.
Devices split the clients of a cohort among them; on each, lanes run beside each other under `vmap`. A CPU is at its
best with one lane on each of its cores, which JAX is told to take for devices; an accelerator wants many lanes.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from headstart.data import Client, Tree
from headstart.errors import UserError

Member = tuple[Client, Tree]
Step = Callable[[Tree, Tree, Member], tuple[Tree, Tree]]


# A device that has done its part waits for the others, however long their clients take; XLA would end the process.
PATIENCE = (
    "--xla_cpu_collective_call_warn_stuck_timeout_seconds=2000000"
    " --xla_cpu_collective_call_terminate_timeout_seconds=2000000"
)


def cores_as_devices(count: int | None = None) -> None:
    """Have JAX take this machine's cores for devices, if it computes on a CPU; before anything else is asked of JAX.

    count: at most so many; by default all that this process may use. A number in the user's own environment stays.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if "collective_call" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {PATIENCE}".strip()
    if "JAX_NUM_CPU_DEVICES" in os.environ or "device_count" in flags:
        return
    available = len(cores())
    jax.config.update("jax_num_cpu_devices", min(count or available, available))


def cores() -> list[int]:
    """The cores this process may use, where the system tells; macOS and Windows tell only how many there are."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def all_devices(count: int | None = None) -> Mesh | None:
    """The first `count` devices of every process, by default all, as the axis `clients`; None if that is one.

    Raises:
        UserError: if this process has not so many.
    """
    here = len(jax.local_devices())
    if count is not None and count > here:
        raise UserError(f"{count} devices are more than the {here} that JAX has here; choose fewer")
    found = [[d for d in jax.devices() if d.process_index == i][:count] for i in range(jax.process_count())]
    chosen = [device for devices in found for device in devices]
    return None if len(chosen) == 1 else jax.make_mesh((len(chosen),), ("clients",), (AxisType.Auto,), devices=chosen)


def device_count(mesh: Mesh | None) -> int:
    """How many devices share the clients."""
    return 1 if mesh is None else mesh.size


def spans_processes(mesh: Mesh | None) -> TypeGuard[Mesh]:
    """Whether the devices belong to several processes of a cluster."""
    return mesh is not None and mesh.is_multi_process


def replicated(tree: Tree, mesh: Mesh | None) -> Tree:
    """The tree whole on every device of the mesh; without one, on the first device of this process."""
    return jax.device_put(tree, jax.local_devices()[0]) if mesh is None else on_mesh(tree, mesh, P())


def on_mesh(tree: Tree, mesh: Mesh, spec: P) -> Tree:
    """Arrays that every process has, on the devices of the mesh: whole on each or split among them along an axis."""
    sharding = NamedSharding(mesh, spec)
    if not spans_processes(mesh):
        return jax.device_put(tree, sharding)

    def place(leaf: Any) -> jax.Array:
        whole = np.asarray(leaf)
        return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

    return jax.tree.map(place, tree)


def block_spec(mesh: Mesh) -> P:
    """How a block lies on the devices: whole on each; in a cluster every process has a block of its own clients."""
    return P("clients") if spans_processes(mesh) else P()


def deal(clients: np.ndarray, sizes: np.ndarray, *, lanes: int = 1, mesh: Mesh | None = None) -> np.ndarray:
    """The clients (int `[n]`) in the order `over_clients` serves them best: int `[places]`, -1 for an empty place.

    Clients of one size run side by side, so that lanes wait little for each other, and every device gets about as
    much to do.
    """
    devices = device_count(mesh)
    lanes = min(lanes, -(-len(sizes) // devices))
    order = np.argsort(-np.asarray(sizes), kind="stable")
    per_device = -(-len(order) // (devices * lanes))
    dealt, load = np.full((devices, lanes, per_device), -1), np.zeros(devices)
    used = np.zeros(devices, int)
    for start in range(0, len(order), lanes):
        beside = order[start : start + lanes]
        # The largest that are left go to the device that has least to do.
        device = int(np.argmin(np.where(used < per_device, load, np.inf)))
        dealt[device, : len(beside), used[device]] = clients[beside]
        load[device] += sizes[beside[0]]
        used[device] += 1
    return dealt.reshape(-1)


def over_clients(
    step: Step,
    shared: Tree,
    zero: Tree,
    clients: Client,
    extra: Tree = None,
    *,
    lanes: int = 1,
    mesh: Mesh | None = None,
) -> tuple[Tree, Tree]:
    """Fold `step` over the clients: `(sum of the lanes' carries, outputs [clients, ...])`.

    step: maps `(shared, carry, (client, extra))` to `(carry, output)`; any array it needs must be among these.
    shared: a tree that every client gets whole. extra: a tree with the clients' leading axis, handed over one by one.
    zero: the carry each lane starts with; carries of lanes are added, so it must be the zero of a sum.
    """
    members = clients._replace(block=None), extra
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
