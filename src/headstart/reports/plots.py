"""Figures of a run in hand, for notebooks: whole ones, or the curves alone in axes of the user's own."""

from __future__ import annotations

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from headstart.reports.client_figures import Entry, clients_figure, gains_figure
from headstart.reports.figures import entries, personalization_figure, rounds_figure
from headstart.reports.style import LIGHT, axis_name, factor, plot_seeds, style
from headstart.runs.results import before_and_after
from headstart.runs.run import Run


class Plots:
    """`run.plot`: what a report shows of a run, as matplotlib figures in the light theme."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def rounds(self, ax: Axes | None = None) -> Figure | Axes:
        """Initial and personalized metric on validation clients against rounds; a band holds all seeds.

        ax: draws the two curves there and returns it, in place of a whole figure.
        """
        if ax is None:
            with matplotlib.rc_context(style(LIGHT)):
                return rounds_figure([self._run], LIGHT)
        history, metric = self._run.history, self._run.metric
        for name, values, dashes in (("initial", history.initial, "--"), ("personalized", history.personalized, "-")):
            plot_seeds(ax, history.rounds, factor(metric) * values, style=dashes, label=name)
        ax.set(xlabel="round", ylabel=axis_name(metric))
        ax.legend()
        return ax

    def clients(self, ax: Axes | None = None) -> Figure | Axes:
        """Initial against personalized metric of every test client, at the end of the last stage.

        ax: draws the points there and returns it, in place of a whole figure.
        """
        if ax is None:
            with matplotlib.rc_context(style(LIGHT)):
                return clients_figure(self._last(), LIGHT)
        metric = self._run.metric
        before, after = (factor(metric) * values for values in before_and_after(self._last()[0].stage_result, metric))
        ax.plot(before, after, "o", alpha=0.6)
        ends = [min(before.min(), after.min()), max(before.max(), after.max())]
        ax.plot(ends, ends, linewidth=1, color="gray")
        ax.set(xlabel=f"initial {axis_name(metric)}", ylabel=f"personalized {axis_name(metric)}")
        return ax

    def personalization(self) -> Figure:
        """The metric on test clients after every epoch of personalization."""
        with matplotlib.rc_context(style(LIGHT)):
            return personalization_figure(self._last(), LIGHT)

    def gains(self) -> Figure:
        """How many test clients gain how much."""
        with matplotlib.rc_context(style(LIGHT)):
            return gains_figure(self._last(), LIGHT)

    def _last(self) -> list[Entry]:
        return entries([self._run])[-1:]
