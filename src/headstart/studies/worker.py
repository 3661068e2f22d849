"""A process that does runs: reads `[file, folder, seed, allowed modules, by examples]` as JSON lines, answers each."""

from __future__ import annotations

import json
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from types import FrameType

RETRY_SECONDS = 0.01


def main() -> None:
    """Do runs until the input ends; the first SIGTERM saves the one in progress, as Ctrl-C does."""
    from headstart.errors import UserError
    from headstart.experiment.loading import load
    from headstart.studies.pool import Job, do
    from headstart.training.compilation_cache import ProgramCache, prepare_devices
    from headstart.training.supervisor import follow_parent

    # A killed command must not leave runs behind that hold their folders.
    follow_parent()
    prepare_devices(1)
    # Where the command that started this one looks for the user's own modules.
    sys.path.append(os.getcwd())
    cache = ProgramCache(many=True)
    # Printed output of other code must not be taken for an answer.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    sys.stdout = sys.stderr
    for number in (signal.SIGTERM, signal.SIGALRM):
        signal.signal(number, _interrupt)
    # One that waits for a run ends at once.
    with suppress(KeyboardInterrupt):
        for line in sys.stdin:
            file, folder, seed, allowed_modules, draws = json.loads(line)
            try:
                experiment = load(file, settings=[f"seed={seed}"], allowed_modules=allowed_modules)
                job = Job(experiment, Path(file), Path(folder), allowed_modules, draws)
                answer = {"answer": do(job, cache)}
            except UserError as error:
                answer = {"error": str(error)}
            except KeyboardInterrupt:
                answer = {"answer": "interrupted"}
            print(json.dumps(answer), file=answers, flush=True)
            if answer.get("answer") == "interrupted":
                return


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Do as Ctrl-C does; a moment later where an exception would be printed and lost, as in callbacks of garbage."""
    while frame is not None:
        if frame.f_code.co_name in ("_xla_gc_callback", "__del__"):
            signal.setitimer(signal.ITIMER_REAL, RETRY_SECONDS)
            return
        frame = frame.f_back
    signal.raise_signal(signal.SIGINT)


if __name__ == "__main__":
    main()
