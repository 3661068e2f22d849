"""Run folders read back: one reader for reports, studies, exports and cards."""

from __future__ import annotations

import os
import zipfile
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from headstart.errors import UserError
from headstart.experiment.serialization import current, from_json
from headstart.learning.tasks import Metric, Task
from headstart.runs.directory import Group, read_group, read_json, seed_folders
from headstart.runs.log import Record, read_records
from headstart.runs.results import History, StageResult
from headstart.runs.run import Run

GROUPS: tuple[Group, ...] = ("validation", "test")


def open_run(path: str | os.PathLike[str] | Run, *, allowed_modules: Collection[str] = (), model: Any = None) -> Run:
    """A run, finished or not, from its folder alone.

    allowed_modules: modules beside headstart's own that its task, model and methods may be imported from.
    model: the model it was given in memory, if it was; anything that `as_model` takes.

    Raises:
        UserError: if the folder is no run folder or a damaged one.
    """
    (run,) = open_runs([path], allowed_modules=allowed_modules)
    return run if model is None else run.with_model(model)


def open_runs(paths: Sequence[str | os.PathLike[str] | Run], *, allowed_modules: Collection[str] = ()) -> list[Run]:
    """Several runs, each with a label unlike the others'; those that are open already are taken as they are.

    Raises:
        UserError: as of `open_run`.
    """
    folders = [path.path if isinstance(path, Run) else Path(path) for path in paths]
    documents = [_document(folder) for folder in folders]
    labels = _labels(folders, [document["name"] for document in documents])
    return [
        given.labelled(label) if isinstance(given, Run) else _read(folder, label, document, allowed_modules)
        for given, folder, label, document in zip(paths, folders, labels, documents, strict=True)
    ]


def _document(path: Path) -> dict[str, Any]:
    document = read_json(path / "experiment.json")
    if not (isinstance(document, dict) and {"name", "stages", "task", "personalization"} <= set(document)):
        raise UserError(f"{path}/experiment.json is not an experiment; give a folder that `headstart run` has written")
    return current(document)


def _labels(paths: Sequence[Path], names: list[str]) -> list[str]:
    """The experiments' names, with as much of the folder's path as distinguishes runs of the same name."""
    folders = [path.resolve() for path in paths]
    short = Counter((name, folder.name) for name, folder in zip(names, folders, strict=True))
    labels = []
    for path, name, folder in zip(paths, names, folders, strict=True):
        if names.count(name) == 1:
            labels.append(name)
        else:
            labels.append(f"{name} ({folder.name if short[name, folder.name] == 1 else path})")
    return labels


def _read(path: Path, label: str, document: dict[str, Any], allowed_modules: Collection[str]) -> Run:
    task: Task = from_json(document["task"], allowed_modules=allowed_modules, where="task")
    ends = tuple(int(end) for end in np.cumsum([stage["rounds"] for stage in document["stages"]]))
    logs = {int(folder.name.removeprefix("seed-")): _records(folder / "metrics.jsonl") for folder in seed_folders(path)}
    reached = {seed: max((record["round"] for record in log), default=0) for seed, log in logs.items()}
    stages = [_stage_results(path, list(logs), number, document["stages"], ends) for number in range(len(ends))]
    results: dict[Group, tuple[StageResult, ...]] = {
        group: tuple(stage[group] for stage in stages if group in stage) for group in GROUPS
    }
    history = _history(logs, results, ends, task.metrics[0])
    environment = read_json(path / "environment.json")
    return Run(path, label, document, environment, task, ends, reached, results, history, tuple(allowed_modules))


def _records(path: Path) -> list[Record]:
    try:
        return read_records(path)
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); repeat the `headstart run` command of this folder") from error


def _stage_results(
    path: Path, seeds: list[int], number: int, stages: list[dict[str, Any]], ends: tuple[int, ...]
) -> dict[Group, StageResult]:
    """What the seeds that have ended a stage measured; where settings are chosen, that is no test client."""
    done = tuple(seed for seed in seeds if (path / f"seed-{seed}" / f"stage-{number}.json").exists())
    reports = tuple(read_json(path / f"seed-{seed}" / f"stage-{number}.json") for seed in done)
    name, final = stages[number]["name"], number == len(stages) - 1
    results: dict[Group, StageResult] = {}
    for group in GROUPS:
        if not done or not all(group in report for report in reports):
            continue
        read = [_results(path / f"seed-{seed}" / f"stage-{number}.npz", group) for seed in done]
        epochs = tuple(int(report[group]["length"]) for report in reports)
        (ids, sizes, _), curves = read[0], tuple(curves for _, _, curves in read)
        results[group] = StageResult(number, name, ends[number], final, done, epochs, ids, sizes, curves, reports)
    return results


def _results(path: Path, group: Group) -> tuple[list[str], np.ndarray, Any]:
    try:
        return read_group(path, group)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(
            f"cannot read {path} ({error}); it is missing or damaged, repeat its `headstart run`"
        ) from error


def _history(
    logs: dict[int, list[Record]], results: dict[Group, tuple[StageResult, ...]], ends: tuple[int, ...], metric: Metric
) -> History:
    known = [result for group in GROUPS for result in results[group]]
    chosen = {(r.number, seed): count for r in known for seed, count in zip(r.seeds, r.epochs, strict=True)}
    curves: list[tuple[list[int], list[float], list[float]]] = []
    for seed, log in logs.items():
        evaluations = [record for record in log if record["event"] == "evaluation"]
        rounds = [record["round"] for record in evaluations]
        values = [record["validation"][metric.name] for record in evaluations]
        stages = np.searchsorted(ends, rounds)
        epochs = [chosen.get((int(stage), seed), -1) for stage in stages]
        # A stage with a target is evaluated without personalization.
        personalized = [v[min(count, len(v) - 1)] for v, count in zip(values, epochs, strict=True)]
        curves.append((rounds, [v[0] for v in values], personalized))
    furthest = max((rounds[-1] for rounds, _, _ in curves if rounds), default=-1)
    curves = [curve for curve in curves if curve[0] and curve[0][-1] == furthest]
    if not curves:
        return History(np.zeros(0, int), np.zeros((0, 0)), np.zeros((0, 0)))
    return History(np.array(curves[0][0]), *(np.array([curve[i] for curve in curves], float) for i in (1, 2)))
