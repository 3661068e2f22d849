"""Run folders read back: one reader for reports, studies, exports and cards."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from headstart.errors import UserError
from headstart.experiment.serialization import current, from_json
from headstart.learning.metrics import evaluated_metrics
from headstart.learning.personalization import Curves
from headstart.learning.tasks import Metric, Task
from headstart.runs.contents import (
    GROUPS,
    Group,
    experiment_document,
    read_group,
    read_json,
    reading,
    seed_folders,
    stage_report,
)
from headstart.runs.log import Record, complaints, read_log
from headstart.runs.results import History, StageResult
from headstart.runs.run import Run
from headstart.statistics.clients import measured_metrics


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
    return current(experiment_document(path / "experiment.json"))


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
    task = _task(path, document, allowed_modules)
    ends = tuple(int(end) for end in np.cumsum([stage["rounds"] for stage in document["stages"]]))
    read = {int(folder.name.removeprefix("seed-")): read_log(folder / "metrics.jsonl") for folder in seed_folders(path)}
    logs = {seed: log for seed, (log, _) in read.items()}
    reached = {seed: max((record["round"] for record in log), default=0) for seed, log in logs.items()}
    stages = [_stage_results(path, list(logs), number, document["stages"], task) for number in range(len(ends))]
    results: dict[Group, tuple[StageResult, ...]] = {
        group: tuple(stage[group] for stage in stages if group in stage) for group in GROUPS
    }
    history = _history(logs, results, ends, task.metrics[0])
    environment = read_json(path / "environment.json")
    if not (isinstance(environment, dict) and isinstance(environment.get("versions"), dict)):
        raise UserError(f"{path}/environment.json is not what a run writes there; repeat its `headstart run`")
    notes = tuple(
        text
        for seed, (log, unreadable) in read.items()
        for text in complaints(path / f"seed-{seed}" / "metrics.jsonl", log, unreadable, _done(results, seed))
    )
    return Run(path, label, document, environment, task, ends, reached, results, history, notes, tuple(allowed_modules))


def _task(path: Path, document: dict[str, Any], allowed_modules: Collection[str]) -> Task:
    file = path / "experiment.json"
    try:
        task = from_json(document["task"], allowed_modules=allowed_modules, where="task")
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
    if not isinstance(getattr(task, "metrics", None), tuple) or not task.metrics:
        raise UserError(f"{file} names no task; give a folder that `headstart run` has written")
    return task


def _done(results: Mapping[Group, tuple[StageResult, ...]], seed: int) -> int:
    """The last round of the stages that a seed has ended."""
    reports = [report for group in GROUPS for result in results[group] for report in result.reports]
    return max((report["round"] for report in reports if report["seed"] == seed), default=0)


def _stage_results(
    path: Path, seeds: list[int], number: int, stages: list[dict[str, Any]], task: Task
) -> dict[Group, StageResult]:
    """What the seeds that have ended a stage measured; where settings are chosen, that is no test client."""
    files = {seed: path / f"seed-{seed}" / f"stage-{number}" for seed in seeds}
    done = tuple(seed for seed, file in files.items() if file.with_suffix(".json").exists())
    reports = tuple(stage_report(files[seed].with_suffix(".json")) for seed in done)
    name, final = stages[number]["name"], number == len(stages) - 1
    # A stage may have ended early.
    planned = sum(stage["rounds"] for stage in stages[: number + 1])
    end = max((report["round"] for report in reports), default=planned)
    results: dict[Group, StageResult] = {}
    for group in GROUPS:
        if not done or not all(group in report for report in reports):
            continue
        read = [read_group(files[seed].with_suffix(".npz"), group) for seed in done]
        for seed, report, (ids, _, curves) in zip(done, reports, read, strict=True):
            with reading(files[seed].with_suffix(".npz")):
                _check_results(group, report, ids, curves, read[0][0], task)
        epochs = tuple(report[group]["length"] for report in reports)
        (ids, sizes, _), curves = read[0], tuple(curves for _, _, curves in read)
        results[group] = StageResult(number, name, end, final, done, epochs, ids, sizes, curves, reports)
    return results


def _check_results(
    group: Group, report: Mapping[str, Any], ids: list[str], curves: Curves, others: list[str], task: Task
) -> None:
    needed = {metric.name for metric in task.metrics} | (
        set(curves.metrics) & {m.name for m in evaluated_metrics(task)}
    )
    missing = sorted(name for name in needed if name not in curves.metrics or name not in report[group])
    if missing:
        raise ValueError(f"the {group} clients' {missing[0]} is not there")
    if report[group]["length"] >= curves.gain.shape[1]:
        raise ValueError(f"{report[group]['length']} epochs were chosen of {curves.gain.shape[1] - 1}")
    if any(curves.means(metric).shape != curves.gain.shape for metric in measured_metrics(curves, task)):
        raise ValueError(f"the {group} clients' results are of another form than those of the task's metrics")
    if ids != others:
        raise ValueError(f"the {group} clients are others than those of the first seed")


def _history(
    logs: dict[int, list[Record]], results: dict[Group, tuple[StageResult, ...]], ends: tuple[int, ...], metric: Metric
) -> History:
    known = [result for group in GROUPS if group != "participants" for result in results[group]]
    chosen = {(r.number, seed): count for r in known for seed, count in zip(r.seeds, r.epochs, strict=True)}
    curves: list[dict[int, tuple[float, float]]] = []
    for seed, log in logs.items():
        evaluations = [record for record in log if record["event"] == "evaluation"]
        values = {r["round"]: r["validation"][metric.name] for r in evaluations if metric.name in r["validation"]}
        middle: dict[int, int] = {record["round"]: record.get("middle", -1) for record in evaluations}
        stages = zip(values, np.searchsorted(ends, list(values)), strict=True)
        epochs = [chosen.get((int(stage), seed), middle[number]) for number, stage in stages]
        # A stage with a target is evaluated without personalization.
        curves.append(
            {
                number: (each[0], each[min(count, len(each) - 1)])
                for (number, each), count in zip(values.items(), epochs, strict=True)
            }
        )
    furthest = max((max(curve) for curve in curves if curve), default=-1)
    curves = [curve for curve in curves if furthest in curve]
    # Of a damaged log some may be lost.
    rounds = [number for number in curves[0] if all(number in curve for curve in curves)] if curves else []
    if not rounds:
        return History(np.zeros(0, int), np.zeros((0, 0)), np.zeros((0, 0)))
    both = np.array([[curve[number] for number in rounds] for curve in curves], float)
    return History(np.array(rounds, int), both[..., 0], both[..., 1])
