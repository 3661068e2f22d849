"""Runs side by side: one process on each share of the cores, which does one run after another.

A process keeps data, model and compiled programs from one run to the next. The result of a run is that of the command
`headstart run` with the same experiment.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from threading import Lock
from typing import Any, NamedTuple

import jax

from headstart.devices import cores
from headstart.errors import UserError
from headstart.experiment.experiment import Experiment
from headstart.experiment.serialization import to_json
from headstart.files import write_bytes
from headstart.runs.by_examples import by_examples_path
from headstart.studies.progress import Progress
from headstart.training.by_examples import is_measured, measure_by_examples
from headstart.training.compilation_cache import ProgramCache
from headstart.training.divergence import DivergedError
from headstart.training.run import run_into

# A worker that has been asked to save and end is killed after this time.
WORKER_EXIT_SECONDS = 60.0


class Job(NamedTuple):
    """A run of one seed, which is the experiment's.

    file: the saved experiment, whatever its seed. allowed_modules: as in `run`. draws: not the run itself, which
        is finished, but how its test clients do with fewer local examples, by this number of draws.
    """

    experiment: Experiment
    file: Path
    folder: Path
    allowed_modules: Sequence[str] = ()
    draws: int = 0

    @property
    def diverged(self) -> Path:
        """The file that says that training diverged, and where."""
        return self.folder.with_suffix(".diverged")

    @property
    def results(self) -> Path:
        """The seed's own folder."""
        return self.folder / f"seed-{self.experiment.seed}"

    @property
    def kind(self) -> str:
        """What it has in common with the runs that share most of its compiled programs."""
        stages = [(type(stage).__name__, type(stage.method).__name__) for stage in self.experiment.stages]
        return json.dumps([to_json(self.experiment.data), to_json(self.experiment.model), stages])

    @property
    def end(self) -> Path:
        """The last file that is written."""
        stage = len(self.experiment.stages) - 1
        return by_examples_path(self.results, stage) if self.draws else self.results / f"stage-{stage}.json"

    @property
    def done(self) -> bool:
        """Whether nothing is left to do."""
        if self.draws:
            stage = len(self.experiment.stages) - 1
            return is_measured(self.folder, self.experiment.seed, stage, draws=self.draws)
        return self.diverged.exists() or self.end.exists()


def free_cores() -> int:
    """The number of runs to do side by side: one on every core of this process, or one where there is a GPU."""
    return 1 if jax.default_backend() != "cpu" else len(cores())


def do(job: Job, cache: ProgramCache) -> str:
    """Do a run in this process; returns "done", "diverged" or "interrupted".

    Raises:
        UserError: if it fails for another reason.
    """
    by_examples = partial(measure_by_examples, seed=job.experiment.seed, draws=job.draws)
    work = by_examples if job.draws else run_into
    try:
        done = work(job.experiment, job.folder, allowed_modules=job.allowed_modules, cache=cache)
        return "done" if done else "interrupted"
    except DivergedError as error:
        write_bytes(job.diverged, str(error).encode())
        return "diverged"


class Pool:
    """Processes that do jobs, or this one where it is to be one.

    Those that were started stay for the next jobs, and end with the pool's block or with jobs that fail.

    processes: how many at most, each with one device on its share of the cores, however few jobs there are: on more
        devices results differ by rounding, and a job would come to others if it was the last that was left.
    """

    def __init__(self, processes: int) -> None:
        self._most = min(processes, len(cores()))
        self._stack, self._cache = ExitStack(), ProgramCache(many=True)
        self._threads: ThreadPoolExecutor | None = None
        self._workers: list[Worker] = []

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *error: Any) -> None:
        self._threads, self._workers = None, []
        self._stack.__exit__(*error)

    def run(self, jobs: Sequence[Job], log: Callable[[str], None], progress: Progress | None = None) -> None:
        """Do all jobs, begun in their order but for those of a kind that a process has done before, which it prefers.

        progress: of runs among which these are; by default of these alone, each as much work as another.

        Raises:
            UserError: for the first that fails for another reason than divergence.
            KeyboardInterrupt: if Ctrl-C stopped them, with everything saved.
        """
        if progress is None:
            progress = Progress()
            progress.add({job.end: 1.0 for job in jobs})
        try:
            answers = self._beside(jobs) if self._most > 1 else ((job, do(job, self._cache)) for job in jobs)
            for job, answer in answers:
                if answer == "interrupted":
                    raise KeyboardInterrupt
                name = f"{job.folder.parent.name}, seed {job.experiment.seed}{', by examples' * bool(job.draws)}"
                log(f"{progress.end(job.end)}: {name}{' diverged' if answer == 'diverged' else ''}")
        except BaseException:
            # Later jobs have processes of their own, none of which has ended or still answers for these.
            self.__exit__(*sys.exc_info())
            raise

    def _beside(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, str]]:
        """The jobs as they are done, each with its answer."""
        if self._threads is None:
            # Threads wait for the processes, so they are the last to end; jobs not started by then are never sent.
            self._threads = self._stack.enter_context(ThreadPoolExecutor(self._most))
            self._stack.callback(self._threads.shutdown, wait=False, cancel_futures=True)
        for number in range(len(self._workers), min(self._most, len(jobs))):
            self._workers.append(self._stack.enter_context(Worker(cores()[number :: self._most])))
        free: SimpleQueue[Worker] = SimpleQueue()
        for worker in self._workers:
            free.put(worker)
        waiting = _Waiting(jobs)
        futures = [self._threads.submit(_send, free, waiting) for _ in jobs]
        return (future.result() for future in as_completed(futures))


class _Waiting:
    """Jobs that no process has begun."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._jobs, self._begun, self._lock = list(jobs), set[str](), Lock()

    def take(self, known: Collection[str]) -> Job:
        """The next job for a process that has programs of these kinds: of one of them, or else of a kind of its own."""
        with self._lock:
            like = (job for job in self._jobs if job.kind in known)
            new = (job for job in self._jobs if job.kind not in self._begun)
            # What is left is begun by others, who come to the last of it last.
            job = next(like, None) or next(new, None) or self._jobs[-1]
            self._jobs.remove(job)
            self._begun.add(job.kind)
            return job


class Worker:
    """A process that does jobs on a share of the cores; see `worker`. At the end of its block it saves and ends.

    kinds: of the jobs that it has begun.
    """

    def __init__(self, share: Sequence[int]) -> None:
        self.kinds: set[str] = set()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "headstart.studies.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # A terminal's Ctrl-C reaches this process alone, which then asks once for everything to be saved.
            start_new_session=True,
        )
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(self.process.pid, share)  # before it counts its cores

    def __call__(self, job: Job) -> str:
        """Do a job; returns the same as `do`.

        Raises:
            UserError: if the run fails, or the process ends.
        """
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            given = job.experiment.seed, list(job.allowed_modules), job.draws
            request = [str(job.file), str(job.folder), *given]
            print(json.dumps(request), file=self.process.stdin, flush=True)
            answer = json.loads(self.process.stdout.readline())
        except (OSError, ValueError) as error:
            raise UserError(f"the process of the run {job.folder} has ended; repeat the command") from error
        if "error" in answer:
            raise UserError(f"the run {job.folder} failed: {answer['error']}")
        return answer["answer"]

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: object) -> None:
        if error[0] is not None:
            self.process.terminate()
        assert self.process.stdin is not None and self.process.stdout is not None
        with suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(WORKER_EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()


def _send(free: SimpleQueue[Worker], waiting: _Waiting) -> tuple[Job, str]:
    worker = free.get()
    try:
        job = waiting.take(worker.kinds)
        worker.kinds.add(job.kind)
        return job, worker(job)
    finally:
        free.put(worker)
