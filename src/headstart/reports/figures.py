"""Figures of runs: which ones there are, and the curves. What was read in, a matplotlib figure out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from headstart.learning.tasks import Metric
from headstart.reports.client_figures import Entry, clients_figure, finite_values, gains_figure
from headstart.reports.format import format_count, format_pull, format_value
from headstart.reports.style import FigureSpec, Theme, axis_name, factor, plot_band, plot_seeds, series_color, titled
from headstart.runs.results import client_curves, estimate, finite
from headstart.runs.run import Run

MOST_PANELS = 6

_CAPTIONS = {
    "rounds": (
        "Validation clients during training, none of which trains. The personalized curve is at the epochs of "
        "personalization that were chosen at the end of each stage. With several seeds: the mean of those that "
        "have come furthest, and a band from the lowest to the highest. An arrow marks where a stage begins."
    ),
    "personalization": (
        "Uniform mean over test clients after every epoch (or step) of personalization; bands are 95 % intervals "
        "over clients. A dot marks the number that counts: "
    ),
    "clients": (
        "Initial against personalized, on each client's own local test (query) examples. In the shaded half a client "
        "is worse after personalization, be it by test noise alone: many clients have few test examples. Grey "
        "histograms show how clients spread before (above) and after (at the right). With several seeds a client's "
        "values are means over them."
    ),
    "gains": (
        "How many test clients gain how much. The first bar right of zero holds the clients that did not change. "
        "With several seeds a client's gain is the mean over them."
    ),
    "samples": (
        "A few examples of a few test clients, each with its label: clients differ, and a model can be made their own."
    ),
}


_CHOSEN = "chosen on validation clients"
_NOT_CHOSEN = "no validation clients, the largest number tried"


def caption(name: str, runs: Sequence[Run]) -> str:
    """The caption of the figure of this name."""
    kind = name.partition("-")[0]
    return _CAPTIONS[kind] + (f"{_how_chosen(runs)}." if kind == "personalization" else "")


def _how_chosen(runs: Sequence[Run]) -> str:
    reports = [report for run in runs for stage_result in run.stage_results for report in stage_result.reports]
    chosen = [(report.get("validation") or {}).get("clients") for report in reports]
    return " or ".join(sorted({_CHOSEN if clients else _NOT_CHOSEN for clients in chosen}))


def left_out(runs: Sequence[Run]) -> list[str]:
    """Sentences on what the figures of test clients do not show."""
    found = []
    for entry in entries(runs):
        number = int((~finite(entry.stage_result, entry.run.metric)).sum())
        if number:
            clients = format_count(number, "client")
            found.append(f"The figures leave out {clients} of {entry.label}: a value is not finite.")
    more = len(_compared(runs)) - MOST_PANELS
    if more > 0:
        what = "stages" if len(runs) == 1 else "runs"
        found.append(
            f"The figures of single clients show the first {MOST_PANELS} {what}; the other {more} are not drawn."
        )
    return found


def entries(runs: Sequence[Run]) -> list[Entry]:
    """The stages that figures of test clients compare: all of one run, or the last ones of several."""
    if len(runs) == 1:
        return [Entry(stage_result.name, runs[0], stage_result) for stage_result in runs[0].stage_results]
    return [Entry(run.label, run, run.stage_results[-1]) for run in runs if run.stage_results]


def _compared(runs: Sequence[Run]) -> list[Entry]:
    return [entry for entry in entries(runs) if finite(entry.stage_result, entry.run.metric).any()]


def figure_specs(runs: Sequence[Run]) -> list[FigureSpec]:
    """The figures that these runs have data for; all must share their first metric."""
    made = []
    name = runs[0].metric.name
    if any(len(run.history.rounds) for run in runs):
        text = f"Initial and personalized {name} on validation clients against rounds"
        made.append(FigureSpec("rounds", text, partial(rounds_figure, runs)))
    if compared := _compared(runs):
        shared = compared[:MOST_PANELS]
        text = f"{name.capitalize()} of test clients against the epochs of personalization"
        made.append(FigureSpec("personalization", text, partial(personalization_figure, compared)))
        text = f"Initial against personalized {name}, a point per test client"
        made.append(FigureSpec("clients", text, partial(clients_figure, shared)))
        text = f"Histogram of the test clients' gains in {name}"
        made.append(FigureSpec("gains", text, partial(gains_figure, shared)))
    return made


def rounds_figure(runs: Sequence[Run], theme: Theme) -> Figure:
    """Initial and personalized metric on validation clients against rounds; stages marked."""
    runs = [run for run in runs if len(run.history.rounds)]
    metric = runs[0].metric
    figure = Figure(figsize=(9, 4.6))
    axes = figure.add_subplot(xlabel="round", ylabel=f"{axis_name(metric)}\nvalidation clients")
    _stage_lines(axes, runs, theme)
    for run, (initial, personalized) in zip(runs, _pair_colors(len(runs), theme), strict=False):
        plot_seeds(axes, run.history.rounds, factor(metric) * run.history.initial, initial, "--")
        plot_seeds(axes, run.history.rounds, factor(metric) * run.history.personalized, personalized, "-")
    if len(targets := {run.document["target"] for run in runs} - {None}) == 1:
        target = targets.pop()
        axes.axhline(factor(metric) * target, color=theme.muted, linewidth=1, linestyle=":")
        position = {"xytext": (4, 2), "textcoords": "offset points", "color": theme.muted, "fontsize": 9}
        axes.annotate(f"target {format_value(metric, target)}", (0, factor(metric) * target), **position)
    axes.set_xlim(0, max(int(run.history.rounds[-1]) for run in runs) or 1)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(handles=_run_handles(runs, theme), loc="outside lower left", ncols=5)
    titled(figure, _rounds_title(runs, metric))
    return figure


def _pair_colors(runs: int, theme: Theme) -> list[tuple[str, str]]:
    """Colours of the initial and the personalized curve: of one run two, of several the run's."""
    if runs == 1:
        return [(theme.series[0], theme.series[1])]
    return [(color, color) for color in (series_color(theme, i) for i in range(runs))]


def _run_handles(runs: Sequence[Run], theme: Theme) -> list[Line2D]:
    colors = _pair_colors(len(runs), theme)
    neutral = colors[0] if len(runs) == 1 else (theme.muted, theme.muted)
    styles = [
        Line2D([], [], color=neutral[1], linewidth=2, label="personalized"),
        Line2D([], [], color=neutral[0], linewidth=2, linestyle="--", label="initial"),
    ]
    if len(runs) == 1:
        return styles
    named = [Line2D([], [], color=c, linewidth=2, label=run.label) for run, (c, _) in zip(runs, colors, strict=True)]
    return [*named, *styles]


def _stage_lines(axes: Axes, runs: Sequence[Run], theme: Theme) -> None:
    reached = max(max(run.reached.values(), default=0) for run in runs)
    begins = {(a, name) for run in runs for a, name in zip((0, *run.ends), run.stage_names, strict=False)}
    begins = {(a, name) for a, name in begins if a < reached}
    if len({a for a, _ in begins}) < 2:
        return
    by_round = {a: " / ".join(sorted(name for b, name in begins if a == b)) for a, _ in begins}
    for begin, names in by_round.items():
        if begin:
            axes.axvline(begin, color=theme.muted, linewidth=1)
        axes.annotate(f"{names} →", (begin, 1.01), xycoords=("data", "axes fraction"), color=theme.muted, fontsize=9)


def _rounds_title(runs: Sequence[Run], metric: Metric) -> str:
    last = [float(run.history.personalized[:, -1].mean()) for run in runs]
    best = int(np.argmax(last) if metric.higher_is_better else np.argmin(last))
    after = f"on validation clients after {runs[best].history.rounds[-1]} rounds"
    if len(runs) > 1:
        return f"Best personalized {metric.name} {after}: {format_value(metric, last[best])} by {runs[best].label}"
    initial = format_value(metric, float(runs[0].history.initial[:, -1].mean()))
    return f"{metric.name.capitalize()} {after}: {initial} initial, {format_value(metric, last[0])} personalized"


def personalization_figure(compared: Sequence[Entry], theme: Theme) -> Figure:
    """The metric on test clients against the epochs of personalization, with intervals over clients."""
    metric = compared[0].run.metric
    figure = Figure(figsize=(9, 4.4))
    axes = figure.add_subplot(xlabel=_amounts(compared), ylabel=f"{axis_name(metric)}\ntest clients")
    for number, entry in enumerate(compared):
        values = factor(metric) * client_curves(entry.stage_result, metric)[finite(entry.stage_result, metric)]
        color, epochs = series_color(theme, number), np.arange(values.shape[1])
        if len(compared) == 1:
            low, high = np.percentile(values, (25, 75), axis=0)
            axes.fill_between(
                epochs, low, high, color=color, alpha=0.1, linewidth=0, label="middle half of the clients"
            )
        mean, low, high = np.array([estimate(column) for column in values.T]).T
        plot_band(axes, epochs, mean, (low, high), color=color, alpha=0.25, label=entry.label)
        chosen = sorted(set(entry.stage_result.epochs))
        axes.plot(
            chosen, mean[chosen], "o", color=color, markersize=9, markeredgecolor=theme.background, markeredgewidth=1.5
        )
    how = _how_chosen([entry.run for entry in compared])
    chosen = Line2D([], [], color=theme.muted, marker="o", linestyle="", markersize=8, label=how)
    handles = [*axes.get_legend_handles_labels()[0], chosen]
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if (pulls := compared[0].run.pulls) and all(entry.run.pulls == pulls for entry in compared):
        axes.set_xticks(range(len(pulls)), [format_pull(pull) for pull in pulls])
    figure.legend(handles=handles, loc="outside lower left", ncols=5)
    titled(figure, _personalization_title(compared, metric))
    return figure


def _amounts(compared: Sequence[Entry]) -> str:
    """What the axis of personalization counts."""
    units = sorted({entry.run.unit for entry in compared})
    if units == ["pulls"]:
        return "pull to the initial model, which ∞ leaves as it is"
    return f"{' or '.join(units)} of personalization"


def _personalization_title(compared: Sequence[Entry], metric: Metric) -> str:
    pairs = [[float(v.mean()) for v in finite_values(entry)] for entry in compared]
    last = [after for _, after in pairs]
    best = int(np.argmax(last) if metric.higher_is_better else np.argmin(last))
    before, after = (format_value(metric, value) for value in pairs[best])
    name = f" of {compared[best].label}, the best on them," if len(compared) > 1 else ""
    return f"Personalization takes {metric.name} on test clients{name} from {before} to {after}"
