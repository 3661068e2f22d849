"""Gathering: a federation's rows go to the devices, and cohorts are row numbers among them.

One path for all sizes: a flat block of rows is on the devices, and batches are gathered from it by row number. A
federation that fits is one block for good; of a larger one each gather brings the rows of its own clients.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from headstart.data.characters import is_unfitted
from headstart.data.federation import Block, Client, Federation, Part, Tree, key_data
from headstart.data.preprocessing import needs_preprocessing
from headstart.devices import block_spec, on_mesh, spans_processes
from headstart.errors import UserError

ALIGNMENT = 64


class Resident(NamedTuple):
    """A federation's rows on the devices, and where each client's begin among them."""

    block: Block
    starts: np.ndarray


class Subset(NamedTuple):
    """At most `most` of every client's local training (support) examples: the first of a random order of them.

    The order is one of the client's by (seed, number, its id), so that subsets of one number are nested. They come in
    the order in which the federation has them; of a client that has no more, all as they are.
    """

    most: int
    seed: int
    number: int

    def positions(self, client: str, size: int) -> np.ndarray:
        """int64 `[at most most]`: which of a client's examples, ascending."""
        if size <= self.most:
            return np.arange(size)
        generator = np.random.default_rng([self.seed, 2, self.number, *map(int, key_data(client))])
        return np.sort(generator.permutation(size)[: self.most])


@dataclass(frozen=True)
class Gather:
    """Cohorts of a federation that `on_device` has put on the device.

    turn: which of a client's rows test: those that come this many times their number before its own local test rows,
        the last ones; its other rows train. Of a client of 50 rows that tests on 10, the turns 0 to 4 are five folds.
    subset: which of its local training (support) examples there are; None: all.
    """

    federation: Federation
    mesh: Mesh | None
    resident: Resident | None
    turn: int = 0
    subset: Subset | None = None

    def turned(self, turn: int) -> Gather:
        """The same with another turn, which has the same shapes."""
        return replace(self, turn=turn)

    def limited(self, subset: Subset | None) -> Gather:
        """The same with these of the clients' local training (support) examples, which has the same shapes."""
        return replace(self, subset=subset)

    def __call__(self, clients: np.ndarray, part: Part = "adapt") -> Client:
        """The clients (int array `[..., n]`) as a `Client` whose leading axes are those of the array.

        A number of -1 stands for an empty client. Of several devices n is a multiple, as `assign_clients` makes it.
        """
        return self.parts(clients, part)[0]

    def parts(self, clients: np.ndarray, *parts: Part) -> tuple[Client, ...]:
        """Several parts of the same clients, each as a gather of its own would return it, over one block."""
        clients = np.asarray(clients, np.int64)
        block, starts = self._bring(clients) if self.resident is None else self._find(clients, self.resident)
        given = [self._rows(clients, starts, part) for part in parts], self._key_data(clients)
        gathered, keys = _put(given, self.mesh, PartitionSpec(*[None] * (clients.ndim - 1), "clients"))
        return tuple(Client(block, rows, size, keys) for rows, size in gathered)

    def everything(self) -> Block:
        """The rows of all clients, client after client."""
        everyone = np.arange(len(self.federation))
        return (self._bring(everyone) if self.resident is None else self.resident).block

    def _rows(self, clients: np.ndarray, starts: np.ndarray, part: Part) -> tuple[np.ndarray, np.ndarray]:
        """`Client.rows` and `Client.size` of this part of the clients, whose rows begin at `starts`."""
        first, size = _part_of(self.federation, clients, starts, part)
        present = clients >= 0
        rows = np.where(present, first, 0).astype(np.int32)[..., None]
        rows = rows + np.arange(self.federation.capacity(part), dtype=np.int32)
        if self.turn:
            first, sizes = starts[..., None], self.federation.sizes[clients]
            shift, total = self.turn * sizes[..., 1:], np.maximum(sizes.sum(axis=-1, keepdims=True), 1)
            rows = np.where(present[..., None], first + (rows - first - shift) % total, 0).astype(np.int32)
        size = np.where(present, size, 0).astype(np.int32)
        return self._limit(clients, rows, size) if self.subset is not None and part == "adapt" else (rows, size)

    def _limit(self, clients: np.ndarray, rows: np.ndarray, size: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Those of the rows that are in the subset, first; what follows them is padding."""
        assert self.subset is not None
        positions = np.zeros(rows.shape, np.int64)
        for index in zip(*np.nonzero(size), strict=True):
            chosen = self.subset.positions(self.federation.ids[int(clients[index])], int(size[index]))
            positions[index][: len(chosen)] = chosen
        return np.take_along_axis(rows, positions, axis=-1), np.minimum(size, np.int32(self.subset.most))

    def _key_data(self, clients: np.ndarray) -> np.ndarray:
        keys, present = np.zeros((*clients.shape, 2), np.uint32), clients >= 0
        keys[present] = np.array([key_data(self.federation.ids[int(i)]) for i in clients[present]]).reshape(-1, 2)
        return keys

    def _find(self, clients: np.ndarray, resident: Resident) -> Resident:
        return Resident(resident.block, resident.starts[clients])

    def _bring(self, clients: np.ndarray) -> Resident:
        """A block of just these clients' rows, filled up to a power of two, so that few programs are compiled.

        In a cluster every process brings those of its own devices' clients alone, all of them into equal blocks.
        """
        assigned = _by_process(clients, self.mesh)
        process = jax.process_index() if len(assigned) > 1 else 0
        mine = assigned[process]
        counts = [int(self.federation.sizes[part[part >= 0]].sum()) for part in assigned]
        # Counted for all positions of the cohort: how many of them are empty differs from call to call.
        usual = clients.size * int(self.federation.sizes.sum()) // len(self.federation) // len(assigned)
        capacity = 1 << max(max(counts) - 1, usual, 1).bit_length()
        present, starts = mine[mine >= 0], np.zeros(clients.shape, np.int64)
        starts[mine >= 0] = starts_of(self.federation, present)

        def fill(leaf: np.ndarray) -> np.ndarray:
            filled = _zeros((capacity, *leaf.shape[1:]), leaf.dtype)
            filled[: counts[process]] = leaf[: counts[process]]
            return filled

        # A process without clients needs to know what rows look like, too: from those of another.
        fetched = self.federation.fetch(present if len(present) else clients[clients >= 0][:1])
        block = jax.tree.map(fill, Block(*fetched))
        return Resident(_put_block(block, self.mesh), starts)


def on_device(federation: Federation, *, limit: int = 2**30, mesh: Mesh | None = None) -> Gather:
    """Put a federation on the device; returns what gathers cohorts of it.

    limit: a federation of at most this size in bytes is put there whole; of a larger one each call brings its rows.
    mesh: the devices that share the work, as `devices.all_devices` gives them: each gets the rows and its own clients.
        Processes of a cluster read the clients they train and no others, so that each gather brings its own rows.
    """
    if is_unfitted(federation):
        raise UserError(
            f"{federation.name} is text whose characters no run has numbered; give --data-option characters=printable"
        )
    if needs_preprocessing(federation):
        raise UserError(
            f"{federation.name} is a table with gaps, categories or dates, which no model learns from as they are; make"
            " features of it: headstart.Preprocessing.fit(federation, clients).apply(federation)"
        )
    if spans_processes(mesh) or federation.nbytes > limit:
        return Gather(federation, mesh, None)
    everyone = np.arange(len(federation))
    block = _put_block(Block(*federation.fetch(everyone)), mesh)
    return Gather(federation, mesh, Resident(block, starts_of(federation, everyone)))


def _by_process(clients: np.ndarray, mesh: Mesh | None) -> list[np.ndarray]:
    """The clients (int `[..., n]`) that each process trains, -1 at the positions of the others'."""
    if not spans_processes(mesh):
        return [clients]
    owners = [device.process_index for device in mesh.devices.flat]
    owner = np.repeat(owners, clients.shape[-1] // len(owners))
    return [np.where(owner == process, clients, -1) for process in range(jax.process_count())]


def part_rows(federation: Federation, clients: np.ndarray, part: Part) -> np.ndarray:
    """int64 `[examples]`: the row numbers of this part of these clients, in a block of the whole federation."""
    starts = starts_of(federation, np.arange(len(federation)))[clients]
    first, size = _part_of(federation, clients, starts, part)
    return np.concatenate([np.arange(a, a + n) for a, n in zip(first, size, strict=True)])


def starts_of(federation: Federation, clients: np.ndarray) -> np.ndarray:
    """int64 `[n]`: where each client's rows begin in a block of the rows of these clients."""
    totals = federation.sizes[clients].sum(axis=1)
    return np.cumsum(totals) - totals


def _put(tree: Tree, mesh: Mesh | None, split: PartitionSpec) -> Tree:
    """Host arrays on the devices: whole on each, or split among them along an axis."""
    aligned = jax.tree.map(_aligned, tree)
    return jax.device_put(aligned) if mesh is None else on_mesh(aligned, mesh, split)


def _put_block(block: Block, mesh: Mesh | None) -> Block:
    """A block on the devices of this process, as `devices.block_spec` says."""
    if not spans_processes(mesh):
        return _put(block, mesh, PartitionSpec())
    sharding = NamedSharding(mesh, block_spec(mesh))

    def put(leaf: np.ndarray) -> jax.Array:
        mine = [jax.device_put(leaf, device) for device in mesh.local_devices]
        return jax.make_array_from_single_device_arrays((len(leaf) * mesh.size, *leaf.shape[1:]), sharding, mine)

    return jax.tree.map(put, jax.tree.map(_aligned, block))


def _aligned(array: np.ndarray) -> np.ndarray:
    """The array where a CPU's devices can read it in place: then all of them share one copy."""
    if array.ctypes.data % ALIGNMENT == 0 and array.flags.c_contiguous:
        return array
    copy = _zeros(array.shape, array.dtype)
    copy[...] = array
    return copy


def _zeros(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    """Zeros that begin at a multiple of `ALIGNMENT`; the system makes them as they are touched."""
    size = math.prod(shape) * dtype.itemsize
    buffer = np.zeros(size + ALIGNMENT, np.uint8)
    start = -buffer.ctypes.data % ALIGNMENT
    return buffer[start : start + size].view(dtype).reshape(shape)


def _part_of(
    federation: Federation, clients: np.ndarray, starts: np.ndarray, part: Part
) -> tuple[np.ndarray, np.ndarray]:
    """Where the part of each client begins, and its size."""
    adapt, test = np.moveaxis(federation.sizes[clients], -1, 0)
    return {"adapt": (starts, adapt), "test": (starts + adapt, test), "all": (starts, adapt + test)}[part]
