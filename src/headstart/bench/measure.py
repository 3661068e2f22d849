"""Measurements of `headstart bench`: how fast this machine trains.

Every number is taken beside the machine's own matrix products, timed before and after it: other programs on the
machine slow down both. Compilation is timed by itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from headstart.bench.timing import Machine, Personal, Repetition, Trainer, machine_of
from headstart.bench.workload import MODELS, Work, padding, work_of
from headstart.data.device_data import Gather, on_device
from headstart.errors import UserError
from headstart.training.loop import CALL_SECONDS

LEAST, MOST = 2, 9  # repetitions
# A number of lanes that is so much slower than the best in its first round is timed only once more.
HOPELESS = 0.8
MOST_COHORT = 10_000
# How the time is shared among models: a call of a large one takes longer.
TIME_SHARES = {"cnn": 3, "cnn_lean": 2, "char_lstm": 3, "mlp": 1, "logistic": 1}

Log = Callable[[str], None]


class Spread(NamedTuple):
    """Repetitions of a measurement: their median, the least, the greatest, and how many there were."""

    median: float
    low: float
    high: float
    repetitions: int


class Tried(NamedTuple):
    """Training with one number of lanes.

    examples_per_second: of real examples, in calls as a run makes them.
    machine_share: its useful arithmetic, as a share of the matrix products that the devices do in the same time.
    padding: the share of the rows computed that are padding.
    outside: the share of a call's time that its compiled program does not need.
    compile_seconds: until the program was ready.
    """

    lanes: int
    examples_per_second: Spread
    machine_share: Spread
    padding: float
    outside: Spread
    compile_seconds: float


class Result(NamedTuple):
    """A model on this machine.

    tried: the fastest first. untried: numbers of lanes for which no time was left.
    personalize_cost: the time to personalize and test held-out clients, as a multiple of the time that its useful
        arithmetic takes at the speed of training.
    personalize_compile_seconds: until that program was ready.
    """

    model: str
    tried: tuple[Tried, ...]
    untried: tuple[int, ...]
    personalize_cost: Spread
    personalize_compile_seconds: float

    @property
    def best(self) -> Tried:
        """The number of lanes to use."""
        return self.tried[0]


class Report(NamedTuple):
    """Report of all measurements.

    product_flops: of float32 matrix products on all devices in use, operations per second.
    """

    platform: str
    device: str
    devices: int
    cohort: int
    product_flops: Spread
    results: tuple[Result, ...]
    seconds: float


def bench(
    models: Sequence[str] = MODELS,
    *,
    cohort: int = 20,
    lanes: Sequence[int] | None = None,
    devices: int | None = None,
    seconds: float = 60.0,
    log: Log = lambda text: None,
) -> Report:
    """Measure this machine.

    models: of `MODELS`. cohort: clients per round. lanes: numbers to try; by default a few that make sense here.
    devices: how many share the work; by default all. seconds: about how long in all. log: is given what is being done.

    Raises:
        UserError: for a model, a number of lanes or a number of devices that there is not.
    """
    began, left = time.monotonic(), list(dict.fromkeys(models))
    check(left, cohort, lanes, seconds)
    log("matrix products")
    machine, results = machine_of(devices), []
    numbers = list(lanes or sensible_lanes(machine.devices[0].platform, len(machine.devices), cohort))
    while left:
        share = TIME_SHARES[left[0]] / sum(TIME_SHARES[name] for name in left)
        remaining = max(0.0, seconds - (time.monotonic() - began))
        results.append(_measure(work_of(left.pop(0), cohort), machine, numbers, remaining * share, log))
    device, count = machine.devices[0], len(machine.devices)
    product, elapsed = spread(machine.measured), time.monotonic() - began
    return Report(device.platform, device.device_kind, count, cohort, product, tuple(results), elapsed)


def check(models: Sequence[str], cohort: int, lanes: Sequence[int] | None, seconds: float) -> None:
    """Refuse what cannot be measured, before a minute is spent.

    Raises:
        UserError: for the first such thing.
    """
    for name in models or [""]:
        if name not in MODELS:
            raise UserError(f"there is no model {name!r} to measure; give some of {', '.join(MODELS)}")
    if not 1 <= cohort <= MOST_COHORT:
        raise UserError(f"a cohort of {cohort} clients cannot be measured; give from 1 to {MOST_COHORT}")
    if not 0 < seconds < float("inf"):
        raise UserError(f"nothing can be measured in {seconds:g} seconds; give a number above 0")
    for number in lanes or ():
        if not 1 <= number <= cohort:
            raise UserError(f"{number} lanes do not fit a cohort of {cohort} clients; give from 1 to {cohort}")


def sensible_lanes(platform: str, devices: int, cohort: int) -> list[int]:
    """Numbers of lanes to try, the most promising first."""
    most = -(-cohort // devices)
    if platform == "cpu":
        return [n for n in (1, 2, 4) if n <= most]
    return sorted({most, *(4**i for i in range(most.bit_length()) if 4**i < most)}, reverse=True)


def spread(values: Sequence[float]) -> Spread:
    """Median, least and greatest."""
    return Spread(float(np.median(values)), float(min(values)), float(max(values)), len(values))


def as_document(report: Report) -> dict[str, Any]:
    """The report as JSON values, every tuple of names as a dictionary."""

    def plain(value: Any) -> Any:
        if hasattr(value, "_asdict"):
            return {name: plain(item) for name, item in value._asdict().items()}
        return [plain(item) for item in value] if isinstance(value, tuple) else value

    return plain(report)


def _measure(work: Work, machine: Machine, lanes: Sequence[int], seconds: float, log: Log) -> Result:
    """Measurements of one model, in about `seconds`: a third each for compilation, training and personalization."""
    began, call_seconds = time.monotonic(), min(CALL_SECONDS, seconds / 8)
    trainers = _trainers(work, on_device(work.federation, mesh=machine.mesh), lanes, began + seconds / 3, log)
    rows: list[list[Repetition]] = [[] for _ in trainers]
    for number in _repetitions(began + seconds * 2 / 3):
        for trainer, row in zip(trainers, rows, strict=True):
            if number == 0 or _hopeful(trainer, trainers):
                log(f"{work.name}: training, {plural(trainer.parallel.lanes, 'lane')}, repetition {number + 1}")
                row.append(trainer.repeat(number, call_seconds, machine))
    tried = [_tried(trainer, row) for trainer, row in zip(trainers, rows, strict=True)]
    order = np.argsort([-one.examples_per_second.median for one in tried])
    log(f"{work.name}: compiling personalization")
    personal = Personal(trainers[order[0]])
    log(f"{work.name}: personalizing and testing")
    costs = [personal.cost(number, call_seconds) for number in _repetitions(began + seconds)]
    untried = tuple(lanes[len(trainers) :])
    return Result(work.name, tuple(tried[i] for i in order), untried, spread(costs), personal.compile_seconds)


def _trainers(work: Work, gather: Gather, lanes: Sequence[int], deadline: float, log: Log) -> list[Trainer]:
    """Trainers with these numbers of lanes, as far as the time reaches, but one at least."""
    trainers: list[Trainer] = []
    for number in lanes:
        if trainers and time.monotonic() > deadline:
            break
        log(f"{work.name}: compiling for {plural(number, 'lane')}")
        trainers.append(Trainer(work, gather, number))
    return trainers


def _hopeful(trainer: Trainer, trainers: Sequence[Trainer]) -> bool:
    """Whether it may turn out to be the fastest."""
    return trainer.first_speed >= HOPELESS * max(other.first_speed for other in trainers)


def _repetitions(deadline: float) -> Iterator[int]:
    """Numbers of repetitions, from 0 until the time is over."""
    for number in range(MOST):
        if number >= LEAST and time.monotonic() >= deadline:
            return
        yield number


def _tried(trainer: Trainer, row: Sequence[Repetition]) -> Tried:
    speed, share, outside = (spread(column) for column in zip(*row, strict=True))
    lost = padding(trainer.work, range(1, 33), trainer.parallel)
    return Tried(trainer.parallel.lanes, speed, share, lost, outside, trainer.compile_seconds)


def plural(number: int, noun: str) -> str:
    """The number and its noun: "1 lane", "2 lanes"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
