"""Devices: the cores of a CPU or the accelerators that share the clients, as one axis of a mesh."""

from __future__ import annotations

import ctypes
import math
import os
from functools import cache
from typing import Any, TypeGuard

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from headstart.errors import UserError

Tree = Any

# A device that has done its part waits for the others, however long their clients take; XLA would end the process.
COLLECTIVE_TIMEOUT_FLAGS = (
    "--xla_cpu_collective_call_warn_stuck_timeout_seconds=2000000"
    " --xla_cpu_collective_call_terminate_timeout_seconds=2000000"
)


# To give memory back takes a tenth of a second.
_LONG_SECONDS = 0.5


def cores_as_devices(count: int | None = None) -> None:
    """Make JAX take this machine's cores for devices where it computes on a CPU; to be called before JAX starts.

    count: the largest number of cores; by default all that this process may use. A number in the user's own environment
        has precedence.
    """
    release_after_compiling()
    flags = os.environ.get("XLA_FLAGS", "")
    if "collective_call" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {COLLECTIVE_TIMEOUT_FLAGS}".strip()
    if "JAX_NUM_CPU_DEVICES" in os.environ or "device_count" in flags:
        return
    available = len(cores())
    jax.config.update("jax_num_cpu_devices", min(count or available, available))


@cache
def release_after_compiling() -> None:
    """Have the memory that a compilation took given back to the system when it is done.

    The C library would keep it, where it is glibc, beside what training takes: 300 MB of the CNN's.
    """
    try:
        release = ctypes.CDLL(None).malloc_trim
    except (TypeError, OSError, AttributeError):  # another system, or another library
        return

    def after(event: str, duration_secs: float, **_: Any) -> None:
        if event.endswith("backend_compile_duration") and duration_secs > _LONG_SECONDS:
            release(0)

    jax.monitoring.register_event_duration_secs_listener(after)


def cores() -> list[int]:
    """The cores this process may use; on macOS and Windows, which say no more, as many numbers as there are cores."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def host_memory() -> float:
    """The bytes of this machine's memory; infinity where it does not say."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else math.inf


def all_devices(count: int | None = None) -> Mesh | None:
    """The first `count` devices of every process, by default all, as the axis `clients`; None if that is one.

    Raises:
        UserError: if this process has fewer.
    """
    here = len(jax.local_devices())
    if count is not None and count > here:
        raise UserError(f"{count} devices are more than the {here} that JAX has here; choose fewer")
    found = [[d for d in jax.devices() if d.process_index == i][:count] for i in range(jax.process_count())]
    chosen = [device for devices in found for device in devices]
    return None if len(chosen) == 1 else jax.make_mesh((len(chosen),), ("clients",), (AxisType.Auto,), devices=chosen)


def device_count(mesh: Mesh | None) -> int:
    """The number of devices that share the clients."""
    return 1 if mesh is None else mesh.size


def spans_processes(mesh: Mesh | None) -> TypeGuard[Mesh]:
    """Whether the devices belong to several processes of a cluster."""
    return mesh is not None and mesh.is_multi_process


def replicated(tree: Tree, mesh: Mesh | None) -> Tree:
    """The tree whole on every device of the mesh; without one, on the first device of this process."""
    return jax.device_put(tree, jax.local_devices()[0]) if mesh is None else on_mesh(tree, mesh, P())


def on_mesh(tree: Tree, mesh: Mesh, spec: P) -> Tree:
    """The arrays, which every process has, on the devices of the mesh: whole on each, or split along an axis."""
    sharding = NamedSharding(mesh, spec)
    if not spans_processes(mesh):
        return jax.device_put(tree, sharding)

    def put(leaf: Any) -> jax.Array:
        whole = np.asarray(leaf)
        return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

    return jax.tree.map(put, tree)


def block_spec(mesh: Mesh) -> P:
    """The partition of a block: whole on each device; in a cluster every process has a block of its own clients."""
    return P("clients") if spans_processes(mesh) else P()
