"""The shapes of Table 1 of arXiv:1909.12488, the printed and the measured side by side, and the paper's regime."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from headstart.reports.format import format_share
from headstart.studies.evidence import Table

# With 20 clients per round the paper's initial accuracies are 84 % and its personalized ones 90 %.
INITIAL, PERSONALIZED = 0.75, 0.8


class Cell(NamedTuple):
    """A row of the table: accuracies, their standard deviations over seeds, rounds to the target; NaN: not reached."""

    initial: float
    initial_spread: float
    personalized: float
    personalized_spread: float
    initial_rounds: float
    personalized_rounds: float


Cells = Mapping[tuple[int, int], Cell]


def regime(cells: Cells, *, clients: int, examples: float) -> str:
    """Whether the largest cohort comes to the paper's regime, in a sentence.

    clients: that train. examples: of each, on average.
    """
    m = max(cohort for cohort, _ in cells)
    rows = {e: cell for (cohort, e), cell in cells.items() if cohort == m}
    best = max(rows, key=lambda e: rows[e].personalized)
    initial, personalized = rows[best].initial, rows[best].personalized
    there = (
        f"{format_share(initial)} initial and {format_share(personalized)} personalized accuracy (M = {m}, E = {best})"
    )
    wanted = f"{format_share(INITIAL)} and {format_share(PERSONALIZED)}"
    if initial >= INITIAL and personalized >= PERSONALIZED:
        return f"In the paper's regime, which asks for at least {wanted}: {there}."
    return (
        f"Not in the paper's regime, which asks for at least {wanted}: {there}. {clients:,} clients of"
        f" {examples:.0f} examples train; in the paper 2,500 of some 198."
    )


def shapes(measured: Cells, printed: Cells) -> tuple[Table, ...]:
    """What stands out in the printed table, in the measured one, and whether the two agree.

    Nothing where they have no row in common.
    """
    common = {key: printed[key] for key in measured if key in printed}
    if not common:
        return ()
    here = {key: measured[key] for key in common}
    rows = [
        _row("gain of personalization, points", _gains(common), _gains(here), _positive, "{:+.1f}"),
        _row("standard deviation over seeds, initial / personalized", _spreads(common), _spreads(here), _above_one),
        _row("rounds to the target, initial / personalized", _sooner(common), _sooner(here), _above_one),
    ]
    for m in sorted({cohort for cohort, _ in common}):
        for what in ("initial", "personalized"):
            rows.append(_best_epochs(common, here, m, what))
    if len({m for m, _ in common}) > 1:
        rows.append(_more_clients(common, here))
    table = Table(
        "Shapes of Table 1",
        ("shape", "paper", "here", "agree"),
        tuple(rows),
        "Ranges are over the rows of the table. They agree where every row points the paper's way, the best E where it"
        " is the same; these are means without intervals, which the claims have.",
    )
    return (table,)


def _row(
    name: str,
    paper: Sequence[float],
    here: Sequence[float],
    holds: Callable[[Sequence[float]], bool],
    form: str = "{:.2f}",
) -> tuple[str, ...]:
    return name, _range(paper, form), _range(here, form), "yes" if holds(here) else "no"


def _positive(values: Sequence[float]) -> bool:
    return all(value > 0 for value in values)  # not of NaN


def _above_one(values: Sequence[float]) -> bool:
    return bool(values) and all(value > 1 for value in values)  # not of NaN, of rows that never reach the target


def _range(values: Sequence[float], form: str) -> str:
    known = [value for value in values if np.isfinite(value)]
    missing = f"; {len(values) - len(known)} of {len(values)} rows never reach it" if len(known) < len(values) else ""
    return f"{form.format(min(known))} to {form.format(max(known))}{missing}" if known else "never reached"


def _gains(cells: Cells) -> list[float]:
    return [100 * (cell.personalized - cell.initial) for cell in cells.values()]


def _spreads(cells: Cells) -> list[float]:
    return [cell.initial_spread / cell.personalized_spread for cell in cells.values() if cell.personalized_spread]


def _sooner(cells: Cells) -> list[float]:
    return [cell.initial_rounds / cell.personalized_rounds for cell in cells.values()]


def _best_epochs(printed: Cells, measured: Cells, m: int, what: str) -> tuple[str, ...]:
    best = [
        max((e for cohort, e in cells if cohort == m), key=lambda e, cells=cells: getattr(cells[m, e], what))
        for cells in (printed, measured)
    ]
    return f"best E, {what}, M = {m}", *map(str, best), "yes" if best[0] == best[1] else "no"


def _more_clients(printed: Cells, measured: Cells) -> tuple[str, ...]:
    helps = [_help(cells) for cells in (printed, measured)]
    texts = [f"initial {initial:+.1f}, personalized {personalized:+.1f}" for initial, personalized in helps]
    few, many = (limit(m for m, _ in measured) for limit in (min, max))
    agree = helps[1][0] > helps[1][1] and min(helps[1]) > 0
    return f"{many} clients per round in place of {few}, mean over E, points", *texts, "yes" if agree else "no"


def _help(cells: Cells) -> tuple[float, float]:
    few, many = min(m for m, _ in cells), max(m for m, _ in cells)
    epochs = [e for m, e in cells if m == few and (many, e) in cells]
    initial, personalized = (
        float(np.mean([getattr(cells[many, e], what) - getattr(cells[few, e], what) for e in epochs]))
        for what in ("initial", "personalized")
    )
    return 100 * initial, 100 * personalized
