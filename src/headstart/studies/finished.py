"""What finished runs found: read from their folders, or from records, which may outlive these."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np

from headstart.experiment.experiment import Experiment
from headstart.experiment.setup import Prepared
from headstart.files import write_bytes
from headstart.runs.by_examples import ByExamples, is_by_examples, read_by_examples
from headstart.runs.contents import Group, federation_document
from headstart.runs.log import Record, read_records
from headstart.runs.reading import open_run
from headstart.studies.evidence import Result
from headstart.studies.pool import Job
from headstart.studies.records import read_divergence, read_record, record_file, stacked, write_divergence, write_record
from headstart.training.by_examples import settings


class FinishedRuns:
    """The finished runs of one federation.

    records: the folder of their records; None where none are kept. prepared: the data, model and task of an
    experiment. allowed_modules: as in `run`. log: gets what is to be said of a run that is read.
    """

    def __init__(
        self,
        records: Path | None,
        prepared: Callable[[Experiment], Prepared],
        *,
        allowed_modules: Collection[str],
        log: Callable[[str], None],
    ) -> None:
        self._records = None if records is None else records.resolve()
        self._prepared, self._allowed_modules, self._log = prepared, allowed_modules, log

    def origins(self, folder: Path) -> list[Record]:
        """The data and the code that an experiment's runs on record came from.

        folder: of the experiment.

        Raises:
            UserError: if a record is damaged.
        """
        if self._records is None:
            return []
        records = self._records / folder.name
        return [
            *(read_record(path)[1] for path in sorted(records.glob("*.npz"))),
            *(read_divergence(path)[1] for path in sorted(records.glob("*.diverged"))),
        ]

    def has(self, job: Job, group: Group) -> bool:
        """Whether a run is finished, or on record with its results on this group of clients."""
        if job.done:
            return True
        record = self._record(job, group)
        return record is not None and (record.exists() or self._divergence(job).exists())

    def measured(self, job: Job, group: Group) -> bool:
        """Whether a finished run has results on this group of clients.

        Raises:
            UserError: if its folder is damaged.
        """
        record = self._record(job, group)
        if record is not None and record.exists():
            return True
        return job.end.exists() and bool(open_run(job.folder, allowed_modules=self._allowed_modules).results[group])

    def put_on_record(self, job: Job, group: Group) -> None:
        """Write the records of a run, if it is finished and records are kept: participants have one of their own."""
        if self._records is None or not job.end.exists():
            return
        # Before the record by which the run is known as finished.
        if group == "test" and job.experiment.participants and self.measured(job, "participants"):
            self._of_seed(job, "participants")
        self._of_seed(job, group)

    def diverged(self, job: Job) -> str | None:
        """What is said of the divergence of a run; None if it did not diverge."""
        if self._records is None:
            return job.diverged.read_text(encoding="utf-8") if job.diverged.exists() else None
        path = self._divergence(job)
        if job.diverged.exists() and not path.exists():
            origin = federation_document(job.folder / "federation.json")
            write_divergence(path, job.diverged.read_text(encoding="utf-8"), origin)
        return read_divergence(path)[0] if path.exists() else None

    def result(self, jobs: Sequence[Job], group: Group) -> Result:
        """The results of the seeds of an experiment on a group of clients.

        Raises:
            UserError: if a run's folder or record is damaged.
        """
        return stacked([self._of_seed(job, group) for job in jobs])._replace(command=_command(jobs))

    def has_by_examples(self, job: Job) -> bool:
        """Whether a job that measures clients with fewer examples is done, or on record."""
        if self._records is None:
            return job.done
        return is_by_examples(self._by_examples(job), settings(draws=job.draws))

    def put_by_examples_on_record(self, job: Job) -> None:
        """Write the record of such a job, which is done."""
        if (record := self._by_examples(job)) != job.end:
            write_bytes(record, job.end.read_bytes())

    def by_examples(self, job: Job) -> ByExamples:
        """What such a job found.

        Raises:
            UserError: if its file is damaged.
        """
        return read_by_examples(self._by_examples(job))

    def _by_examples(self, job: Job) -> Path:
        """The file that is read of it: with the records, where they are kept."""
        if self._records is None:
            return job.end
        return self._records / "by-examples" / job.folder.parent.name / f"{job.experiment.seed}.npz"

    def _record(self, job: Job, group: Group) -> Path | None:
        """The file of the record of a run, whether it is there or not; None where none are kept."""
        if self._records is None:
            return None
        return record_file(self._records / job.folder.parent.name, job.experiment.seed, group)

    def _divergence(self, job: Job) -> Path:
        """The file that says that a run diverged, and where: with the records, where they are kept."""
        if self._records is None:
            return job.diverged
        return self._records / job.folder.parent.name / job.diverged.name

    def _of_seed(self, job: Job, group: Group) -> Result:
        """The result of one seed: of its run's folder, or of its record."""
        record = self._record(job, group)
        if record is not None and record.exists():
            return read_record(record)[0]
        metric = self._prepared(job.experiment).task.metrics[0]
        run = open_run(job.folder, allowed_modules=self._allowed_modules)
        for note in run.notes:
            self._log(note)
        end, report = run.results[group][-1], run.report()
        curves = end.curves[0]
        tested = curves.metrics[metric.name][1] > 0
        log = read_records(job.results / "metrics.jsonl")
        evaluations = {line["round"]: line for line in log if line["event"] == "evaluation"}
        result = Result(
            tuple(client for client, counts in zip(end.ids, tested, strict=True) if counts),
            np.array(curves.means(metric)[tested][None], np.float64),
            np.array([end.epochs[0]]),
            np.array(list(evaluations)),
            np.array([[line["clients_values"] for line in evaluations.values()]], np.float64),
            np.array([sum(line.get("items", 0) for line in log)]),
            np.array([report["round"]]),
            np.array([report[group]["hurt"].get("by_chance", np.nan)]),
            _command([job]),
            np.array([report[group]["hurt"].get("beyond_chance", False)]),
            np.array([sum(line["seconds"] for line in log if line["event"] == "round")]),
            np.array([report[group].get("personal_rate", report.get("personal_rate", np.nan))]),
        )
        if record is not None:
            write_record(record, result, federation_document(job.folder / "federation.json"), _seconds(job))
        return result


def _seconds(job: Job) -> float:
    """From a run's last start, when it writes its experiment and environment, to its end."""
    began = max((job.folder / name).stat().st_mtime for name in ("environment.json", "experiment.json"))
    return max(job.end.stat().st_mtime - began, 0.0)


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
