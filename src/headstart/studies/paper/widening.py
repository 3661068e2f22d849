"""Grids of the server's learning rate that continue beyond an edge while the edge suits best."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Literal, NamedTuple

from headstart.experiment.experiment import Centralized, Experiment
from headstart.learning.optimizers import Optimizer
from headstart.studies.evidence import Choice, Result
from headstart.studies.runner import Runs

Candidates = Mapping[str, Experiment]


class Chosen(NamedTuple):
    """A choice with the results of all that were tried on validation clients, and the experiment that was chosen."""

    choice: Choice
    results: Mapping[str, Result]
    experiment: Experiment


def choose_widened(
    runs: Runs,
    candidates: Mapping[str, Candidates],
    *,
    seeds: int,
    by: Mapping[str, Literal["initial", "personalized"]] = MappingProxyType({}),
    most: int,
) -> dict[str, Chosen]:
    """As `Runs.choose_each`; where the greatest or the least learning rate suits best, the next one is tried too.

    most: how many times.

    Raises:
        UserError: if every candidate for one of the choices diverges.
    """
    tried = {what: dict(each) for what, each in candidates.items()}
    for _ in range(most):
        chosen = runs.choose_each(tried, seeds=seeds, by=by)
        more = {what: _beyond(tried[what], choice.chosen) for what, (choice, _) in chosen.items()}
        if not any(more.values()):
            break
        tried = {what: {**each, **more[what]} for what, each in tried.items()}
    chosen = runs.choose_each(tried, seeds=seeds, by=by)
    return {what: Chosen(choice, results, tried[what][choice.chosen]) for what, (choice, results) in chosen.items()}


def _beyond(candidates: Candidates, best: str) -> dict[str, Experiment]:
    """The candidate beyond the best where its learning rate is the greatest or the least of those like it, or none."""
    experiment = candidates[best]
    like = sorted(
        server_rate(each) for each in candidates.values() if _with_rate(each, 1.0) == _with_rate(experiment, 1.0)
    )
    if len(like) < 2 or server_rate(experiment) not in (like[0], like[-1]):
        return {}
    neighbour = like[1] if server_rate(experiment) == like[0] else like[-2]
    # Two digits, as a person would write it.
    learning_rate = float(f"{server_rate(experiment) ** 2 / neighbour:.2g}")
    before, after = f"rate {server_rate(experiment):g}", f"rate {learning_rate:g}"
    label = best.replace(before, after, 1) if before in best else after
    return {label: _with_rate(experiment, learning_rate)}


def _optimizer(experiment: Experiment) -> Optimizer:
    last = experiment.stages[-1]
    return last.optimizer if isinstance(last, Centralized) else last.server


def server_rate(experiment: Experiment) -> float:
    """The learning rate of an experiment's last stage: its server's, or the datacenter's."""
    return _optimizer(experiment).learning_rate


def _with_rate(experiment: Experiment, learning_rate: float) -> Experiment:
    *before, last = experiment.stages
    optimizer = replace(_optimizer(experiment), learning_rate=learning_rate)
    changed = replace(last, optimizer=optimizer) if isinstance(last, Centralized) else replace(last, server=optimizer)
    return replace(experiment, stages=(*before, changed))
