"""Runs side by side: one process on each share of the cores, which does one run after another.

A process keeps data, model and compiled programs from one run to the next. The result of a run is that of the command
`headstart run` with the same experiment.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

import jax

from headstart.devices import cores
from headstart.errors import UserError
from headstart.experiment.experiment import Experiment
from headstart.files import write_bytes
from headstart.training.compilation_cache import ProgramCache
from headstart.training.divergence import DivergedError
from headstart.training.run import run_into

# A worker that has been asked to save and end is killed after this time.
WORKER_EXIT_SECONDS = 60.0


class Job(NamedTuple):
    """A run of one seed, which is the experiment's.

    file: the saved experiment, whatever its seed. allowed_modules: as in `run`.
    """

    experiment: Experiment
    file: Path
    folder: Path
    allowed_modules: Sequence[str] = ()

    @property
    def diverged(self) -> Path:
        """The file that says that training diverged, and where."""
        return self.folder.with_suffix(".diverged")

    @property
    def results(self) -> Path:
        """The seed's own folder."""
        return self.folder / f"seed-{self.experiment.seed}"

    @property
    def done(self) -> bool:
        """Whether nothing is left to do."""
        end = self.results / f"stage-{len(self.experiment.stages) - 1}.json"
        return self.diverged.exists() or end.exists()


def free_cores() -> int:
    """The number of runs to do side by side: one on every core of this process, or one where there is a GPU."""
    return 1 if jax.default_backend() != "cpu" else len(cores())


def do(job: Job, cache: ProgramCache) -> str:
    """Do a run in this process; returns "done", "diverged" or "interrupted".

    Raises:
        UserError: if it fails for another reason.
    """
    try:
        done = run_into(job.experiment, job.folder, allowed_modules=job.allowed_modules, cache=cache)
        return "done" if done else "interrupted"
    except DivergedError as error:
        write_bytes(job.diverged, str(error).encode())
        return "diverged"


def run_jobs(jobs: Sequence[Job], *, processes: int, log: Callable[[str], None]) -> None:
    """Do all jobs, started in their order.

    Raises:
        UserError: for the first that fails for another reason than divergence.
        KeyboardInterrupt: if Ctrl-C stopped them, with everything saved.
    """
    if not jobs:
        return
    cache = ProgramCache()
    with ExitStack() as stack:
        if processes > 1:
            count = min(processes, len(cores()), len(jobs))
            # Threads wait for the processes, so they are the last to end; jobs not started by then are never sent.
            threads = stack.enter_context(ThreadPoolExecutor(count))
            stack.callback(threads.shutdown, wait=False, cancel_futures=True)
            workers: SimpleQueue[Worker] = SimpleQueue()
            for number in range(count):
                workers.put(stack.enter_context(Worker(cores()[number::count])))
            answers = (
                future.result() for future in as_completed([threads.submit(_send, workers, job) for job in jobs])
            )
        else:
            answers = ((job, do(job, cache)) for job in jobs)
        for number, (job, answer) in enumerate(answers, 1):
            if answer == "interrupted":
                raise KeyboardInterrupt
            name = f"{job.folder.parent.name}, seed {job.experiment.seed}"
            log(f"{number} of {len(jobs)} runs: {name}{' diverged' if answer == 'diverged' else ''}")


class Worker:
    """A process that does jobs on a share of the cores; see `worker`. At the end of its block it saves and ends."""

    def __init__(self, share: Sequence[int]) -> None:
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
            request = [str(job.file), str(job.folder), job.experiment.seed, list(job.allowed_modules)]
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


def _send(workers: SimpleQueue[Any], job: Job) -> tuple[Job, str]:
    worker = workers.get()
    try:
        return job, worker(job)
    finally:
        workers.put(worker)
