"""What the test clients of a seed come to with fewer local examples, as a file beside the end of the stage."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from headstart.errors import UserError
from headstart.learning.tasks import Metric
from headstart.runs.contents import read_arrays, reading, stage_origin
from headstart.runs.directory import write_arrays
from headstart.runs.run import Run
from headstart.statistics.by_examples import GainByExamples, gain_by_examples


class ByExamples(NamedTuple):
    """Test clients of one seed, personalized on nested subsets of their local training (support) examples.

    numbers: int `[numbers]`, ascending: the most examples that each has; the last one is the largest client's number,
        with which everybody has all.
    ids: of the clients with local test (query) examples. support: int `[clients]`: how many examples each has.
    initial, personalized: float64 `[numbers, draws, clients]`: each client's value of the task's first metric, before
        and after personalization on each draw of n of its examples.
    learning_rates, epochs: `[numbers]`: of personalization, chosen for each number on validation clients.
    at_edge: bool `[numbers]`: whether that choice is the last one tried on some side.
    """

    numbers: np.ndarray
    ids: tuple[str, ...]
    support: np.ndarray
    initial: np.ndarray
    personalized: np.ndarray
    learning_rates: np.ndarray
    epochs: np.ndarray
    at_edge: np.ndarray


def extended(found: ByExamples, more: ByExamples) -> ByExamples:
    """The values of further numbers after those that were found, of the same clients."""
    joined = {
        name: np.concatenate([getattr(found, name), getattr(more, name)])
        for name in ByExamples._fields
        if name not in ("ids", "support")
    }
    return found._replace(**joined)


def curve_of(
    seeds: Sequence[ByExamples], metric: Metric, *, over: Sequence[np.ndarray] | None = None
) -> GainByExamples:
    """The curve of the seeds of a run.

    over: values `[clients]` for each seed that the gain is over; by default those of the initial model.

    Raises:
        UserError: if the seeds are not of the same clients.
    """
    first = seeds[0]
    if any(each.ids != first.ids or not np.array_equal(each.numbers, first.numbers) for each in seeds):
        raise UserError("the seeds measured other clients, or other numbers of examples; measure them again")
    before = [each.initial for each in seeds] if over is None else over
    gains = [metric.sign * (each.personalized - base).mean(axis=1) for each, base in zip(seeds, before, strict=True)]
    return gain_by_examples(np.moveaxis(np.stack(gains), 1, 2), first.support, first.numbers.tolist())


def curve_of_run(run: Run) -> GainByExamples | None:
    """The curve of a run's last stage; None if it was not measured for every seed that was begun, or in another way."""
    stage, found = len(run.ends) - 1, []
    for seed in run.seeds:
        folder = run.path / f"seed-{seed}"
        path = by_examples_path(folder, stage)
        if not path.exists() or not is_by_examples(path, stage_origin(folder, stage)):
            return None
        found.append(read_by_examples(path))
    if not found or any(not np.array_equal(each.numbers, found[0].numbers) for each in found):
        return None
    return curve_of(found, run.task.metrics[0])


def by_examples_path(seed_folder: Path, stage: int) -> Path:
    """The file of a stage in the folder of a seed."""
    return seed_folder / f"stage-{stage}-by-examples.npz"


def write_by_examples(path: Path, of: Mapping[str, Any], found: ByExamples, *, seconds: float) -> None:
    """Write the values of a seed, atomically.

    of: what they depend on, by which they are known again. seconds: how long it took to measure them.
    """
    arrays = {name: np.asarray(value) for name, value in found._asdict().items() if name != "ids"}
    document = json.dumps({"of": of, "seconds": seconds})
    write_arrays(path, {**arrays, "ids": np.array(found.ids, np.str_), "document": np.array(document)})


def read_by_examples(path: Path) -> ByExamples:
    """The values of a seed.

    Raises:
        UserError: if the file is missing or damaged.
    """
    with reading(path, instead="remove it, and repeat the command that makes it"):
        arrays = read_arrays(path)
        ids, values = tuple(map(str, arrays["ids"])), {name: arrays[name] for name in ByExamples._fields}
        found = ByExamples(**{**values, "ids": ids})
        numbers, clients, draws = len(found.numbers), len(found.ids), found.initial.shape[1]
        shapes = [
            found.initial.shape == found.personalized.shape == (numbers, draws, clients),
            found.support.shape == (clients,),
            all(each.shape == (numbers,) for each in (found.learning_rates, found.epochs, found.at_edge)),
        ]
        if not all(shapes):
            raise ValueError("its arrays do not fit each other")
        return found


def is_by_examples(path: Path, of: Mapping[str, Any]) -> bool:
    """Whether there is a file that depends on all of this; a damaged one is none, for it is written anew."""
    try:
        if not path.exists():
            return False
        saved = json.loads(str(read_arrays(path)["document"]))["of"]
        return all(saved.get(name) == value for name, value in of.items())
    except Exception:  # whatever a damaged file leads to
        return False
