"""The work of `headstart run`: a member of a cluster or not, shown on the console."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from headstart.cli.output import Output

if TYPE_CHECKING:
    from headstart.runs.run import Run


def join_cluster(coordinator: str | None, processes: int | None, process_id: int | None) -> None:
    """Become a member of a cluster, if this process is to be one; its work is done by a child."""
    from headstart.training import cluster
    from headstart.training import supervisor as supervise

    member = cluster.membership(coordinator, processes, process_id)
    if member is None:
        return
    if not supervise.is_child():
        raise typer.Exit(supervise.supervise(sys.argv[1:]))
    supervise.follow_parent()
    cluster.join(member)


def run_on_console(
    output: Output,
    experiment: Any,
    out: Path,
    seeds: int,
    options: Any,
    tensorboard: bool,
    allowed_modules: set[str],
    patience: float,
) -> None:
    """Run the experiment, show how it proceeds, and print its results."""
    from headstart.cli.tensorboard import also_events
    from headstart.reports.baselines import conclusions
    from headstart.reports.tables import print_rows, rows_of
    from headstart.runs.reading import open_run
    from headstart.training import cluster
    from headstart.training.display import Follower, live_display
    from headstart.training.run import run_into, to_all

    follower = Follower(rounds=sum(s.rounds for s in experiment.stages), seeds=seeds, first_seed=experiment.seed)
    with ExitStack() as stack:
        listeners = [stack.enter_context(cluster.as_one(patience))]
        if cluster.is_first():
            title = f"{experiment.name} → {out}"
            show = (
                (lambda _: None) if output.quiet else stack.enter_context(live_display(output.console, follower, title))
            )
            listeners.append(stack.enter_context(also_events(show, out)) if tensorboard else show)
        finished = run_into(
            experiment, out, seeds=seeds, options=options, on_event=to_all(listeners), allowed_modules=allowed_modules
        )
    if not cluster.is_first():
        raise typer.Exit(0 if finished else 130)
    if not finished:
        output.result(f"Stopped; everything is saved in {out}. Repeat the same command to resume.")
        raise typer.Exit(130)
    found = open_run(out, allowed_modules=allowed_modules)
    print_rows(output.console, rows_of([found]))
    found.write_clients()
    output.note(f"Every client: {out}/clients.csv. For figures and a page: headstart report {out}")
    for sentence in conclusions(found):
        output.result(sentence)


def measure_on_console(output: Output, runs: Sequence[Run], allowed_modules: Collection[str]) -> None:
    """Measure finished runs with fewer local examples, with progress."""
    from headstart.training.by_examples import gain_by_examples

    for run in runs:
        text = f"{run.label} with fewer local examples"
        with output.measured(), output.status(text) as update:
            gain_by_examples(
                run,
                allowed_modules=allowed_modules,
                progress=lambda done, of, text=text, update=update: update(f"{text}: {done} of {of}"),
            )
