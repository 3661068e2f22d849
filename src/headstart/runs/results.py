"""What run folders hold, as values: the history of training, and what every finished stage came to."""

from __future__ import annotations

import os
import zipfile
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from headstart.errors import UserError
from headstart.runs.directory import read_curves, read_json, seed_folders
from headstart.runs.log import Record, read_records
from headstart.learning.personalization import Curves
from headstart.experiment.serialization import current, from_json
from headstart.statistics.clients import bootstrap
from headstart.learning.tasks import Metric, Task


class Estimate(NamedTuple):
    """A mean over clients and its 95 % interval, by a bootstrap over clients."""

    mean: float
    low: float
    high: float


class StageResult(NamedTuple):
    """A stage on the test clients, over the seeds that have finished it.

    number, name: of the stage. round: its last one, counted over all stages. final: whether it is the run's last stage.
    seeds: the numbers of these seeds. epochs: of personalization, as each chose them on validation clients.
    ids: of the clients. curves: one entry per seed. reports: the `stage-n.json` of each seed.
    """

    number: int
    name: str
    round: int
    final: bool
    seeds: tuple[int, ...]
    epochs: tuple[int, ...]
    ids: list[str]
    curves: tuple[Curves, ...]
    reports: tuple[dict[str, Any], ...]


class History(NamedTuple):
    """The first metric on validation clients during training, of the seeds that have come furthest.

    rounds: `[evaluations]`. initial, personalized: `[seeds, evaluations]`, the latter at the epochs of personalization
    chosen at the end of the stage, or the most while a stage goes on.
    """

    rounds: np.ndarray
    initial: np.ndarray
    personalized: np.ndarray


class Run(NamedTuple):
    """A run, finished or not.

    label: what to call it, unlike every other run read with it.
    document, environment: `experiment.json`, `environment.json`.
    ends: the last round of every stage, as planned. reached: the newest round of every seed that was begun.
    """

    path: Path
    label: str
    document: dict[str, Any]
    environment: dict[str, Any]
    metrics: tuple[Metric, ...]
    ends: tuple[int, ...]
    reached: dict[int, int]
    stage_results: tuple[StageResult, ...]
    history: History

    @property
    def metric(self) -> Metric:
        """The first metric, by which decisions are made."""
        return self.metrics[0]

    @property
    def unit(self) -> str:
        """What personalization counts: "epochs" or "steps"."""
        return "epochs" if self.document["personalization"]["steps"] is None else "steps"

    @property
    def stage_names(self) -> list[str]:
        """The names of the stages, as planned."""
        return [stage["name"] for stage in self.document["stages"]]


def read_runs(paths: Sequence[str | os.PathLike[str]], *, allowed_modules: Collection[str] = ()) -> list[Run]:
    """Read run folders.

    allowed_modules: modules beside headstart's own that a saved task may be imported from.

    Raises:
        UserError: if a folder is no run folder or a damaged one.
    """
    folders = [Path(path) for path in paths]
    documents = [_document(folder) for folder in folders]
    labels = _labels(folders, [document["name"] for document in documents])
    return [_read(*each, allowed_modules) for each in zip(folders, labels, documents, strict=True)]


def _document(path: Path) -> dict[str, Any]:
    document = read_json(path / "experiment.json")
    if not (isinstance(document, dict) and {"name", "stages", "task", "personalization"} <= set(document)):
        raise UserError(f"{path}/experiment.json is not an experiment; give a folder that `headstart run` has written")
    return current(document)


def _labels(paths: Sequence[Path], names: list[str]) -> list[str]:
    """The experiments' names, with as much of the folder's path as tells runs of the same name apart."""
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
    task: Task = from_json(document["task"], allowed_modules=allowed_modules, place="task")
    ends = tuple(int(end) for end in np.cumsum([stage["rounds"] for stage in document["stages"]]))
    logs = {int(folder.name.removeprefix("seed-")): _records(folder / "metrics.jsonl") for folder in seed_folders(path)}
    reached = {seed: max((record["round"] for record in log), default=0) for seed, log in logs.items()}
    stage_results = [_stage_result(path, list(logs), number, document["stages"], ends) for number in range(len(ends))]
    finished = tuple(stage_result for stage_result in stage_results if stage_result is not None)
    history = _history(logs, finished, ends, task.metrics[0].name)
    environment = read_json(path / "environment.json")
    return Run(path, label, document, environment, task.metrics, ends, reached, finished, history)


def _records(path: Path) -> list[Record]:
    try:
        return read_records(path)
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); repeat the `headstart run` command of this folder") from error


def _stage_result(
    path: Path, seeds: list[int], number: int, stages: list[dict[str, Any]], ends: tuple[int, ...]
) -> StageResult | None:
    done = tuple(seed for seed in seeds if (path / f"seed-{seed}" / f"stage-{number}.json").exists())
    reports = tuple(read_json(path / f"seed-{seed}" / f"stage-{number}.json") for seed in done)
    # Where settings are chosen, no test client is measured.
    if not all("test" in report for report in reports) or not done:
        return None
    results = [_results(path / f"seed-{seed}" / f"stage-{number}.npz") for seed in done]
    epochs = tuple(int(report["test"]["length"]) for report in reports)
    curves = tuple(curves for _, curves in results)
    final = number == len(stages) - 1
    return StageResult(number, stages[number]["name"], ends[number], final, done, epochs, results[0][0], curves, reports)


def _results(path: Path) -> tuple[list[str], Curves]:
    try:
        return read_curves(path, "test")
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(
            f"cannot read {path} ({error}); it is missing or damaged, repeat its `headstart run`"
        ) from error


def _history(logs: dict[int, list[Record]], stage_results: tuple[StageResult, ...], ends: tuple[int, ...], name: str) -> History:
    chosen = {(o.number, seed): count for o in stage_results for seed, count in zip(o.seeds, o.epochs, strict=True)}
    curves: list[tuple[list[int], list[float], list[float]]] = []
    for seed, log in logs.items():
        told = [record for record in log if record["event"] == "evaluation"]
        rounds = [record["round"] for record in told]
        values = [record["validation"][name] for record in told]
        stages = np.searchsorted(ends, rounds)
        epochs = [chosen.get((int(stage), seed), -1) for stage in stages]
        # A stage with a target is watched without personalization.
        personalized = [v[min(count, len(v) - 1)] for v, count in zip(values, epochs, strict=True)]
        curves.append((rounds, [v[0] for v in values], personalized))
    furthest = max((rounds[-1] for rounds, _, _ in curves if rounds), default=-1)
    curves = [curve for curve in curves if curve[0] and curve[0][-1] == furthest]
    if not curves:
        return History(np.zeros(0, int), np.zeros((0, 0)), np.zeros((0, 0)))
    return History(np.array(curves[0][0]), *(np.array([curve[i] for curve in curves], float) for i in (1, 2)))


def client_curves(stage_result: StageResult, metric: Metric) -> np.ndarray:
    """float64 `[tested clients, epochs + 1]`: every client's own value, averaged over the seeds."""
    values = np.mean([_values(curves, metric) for curves in stage_result.curves], axis=0)
    return values[_tested(stage_result)]


def before_and_after(stage_result: StageResult, metric: Metric) -> tuple[np.ndarray, np.ndarray]:
    """float64 `[tested clients]` twice: initial and personalized value of every client, averaged over the seeds.

    Each seed counts at the epochs of personalization it chose.
    """
    tested = _tested(stage_result)
    each = [_values(curves, metric)[tested] for curves in stage_result.curves]
    initial = np.mean([values[:, 0] for values in each], axis=0)
    return initial, np.mean([v[:, n] for v, n in zip(each, stage_result.epochs, strict=True)], axis=0)


def seed_means(stage_result: StageResult, metric: Metric) -> tuple[np.ndarray, np.ndarray]:
    """`[seeds]` twice: the clients' uniform mean, initial and personalized, of every seed."""
    tested = _tested(stage_result)
    each = [_values(curves, metric)[tested] for curves in stage_result.curves]
    pairs = [(v[:, 0].mean(), v[:, n].mean()) for v, n in zip(each, stage_result.epochs, strict=True)]
    initial, personalized = np.array(pairs).T
    return initial, personalized


def finite(stage_result: StageResult, metric: Metric) -> np.ndarray:
    """Bool `[tested clients]`: whose values are finite after every epoch; the others cannot be drawn."""
    return np.asarray(np.isfinite(client_curves(stage_result, metric)).all(axis=1))


def gains(initial: np.ndarray, personalized: np.ndarray, metric: Metric) -> np.ndarray:
    """How much better, whatever the metric's direction; rounding errors count as zero."""
    gain = (personalized - initial) * metric.sign
    return np.where(np.abs(gain) < 1e-7 * np.maximum(1, np.abs(initial)), 0.0, gain)


def estimate(values: np.ndarray) -> Estimate:
    """The mean of per-client values `[clients]` with its interval; NaN where there is none."""
    if not len(values):
        return Estimate(np.nan, np.nan, np.nan)
    if not np.isfinite(values).all():
        return Estimate(float(values.mean()), np.nan, np.nan)
    return Estimate(float(values.mean()), *bootstrap(values))


def _values(curves: Curves, metric: Metric) -> np.ndarray:
    sums, counts = curves.metrics[metric.name]
    return curves._replace(metrics={metric.name: (np.asarray(sums, np.float64), np.asarray(counts))}).means(metric)


def _tested(stage_result: StageResult) -> np.ndarray:
    # As in statistics.summarize: the first metric decides.
    counts = [next(iter(curves.metrics.values()))[1] for curves in stage_result.curves]
    return np.all(np.array(counts) > 0, axis=0)
