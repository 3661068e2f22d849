"""The numbers of runs as rows, and how to print them: for people in a terminal, and as plain lines in a pipe."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from headstart.console import echo, printable
from headstart.learning.tasks import Metric
from headstart.reports.by_column import ResultsByColumn, print_by_column
from headstart.reports.comparability import comparable_groups, incomparable_notice
from headstart.reports.format import (
    format_count,
    format_epochs,
    format_mean,
    format_share,
    format_value,
    format_worse,
)
from headstart.runs.reading import open_runs
from headstart.runs.results import (
    Estimate,
    History,
    StageResult,
    before_and_after,
    estimate,
    format_diverged,
    seed_means,
    stage_notes,
)
from headstart.runs.run import Run
from headstart.statistics.clients import rounds_to_target


class Reached(NamedTuple):
    """When a curve on validation clients first reached the target.

    rounds: per seed; None if never. limit: the last evaluated round.
    """

    rounds: tuple[int | None, ...]
    limit: int

    def __str__(self) -> str:
        hits = [r for r in self.rounds if r is not None]
        if not hits:
            return f"> {self.limit}" if self.rounds else "-"
        some = f" ({len(hits)} of {len(self.rounds)} seeds)" if len(hits) < len(self.rounds) else ""
        return f"{np.mean(hits):.1f}".removesuffix(".0") + some


class Distribution(NamedTuple):
    """How a metric differs between clients.

    spread: the standard deviation over clients.
    percentiles: the 5th, 10th, 25th, 50th, 75th, 90th and 95th.
    worst_decile: a tenth of the clients does worse than this.
    seed_spread: the standard deviation of the clients' mean over seeds; None for a single seed.
    """

    spread: float
    percentiles: tuple[float, ...]
    worst_decile: float
    seed_spread: float | None


class Row(NamedTuple):
    """A finished stage of a run, measured on its test clients in the first metric.

    With several seeds a client's value is its mean over the seeds; intervals are over clients.

    round: the stage's last. final: whether it is the run's last stage. seeds: how many have finished it.
    difference: personalized - initial, paired by client.
    harmed, harmed_by_chance: shares of clients with a lower value, and expected from test noise, at most; means over
        seeds.
    beyond_chance: in how many seeds the share lies above what test noise explains.
    epochs: of personalization, chosen on validation clients, one per seed; unit: what they count. pulls: what each
        number stands for, where these are pulls.
    target: of the first metric, and the rounds until validation clients reach it.
    notes: what must be said beside the numbers, a sentence each.
    """

    run: str
    stage_number: int
    stage: str
    round: int
    final: bool
    seeds: int
    clients: int
    metric: Metric
    initial: Estimate
    personalized: Estimate
    difference: Estimate
    initial_clients: Distribution
    personalized_clients: Distribution
    harmed: float
    harmed_by_chance: float
    beyond_chance: int
    epochs: tuple[int, ...]
    unit: str
    target: float | None
    initial_reached: Reached
    personalized_reached: Reached
    notes: tuple[str, ...] = ()
    pulls: tuple[float, ...] = ()


def rows(runs: Sequence[Run | str | os.PathLike[str]], *, allowed_modules: Collection[str] = ()) -> list[Row]:
    """A row for every stage that at least one seed has finished, run after run.

    Raises:
        UserError: if a folder is no run folder.
    """
    return rows_of(open_runs(runs, allowed_modules=allowed_modules))


def rows_of(runs: Sequence[Run]) -> list[Row]:
    """The rows of runs that were read."""
    return [_row(run, stage_result) for run in runs for stage_result in run.stage_results]


@np.errstate(invalid="ignore")  # a client whose training diverged may have infinite values
def _row(run: Run, stage_result: StageResult) -> Row:
    initial, personalized = before_and_after(stage_result, run.metric)
    by_seed = seed_means(stage_result, run.metric)
    harmed = [report["test"]["hurt"] for report in stage_result.reports if report["test"]["hurt"]]
    target = run.document.get("target")
    return Row(
        run=run.label,
        stage_number=stage_result.number,
        stage=stage_result.name,
        round=stage_result.round,
        final=stage_result.final,
        seeds=len(stage_result.seeds),
        clients=len(initial),
        metric=run.metric,
        initial=estimate(initial),
        personalized=estimate(personalized),
        difference=estimate(personalized - initial),
        initial_clients=distribution(initial, by_seed[0], run.metric),
        personalized_clients=distribution(personalized, by_seed[1], run.metric),
        harmed=_mean([h["share"] for h in harmed]),
        harmed_by_chance=_mean([h["by_chance"] for h in harmed]),
        beyond_chance=sum(h["beyond_chance"] for h in harmed),
        epochs=stage_result.epochs,
        unit=run.unit,
        target=target,
        initial_reached=_reached(run.history, run.history.initial, target, stage_result.round, run.metric),
        personalized_reached=_reached(run.history, run.history.personalized, target, stage_result.round, run.metric),
        notes=_notes(run.label, stage_result),
        pulls=run.pulls,
    )


def _notes(label: str, stage_result: StageResult) -> tuple[str, ...]:
    """What must be said beside the numbers of a stage; what is said of several seeds, once."""
    saying: dict[str, list[int]] = {}
    for seed, report in zip(stage_result.seeds, stage_result.reports, strict=True):
        for note in stage_notes(report):
            saying.setdefault(note, []).append(seed)
    return tuple(
        f"{label}, {stage_result.name}{_of_seeds(seeds) if len(stage_result.seeds) > 1 else ''}: {note}"
        for note, seeds in saying.items()
    )


def _of_seeds(seeds: Sequence[int]) -> str:
    return f", seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def distribution(values: np.ndarray, by_seed: np.ndarray, metric: Metric) -> Distribution:
    """How per-client values `[clients]` differ, and their means `[seeds]`."""
    if not len(values):
        return Distribution(np.nan, (np.nan,) * 7, np.nan, None)
    percentiles = tuple(float(p) for p in np.percentile(values, (5, 10, 25, 50, 75, 90, 95)))
    spread = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    seed_spread = float(by_seed.std(ddof=1)) if len(by_seed) > 1 else None
    return Distribution(spread, percentiles, percentiles[1 if metric.higher_is_better else 5], seed_spread)


def _reached(history: History, curves: np.ndarray, target: float | None, limit: int, metric: Metric) -> Reached:
    if target is None:
        return Reached((), limit)
    seen = history.rounds <= limit
    rounds = history.rounds[seen].tolist()
    return Reached(tuple(rounds_to_target(rounds, c[seen].tolist(), target, metric=metric) for c in curves), limit)


def _mean(values: list[float]) -> float:
    return float(np.mean(values)) if values else float("nan")


def print_runs(
    console: Console, runs: Sequence[Run | str | os.PathLike[str]], *, allowed_modules: Collection[str] = ()
) -> None:
    """Print the rows of runs; those that cannot be compared apart, with a sentence that says why."""
    # With pages and statistics, which a run does not need before its first round.
    from headstart.reports.paired import beside_first, sentences

    groups = comparable_groups(open_runs(runs, allowed_modules=allowed_modules))
    if notice := incomparable_notice(groups):
        echo(console, notice)
    for group in groups:
        print_rows(console, rows_of(group))
        for text in sentences(beside_first(group), group[0].metric):
            echo(console, text)


def print_rows(console: Console, rows: Sequence[Row]) -> None:
    """Print rows: a table on a terminal, plain lines in a pipe."""
    if not rows:
        console.print("No stage is finished yet.")
    elif console.is_terminal:
        console.print(_table(rows))
    else:
        for row in rows:
            echo(console, _line(row))
    for note in (note for row in rows for note in row.notes):
        echo(console, note)


def _table(rows: Sequence[Row]) -> Table:
    table = Table(title="test clients; 95 % intervals over clients", title_justify="left")
    targets, metric = any(row.target is not None for row in rows), rows[0].metric
    table.add_column("run, stage", overflow="fold")
    harmed = f"{format_worse(metric)}\n(test noise: up to)"
    columns = (f"initial {metric.name}", f"personalized {metric.name}", "difference", harmed, "personalization")
    for column in (*columns, *(["rounds to target"] if targets else [])):
        table.add_column(Text(column), justify="right")
    for row in rows:
        seeds = f", {row.seeds} seeds" if row.seeds > 1 else ""
        reached = [f"{row.initial_reached} / {row.personalized_reached}"] if targets else []
        name = f"{row.run}\n{row.stage}: {row.clients} clients{seeds}"
        cells = [*_means(row), f"{format_share(row.harmed)} ({format_share(row.harmed_by_chance)})"]
        lines = [cell.replace(" [", "\n[").replace(" (", "\n(") for cell in cells]
        epochs = format_epochs(row.epochs, row.unit, row.pulls)
        cells = [printable(cell, keep="\n") for cell in (name, *lines, epochs, *reached)]
        table.add_row(*map(Text, cells), style="bold" if row.final else "")
    return table


def _means(row: Row) -> list[str]:
    return [
        format_mean(row.metric, row.initial),
        format_mean(row.metric, row.personalized),
        format_mean(row.metric, row.difference, change=True),
    ]


def _line(row: Row) -> str:
    initial, personalized, difference = _means(row)
    seeds = f", {row.seeds} seeds" if row.seeds > 1 else ""
    line = (
        f"{row.run}, {row.stage}, round {row.round}: initial {row.metric.name} {initial}, personalized {personalized},"
        f" difference {difference}, {_harmed(row.metric, row.harmed, row.harmed_by_chance)},"
        f" after {format_epochs(row.epochs, row.unit, row.pulls)}, {format_count(row.clients, 'test client')}{seeds}"
    )
    if row.target is None:
        return line
    target = format_value(row.metric, row.target)
    return f"{line}, rounds to {target} initial {row.initial_reached} personalized {row.personalized_reached}"


def _at_most(by_chance: float) -> str:
    """An estimate that errs upward, where clients differ in how much changes."""
    return f"up to {format_share(by_chance)}"


def _harmed(metric: Metric, share: float, by_chance: float) -> str:
    return f"{format_worse(metric)} for {format_share(share)} ({_at_most(by_chance)} expected from test noise)"


def print_summary(console: Console, summary: Mapping[str, Any], metrics: Sequence[Metric]) -> None:
    """Print a document of `personalize_run`: every one of the task's metrics, the clients harmed, and its notes."""
    for text in summary.get("notes", ()):
        echo(console, text)
    _print_group(console, summary, metrics)
    if "by" in summary:
        by = summary["by"]
        title = f"clients that did not train the run by {by['column']!r}, {by['how']}"
        print_by_column(console, ResultsByColumn(title, metrics[0], by["values"]))
    if "training_clients" in summary:
        echo(console, "the clients that trained the run:")
        _print_group(console, summary["training_clients"], metrics)


def _print_group(console: Console, summary: Mapping[str, Any], metrics: Sequence[Metric]) -> None:
    untested = f" ({summary['untested']} more without test examples)" if summary["untested"] else ""
    lines = [
        f"{summary['clients']} clients{untested}, {summary['length']} epochs (or steps, or pulls) of personalization"
    ]
    for metric in metrics:
        group = summary[metric.name]
        if group.get("difference"):
            parts = [
                f"{when} {format_mean(metric, Estimate(each['mean'], *each['interval']), change=when == 'difference')}"
                for when in ("initial", "personalized", "difference")
                for each in [group[when]]
            ]
            lines.append(f"{metric.name}: {', '.join(parts)}")
    if summary.get("diverged"):
        lines.append(format_diverged(summary["diverged"], summary["clients"]))
    if summary["hurt"]:
        lines.append(_harmed(metrics[0], summary["hurt"]["share"], summary["hurt"]["by_chance"]))
    echo(console, "\n".join(lines))
