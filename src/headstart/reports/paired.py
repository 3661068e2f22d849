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
SAME = "the same"


def beside_first(runs: Sequence[Run]) -> list[Line]:
    """Every run that has finished a stage less the first of these, with a title; of runs on the same test clients."""
    finished = [run for run in runs if run.stage_results]
    return [(f"{run.label} less {finished[0].label}", paired_difference(run, finished[0])) for run in finished[1:]]


def sentences(lines: Sequence[Line], metric: Metric) -> list[str]:
    """What each line says in words, and of what its intervals are."""
    if not lines:
        return []
    found = [
        f"{title}, on the same {format_count(pair.initial.clients, 'test client')}: initial {metric.name}"
        f" {_text(pair.initial, metric)}, personalized {_text(pair.personalized, metric)}"
        f" ({'two-way, ' if pair.is_two_way else ''}{format_count(pair.initial.seeds, 'seed')})."
        for title, pair in lines
    ]
    if not all(pair.is_two_way for _, pair in lines):
        found.append(
            f"With fewer than {LEAST_SEEDS} seeds the intervals are over clients, of these trained models alone: other"
            " seeds may say otherwise."
        )
    return found


def table(lines: Sequence[Line], metric: Metric) -> tuple[list[str], list[tuple[str, list[str | Cell]]]]:
    """The lines as pages take a table."""
    head = ["", "test clients", f"initial {metric.name}", f"personalized {metric.name}"]
    cells: list[tuple[str, list[str | Cell]]] = [
        (
            "",
            [
                title,
                Cell(str(pair.initial.clients), (format_count(pair.initial.seeds, "seed"),)),
                _cell(pair.initial, metric),
                _cell(pair.personalized, metric),
            ],
        )
        for title, pair in lines
    ]
    return head, cells


def _cell(found: Difference, metric: Metric) -> Cell:
    if _is_none(found):
        return Cell(SAME)
    interval = GainFormat(metric).interval(*found.interval_to_report)
    return Cell(format_change(metric, metric.sign * found.mean), (interval, _word(found)))


def _text(found: Difference, metric: Metric) -> str:
    if _is_none(found):
        return SAME
    interval = GainFormat(metric).interval(*found.interval_to_report)
    return f"{format_change(metric, metric.sign * found.mean)} {interval}, {_word(found)}"


def _is_none(found: Difference) -> bool:
    """Whether no client differs, as of runs with the same initial model."""
    return found.mean == 0 and found.interval_to_report == (0, 0)


def _word(found: Difference) -> str:
    """Better or worse is said of methods; of the models of too few seeds only that they are ahead or behind."""
    low, high = found.interval_to_report
    ahead, behind = ("better", "worse") if found.seeds >= LEAST_SEEDS else ("ahead", "behind")
    return ahead if low > 0 else behind if high < 0 else "inconclusive"
