"""Runs of studies: each is a `headstart run` into a folder of its own, so a finished run is never repeated.

A folder's name ends with a digest of its experiment: two studies with the same run share it, and a changed setting
makes another one. So do data or code of the user's that have changed since its runs were begun.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import numpy as np

from headstart.data.fingerprint import combined
from headstart.errors import UserError
from headstart.experiment.code import code_digests
from headstart.experiment.experiment import Experiment
from headstart.experiment.loading import document_of
from headstart.experiment.measured import has_test_examples
from headstart.experiment.serialization import earlier, to_json
from headstart.experiment.setup import Prepared, prepare
from headstart.files import write_json
from headstart.learning.tasks import Metric
from headstart.runs.contents import Group, federation_document
from headstart.runs.log import Record, read_records
from headstart.runs.provenance import is_of, provenance
from headstart.runs.reading import open_run
from headstart.studies.evidence import Choice, Result
from headstart.studies.pool import Job, Pool
from headstart.training.divergence import DivergedError

# The first seed of tuning runs; no reported run has one of these.
TUNING_SEED = 1000


class Runs:
    """The runs of one federation.

    folder: of all runs. seeds: the number of each, where a study does not give it. log: gets a line of progress.
    allowed_modules: as in `run`. fingerprint: a part of the folders' digests. pool: what does the runs; by default
    this process, one after another.
    """

    def __init__(
        self,
        folder: Path,
        *,
        seeds: int,
        log: Callable[[str], None] = print,
        allowed_modules: Collection[str] = (),
        fingerprint: str = "",
        pool: Pool | None = None,
    ) -> None:
        # Absolute, so that a run resumes from any working directory.
        self.root, self.seeds, self.log = folder.resolve(), seeds, log
        self.allowed_modules, self.fingerprint = tuple(sorted(allowed_modules)), fingerprint
        self._pool = pool or Pool(1)
        self._prepared: dict[str, Prepared] = {}
        self._records: dict[str, Record] = {}

    def folder(self, experiment: Experiment) -> Path:
        """The folder of an experiment's runs, each in a folder named by its seed.

        Where its runs were begun with other data or other code of the user's, it is another one, for the present ones.

        Raises:
            UserError: if what says so is damaged.
        """
        text = (
            json.dumps(earlier(to_json(replace(experiment, seed=0))), sort_keys=True).replace(str(self.root), "")
            + self.fingerprint
        )
        folder = self.root / f"{experiment.name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
        begun = [federation_document(path) for path in sorted(folder.glob("*/federation.json"))]
        if begun and not all(is_of(record, self._record(experiment)) for record in begun):
            now = self._record(experiment)
            return folder.with_name(f"{folder.name}-{combined([now['fingerprint'], now['code']])[:8]}")
        return folder

    def _record(self, experiment: Experiment) -> Record:
        """What a run of the experiment would come from now."""
        key, code = json.dumps(to_json(experiment.data)), {"code": code_digests(experiment)}
        if key not in self._records:
            self._records[key] = provenance(self.prepared(experiment).federation, {})
        return self._records[key] | code

    def prepared(self, experiment: Experiment) -> Prepared:
        """The data, clients, model and task of an experiment."""
        key = json.dumps(to_json(experiment.data))
        if key not in self._prepared:
            self._prepared[key] = prepare(experiment, allowed_modules=self.allowed_modules)
        return self._prepared[key]

    def finish(
        self, experiments: Mapping[str, Experiment], *, seeds: int | None = None, strict: bool = True
    ) -> dict[str, Result]:
        """The results on test clients, after the missing runs are done.

        strict: otherwise a result with a run that diverges is left out.

        Raises:
            DivergedError: if a run diverges.
            UserError: if one fails for another reason.
        """
        count = seeds or self.seeds
        for name, experiment in experiments.items():
            self._check_measured(name, experiment, "test")
        jobs = {name: self._jobs(experiment, range(count)) for name, experiment in experiments.items()}
        self._run(jobs.values())
        results = {}
        for name, each in jobs.items():
            diverged = [job.diverged.read_text(encoding="utf-8") for job in each if job.diverged.exists()]
            if diverged and strict:
                raise DivergedError(diverged[0])
            if not diverged:
                results[name] = self._result(each, "test")
        return results

    def choose(
        self, what: str, candidates: Mapping[str, Experiment], *, seeds: int
    ) -> tuple[Choice, dict[str, Result]]:
        """The candidate that personalizes best on validation clients; test clients are not touched.

        Returns also the results on validation clients, without those that diverged.
        """
        return self.choose_each({what: candidates}, seeds=seeds)[what]

    def choose_each(
        self,
        candidates: Mapping[str, Mapping[str, Experiment]],
        *,
        seeds: int,
        by: Mapping[str, Literal["initial", "personalized"]] = MappingProxyType({}),
        strict: bool = True,
    ) -> dict[str, tuple[Choice, dict[str, Result]]]:
        """Several choices whose runs go side by side.

        candidates: by the name of the choice, then by their own. by: the model whose value decides a choice, if it is
            not the personalized one. strict: otherwise a choice is left out if every candidate for it diverges.

        Raises:
            UserError: if every candidate of one of them diverges.
        """
        for what, experiments in candidates.items():
            self._check_measured(f"settings of {what}", next(iter(experiments.values())), "validation")
        tuning_seeds = range(TUNING_SEED, TUNING_SEED + seeds)
        jobs = {
            what: {name: self._jobs(replace(each, test=False), tuning_seeds) for name, each in experiments.items()}
            for what, experiments in candidates.items()
        }
        self._run(job for each in jobs.values() for job in each.values())
        chosen = {}
        for what, each in jobs.items():
            finished = {name: of for name, of in each.items() if not any(job.diverged.exists() for job in of)}
            results = {name: self._result(of, "validation") for name, of in finished.items()}
            metric = self.prepared(next(iter(candidates[what].values()))).task.metrics[0]
            choice = _best(what, list(each), results, by.get(what, "personalized"), metric)
            if choice:
                chosen[what] = choice, results
            elif strict:
                raise UserError(f"every candidate for {what} diverged; try smaller rates")
        return chosen

    def _check_measured(self, what: str, experiment: Experiment, group: Group) -> None:
        prepared = self.prepared(experiment)
        if not has_test_examples(prepared.federation, getattr(prepared.groups, group)).any():
            raise UserError(
                f"{what} cannot be compared: no {group} client has local test (query) examples; give clients two"
                " examples each, or more, and some clients to every group (data.train, data.validation)"
            )

    def ended(self, experiment: Experiment, seed: int | str) -> Path:
        """The file of the parameters at the end of a run."""
        return self.folder(experiment) / f"{seed}" / f"seed-{seed}" / f"stage-{len(experiment.stages) - 1}.safetensors"

    def start(self, experiment: Experiment) -> str:
        """The `start` of an experiment that continues where this one ended, seed by seed."""
        return str(self.ended(experiment, "{seed}"))

    def _jobs(self, experiment: Experiment, seeds: range) -> list[Job]:
        folder = self.folder(experiment)
        file = self.root / "experiments" / f"{folder.name}.json"
        return [Job(replace(experiment, seed=seed), file, folder / str(seed), self.allowed_modules) for seed in seeds]

    def _run(self, jobs: Iterable[Sequence[Job]]) -> None:
        missing = {job.folder: job for each in jobs for job in each if not job.done}
        for job in missing.values():
            write_json(job.file, document_of(job.experiment))
        self._pool.run(list(missing.values()), self.log)

    def _result(self, jobs: Sequence[Job], group: Group) -> Result:
        metric = self.prepared(jobs[0].experiment).task.metrics[0]
        runs = [open_run(job.folder, allowed_modules=self.allowed_modules) for job in jobs]
        ends, reports = [run.results[group][-1] for run in runs], [run.report() for run in runs]
        curves = [end.curves[0] for end in ends]
        tested = curves[0].metrics[metric.name][1] > 0
        logs = [read_records(job.results / "metrics.jsonl") for job in jobs]
        for note in (note for run in runs for note in run.notes):
            self.log(note)
        evaluations = [{record["round"]: record for record in log if record["event"] == "evaluation"} for log in logs]
        # Runs that stop at a target differ in their number of evaluations; nothing reads the history of those.
        common = [number for number in evaluations[0] if all(number in each for each in evaluations)]
        return Result(
            tuple(client for client, counts in zip(ends[0].ids, tested, strict=True) if counts),
            np.array([each.means(metric)[tested] for each in curves], np.float64),
            np.array([end.epochs[0] for end in ends]),
            np.array(common),
            np.array([[each[number]["clients_values"] for number in common] for each in evaluations], np.float64),
            np.array([sum(record.get("items", 0) for record in log) for log in logs]),
            np.array([report["round"] for report in reports]),
            np.array([report[group]["hurt"].get("by_chance", np.nan) for report in reports]),
            _command(jobs),
            np.array([report[group]["hurt"].get("beyond_chance", False) for report in reports]),
            np.array([sum(record["seconds"] for record in log if record["event"] == "round") for log in logs]),
            np.array([report.get("personal_rate", np.nan) for report in reports]),
        )


def _best(what: str, names: Sequence[str], results: Mapping[str, Result], model: str, metric: Metric) -> Choice | None:
    """The choice of the candidate with the best mean value of a model; None if no mean is finite."""
    means = {name: float(np.nanmean(getattr(result, model))) for name, result in results.items()}
    values = {name: mean for name, mean in means.items() if np.isfinite(mean)}
    if not values:
        return None
    best = (max if metric.higher_is_better else min)(values, key=values.__getitem__)
    return Choice(what, {name: values.get(name, np.nan) for name in names}, best)


def _command(jobs: Sequence[Job]) -> str:
    """The command line that repeats these runs, in one folder."""
    first = jobs[0]
    file, folder = (os.path.relpath(path) for path in (first.file, first.folder.parent))
    words = [
        "headstart",
        "run",
        file,
        "--seed",
        first.experiment.seed,
        "--seeds",
        len(jobs),
        "--out",
        f"{folder}-again",
        *(word for module in first.allowed_modules for word in ("--import", module)),
    ]
    return shlex.join(map(str, words))
