"""A cluster: several processes, on one machine or many, that run one experiment together.

JAX's own runtime joins them. Every process runs the same program; their devices are one axis `clients`, and a round
ends in one all-reduce. Process 0 alone writes, and broadcasts to the others what it has read. When a process is gone or
hangs, the others leave within a minute, each with one sentence. What is promised is the last saved state.
"""

from __future__ import annotations

import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from headstart.data.federation import Tree
from headstart.errors import UserError

T = TypeVar("T")

# A process without a heartbeat for this long counts as lost.
HEARTBEAT_SECONDS = 20
JOIN_SECONDS = 300
# The exit status of a process whose cluster has lost another one.
LOST = 3
MOST_PORT = 65535
# The start of the runtime's message about a computation that failed.
_STATUS = re.compile("(ABORTED|CANCELLED|DEADLINE_EXCEEDED|FAILED_PRECONDITION|INTERNAL|UNAVAILABLE|UNKNOWN): ")
# The watchdog starts when it has seen this many records of a stage, from its first round on.
_RECORDS = 3


class Membership(NamedTuple):
    """The membership of a process in a cluster; all None if JAX is to find it in the environment (SLURM, Open MPI, …).

    coordinator: HOST:PORT where process 0 listens. processes: their number. process_id: the one of this, from 0.
    """

    coordinator: str | None = None
    processes: int | None = None
    process_id: int | None = None


def membership(
    coordinator: str | None, processes: int | None, process_id: int | None, environment: Mapping[str, str] = os.environ
) -> Membership | None:
    """The membership by these options, or else by the environment; None for a process on its own.

    Raises:
        UserError: if options are missing, or contradict each other.
    """
    given = coordinator, processes, process_id
    if given == (None, 1, None):
        return None
    if all(option is None for option in given):
        return Membership() if _started_together(environment) else None
    if coordinator is None or processes is None or process_id is None:
        raise UserError(
            "a cluster needs all of --coordinator HOST:PORT, --processes N and --process-id I; give the rest"
        )
    host, colon, port = coordinator.rpartition(":")
    if not (host and colon and port.isascii() and port.isdigit() and len(port) <= 5 and 1 <= int(port) <= MOST_PORT):
        raise UserError(
            f"--coordinator {coordinator!r} is no HOST:PORT with a port from 1 to {MOST_PORT}; write it as"
            " 10.0.0.1:4321"
        )
    if not 0 <= process_id < processes:
        raise UserError(f"--process-id {process_id} is not one of 0 to {processes - 1}; --processes says {processes}")
    return Membership(coordinator, processes, process_id)


def _started_together(environment: Mapping[str, str]) -> bool:
    """Whether a launcher that JAX knows started this process as one of several."""

    def number(name: str) -> int:
        text = environment.get(name, "")
        return int(text) if text.isdigit() else 0

    slurm = "SLURM_STEP_NODELIST" in environment and "SLURM_PROCID" in environment and number("SLURM_NTASKS") > 1
    kubernetes = "KUBERNETES_SERVICE_HOST" in environment and "JOB_COMPLETION_INDEX" in environment
    return slurm or number("OMPI_COMM_WORLD_SIZE") > 1 or kubernetes


def join(member: Membership) -> None:
    """Join a cluster; to be called before any other use of JAX.

    Raises:
        UserError: if the other processes do not join in time.
    """
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    host = (member.coordinator or "").rpartition(":")[0]
    # By default the coordinator listens on every interface; on one machine there is no need to.
    bind = member.coordinator if host in ("127.0.0.1", "localhost") else None
    try:
        jax.distributed.initialize(
            member.coordinator,
            member.processes,
            member.process_id,
            coordinator_bind_address=bind,
            cluster_detection_method="deactivate" if member.coordinator else None,
            initialization_timeout=JOIN_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=JOIN_SECONDS,
        )
    except Exception as error:  # raised by JAX, or by the package through which it asks a launcher
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"cannot join the cluster at {member.coordinator or 'the address of its launcher'} ({reason}); start all"
            f" processes within {JOIN_SECONDS} s of each other, each with --coordinator, --processes and its own"
            " --process-id, or one alone with --processes 1"
        ) from error


def size() -> int:
    """The number of processes."""
    return jax.process_count()


def is_first() -> bool:
    """Whether this process is the one that writes."""
    return jax.process_index() == 0


def broadcast(value: T) -> T:
    """Process 0's value (JSON) in every process; the values of the others are ignored."""
    if size() == 1:
        return value
    content = json.dumps(value).encode() if is_first() else b""
    size_in_bytes = int(multihost_utils.broadcast_one_to_all(np.int32(len(content))))
    text = np.frombuffer(content.ljust(size_in_bytes, b" ")[:size_in_bytes], np.uint8)
    return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(text)).tobytes())


def shared(tree: Tree, like: Tree) -> Tree:
    """Process 0's arrays in every process; the trees of the others are ignored, and `like` gives them the shapes."""
    if size() == 1:
        return tree
    mine = tree if is_first() else jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), like)
    return jax.tree.map(jnp.asarray, multihost_utils.broadcast_one_to_all(mine))


def any_of(flag: bool) -> bool:
    """Whether the flag is set in any process."""
    return flag if size() == 1 else bool(np.any(multihost_utils.process_allgather(np.array(flag))))


@contextmanager
def as_one(patience: float) -> Iterator[Callable[[Any], None]]:
    """A context in which the loss of another process ends this one at once, with one sentence.

    Yields a listener for every record of the log; in a process on its own it does nothing.

    patience: seconds that a process may wait for the others, beyond four times the longest wait so far.

    Raises:
        UserError: if that is no number of seconds.
    """
    if not patience >= 1:
        raise UserError(f"--patience {patience} is no number of seconds; give at least 1")
    if size() == 1:
        yield lambda record: None
        return
    try:
        yield _watchdog(patience)
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        if not means_loss(error):
            raise
        _leave(f"another process of the cluster is gone ({str(error).splitlines()[0][:200]})")


def means_loss(error: Exception) -> bool:
    """Whether this error of the runtime means that another process is gone.

    When a computation is dispatched, and not when its result is awaited, JAX raises the runtime's status as a
    ValueError.
    """
    runtime = isinstance(error, jax.errors.JaxRuntimeError) or _STATUS.match(str(error)) is not None
    return runtime and "RESOURCE_EXHAUSTED" not in str(error)


def _watchdog(patience: float) -> Callable[[Any], None]:
    """A listener for every record; when the next one is late, a thread ends the process.

    A wait inside a collective cannot be interrupted. No record is late before the first rounds of a stage are done,
    since nobody knows how long a program compiles.
    """
    times: list[float] = []
    longest = 0.0

    def on_record(record: Any) -> None:
        nonlocal longest
        now = time.monotonic()
        if record.get("past") or record["event"] == "stage":
            times.clear()
        elif times or record["event"] == "round":
            longest = max(longest, now - times[-1]) if times else 0.0
            times.append(now)
            del times[:-_RECORDS]

    def watch() -> None:
        while True:
            time.sleep(0.5)
            latest = times[-1:] if len(times) == _RECORDS else []
            if latest and time.monotonic() - latest[0] > patience + 4 * longest:
                _leave(f"no round has finished for {time.monotonic() - latest[0]:.0f} s: a process hangs")

    threading.Thread(target=watch, daemon=True).start()
    return on_record


def _leave(reason: str) -> None:
    """End this process now: the usual way out would wait for the others."""
    print(
        f"headstart, process {jax.process_index()} of {size()}: {reason}; what was saved last is kept: unless another"
        " process says what to mend, start all again with the same commands to resume",
        file=sys.stderr,
        flush=True,
    )
    os._exit(LOST)
