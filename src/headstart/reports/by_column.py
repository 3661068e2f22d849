"""Results of runs by a column of their data: for whom personalization pays, as a table."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rich.console import Console

from headstart.console import echo
from headstart.data.by_column import ByColumn, values_by_client
from headstart.errors import UserError
from headstart.experiment.setup import IN_MEMORY
from headstart.learning.tasks import Metric
from headstart.reports.format import format_count, format_mean
from headstart.runs.pseudonyms import pseudonym, read_key
from headstart.runs.results import Estimate, client_values
from headstart.runs.run import Run
from headstart.statistics.by_value import by_value


class ResultsByColumn(NamedTuple):
    """The test clients of a run's last finished stage by the values of a column.

    title: what is looked at, in words. values: the documents of `statistics.by_value`.
    """

    title: str
    metric: Metric
    values: Sequence[Mapping[str, Any]]


def results_by_column(run: Run, column: str, source: str | os.PathLike[str] | None = None) -> ResultsByColumn:
    """The test clients of a run by the values of a column of its data.

    source: where the data are; by default where the run had them.

    Raises:
        UserError: if they are not there or no table, have no such column, or no test client has been measured.
    """
    if not run.stage_results:
        raise UserError(f"{run.path} has no test clients that were measured; there are no results by a column yet")
    data, result = run.experiment.data, run.stage_results[-1]
    if source is None and data.source == IN_MEMORY:
        raise UserError(f"the data of {run.path} were given in memory; name their file with --data")
    found = values_by_client(source or data.source, data.options, column)
    key = read_key(run.path)
    values = found.values if key is None else {pseudonym(key, name): value for name, value in found.values.items()}
    missing = [client for client in result.ids if client not in values]
    if missing:
        raise UserError(f"the data hold no client {missing[0]!r} of {run.path}; name those it was run on with --data")
    initial, personalized = client_values(result, run.metric)
    groups = by_value([values[client] for client in result.ids], found.order, initial, personalized)
    return ResultsByColumn(f"{run.label}, {result.name}: {title_of(found)}", run.metric, groups)


def title_of(found: ByColumn) -> str:
    """What results by a column are by, in words."""
    return f"test clients by {found.column!r}, {found.how}"


def cells(results: ResultsByColumn) -> list[list[str]]:
    """A line for each value: the value, its clients, initial, personalized, difference."""
    return [
        [
            each["value"],
            str(each["clients"]),
            *(
                format_mean(results.metric, Estimate(each[when]["mean"], *each[when]["interval"]), change=change)
                for when, change in (("initial", False), ("personalized", False), ("difference", True))
            ),
        ]
        for each in results.values
    ]


def print_by_column(console: Console, results: ResultsByColumn) -> None:
    """Print a line for each value."""
    echo(console, f"{results.title}:")
    for value, clients, initial, personalized, difference in cells(results):
        echo(
            console,
            f"{value}, {format_count(int(clients), 'client')}: initial {results.metric.name} {initial}, personalized"
            f" {personalized}, difference {difference}",
        )
