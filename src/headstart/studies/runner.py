"""Runs of studies: each is a `headstart run` into a folder of its own, so a finished run is never repeated.

A folder's name ends with a digest of its experiment: two studies with the same run share it, and a changed setting
makes another one. So do data or code of the user's that have changed since its runs were begun.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
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
from headstart.runs.by_examples import ByExamples
from headstart.runs.contents import Group, federation_document
from headstart.runs.log import Record
from headstart.runs.provenance import is_of, provenance
from headstart.studies.evidence import Choice, Result
from headstart.studies.finished import FinishedRuns
from headstart.studies.pool import Job, Pool
from headstart.studies.progress import Progress, work_of
from headstart.training.by_examples import DRAWS
from headstart.training.divergence import DivergedError

# The first seed of tuning runs; no reported run has one of these.
TUNING_SEED = 1000


class Runs:
    """The runs of one federation, whose files, if there are several, have different names.

    folder: of all runs. seeds: the number of each, where a study does not give it. log: gets a line of progress.
    allowed_modules: as in `run`. fingerprint: a part of the folders' digests. pool: what does the runs; by default
    this process, one after another. records: the folder of their records, by which a run is known as finished whose
    own folder is gone; by default none are kept.
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
        records: Path | None = None,
    ) -> None:
        # Absolute, so that a run resumes from any working directory.
        self.root, self.seeds, self.log = folder.resolve(), seeds, log
        self.allowed_modules, self.fingerprint = tuple(sorted(allowed_modules)), fingerprint
        self._pool = pool or Pool(1)
        self.progress = Progress()
        self._finished = FinishedRuns(records, self.prepared, allowed_modules=self.allowed_modules, log=log)
        self._prepared: dict[str, Prepared] = {}
        self._origins: dict[str, Record] = {}
        # What made the parameters that an experiment starts from, by their file.
        self._makers: dict[str, Experiment] = {}

    def folder(self, experiment: Experiment) -> Path:
        """The folder of an experiment's runs, each in a folder named by its seed.

        Where its runs were begun with other data or other code of the user's, it is another one, for the present ones.

        Raises:
            UserError: if what says so is damaged.
        """
        folder = self._named(experiment, Path(experiment.data.source).name)
        with_path = self._named(experiment, experiment.data.source)
        folder = with_path if with_path.exists() else folder  # earlier names were of the whole path
        begun = [federation_document(path) for path in sorted(folder.glob("*/federation.json"))]
        begun += self._finished.origins(folder)
        if begun and not all(is_of(record, self._origin(experiment)) for record in begun):
            now = self._origin(experiment)
            return folder.with_name(f"{folder.name}-{combined([now['fingerprint'], now['code']])[:8]}")
        return folder

    def _named(self, experiment: Experiment, source: str) -> Path:
        """The folder of an experiment by its digest, in which the data are named by `source`."""
        named = replace(experiment, seed=0, data=replace(experiment.data, source=source))
        text = json.dumps(earlier(to_json(named)), sort_keys=True).replace(str(self.root), "") + self.fingerprint
        return self.root / f"{experiment.name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"

    def _origin(self, experiment: Experiment) -> Record:
        """What a run of the experiment would come from now."""
        key, code = json.dumps(to_json(experiment.data)), {"code": code_digests(experiment)}
        if key not in self._origins:
            self._origins[key] = provenance(self.prepared(experiment).federation, {})
        return self._origins[key] | code

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
        self._run(jobs.values(), "test")
        results = {}
        for name, each in jobs.items():
            diverged = [text for job in each if (text := self._finished.diverged(job)) is not None]
            if diverged and strict:
                raise DivergedError(diverged[0])
            if not diverged:
                results[name] = self._finished.result(each, "test")
        return results

    def participants(self, experiments: Mapping[str, Experiment], *, seeds: int) -> dict[str, Result]:
        """The results of finished experiments on clients that took part in training, where they measured some.

        Raises:
            UserError: if a run's folder is damaged.
        """
        found = {}
        for name, experiment in experiments.items():
            jobs = self._jobs(experiment, range(seeds))
            if all(self._finished.measured(job, "participants") for job in jobs):
                found[name] = self._finished.result(jobs, "participants")
        return found

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
        self._run((job for each in jobs.values() for job in each.values()), "validation")
        chosen = {}
        for what, each in jobs.items():
            finished = {
                name: of for name, of in each.items() if all(self._finished.diverged(job) is None for job in of)
            }
            results = {name: self._finished.result(of, "validation") for name, of in finished.items()}
            metric = self.prepared(next(iter(candidates[what].values()))).task.metrics[0]
            choice = _best(what, list(each), results, by.get(what, "personalized"), metric)
            if choice:
                chosen[what] = choice, results
            elif strict:
                raise UserError(f"every candidate for {what} diverged; try smaller rates")
        return chosen

    def by_examples(
        self, experiments: Mapping[str, Experiment], *, seeds: int, draws: int = DRAWS
    ) -> dict[str, list[ByExamples]]:
        """How the test clients of finished experiments do with fewer local examples, seed by seed.

        draws: of the examples, in every seed.

        Raises:
            UserError: if one fails.
        """
        jobs = {
            name: [job._replace(draws=draws) for job in self._jobs(experiment, range(seeds))]
            for name, experiment in experiments.items()
        }
        missing = [
            job for each in zip(*jobs.values(), strict=True) for job in each if not self._finished.has_by_examples(job)
        ]
        runs = {job.folder: job._replace(draws=0) for job in missing}
        self._do_in_turn({folder: run for folder, run in runs.items() if not run.done})
        self._do([job for job in missing if not job.done])
        for job in missing:
            self._finished.put_by_examples_on_record(job)
        return {name: [self._finished.by_examples(job) for job in each] for name, each in jobs.items()}

    def _check_measured(self, what: str, experiment: Experiment, group: Group) -> None:
        prepared = self.prepared(experiment)
        if not has_test_examples(prepared.federation, getattr(prepared.groups, group)).any():
            raise UserError(
                f"{what} cannot be compared: no {group} client has local test (query) examples; give clients two"
                " examples each, or more, and some clients to every group (data.train, data.validation)"
            )

    def ended(self, experiment: Experiment, seed: int | str) -> Path:
        """The file of the parameters at the end of a run, which is there after `with_parameters`."""
        return self.folder(experiment) / f"{seed}" / f"seed-{seed}" / f"stage-{len(experiment.stages) - 1}.safetensors"

    def start(self, experiment: Experiment) -> str:
        """The `start` of an experiment that continues where this one ended, seed by seed."""
        start = str(self.ended(experiment, "{seed}"))
        self._makers[start] = experiment
        return start

    def with_parameters(self, experiments: Iterable[Experiment], seeds: Iterable[int]) -> None:
        """See to it that the parameters at the end of runs are there, not only their results.

        Raises:
            UserError: if a run fails.
        """
        seeds = list(seeds)
        jobs = [job for experiment in experiments for job in self._jobs(experiment, seeds) if not job.done]
        self._do_in_turn({job.folder: job for job in jobs})

    def _jobs(self, experiment: Experiment, seeds: Iterable[int]) -> list[Job]:
        folder = self.folder(experiment)
        file = self.root / "experiments" / f"{folder.name}.json"
        return [Job(replace(experiment, seed=seed), file, folder / str(seed), self.allowed_modules) for seed in seeds]

    def _run(self, jobs: Iterable[Sequence[Job]], group: Group) -> None:
        """Do what is missing: one seed of all experiments before the next, so that a stop leaves whole seeds."""
        in_turn = [job for each in zip_longest(*jobs) for job in each if job is not None]
        missing = {job.folder: job for job in in_turn if not self._finished.has(job, group)}
        # Those of the others are there, unless records alone are left.
        self._write_experiments(job for job in in_turn if job.folder not in missing and not job.file.exists())
        if self.progress.expected:
            done = [job for job in in_turn if job.folder not in missing]
            self.progress.add(self._work(done), done=[job.end for job in done])
        try:
            self._do_in_turn(missing)
        finally:
            # What is finished is on record, whatever stopped the others.
            for job in missing.values():
                self._finished.put_on_record(job, group)

    def _do_in_turn(self, missing: Mapping[Path, Job]) -> None:
        """Do jobs, by their folders, after those that make the parameters that they start from."""
        before: dict[Path, Job] = {}
        for job in missing.values():
            start = job.experiment.start
            if start in self._makers:
                maker = self._jobs(self._makers[start], [job.experiment.seed])[0]
                before |= {} if maker.done else {maker.folder: maker}
        self._do(list(before.values()))
        self._do([job for job in missing.values() if job.folder not in before])

    def _do(self, jobs: Sequence[Job]) -> None:
        self._write_experiments(jobs)
        self.progress.add(self._work(jobs))
        self._pool.run(jobs, self.log, self.progress)

    def _write_experiments(self, jobs: Iterable[Job]) -> None:
        """Write the files that pages name in their commands."""
        for job in jobs:
            write_json(job.file, document_of(job.experiment))

    def _work(self, jobs: Iterable[Job]) -> dict[Path, float]:
        return {job.end: work_of(job.experiment, self.prepared(job.experiment)) for job in jobs}


def _best(what: str, names: Sequence[str], results: Mapping[str, Result], model: str, metric: Metric) -> Choice | None:
    """The choice of the candidate with the best mean value of a model; None if no mean is finite."""
    means = {name: float(np.nanmean(getattr(result, model))) for name, result in results.items()}
    values = {name: mean for name, mean in means.items() if np.isfinite(mean)}
    if not values:
        return None
    best = (max if metric.higher_is_better else min)(values, key=values.__getitem__)
    return Choice(what, {name: values.get(name, np.nan) for name in names}, best)
