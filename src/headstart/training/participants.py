"""Clients that took part in training, measured on local test rows that training did not use."""

from __future__ import annotations

from typing import Any

import numpy as np

from headstart.experiment.measured import has_test_examples
from headstart.experiment.setup import Prepared
from headstart.learning.personalization import Curves, choose_recipe, deciding_metric
from headstart.statistics.clients import summarize
from headstart.training.seed_run import Position, SeedRun, personalization_curves


def participants_of(prepared: Prepared) -> tuple[np.ndarray, np.ndarray]:
    """The training clients who choose, and those who are measured, as client numbers; none where there is no row left.

    They are drawn by the seed of the split, and so are the same in all runs: as many as `Experiment.participants` are
    measured, and half as many others choose; where there are fewer, a third of them.
    """
    federation, most, nobody = prepared.federation, prepared.experiment.participants, np.zeros(0, np.int64)
    train = prepared.groups.train[has_test_examples(federation, prepared.groups.train)]
    if not most or federation.training_part == "all" or len(train) < 2:
        return nobody, nobody
    drawn = np.random.default_rng([prepared.experiment.data.seed, 1]).permutation(train)
    deciding = max(1, min(most // 2, len(drawn) // 3))
    return np.sort(drawn[:deciding]), np.sort(drawn[deciding : deciding + most])


def measure_participants(seed_run: SeedRun, position: Position) -> tuple[np.ndarray, Curves, dict[str, Any]] | None:
    """The participants who are measured, their curves, and a report as of other groups; None without any.

    Each starts from what is broadcast and what it kept. Learning rate and epochs are chosen on others, who took part,
    too, and so start as these do.
    """
    prepared = seed_run.context.prepared
    deciding, measured = participants_of(prepared)
    if not len(measured):
        return None
    recipe = prepared.experiment.personalization

    def curves(clients: np.ndarray, learning_rate: float) -> Curves:
        return personalization_curves(
            seed_run, position, "participants", clients, learning_rate=learning_rate, interruptible=True
        )

    tried = [curves(deciding, learning_rate) for learning_rate in recipe.candidate_rates]
    metric = deciding_metric(prepared.task, recipe)
    chosen, epochs = choose_recipe(tried, prepared.task, by=metric, otherwise=recipe.unchosen)
    found = curves(measured, recipe.candidate_rates[chosen])
    report = summarize(found, prepared.task, epochs=epochs)
    return measured, found, report | {"personal_rate": recipe.candidate_rates[chosen]}
