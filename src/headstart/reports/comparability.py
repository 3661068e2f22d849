"""Runs in groups that can be compared, and why others cannot."""

from __future__ import annotations

from collections.abc import Sequence

from headstart.reports.format import format_count
from headstart.runs.comparable import data_record, difference_of_data, test_clients
from headstart.runs.run import Run


def comparable_groups(runs: Sequence[Run]) -> list[list[Run]]:
    """The runs in groups of the same data and test clients, in their order; what is not known parts nobody."""
    groups: list[list[Run]] = []
    for run in runs:
        own = next((group for group in groups if not difference_of_data(group[0], run)), None)
        if own is None:
            groups.append([run])
        else:
            own.append(run)
    return groups


def incomparable_notice(groups: Sequence[Sequence[Run]]) -> str:
    """Why groups of runs are not compared with each other, in sentences; empty if there is one."""
    if len(groups) < 2:
        return ""
    what = "; ".join(f"{', '.join(run.label for run in group)}: {_data(group[0])}" for group in groups)
    return (
        "These runs are not of the same data or test clients, so they are not ranked or compared with each other"
        f" ({difference_of_data(groups[0][0], groups[1][0])}). They are shown apart: {what}."
    )


def _data(run: Run) -> str:
    record = data_record(run)
    tested = test_clients(run)
    clients = f" of {format_count(record['clients'], 'client')}" if "clients" in record else ""
    return f"{record.get('name', 'data')}{clients}{f', {len(tested)} of them tested' if tested else ''}"
