"""Evidence of a comparison: tables, figures, notes; as a page, as JSON, and as lines for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from headstart.console import echo
from headstart.files import write_bytes, write_json
from headstart.learning.tasks import Metric
from headstart.reports.format import (
    GainFormat,
    format_mean,
    format_share,
    format_value,
    format_worse,
)
from headstart.reports.style import FigureSpec, axis_name
from headstart.runs.results import Estimate
from headstart.statistics.two_way import TwoWay
from headstart.studies.compare.authors import authors_table
from headstart.studies.compare.decisions import Reason, Verdict
from headstart.studies.compare.leaderboard import (
    Row,
    SizeGroups,
    group_means,
    leaderboard,
    of_participants,
    size_groups,
    values_of,
)
from headstart.studies.compare.methods import BASELINE, FEDAVG
from headstart.studies.compare.notes import notes_of
from headstart.studies.compare.protocol import LOCAL_EPOCHS_FACTOR, Compared, Entry, Protocol
from headstart.studies.compare.words import LOCAL, claims
from headstart.studies.evidence import Evidence, Table
from headstart.studies.figures import curves, forest
from headstart.studies.html import as_content, as_document, draw, plain, render_study, settings_rows

# Where the interval alone would decide.
DOUBTS: Mapping[Reason, str] = {
    "": "",
    "seeds": " (too few seeds)",
    "lost": " (clients without a value)",
    "correction": " (not after Holm)",
}
# More lines cannot be distinguished in one figure.
_LINES = 6


def evidence(
    protocol: Protocol,
    compared: Compared,
    rows: Sequence[Row],
    *,
    metric: Metric,
    support_sizes: np.ndarray,
) -> Evidence:
    """The evidence of a whole comparison.

    support_sizes: `[clients]`: how many local training (support) examples each test client has.
    """
    formats, groups, entries = GainFormat(metric), size_groups(support_sizes), compared.entries
    fedavg = values_of(entries[FEDAVG])
    gains = {
        row.name: group_means(metric.sign * (values_of(entries[row.name]) - fedavg), groups)
        for row in rows
        if row.name != FEDAVG
    }
    return Evidence(
        "compare",
        "How much of personalized federated learning is just fine-tuning?",
        claims(rows, metric),
        (
            values_table(rows, formats),
            *_on_participants(entries, formats),
            _cost_table(rows, protocol, support_sizes),
            _amounts_table(gains, groups, formats),
            *authors_table(entries),
        ),
        _figure_specs(entries, rows, gains, groups, metric),
        tuple(compared.choices),
        notes_of(protocol, compared, support_sizes),
        {name: entry.result.command for name, entry in entries.items()},
    )


def _on_participants(entries: Mapping[str, Entry], formats: GainFormat) -> list[Table]:
    """The leaderboard of clients that took part, where they were measured."""
    taken_part = of_participants(entries)
    if not taken_part:
        return []
    table = values_table(leaderboard(taken_part, formats.metric), formats)
    clients = len(next(iter(taken_part.values())).result.ids)
    note = (
        f"Of {clients} training clients, each with what it kept (its own head, normalization or model), measured on"
        " local test rows that training does not use: the setting of FedPer, FedRep, FedBN and APFL. One that was in no"
        " round kept nothing and starts as a new client. What Ditto and FedBABU make of a client is begun anew here, at"
        " the end of training, where Ditto's authors train it in every round. Learning"
        " rate and epochs of personalization are chosen on other training clients; settings of training are those that"
        " were chosen on new clients, which may not be the best for these. Holm's correction is this table's own."
    )
    return [table._replace(title="Leaderboard of clients that took part in training", note=f"{note} {_AS_ABOVE}")]


_AS_ABOVE = "Columns are those of the leaderboard of new clients."


def values_table(rows: Sequence[Row], formats: GainFormat) -> Table:
    """Values, differences and harm."""
    metric = formats.metric
    worse = format_worse(metric)
    direction = worse.split()[0]

    def value(found: TwoWay) -> str:
        return format_mean(metric, Estimate(found.mean, *found.interval()))

    def against(found: TwoWay, decided: Verdict, *, itself: bool) -> str:
        verdict = {1: " better", -1: " worse", 0: DOUBTS[decided.reason]}[decided.side]
        return "–" if itself else f"{formats.change(found.mean)} {formats.interval(*found.interval())}{verdict}"

    head = "method", "initial", "personalized", "against FedAvg + fine-tuning", "against FedAvg (global model)"
    harm = f"{direction} after personalization / expected from test noise", f"{direction} than FedAvg"
    lines = tuple(
        (
            row.name,
            value(row.initial),
            value(row.personalized),
            against(row.versus, row.verdict, itself=row.name == BASELINE),
            against(row.over_fedavg, row.over_fedavg_verdict, itself=row.name == FEDAVG),
            "–" if row.beyond_chance is None else _harm(row),
            "–" if row.name == FEDAVG else format_share(row.below_fedavg),
            format_value(metric, row.worst_tenth),
        )
        for row in rows
    )
    return Table("Leaderboard", (*head, *harm, "bottom 10 % of clients"), lines, _values_note(formats, direction))


def _values_note(formats: GainFormat, direction: str) -> str:
    metric = formats.metric
    sign = "" if metric.higher_is_better else ", of which less is better"
    return (
        f"{metric.name.capitalize()}, means over seeds and test clients, with two-way (seeds × clients) 95 %"
        f" intervals. Differences in {formats.unit}{sign}; better and worse: decided. {BASELINE} against"
        f" {FEDAVG} is the primary question and is decided by its interval; the other methods are corrected for their"
        " number (Holm), while intervals are not: where one excludes zero and nothing is decided, the reason stands"
        f" beside it. {direction.capitalize()} after personalization: clients with"
        f" {format_worse(metric)} than that of their initial model; expected from test noise: those that would have it"
        " if every client's true gain were the mean one, as many items changed, and test items were independent, which"
        " is too many where clients differ in how much changes; * more than that in most seeds; without it harm is"
        " neither shown nor ruled out."
        f" {direction.capitalize()} than FedAvg: clients measured {direction} than with its best global model, by test"
        " noise or not. A client whose value is not finite counts as both. Bottom 10 % of clients: the mean of the"
        " tenth of clients that ends worst."
    )


def _harm(row: Row) -> str:
    return f"{100 * row.harmed:.1f}{'*' if row.beyond_chance else ''} / {format_share(row.by_chance)}"


def _cost_table(rows: Sequence[Row], protocol: Protocol, support_sizes: np.ndarray) -> Table:
    """What training and personalization cost.

    support_sizes: `[clients]`: how many local training (support) examples each test client has.
    """
    (tuned,) = (row for row in rows if row.name == BASELINE)

    def of_an_example(row: Row) -> float:
        return row.operations / row.examples if row.examples else 0.0

    lines = tuple(
        (
            row.name,
            f"{row.rounds:,}",
            f"{row.operations / 1e9:,.1f}",
            f"{row.examples:,.0f}",
            f"{of_an_example(row) / of_an_example(tuned):.2f}",
            f"{row.sent / 1e6:,.1f}",
            f"{row.seconds:.1f}",
            f"{row.epochs * support_sizes.mean():,.0f}" if row.grid is None else "–",
            _recipe(row),
        )
        for row in rows
    )
    head = (
        *("method", "rounds", "billion operations", "examples", "operations per example, of FedAvg's"),
        *("megabytes sent", "seconds", "examples to personalize", "personalization"),
    )
    return Table(
        "Costs",
        head,
        lines,
        "Of one run in training: rounds; floating-point operations that clients compute, counted in the traced program"
        " of the method's client update, with padding of last batches, second derivatives and evaluations of further"
        " models; examples that they train on, each as often as it is used; bytes between server and clients, both"
        " ways, without parameters that are not trained; seconds, the median of the seeds, with other runs beside and"
        " compilation in them. Then the examples that a test client trains on to personalize, in the mean, which no"
        f" budget bounds: of epochs {protocol.epochs} at most, {LOCAL_EPOCHS_FACTOR} times that for local-only"
        " training, at a learning rate; both are chosen on validation clients in every seed.",
    )


def _recipe(row: Row) -> str:
    if not row.epochs:
        return "–"
    if row.grid is not None:
        return f"{row.grid[0]} {row.epochs:.1f} of {row.grid[1]}"
    learning_rates = " to ".join(f"{each:g}" for each in dict.fromkeys(row.learning_rates))
    return f"{row.epochs:.1f} epochs at {learning_rates}"


def _amounts_table(gains: Mapping[str, np.ndarray], groups: SizeGroups, formats: GainFormat) -> Table:
    """Gains by the number of support examples. gains: by method, `[seeds, groups]`."""
    sizes = zip(groups.sizes, groups.clients, strict=True)
    head = ("method", *(f"{size:.0f} examples ({count} clients)" for size, count in sizes))
    lines = tuple((name, *map(formats.change, gain.mean(axis=0).tolist())) for name, gain in gains.items())
    note = (
        f"The gain of each over FedAvg (global model), in {formats.unit}, for clients in groups, with their mean number"
        " of examples. It compares clients with each other, who differ in more than that."
    )
    return Table("Gain against local training (support) examples", head, lines, note)


def _figure_specs(
    entries: Mapping[str, Entry],
    rows: Sequence[Row],
    gains: Mapping[str, np.ndarray],
    groups: SizeGroups,
    metric: Metric,
) -> tuple[FigureSpec, ...]:
    share, drawn = metric.unit == "share", _most_telling(rows)
    means = {name: np.nanmean(entries[name].result.curves, axis=1) for name in drawn}
    # Pulls and mixing weights, which others count, are no epochs.
    grids = {row.name: row.grid for row in rows}
    by_epoch = [(name, np.arange(each.shape[1]), each) for name, each in means.items() if grids[name] is None]
    others = [row for row in rows if row.name != BASELINE]
    unit = "points" if share else f"{metric.name}, positive is better"
    return (
        forest(
            "versus",
            f"Difference of {metric.name} to FedAvg + fine-tuning, for every method",
            "Better or worse than FedAvg + fine-tuning, on test clients",
            [(row.name, row.by_seeds_and_clients) for row in others],
            unit=unit,
            decided=[row.decided != 0 for row in others],
        ),
        curves(
            "amounts",
            f"Gain of {metric.name} over FedAvg against the number of local training (support) examples",
            "Gain on test clients by their number of local training (support) examples",
            [("", [(name, groups.sizes, gains[name]) for name in drawn])],
            x_label="local training (support) examples",
            y_label=f"gain over FedAvg ({unit})",
            share=share,
        ),
        curves(
            "epochs",
            f"{metric.name} of test clients after every epoch of personalization",
            "Every epoch of personalization, on test clients",
            [("", by_epoch)],
            x_label="epochs of personalization",
            y_label=metric.name if share else axis_name(metric),
            share=share,
        ),
    )


def _most_telling(rows: Sequence[Row]) -> list[str]:
    """Fine-tuning and the best others; beside local-only training, which is far off, the rest would look alike."""
    rest = [row.name for row in rows if row.name not in (BASELINE, LOCAL, FEDAVG)]
    return [BASELINE, *rest[: _LINES - 1]]


def write(
    found: Evidence,
    sentences: Sequence[str],
    rows: Sequence[Row],
    entries: Mapping[str, Entry],
    out: Path,
    *,
    federation: str,
    command: str,
    environment: Mapping[str, Any],
    numbers: Mapping[str, Any] = MappingProxyType({}),
) -> Path:
    """Write `report.html`, `figures/` and `leaderboard.json` into the folder `out`; returns the page.

    numbers: what `leaderboard.json` has besides.
    """
    pictures = [draw(federation, found, figure_spec, out) for figure_spec in found.figure_specs]
    numbers = {
        **numbers,
        "conclusion": sentences,
        "rows": rows,
        "tried": {name: each.method.resolved(each.settings) for name, each in entries.items()},
    }
    write_json(out / "leaderboard.json", as_document(found) | plain(numbers))
    content = render_study(
        "compare.html",
        title=f"headstart: methods on {federation}",
        question=found.question,
        methods=len(rows),
        federation=federation,
        conclusion=sentences,
        found=as_content(found, pictures),
        environment=settings_rows(environment),
        command=command,
    )
    write_bytes(out / "report.html", content)
    return out / "report.html"


def print_board(console: Console, board: Table) -> None:
    """Print the leaderboard: a table on a terminal, plain lines in a pipe."""
    if not console.is_terminal:
        for row in board.rows:
            cells = ", ".join(f"{name} {cell}" for name, cell in zip(board.head[1:], row[1:], strict=True))
            echo(console, f"{row[0]}: {cells}")
        return
    table = RichTable(title=board.title, title_justify="left")
    for number, column in enumerate(board.head):
        table.add_column(Text(column), justify="right" if number else "left")
    for row in board.rows:
        table.add_row(*map(Text, row))
    console.print(table)
