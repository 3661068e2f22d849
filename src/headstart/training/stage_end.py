"""The end of a stage: held-out clients are personalized, and what was chosen is written."""

from __future__ import annotations

from typing import Any

import numpy as np

from headstart.experiment.measured import has_test_examples
from headstart.learning.personalization import Curves, choose_recipe, deciding_metric, edges, pooled
from headstart.runs.directory import curve_arrays, write_stage
from headstart.runs.log import left_out
from headstart.statistics.clients import summarize
from headstart.training import cluster
from headstart.training.folds import folds
from headstart.training.participants import measure_participants
from headstart.training.seed_run import (
    Position,
    SeedRun,
    check_initial_model,
    origin,
    personalization_curves,
    selection_clients,
)


def _folded(seed_run: SeedRun, position: Position, clients: np.ndarray, tried: list[Curves]) -> list[Curves]:
    """The curves by which a pull is chosen: of few clients, and of each on few rows, the choice would be one of chance.

    The optimum costs little, and so does its measure on other rows; of epochs the curves are those that were tried.
    """
    context = seed_run.context
    if context.prepared.experiment.personalization.pulls is None:
        return tried
    turned = [context._replace(gather=each) for each in folds(context.gather, clients)[1:]]
    more = [
        personalization_curves(seed_run._replace(context=each), position, "validation", clients, interruptible=True)
        for each in turned
    ]
    return [pooled([*tried, *more])]


def finish_stage(seed_run: SeedRun, position: Position) -> None:
    """Choose learning rate and epochs on the validation clients, then measure the test clients, once."""
    prepared, stage = seed_run.context.prepared, seed_run.context.prepared.experiment.stages[position.stage]
    recipe = prepared.experiment.personalization
    learning_rates, epochs = recipe.candidate_rates, recipe.unchosen
    chosen, arrays, written = 0, {}, seed_run.context.written or prepared.federation
    report: dict[str, Any] = {"stage": stage.name, "round": position.round, "seed": seed_run.seed}
    for group, clients in (("validation", selection_clients(prepared, stage)), ("test", prepared.groups.test)):
        if not len(clients) or (group == "test" and not prepared.experiment.test):
            continue
        candidates = learning_rates if group == "validation" else learning_rates[chosen : chosen + 1]
        tried = [
            personalization_curves(seed_run, position, group, clients, learning_rate=learning_rate, interruptible=True)
            for learning_rate in candidates
        ]
        if group == "validation":
            deciding = _folded(seed_run, position, clients, tried)
            metric = deciding_metric(prepared.task, recipe)
            chosen, epochs = choose_recipe(deciding, prepared.task, by=metric, otherwise=recipe.unchosen)
        curves = tried[chosen if group == "validation" else 0]
        check_initial_model(seed_run, position, group, clients, curves)
        arrays |= curve_arrays(group, written.select(clients), curves)
        report[group] = summarize(curves, prepared.task, epochs=epochs)
    is_last = position.stage == len(prepared.experiment.stages) - 1
    if is_last and prepared.experiment.test and (taken_part := measure_participants(seed_run, position)):
        clients, curves, report["participants"] = taken_part
        arrays |= curve_arrays(
            "participants", (seed_run.context.written or prepared.federation).select(clients), curves
        )
    report["personal_rate"] = learning_rates[chosen]
    measured = has_test_examples(prepared.federation, prepared.groups.validation).any()
    # Beyond the last of a method's own grid there is nothing to try.
    counts = measured and stage.method.personal_grid is None
    report["edges"] = edges(recipe, learning_rates[chosen], epochs) if counts else []
    before = sum(earlier.rounds for earlier in prepared.experiment.stages[: position.stage])
    report |= left_out(seed_run.log.records(), range(before + 1, position.round + 1))
    seed_run.context.on_event({"event": "stage", **report})
    if not cluster.is_first():
        return
    write_stage(seed_run.folder, position.stage, position.state.params, report, arrays, origin(seed_run))
