"""Runs beside the first of them, client by client: what intervals of their means alone cannot tell apart."""

from __future__ import annotations

from collections.abc import Sequence

from headstart.learning.tasks import Metric
from headstart.reports.format import GainFormat, format_change, format_count
from headstart.reports.html import Cell
from headstart.runs.paired import PairedDifference, paired_difference
from headstart.runs.run import Run
from headstart.statistics.verdicts import LEAST_SEEDS, Difference

Line = tuple[str, PairedDifference]


def beside_first(runs: Sequence[Run]) -> list[Line]:
    """Every run that has finished a stage less the first of these, with a title; of runs on the same test clients."""
    finished = [run for run in runs if run.stage_results]
    return [(f"{_name(run)} less {_name(finished[0])}", paired_difference(run, finished[0])) for run in finished[1:]]


def _name(run: Run) -> str:
    """The label of a run, with how far it has come if it is not finished."""
    last = run.stage_results[-1]
    return run.label if run.finished else f"{run.label} (unfinished, after {last.name}, round {last.round})"


def sentences(lines: Sequence[Line], metric: Metric) -> list[str]:
    """What each line says in words, and of what its intervals are."""
    found = [
        f"{title}, on the same {format_count(pair.initial.clients, 'test client')}{_without(pair)}: initial"
        f" {metric.name} {_text(pair, pair.initial, metric)}, personalized {_text(pair, pair.personalized, metric)}"
        f" ({_seeds(pair)})."
        for title, pair in lines
    ]
    if not all(pair.initial.is_two_way for _, pair in lines):
        found.append(
            f"Where there are fewer than {LEAST_SEEDS} seeds, intervals are over clients, of these trained models"
            " alone: other seeds may say otherwise."
        )
    return found


def table(lines: Sequence[Line], metric: Metric) -> tuple[list[str], list[tuple[str, list[str | Cell]]]]:
    """The lines as pages take a table."""
    head = ["", "test clients", f"initial {metric.name}", f"personalized {metric.name}"]
    cells: list[tuple[str, list[str | Cell]]] = []
    for title, pair in lines:
        both = [_words(pair, each, metric) for each in (pair.initial, pair.personalized)]
        count = Cell(str(pair.initial.clients), (_seeds(pair),))
        cells.append(("", [title, count, *(Cell(change, tuple(more)) for change, *more in both)]))
    return head, cells


def _seeds(pair: PairedDifference) -> str:
    """By what seeds it is decided."""
    two_way = "two-way, " if pair.initial.is_two_way else ""
    return f"{two_way}{format_count(pair.initial.seeds, 'paired seed' if pair.unpaired else 'seed')}"


def _without(pair: PairedDifference) -> str:
    if not pair.left_out:
        return ""
    return f", without {format_count(pair.left_out, 'client')} whose training diverged, so that nothing is decided"


def _text(pair: PairedDifference, found: Difference, metric: Metric) -> str:
    change, *more = _words(pair, found, metric)
    return f"{change} {', '.join(more)}" if more else change


def _words(pair: PairedDifference, found: Difference, metric: Metric) -> list[str]:
    """A difference, its interval, and which run is better; of methods, or else of these models: ahead or behind."""
    low, high = found.interval_to_report
    if found.mean == low == high == 0:
        return ["no difference"]
    ahead, behind = ("better", "worse") if pair.decides else ("ahead", "behind")
    side = "inconclusive" if pair.left_out or not (low > 0 or high < 0) else ahead if low > 0 else behind
    return [format_change(metric, metric.sign * found.mean), GainFormat(metric).interval(low, high), side]
