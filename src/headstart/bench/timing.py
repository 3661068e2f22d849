"""Timings of `headstart bench`: matrix products of the machine, and training as a run does it."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from headstart.bench.workload import LEARNING_RATE, SEED, Work
from headstart.data.device_data import Gather
from headstart.devices import all_devices, device_count, replicated
from headstart.learning.optimizers import Optimizer
from headstart.learning.parallel import Parallel
from headstart.learning.personalization import Personalization, personalizer
from headstart.learning.rounds import Cohort, Info, run_rounds, seed_key
from headstart.training.loop import CALL_ROUNDS
from headstart.training.sampling import cohorts

PRODUCT_SHAPE = 11520, 288, 64
PRODUCT_SECONDS = 0.05
PERSONAL_EPOCHS = 2


class Machine(NamedTuple):
    """The devices in use. products: times matrix products. measured: found so far, in operations per second."""

    mesh: Mesh | None
    devices: list[Any]
    products: Callable[[], float]
    measured: list[float]

    def operations_per_second(self) -> float:
        """Operations per second of float32 matrix products, just now."""
        self.measured.append(self.products())
        return self.measured[-1]


def machine_of(count: int | None) -> Machine:
    """The first `count` devices, by default all."""
    mesh = all_devices(count)
    devices = jax.local_devices()[:1] if mesh is None else list(mesh.devices.flat)
    return Machine(mesh, devices, _products(mesh), [])


def _products(mesh: Mesh | None) -> Callable[[], float]:
    """A function that times matrix products, on all devices at once, and returns their operations per second."""
    rows, inner, columns = PRODUCT_SHAPE
    count, program = device_count(mesh), _product_program(mesh)
    factors = jnp.full((count, rows, inner), 1 / inner), jnp.ones((count, inner, columns))
    if mesh is not None:
        factors = jax.device_put(factors, NamedSharding(mesh, PartitionSpec("clients")))
    timed(lambda: program(*factors, 1))
    number = 8
    while timed(partial(program, *factors, number)) < PRODUCT_SECONDS:
        number *= 2
    operations = 2 * rows * inner * columns * count * number
    return lambda: operations / timed(partial(program, *factors, number))


def _product_program(mesh: Mesh | None) -> Callable[..., jax.Array]:
    """A program of `(left [devices, m, n], right [devices, n, k], number)`: each device multiplies `number` times."""

    def multiply(left: jax.Array, right: jax.Array, number: jax.Array) -> jax.Array:
        def one(_: jax.Array, right: jax.Array) -> jax.Array:
            # Each product needs the one before, or XLA would compute one for all of them.
            return right.at[0].set(jnp.max(left[0] @ right, axis=0))

        return jax.lax.fori_loop(0, number, one, right[0])[None]

    if mesh is None:
        return jax.jit(multiply)
    split = PartitionSpec("clients")
    specs = split, split, PartitionSpec()
    return jax.jit(jax.shard_map(multiply, mesh=mesh, in_specs=specs, out_specs=split, check_vma=False))


def timed(run: Callable[[], Any]) -> float:
    """The seconds until what `run` returns is computed."""
    began = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - began


class Repetition(NamedTuple):
    """One call. examples_per_second: of real examples. machine_share, outside: as in `measure.Tried`."""

    examples_per_second: float
    machine_share: float
    outside: float


class Trainer:
    """Rounds with one number of lanes, called as `headstart run` calls them.

    compile_seconds: until the program was ready. round_seconds: the first round after that.
    """

    def __init__(self, work: Work, gather: Gather, lanes: int) -> None:
        self.work, self.parallel, self.gather = work, Parallel(lanes, gather.mesh), gather
        algorithm = work.stage.algorithm(work.task, work.model, parallel=self.parallel)
        self.program, self.key = run_rounds(algorithm), seed_key(SEED)
        self.state = replicated(algorithm.init(work.model.init(self.key)), gather.mesh)
        self.cohorts = cohorts(work.stage, work.training, gather, seed=SEED, first_round=1, parallel=self.parallel)
        cohort = self.cohort_of(1, 1)
        self.compile_seconds = timed(lambda: self.advance(cohort, 1, 0))
        self.round_seconds = timed(lambda: self.advance(cohort, 1, 1))
        self.first_speed = work.examples(1, 1) / self.round_seconds

    def cohort_of(self, first: int, count: int) -> Cohort:
        """The cohorts of `count` rounds."""
        return self.cohorts(first, count, CALL_ROUNDS).cohort

    def advance(self, cohort: Cohort, first: int, count: int) -> Info:
        """Train; returns the rounds' diagnostics, which may still be computed then."""
        self.state, infos = self.program(self.state, cohort, self.key, first, count)
        return infos

    def call(self, cohort: Cohort, first: int, count: int) -> None:
        """One turn of a run's loop: train, gather the next cohorts meanwhile, fetch the diagnostics."""
        infos = self.advance(cohort, first, count)
        self.cohort_of(first + count, count)
        jax.device_get(infos)

    def examples_per_second(self, number: int, seconds: float) -> float:
        """Examples per second in call `number`, of about `seconds` seconds."""
        first, count = self._rounds(number, seconds)
        cohort = jax.block_until_ready(self.cohort_of(first, count))
        return self.work.examples(first, count) / timed(lambda: self.call(cohort, first, count))

    def repeat(self, number: int, seconds: float, machine: Machine) -> Repetition:
        """The same call between matrix products, and its program alone."""
        first, count = self._rounds(number, seconds)
        cohort = jax.block_until_ready(self.cohort_of(first, count))
        before = machine.operations_per_second()
        wall = timed(lambda: self.call(cohort, first, count))
        product = (before + machine.operations_per_second()) / 2
        alone = timed(lambda: self.advance(cohort, first, count))
        speed = self.work.examples(first, count) / wall
        return Repetition(speed, speed * self.work.arithmetic.training / product, 1 - alone / wall)

    def _rounds(self, number: int, seconds: float) -> tuple[int, int]:
        count = max(1, min(CALL_ROUNDS, int(seconds / self.round_seconds)))
        return 1 + number * count, count


class Personal:
    """Personalizing and testing all held-out clients, with a trainer's lanes and parameters.

    compile_seconds: until the program was ready, and one client done.
    """

    def __init__(self, trainer: Trainer) -> None:
        work, gather = trainer.work, trainer.gather
        recipe = Personalization(Optimizer("sgd", LEARNING_RATE), work.batch_size, PERSONAL_EPOCHS)
        personalize = personalizer(work.task, work.model, recipe, parallel=trainer.parallel)
        self.trainer, self.run = trainer, partial(personalize, gather=gather, key=trainer.key)
        self.compile_seconds = self._seconds(work.held_out[:1])

    def cost(self, number: int, seconds: float) -> float:
        """Its time, as a multiple of what its useful arithmetic takes at the speed of training before and after it."""
        work, before = self.trainer.work, self.trainer.examples_per_second(number, seconds)
        wall = self._seconds(work.held_out)
        speed = (before + self.trainer.examples_per_second(number, seconds)) / 2
        return wall * speed * work.arithmetic.training / personal_operations(work)

    def _seconds(self, clients: np.ndarray) -> float:
        return timed(lambda: self.run(self.trainer.state.params, clients)[0])


def personal_operations(work: Work) -> int:
    """The useful operations to personalize all held-out clients, and to test them before and after every epoch."""
    adapt, test = (int(n) for n in work.federation.sizes[work.held_out].sum(axis=0))
    trained, tested = PERSONAL_EPOCHS * adapt, (PERSONAL_EPOCHS + 1) * test
    return trained * work.arithmetic.training + tested * work.arithmetic.forward
