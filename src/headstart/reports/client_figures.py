"""Figures of single clients: everyone before and after personalization, and the histogram of gains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from headstart.reports.format import format_change, format_mean, format_worse
from headstart.reports.style import Theme, axis_name, factor, gain_name, mixed, titled
from headstart.runs.results import StageResult, before_and_after, estimate, finite, gains
from headstart.runs.run import Run

HEXAGONS_FROM = 1500


class Entry(NamedTuple):
    """A stage that takes part in the figures of test clients."""

    label: str
    run: Run
    stage_result: StageResult


def finite_values(entry: Entry) -> tuple[np.ndarray, np.ndarray]:
    """`before_and_after` of the clients whose values are all finite."""
    metric = entry.run.metric
    known = finite(entry.stage_result, metric)
    initial, personalized = before_and_after(entry.stage_result, metric)
    return initial[known], personalized[known]


def clients_figure(compared: Sequence[Entry], theme: Theme) -> Figure:
    """Initial against personalized metric, a point per test client, with histograms along both axes."""
    columns = min(len(compared), 3)
    lines = -(-len(compared) // columns)
    side = {1: 5.6, 2: 4.5, 3: 3.4}[columns]
    figure = Figure(figsize=(side * columns, (side + 0.35) * lines + 0.9))
    grid = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
    limits, log = _limits(compared)
    for axes, entry in zip(grid.flat, compared, strict=False):
        _client_points(axes, entry, limits, log, theme)
    for axes in grid.flat[len(compared) :]:
        axes.remove()
    name = axis_name(compared[0].run.metric)
    for axes in grid[:, 0]:
        axes.set_ylabel(f"personalized {name}")
    for index, axes in enumerate(grid.flat[: len(compared)]):
        if index + columns >= len(compared):
            axes.set_xlabel(f"initial {name}")
            axes.tick_params(labelbottom=True)
    figure.legend(handles=_client_handles(compared, theme), loc="outside lower left", ncols=4)
    titled(figure, "Each test client before and after" if len(compared) > 1 else _counts(compared[0], "test clients"))
    return figure


def _client_handles(compared: Sequence[Entry], theme: Theme) -> list[Artist]:
    largest, worse = max(len(finite_values(entry)[0]) for entry in compared), format_worse(compared[0].run.metric)
    points = [
        Line2D([], [], color=theme.series[0], marker="o", linestyle="", label="a client"),
        Line2D([], [], color=theme.worse, marker="v", linestyle="", label=f"a client with {worse}"),
    ]
    many = [Patch(color=theme.series[0], label="many clients"), Patch(color=theme.worse, alpha=0.2, label=worse)]
    mean = Line2D([], [], color=theme.text, marker="+", markersize=10, markeredgewidth=2, linestyle="", label="mean")
    return [*(points if largest <= HEXAGONS_FROM else many), mean]


def _counts(entry: Entry, noun: str) -> str:
    gain = gains(*finite_values(entry), entry.run.metric)
    better, worse = int((gain > 0).sum()), int((gain < 0).sum())
    return f"{better} of {len(gain)} {noun} better, {worse} worse"


def _limits(compared: Sequence[Entry]) -> tuple[tuple[float, float], bool]:
    """Of both axes, for all panels; and whether they are logarithmic, as errors of very different size need."""
    metric = compared[0].run.metric
    values = factor(metric) * np.concatenate([v for e in compared for v in finite_values(e)])
    low, high = float(values.min()), float(values.max())
    if metric.unit != "share" and low > 0 and high > 50 * low:
        return (low / 1.15, high * 1.15), True
    margin = 0.03 * (high - low) or 1.0
    return (low - margin, high + margin), False


def _client_points(axes: Axes, entry: Entry, limits: tuple[float, float], log: bool, theme: Theme) -> None:
    metric = entry.run.metric
    before, after = (factor(metric) * values for values in finite_values(entry))
    worse = gains(before, after, metric) < 0
    axes.set(
        xlim=limits, ylim=limits, aspect="equal", xscale="log" if log else "linear", yscale="log" if log else "linear"
    )
    axes.plot(limits, limits, color=theme.muted, linewidth=1)
    far = limits[0] if metric.higher_is_better else limits[1]
    axes.fill_between(limits, limits, far, color=theme.worse, alpha=0.07, linewidth=0)
    if len(before) > HEXAGONS_FROM:
        _hexagons(axes, before, after, limits, log, theme)
    else:
        alpha = float(np.clip(40 / np.sqrt(len(before)) / 5, 0.25, 0.8))
        axes.scatter(before[~worse], after[~worse], 22, theme.series[0], marker="o", alpha=alpha, linewidths=0)
        axes.scatter(
            before[worse], after[worse], 26, theme.worse, marker="v", alpha=min(1.0, alpha + 0.2), linewidths=0
        )
    halo = [withStroke(linewidth=5, foreground=theme.background)]
    axes.plot(before.mean(), after.mean(), "+", color=theme.text, markersize=12, markeredgewidth=2, path_effects=halo)
    _margins(axes, before, after, limits, log, theme, f"{entry.label}\n{_counts(entry, 'clients')}")


def _hexagons(
    axes: Axes, before: np.ndarray, after: np.ndarray, limits: tuple[float, float], log: bool, theme: Theme
) -> None:
    scale = "log" if log else "linear"
    extent = (*np.log10(limits), *np.log10(limits)) if log else (*limits, *limits)
    colors = LinearSegmentedColormap.from_list(
        "clients", [mixed(theme.background, theme.series[0], 0.3), theme.series[0]]
    )
    axes.hexbin(
        before, after, gridsize=38, mincnt=1, xscale=scale, yscale=scale, extent=extent, cmap=colors, bins="log"
    )


def _margins(
    axes: Axes, before: np.ndarray, after: np.ndarray, limits: tuple[float, float], log: bool, theme: Theme, title: str
) -> None:
    """Histograms above and to the right: how the clients spread before and after."""
    bins = (np.geomspace(*limits, 31) if log else np.linspace(*limits, 31)).tolist()
    top = axes.inset_axes((0, 1.01, 1, 0.13), sharex=axes)
    right = axes.inset_axes((1.01, 0, 0.13, 1), sharey=axes)
    top.hist(before, bins, color=theme.muted, alpha=0.6)
    right.hist(after, bins, color=theme.muted, alpha=0.6, orientation="horizontal")
    for margin in (top, right):
        margin.set_axis_off()
    top.set_title(title, fontsize=9)


def gains_figure(compared: Sequence[Entry], theme: Theme) -> Figure:
    """Histograms of the test clients' gains from personalization, one below the other."""
    metric = compared[0].run.metric
    each = [factor(metric) * gains(*finite_values(e), metric) for e in compared]
    figure = Figure(figsize=(9, 1.9 + 1.6 * len(compared)))
    grid = figure.subplots(len(compared), 1, squeeze=False, sharex=True)[:, 0]
    edges = _edges(each)
    for axes, entry, values in zip(grid, compared, each, strict=True):
        _gain_bars(axes, values, edges, theme)
        axes.set(ylabel="clients", title=entry.label if len(compared) > 1 else "")
    beyond = sum(int(((values < edges[0]) | (values > edges[-1])).sum()) for values in each)
    note = f"; {beyond} clients beyond the ends count there" if beyond else ""
    grid[-1].set_xlabel(gain_name(metric) + note)
    figure.legend(handles=_gain_handles(theme), loc="outside lower left", ncols=3)
    titled(figure, _gains_title(compared))
    return figure


def _edges(each: Sequence[np.ndarray]) -> np.ndarray:
    """Edges of the bins, zero among them; a few extreme clients do not stretch them."""
    values = np.concatenate(list(each))
    low, high = np.percentile(values, (25, 75))
    reach = 5 * (high - low) or np.inf
    low, high = max(values.min(), low - reach), min(values.max(), high + reach)
    width = (max(high, 0) - min(low, 0)) / np.clip(2 * np.sqrt(len(values) / len(each)), 12, 50) or 1.0
    return width * np.arange(np.floor(low / width - 1e-9), np.ceil(high / width + 1e-9) + 1)


def _gain_bars(axes: Axes, values: np.ndarray, edges: np.ndarray, theme: Theme) -> None:
    counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
    width = edges[1] - edges[0]
    colors = [theme.worse if edge < -width / 2 else theme.series[0] for edge in edges[:-1]]
    axes.bar(edges[:-1], counts, 0.92 * width, align="edge", color=colors, linewidth=0)
    axes.axvline(0, color=theme.text, linewidth=1)
    axes.axvline(float(values.mean()), color=theme.text, linewidth=1.5, linestyle="--")
    axes.grid(False, axis="x")
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))


def _gain_handles(theme: Theme) -> list[Artist]:
    return [
        Patch(color=theme.series[0], label="better or unchanged"),
        Patch(color=theme.worse, label="worse"),
        Line2D([], [], color=theme.text, linestyle="--", label="mean"),
    ]


def _gains_title(compared: Sequence[Entry]) -> str:
    metric = compared[0].run.metric
    means = [estimate(gains(*finite_values(e), metric)) for e in compared]
    if len(means) == 1:
        return f"Mean gain on test clients {format_mean(metric, means[0], change=True)}"
    best = int(np.argmax([mean.mean for mean in means]))
    return f"Largest mean gain on test clients: {format_change(metric, means[best].mean)}, {compared[best].label}"
