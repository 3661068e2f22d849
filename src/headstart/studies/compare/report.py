"""What a comparison found, as evidence: tables, figures, notes; as a page, as JSON, and as lines for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from headstart.console import echo
from headstart.files import write_bytes, write_json
from headstart.learning.tasks import Metric
from headstart.reports.html import paragraph, section
from headstart.reports.style import FigureSpec, axis_name
from headstart.studies.compare.board import amounts_table, cost_table, values_table
from headstart.studies.compare.leaderboard import Row, SizeGroups, group_means, size_groups, values_of
from headstart.studies.compare.methods import BASELINE, FEDAVG, LEARNING_RATE, SERVERS
from headstart.studies.compare.protocol import FIRST_STAGE_SHARE, Compared, Entry, Protocol
from headstart.studies.compare.words import LOCAL, Speech, claims
from headstart.studies.evidence import Evidence, Table
from headstart.studies.figures import curves, forest
from headstart.studies.html import as_document, draw, environment_table, plain, sentence, shown, whole

# So many lines can be told apart in one figure.
_LINES = 6


def evidence(
    protocol: Protocol,
    compared: Compared,
    rows: Sequence[Row],
    *,
    metric: Metric,
    adapt_sizes: np.ndarray,
) -> Evidence:
    """All that was found.

    adapt_sizes: `[clients]`: how many examples each test client has to adapt on.
    """
    speech, groups, entries = Speech(metric), size_groups(adapt_sizes), compared.entries
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
        (values_table(rows, speech), cost_table(rows, protocol, adapt_sizes), amounts_table(gains, groups, speech)),
        _figure_specs(entries, rows, gains, groups, metric),
        tuple(compared.choices),
        _notes(protocol, compared),
        {name: entry.result.command for name, entry in entries.items()},
    )


def _figure_specs(
    entries: Mapping[str, Entry],
    rows: Sequence[Row],
    gains: Mapping[str, np.ndarray],
    groups: SizeGroups,
    metric: Metric,
) -> tuple[FigureSpec, ...]:
    share, told = metric.unit == "share", _most_telling(rows)
    by_size = [(name, groups.sizes, gains[name]) for name in told]
    epochs = [
        (name, np.arange(entries[name].result.curves.shape[2]), np.nanmean(entries[name].result.curves, axis=1))
        for name in told
    ]
    unit = "points" if share else f"{metric.name}, positive is better"
    return (
        forest(
            "versus",
            f"Difference of {metric.name} to FedAvg + fine-tuning, for every method",
            "Better or worse than FedAvg + fine-tuning",
            [(row.name, row.by_seeds_and_clients) for row in rows if row.name != BASELINE],
            unit=unit,
            decided=[row.decided != 0 for row in rows if row.name != BASELINE],
        ),
        curves(
            "amounts",
            f"Gain of {metric.name} over FedAvg against the number of examples to adapt on",
            "Who gains: by the number of examples to adapt on",
            [("", by_size)],
            x_label="examples to adapt on",
            y_label="gain over FedAvg" if share else f"gain over FedAvg ({unit})",
            share=share,
        ),
        curves(
            "epochs",
            f"{metric.name} of test clients after every epoch of personalization",
            "What every epoch of personalization brings",
            [("", epochs)],
            x_label="epochs of personalization",
            y_label=metric.name if share else axis_name(metric),
            share=share,
        ),
    )


def _most_telling(rows: Sequence[Row]) -> list[str]:
    """Fine-tuning and the best others; training alone is so far off that nobody could tell the rest apart beside it."""
    rest = [row.name for row in rows if row.name not in (BASELINE, LOCAL, FEDAVG)]
    return [BASELINE, *rest[: _LINES - 1]]


def _notes(protocol: Protocol, compared: Compared) -> tuple[str, ...]:
    two = [name for name, entry in compared.entries.items() if len(entry.stages) > 1]
    return (
        f"Every run may use the client arithmetic of {protocol.budget} rounds of FedAvg with one epoch; each method"
        f" tries {protocol.tries} settings, or all it has if those are fewer, less those of which one round is dearer"
        f" than the budget, with {_seeds(protocol.tuning_seeds)} on validation clients, every try on the full budget."
        f" What is told comes of {_seeds(protocol.seeds, 'other ')}, and test clients are measured once. All is of one"
        " split of the clients.",
        f"The clients' learning rate ({_listed(compared.learning_rates)}) and the server's optimizer"
        f" ({'; '.join(SERVERS)}; its rate decays to zero by a cosine) run through the same values for every method;"
        f" {FEDAVG} is chosen by its initial value, everything else by its personalized one, at the best rate"
        f" ({_listed(compared.personal_rates)}) and number of epochs (0 to {protocol.epochs}) of personalization, which"
        " are chosen again in every seed on validation clients.",
        "A test client was never seen in training. It begins from what the server would send it (its own choice among"
        " the models, where there are several; an untrained head, where heads stay with the clients), and trains as"
        " the method says: everything, its head alone, or pulled back to where it began.",
        *(f"{name}: {FIRST_STAGE_SHARE:.0%} of the budget in the first stage." for name in two),
        *_edges(compared),
        *(f"{name} is left out: {reason}." for name, reason in compared.left_out.items()),
    )


def _seeds(count: int, kind: str = "") -> str:
    return f"{count} {kind}seed{'s' if count > 1 else ''}"


def _listed(rates: Sequence[float]) -> str:
    return ", ".join(f"{rate:g}" for rate in rates)


def _edges(compared: Compared) -> list[str]:
    """What was chosen at the end of what could be."""
    least, most = min(compared.learning_rates), max(compared.learning_rates)
    trained = {
        name: each.settings[LEARNING_RATE]
        for name, each in compared.entries.items()
        if hasattr(each.method.kind, LEARNING_RATE)
    }
    personal = {name: each.result for name, each in compared.entries.items() if each.method.personalizes}
    at = {
        "The smallest client rate": [name for name, rate in trained.items() if rate == least],
        "The largest client rate": [name for name, rate in trained.items() if rate == most],
        "The most epochs of personalization, in some seed,": [
            name for name, result in personal.items() if result.epochs.max() == result.curves.shape[2] - 1
        ],
        "The largest rate of personalization, in some seed,": [
            name for name, result in personal.items() if result.personal_rates.max() == max(compared.personal_rates)
        ],
    }
    more = "Beyond that edge they may do better."
    return [f"{what} suited best: {', '.join(names)}. {more}" for what, names in at.items() if names]


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
) -> Path:
    """Write `report.html`, `figures/` and `leaderboard.json` into the folder `out`; returns the page."""
    drawn = [draw(federation, found, figure_spec, out) for figure_spec in found.figure_specs]
    numbers = {
        "conclusion": sentences,
        "rows": rows,
        "tried": {name: each.method.resolved(each.settings) for name, each in entries.items()},
    }
    write_json(out / "leaderboard.json", as_document(found) | plain(numbers))
    head = f"<h1>{escape(found.question)}</h1>\n" + paragraph(
        f"{len(rows)} methods on {federation}, at equal client arithmetic.", "lead"
    )
    head += section("Conclusion", *(f"<p>{sentence(each)}</p>" for each in sentences))
    tail = section("The environment", environment_table(environment))
    tail += section("Make this page again", f"<pre>{escape(command)}</pre>")

    def content(dark: bool) -> str:
        return "\n".join((head, section("Evidence", shown(found, drawn, dark)), tail))

    write_bytes(out / "report.html", whole(f"headstart: methods on {federation}", content))
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
