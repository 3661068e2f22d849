"""Gain against the number of local examples, on pages: a figure, a table and a sentence."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator
from rich.console import Console

from headstart.console import echo
from headstart.learning.tasks import Metric
from headstart.reports.format import GainFormat, format_count
from headstart.reports.style import FigureSpec, Theme, factor, gain_name, series_color, titled
from headstart.runs.by_examples import ByExamples, curve_of_run
from headstart.runs.run import Run
from headstart.statistics.by_examples import GainByExamples

# Ticks of the axis that are closer, as a share of it, would be written over each other.
CLOSEST = 0.09
TITLE = "Gain from personalization by the number of local examples, on test clients"
CAPTION = (
    "Test clients, each with at most n of its local training (support) examples: those with fewer keep all they have."
    " Subsets are nested, and a client's gain is a mean over draws of them. The same trained models throughout; the"
    " learning rate and the epochs of personalization are chosen for each number on validation clients that have as"
    " few. Bands are 95 % intervals; filled dots are numbers from which on the gain is shown to be positive."
)


def format_number(curve: GainByExamples, number: int) -> str:
    """A number of examples; the last is all."""
    return "all" if number == curve.numbers[-1] else f"{number:,}"


def sentence(name: str, curve: GainByExamples, metric: Metric) -> str:
    """Where a gain begins, and where it is half of its end."""
    formats, (low, high) = GainFormat(metric), curve.intervals()[-1]
    end = f"{formats.change(curve.gains[-1].mean)} {formats.unit} {formats.interval(low, high)}"
    left = f" Without {format_count(curve.left_out, 'client')} that lost a finite value." if curve.left_out else ""
    if curve.positive_from is None:
        return f"{name}: with all local examples a gain is not shown, {end}, and so fewer are not asked about.{left}"
    if curve.positive_from == curve.numbers[-1]:
        begins = "the gain is shown to be positive with all local examples alone"
    else:
        at = curve.numbers.index(curve.positive_from)
        first = f"{formats.change(curve.gains[at].mean)} {formats.unit} {formats.interval(*curve.intervals()[at])}"
        examples = format_count(curve.positive_from, "local example")
        begins = f"the gain is shown to be positive from {examples} on ({first})"
    least, most = (f"{each:.0f}" if math.isfinite(each) else "∞" for each in curve.half_interval)
    of_these = "" if curve.is_two_way else " (of these trained models alone: other seeds may give other gains)"
    return (
        f"{name}: {begins}{of_these}; with all it is {end}, half of which is reached with {curve.half_at:.0f}"
        f" [{least}, {most}].{left}"
    )


def table(curves: Mapping[str, GainByExamples], metric: Metric) -> tuple[list[str], list[list[str]]]:
    """The head and the lines of a table: a line for each number, a column for each curve."""
    formats, first = GainFormat(metric), next(iter(curves.values()))
    lines = []
    for index, number in enumerate(first.numbers):
        cells = []
        for curve in curves.values():
            found, ends = formats.change(curve.gains[index].mean), curve.intervals()[index]
            # Without examples a model is what it was, for everyone.
            found += f" {formats.interval(*ends)}" if number or np.ptp(ends) else ""
            is_positive = curve.positive_from is not None and number >= curve.positive_from
            cells.append(f"{found}{' *' if is_positive else ''}")
        having = str(first.clients[index]) if index < len(first.numbers) - 1 else "–"
        lines.append([format_number(first, number), having, *cells])
    return ["local examples, at most", "clients with as many", *curves], lines


def edges(name: str, seeds: Sequence[ByExamples]) -> list[str]:
    """A sentence on choices at an edge of what was tried, beyond which a gain may be larger."""
    numbers = seeds[0].numbers[np.any([each.at_edge for each in seeds], axis=0)]
    if not len(numbers):
        return []
    listed = ", ".join(f"{number:,}" for number in numbers.tolist())
    return [
        f"{name}: with {listed} local examples the most epochs, or the last learning rate, of personalization that were"
        " tried suited best in some seed; beyond that edge it may gain more."
    ]


def decided_by(curve: GainByExamples) -> str:
    """What decides, in words."""
    if curve.is_two_way:
        return "Intervals take both seeds and clients for samples (two-way, 95 %)."
    return (
        f"Intervals are over clients (95 %), of the models of {format_count(curve.gains[-1].seeds, 'seed')}: what other"
        " trainings would give is not in them."
    )


def note(curves: Mapping[str, GainByExamples], metric: Metric, draws: int | None = None) -> str:
    """What stands below the table. draws: of every number of examples, if that is known."""
    over = "draws" if draws is None else format_count(draws, "draw")
    curve = next(iter(curves.values()))
    return (
        f"Personalized less initial {metric.name}, in {GainFormat(metric).unit}, of {curve.gains[-1].clients} test"
        f" clients, of which each has at most n of its local training (support) examples, means over {over} of"
        " nested subsets in every seed; a client with fewer keeps all it has, and all are up to"
        f" {curve.numbers[-1]:,}. {decided_by(curve)} *: shown to be positive, asked from all examples to few and no"
        " further after the first that is inconclusive, which needs no correction for the number of questions. Half of"
        " the end is sought between numbers by the logarithm of 1 + n, its interval by a bootstrap over clients."
        " Nothing is trained again; the learning rate and the epochs of personalization are chosen for every number on"
        " validation clients that have as few examples, and rates are widened while the best is the last tried."
    )


def figure_spec(
    name: str, panels: Mapping[str, Mapping[str, GainByExamples]], metric: Metric, title: str
) -> FigureSpec:
    """The figure of curves by their name, in panels by their title."""
    text = f"Gain in {metric.name} against the number of local examples"
    return FigureSpec(name, text, partial(gain_figure, panels, metric, title))


def gain_figure(panels: Mapping[str, Mapping[str, GainByExamples]], metric: Metric, title: str, theme: Theme) -> Figure:
    """Panels side by side: gains with their bands against the number of local examples, which is on a log axis."""
    figure = Figure(figsize=(9, 4.4))
    grid = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    names = list(dict.fromkeys(name for curves in panels.values() for name in curves))
    for axes, (panel, curves) in zip(grid, panels.items(), strict=True):
        axes.axhline(0, color=theme.muted, linewidth=1)
        for label, curve in curves.items():
            _plot(axes, curve, factor(metric), series_color(theme, names.index(label)), theme)
        axes.set(xlabel="local training (support) examples of each client, at most")
        if panel:
            axes.set_title(textwrap.fill(panel, int(95 / len(panels))))
        _ticks(axes, next(iter(curves.values())))
    grid[0].set_ylabel(gain_name(metric))
    handles = [Line2D([], [], color=series_color(theme, i), linewidth=2, label=each) for i, each in enumerate(names)]
    dot = {"marker": "o", "linestyle": "", "markersize": 7, "color": theme.muted}
    handles.append(Line2D([], [], label="shown to be positive", **dot))
    figure.legend(handles=handles, loc="outside lower left", ncols=4)
    titled(figure, title)
    return figure


def _plot(axes: Axes, curve: GainByExamples, scale: float, color: str, theme: Theme) -> None:
    x = np.log1p(curve.numbers)
    mean = scale * np.array([each.mean for each in curve.gains])
    low, high = scale * curve.intervals().T
    axes.plot(x, mean, color=color, linewidth=2)
    if np.isfinite([low, high]).all():
        axes.fill_between(x, low, high, color=color, alpha=0.14, linewidth=0)
    for index, number in enumerate(curve.numbers):
        is_positive = curve.positive_from is not None and number >= curve.positive_from
        fill = color if is_positive else theme.background
        axes.plot(x[index], mean[index], "o", color=color, markersize=7, markerfacecolor=fill, markeredgewidth=1.5)


def _ticks(axes: Axes, curve: GainByExamples) -> None:
    """Numbers where they are on the axis, the last as all; one that is too close to it has no tick."""
    *numbers, last = curve.numbers
    width = math.log1p(last) or 1.0
    numbers = [n for n in numbers if math.log1p(last) - math.log1p(n) > CLOSEST * width]
    axes.set_xticks(np.log1p([*numbers, last]), [*map(str, numbers), f"all\n(to {last:,})"])
    axes.xaxis.set_minor_locator(NullLocator())


def section(runs: Sequence[Run]) -> tuple[dict[str, GainByExamples], list[dict[str, Any]]]:
    """The curves of the runs that have one, and what the page says of them: lines, a table and a note for each.

    Runs that measured the same clients with the same numbers share a table.
    """
    found = {run.label: curve for run in runs if (curve := curve_of_run(run)) is not None}
    if not found:
        return {}, []
    metric = runs[0].task.metrics[0]
    alike = len({(curve.numbers, curve.clients) for curve in found.values()}) == 1
    return found, [
        {
            "sentences": [sentence(name, curve, metric) for name, curve in each.items()],
            "table": _marked(*table(each, metric)),
            "note": note(each, metric),
        }
        for each in ([found] if alike else [{name: curve} for name, curve in found.items()])
    ]


def _marked(head: list[str], lines: list[list[str]]) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """A table as pages take it: each line with its class."""
    return head, [("", line) for line in lines]


def print_by_examples(console: Console, runs: Sequence[Run]) -> None:
    """Print a line for each run that has a curve."""
    for name, curve in section(runs)[0].items():
        echo(console, f"By local examples, {sentence(name, curve, runs[0].task.metrics[0])}")
