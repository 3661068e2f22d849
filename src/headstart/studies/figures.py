"""Figures of the studies: comparisons with their intervals, curves over seeds, and accuracy against local epochs."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullLocator

from headstart.reports.format import typeset
from headstart.reports.style import FigureSpec, Theme, plot_seeds, series_color, titled
from headstart.statistics.verdicts import Difference

Line = tuple[str, np.ndarray, np.ndarray]
Dashes = Literal["-", "--", ":", "-."]
WIDTH = 8.6
LABEL_WIDTH = 38
_STYLES: tuple[Dashes, ...] = ("-", "--", ":", "-.")
# Larger than the dots of our own numbers, and empty, so that both are seen where they agree.
_PAPER: dict[str, Any] = {
    "marker": "D",
    "markersize": 9,
    "markerfacecolor": "none",
    "markeredgewidth": 1.4,
    "linestyle": "",
}


def forest(
    name: str,
    text: str,
    title: str,
    rows: Sequence[tuple[str, Difference]],
    *,
    unit: str = "points",
    decided: Sequence[bool] | None = None,
) -> FigureSpec:
    """A row per comparison: its mean and its two-way interval.

    unit: of the axis; "points" are those of a share, which is multiplied by 100. Intervals without bounds are not
    drawn. decided: which are coloured; by default those whose interval excludes zero, of enough seeds.
    """
    colored = [found.sign != 0 for _, found in rows] if decided is None else decided
    return FigureSpec(name, text, lambda theme: _forest_figure(title, rows, colored, unit, theme))


def _forest_figure(
    title: str, rows: Sequence[tuple[str, Difference]], decided: Sequence[bool], unit: str, theme: Theme
) -> Figure:
    labels = [textwrap.fill(label, LABEL_WIDTH) for label, _ in rows]
    heights = [max(1.0, 0.55 * (label.count("\n") + 1)) for label in labels]
    positions = -np.cumsum(heights) + np.array(heights) / 2
    figure = Figure(figsize=(WIDTH, 1.35 + 0.36 * sum(heights)))
    axes = figure.add_subplot(xlabel=f"difference ({unit})")
    axes.axvline(0, color=theme.text, linewidth=1)
    for position, (_, found), sure in zip(positions, rows, decided, strict=True):
        color = theme.series[0] if sure else theme.muted
        _interval_bar(axes, float(position), found, 100.0 if unit == "points" else 1.0, theme, color)
    axes.set_yticks(positions, labels, color=theme.text)
    axes.set_ylim(-sum(heights), 0)
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")
    axes.margins(x=0.06)
    figure.legend(handles=_forest_handles(theme), loc="outside lower left", ncols=5, columnspacing=1.4)
    titled(figure, title)
    return figure


def _interval_bar(axes: Axes, position: float, found: Difference, scale: float, theme: Theme, color: str) -> None:
    if all(map(math.isfinite, found.interval)):
        ends = [scale * end for end in found.interval]
        axes.plot(ends, [position] * 2, color=color, linewidth=2, solid_capstyle="butt")
    known = math.isfinite(found.mean)
    if known:
        mean = scale * found.mean
        axes.plot(mean, position, "o", color=color, markersize=7, markeredgecolor=theme.background, zorder=3)
    text = typeset(f"{scale * found.mean:+.2f}") if known else "no value"
    at = {"xytext": (6, 0), "textcoords": "offset points", "va": "center", "fontsize": 9}
    axes.annotate(text, (1, position), xycoords=("axes fraction", "data"), color=color, annotation_clip=False, **at)


def _forest_handles(theme: Theme) -> list[Artist]:
    dot = {"marker": "o", "markersize": 7, "linestyle": ""}
    return [
        Line2D([], [], color=theme.series[0], label="decided", **dot),
        Line2D([], [], color=theme.muted, label="inconclusive", **dot),
        Line2D([], [], color=theme.text, linewidth=2, label="95 %, two-way (seeds × clients)"),
    ]


def curves(
    name: str,
    text: str,
    title: str,
    panels: Sequence[tuple[str, Sequence[Line]]],
    *,
    x_label: str,
    y_label: str,
    share: bool = True,
) -> FigureSpec:
    """Panels side by side, of the same y: the mean over seeds, and from the lowest to the highest of them a band.

    panels: titles and lines; a line is its label, which its colour and dashes go by, x `[n]` and values `[seeds, n]`.
    share: the values are shares, to be shown as per cent. NaN: the mean is of those seeds that have a value.
    """
    label = _in_percent(y_label) if share else y_label

    def draw(theme: Theme) -> Figure:
        return _curves_figure(title, panels, x_label, label, 100.0 if share else 1.0, theme)

    return FigureSpec(name, text, draw)


def _in_percent(label: str) -> str:
    return label if "%" in label or label.endswith("(points)") else f"{label} (%)"


def _curves_figure(
    title: str,
    panels: Sequence[tuple[str, Sequence[Line]]],
    x_label: str,
    y_label: str,
    scale: float,
    theme: Theme,
) -> Figure:
    labels = list(dict.fromkeys(label for _, lines in panels for label, _, _ in lines))
    figure = Figure(figsize=(WIDTH, 3.7 if len(panels) > 1 else 4.0))
    grid = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axes, (panel, lines) in zip(grid, panels, strict=True):
        for label, x, values in lines:
            plot_seeds(axes, x, scale * values, *_line_style(theme, labels.index(label)))
        axes.set(xlabel=x_label, title=textwrap.fill(panel, int(11 * WIDTH / len(panels))))
        if all(np.equal(np.mod(x, 1), 0).all() for _, x, _ in lines):
            axes.xaxis.set_major_locator(MaxNLocator(6 if len(panels) > 1 else 9, integer=True))
    grid[0].set_ylabel(y_label)
    _legend_below(figure, [_line_handle(theme, number, label) for number, label in enumerate(labels)])
    titled(figure, title)
    return figure


def _line_style(theme: Theme, number: int) -> tuple[str, Dashes]:
    """Colour and dashes of a numbered line: where colours repeat, dashes do not."""
    return series_color(theme, number), _STYLES[number // len(theme.series) % len(_STYLES)]


def _line_handle(theme: Theme, number: int, label: str) -> Line2D:
    color, style = _line_style(theme, number)
    return Line2D([], [], color=color, linestyle=style, linewidth=2, label=label)


def _legend_below(figure: Figure, handles: Sequence[Line2D]) -> None:
    """A legend below all panels, in as many columns as its longest label leaves room for."""
    longest = max((len(str(handle.get_label())) for handle in handles), default=0)
    columns = int(12 * figure.get_figwidth() / (longest + 7))
    figure.legend(handles=handles, loc="outside lower left", ncols=int(np.clip(columns, 1, 5)), handlelength=2.6)


def by_epochs(
    name: str,
    text: str,
    title: str,
    epochs: Sequence[int],
    rows: Mapping[str, np.ndarray],
    *,
    paper: Mapping[str, Sequence[float]] | None = None,
    y_label: str = "accuracy",
) -> FigureSpec:
    """Shares against the local epochs E, as per cent: means over seeds, with their standard deviation as error bars.

    rows: `[seeds, epochs]` by names like "M = 5, initial": what is before the comma has a colour, "initial" is dashed.
    paper: its numbers `[epochs]` for some of these rows, NaN where it has none.
    """
    return FigureSpec(
        name, text, lambda theme: _epochs_figure(title, epochs, rows, paper or {}, _in_percent(y_label), theme)
    )


def _epochs_figure(
    title: str,
    epochs: Sequence[int],
    rows: Mapping[str, np.ndarray],
    paper: Mapping[str, Sequence[float]],
    y_label: str,
    theme: Theme,
) -> Figure:
    figure = Figure(figsize=(WIDTH, 4.2))
    axes = figure.add_subplot(xlabel="local epochs E", ylabel=y_label, xscale="log")
    groups = list(dict.fromkeys(row.partition(", ")[0] for row in rows))
    handles = []
    for index, (row, values) in enumerate(rows.items()):
        color = series_color(theme, groups.index(row.partition(", ")[0]))
        # Side by side, so that error bars of rows that agree can be distinguished.
        x = np.asarray(epochs) * 1.02 ** (index - (len(rows) - 1) / 2)
        _epochs_row(axes, x, 100 * np.asarray(values), color, row)
        if row in paper:
            axes.plot(x, 100 * np.asarray(paper[row], float), color=color, **_PAPER)
        handles.append(Line2D([], [], color=color, linestyle=_dashes(row), marker="o", linewidth=2, label=row))
    axes.set_xticks(list(epochs), [str(e) for e in epochs])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.margins(x=0.08)
    if any(row in paper for row in rows):
        handles.append(Line2D([], [], color=theme.muted, label="the paper", **_PAPER))
    _legend_below(figure, handles)
    titled(figure, title)
    return figure


def _dashes(row: str) -> Dashes:
    return "--" if row.endswith("initial") else "-"


def _epochs_row(axes: Axes, x: np.ndarray, values: np.ndarray, color: str, row: str) -> None:
    known = np.ma.masked_invalid(np.atleast_2d(values).astype(float))
    mean = np.ma.filled(known.mean(axis=0), np.nan)
    axes.plot(x, mean, _dashes(row), color=color, linewidth=2, marker="o", markersize=6)
    if len(known) > 1:
        spread = np.ma.filled(known.std(axis=0, ddof=1), np.nan)
        axes.errorbar(x, mean, spread, fmt="none", color=color, alpha=0.75, elinewidth=1.3, capsize=3)
