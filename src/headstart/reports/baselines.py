"""A run beside its baselines, in words and numbers: whether federating helped, and whether personalization did."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from headstart.learning.tasks import Metric
from headstart.reports.format import format_change, format_count, format_interval, format_value
from headstart.runs.baselines import TITLES
from headstart.runs.results import Estimate, client_values, estimate, gains
from headstart.runs.run import Run


class Beside(NamedTuple):
    """The personalized models beside something else, on the test clients that have values of both.

    title, how: what it is, and what was chosen for it. metric: the run's first. other, personalized: means.
    difference: of both, paired by client. better, worse: for how many clients the personalized model is so. clients: of
    how many.
    """

    title: str
    how: str
    metric: Metric
    other: Estimate
    personalized: Estimate
    difference: Estimate
    better: int
    worse: int
    clients: int

    @property
    def sign(self) -> int:
        """1 if the personalized model is better beyond its interval, -1 if it is worse, 0 if it is inconclusive."""
        low, high = sorted(self.metric.sign * end for end in self.difference[1:])
        return int(low > 0) - int(high < 0)


def beside_baselines(run: Run) -> list[Beside]:
    """The last stage's personalized models beside the baselines and the initial model; empty without baselines."""
    if not (run.baselines and run.stage_results and run.stage_results[-1].final):
        return []
    initial, personalized = client_values(run.stage_results[-1], run.metric)
    name = run.metric.name
    others = [
        (each.title, each.how, each.values[name])
        for each in run.baselines.values()
        if name in each.values and each.values[name].shape == personalized.shape
    ]
    return [_beside(*each, personalized, run.metric) for each in (*others, ("the initial model as it is", "", initial))]


def _beside(title: str, how: str, other: np.ndarray, personalized: np.ndarray, metric: Metric) -> Beside:
    there = ~(np.isnan(other) | np.isnan(personalized))
    other, personalized = other[there], personalized[there]
    gain = gains(other, personalized, metric)
    better, worse = int((gain > 0).sum()), int((gain < 0).sum())
    before, after = estimate(other), estimate(personalized)
    return Beside(title, how, metric, before, after, estimate(metric.sign * gain), better, worse, len(gain))


def conclusions(run: Run) -> list[str]:
    """Whether federating helped over training alone, and whether personalization helped over the initial model."""
    compared = {each.title: each for each in beside_baselines(run)}
    asked = (
        (TITLES["alone"], "Federating", "with every client trained alone"),
        ("the initial model as it is", "Personalization", "with the initial model as it is"),
    )
    return [_sentence(compared[title], what, beside) for title, what, beside in asked if title in compared]


def _sentence(each: Beside, what: str, beside: str) -> str:
    verdict = {1: "helped", 0: "did not help measurably", -1: "did not help, it made worse"}[each.sign]
    difference = f"{format_change(each.metric, each.difference.mean)} {_interval(each)}".rstrip()
    unit = "" if each.metric.unit == "share" else f" ({each.metric.unit})"
    open_ends = "; the interval includes zero, so this is inconclusive" if each.sign == 0 else ""
    return (
        f"{what} {verdict}: personalized {each.metric.name} {format_value(each.metric, each.personalized.mean)},"
        f" {beside} {format_value(each.metric, each.other.mean)}, a difference of {difference}{unit}, better for"
        f" {each.better} and worse for {each.worse} of {format_count(each.clients, 'test client')}{open_ends}."
    )


def _interval(each: Beside) -> str:
    return format_interval(each.metric, each.difference, change=True)
