"""Claim 3 of arXiv:1909.12488: a model as accurate, but trained in a datacenter, is harder to personalize."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from headstart.experiment.experiment import Centralized, Experiment
from headstart.learning.optimizers import Optimizer, Schedule
from headstart.reports.format import format_share
from headstart.reports.style import FigureSpec
from headstart.statistics.verdicts import Difference, decide, power
from headstart.studies.comparisons import BOTH, What, accuracies, over
from headstart.studies.evidence import (
    Claim,
    Evidence,
    Result,
    Table,
    foreseen,
    format_difference,
    lower_accuracy,
    mean_gain,
)
from headstart.studies.figures import curves, forest
from headstart.studies.paper.study import MOMENTUM, Setting, Study
from headstart.studies.paper.tuning import first_stage, tuned
from headstart.studies.paper.widening import choose_widened
from headstart.studies.runner import Runs

FEDAVG, DECAYED = "FedAvg", "FedAvg, decayed rate"
# Models count as equally accurate, as the claim requires, up to this difference.
SAME = 0.02


class _Federated(NamedTuple):
    """A model of FedAvg, and the centralized ones that stop where validation clients find them as accurate.

    name: of it. pilot: on validation clients. experiments: by name, its own first. target: an initial accuracy.
    """

    name: str
    pilot: Result
    target: float
    experiments: Mapping[str, Experiment]

    @property
    def centralized(self) -> list[str]:
        """The names of the centralized models."""
        return [name for name in self.experiments if name != self.name]


def datacenter(setting: Setting, runs: Runs) -> Evidence:
    """Centralized models, stopped where validation clients find them as accurate as FedAvg's; the same recipe.

    So for FedAvg with a constant server learning rate, and for one that decays, which alone may explain a difference.
    """
    setting, choices = tuned(setting, runs)
    pilot = first_stage(setting, runs)
    target = float(pilot.initial.mean())
    candidates = {name: centralized(setting, runs, name, target) for name in optimizers(setting)}
    chosen = choose_widened(runs, candidates, seeds=setting.tuning_seeds, most=setting.most_widened)
    plain = _Federated(
        FEDAVG,
        pilot,
        target,
        {
            FEDAVG: setting.experiment(FEDAVG, setting.fedavg()),
            **{name: each.experiment for name, each in chosen.items()},
        },
    )
    models = plain, _decayed(setting, runs, {name: each.experiment for name, each in chosen.items()})
    clients, seeds = len(runs.prepared(plain.experiments[FEDAVG]).groups.test), setting.most_seeds
    estimates = {
        name: power(_shared(pilot, results[choice.chosen]), seeds=seeds, clients=clients)
        for name, (choice, results, _) in chosen.items()
    }
    found = runs.finish({name: each for model in models for name, each in model.experiments.items()}, seeds=seeds)
    compared = {
        model.name: {name: _compare(found[model.name], found[name]) for name in model.centralized} for model in models
    }
    missed = {name: int((result.ends >= _most_rounds(setting)).sum()) for name, result in found.items()}
    return Evidence(
        "datacenter",
        "Is a model that a datacenter trained to the same initial accuracy harder to personalize?",
        tuple(_claim(compared[model.name], missed, model.name) for model in models),
        (_table(models, found, compared),),
        _figures(found, compared),
        (*choices, *(each.choice for each in chosen.values())),
        (
            f"FedAvg({setting.local_epochs}), {setting.rounds} rounds, {setting.cohort} clients each; {seeds} seeds."
            " The centralized models stop at the first of their evaluations at which half of the validation clients"
            f" find the initial accuracy of FedAvg in {setting.tuning_seeds} runs for choosing:"
            f" {' and '.join(f'{format_share(model.target)} ({model.name})' for model in models)}; the other half"
            " chooses the epochs of personalization. All are personalized with the client's learning rate of training.",
            foreseen(estimates),
        ),
        {name: result.command for name, result in found.items()},
    )


def _decayed(setting: Setting, runs: Runs, chosen: Mapping[str, Experiment]) -> _Federated:
    """FedAvg whose server learning rate falls to zero, and the chosen centralized models stopped at its accuracy."""
    schedule = Schedule("cosine_decay_schedule", {"decay_steps": setting.rounds})
    stage = setting.fedavg(server=replace(MOMENTUM, schedule=schedule))
    experiment = setting.experiment("FedAvg-decayed", stage)
    _, results = runs.choose(DECAYED, {DECAYED: experiment}, seeds=setting.tuning_seeds)
    pilot = results[DECAYED]
    target = float(pilot.initial.mean())
    experiments = {f"{name}, to {DECAYED}": _stopped_at(each, target) for name, each in chosen.items()}
    return _Federated(DECAYED, pilot, target, {DECAYED: experiment, **experiments})


def _stopped_at(experiment: Experiment, target: float) -> Experiment:
    (stage,) = experiment.stages
    return replace(experiment, stages=(replace(stage, stop_at=target),))


def optimizers(setting: Setting) -> dict[str, dict[str, Optimizer]]:
    """The datacenter's optimizers and their rates, derived from the client's rate."""
    learning_rate = setting.client_rate
    return {
        "SGD": {
            f"rate {f * learning_rate:g}": Optimizer("sgd", f * learning_rate)
            for f in setting.candidates((1.0, 3.0, 10.0))
        },
        "momentum": {
            f"rate {f * learning_rate:g}": Optimizer("sgd", f * learning_rate, {"momentum": 0.9})
            for f in setting.candidates((0.1, 0.03, 0.5))
        },
        "Adam": {f"rate {each:g}": Optimizer("adam", each) for each in setting.candidates((3e-4, 1e-4, 1e-3))},
    }


def centralized(setting: Setting, runs: Runs, name: str, target: float) -> dict[str, Experiment]:
    """The candidates of an optimizer, stopped at the target or after as many examples as FedAvg sees."""
    prepared = runs.prepared(setting.experiment(FEDAVG, setting.fedavg()))
    per_client = prepared.federation.training_sizes[prepared.groups.train].mean()
    batches = setting.cohort * setting.local_epochs * per_client / setting.batch_size
    steps = max(1, round(batches / setting.evaluations_per_round))
    experiments = {}
    for label, optimizer in optimizers(setting)[name].items():
        stage = Centralized(name, optimizer, _most_rounds(setting), steps, setting.batch_size, stop_at=target)
        experiment = setting.experiment(f"datacenter-{name}", stage)
        experiments[label] = replace(
            experiment, evaluate_every=1, evaluation_clients=len(prepared.groups.validation) // 2
        )
    return experiments


def _most_rounds(setting: Setting) -> int:
    return setting.evaluations_per_round * setting.rounds


def _shared(federated: Result, central: Result) -> np.ndarray:
    """Differences on the validation clients that both runs evaluate at the end, `[seeds, clients]`."""
    columns = [federated.ids.index(client) for client in central.ids]
    return federated.personalized[:, columns] - central.personalized


def _compare(federated: Result, central: Result) -> dict[What, Difference]:
    return {what: over(federated, central, what) for what in BOTH}


def _claim(compared: Mapping[str, Mapping[What, Difference]], missed: Mapping[str, int], model: str = FEDAVG) -> Claim:
    """Whether every comparable centralized model is harder to personalize than a federated one.

    missed: the seeds in which each did not reach the target. model: the name of the federated one.
    """
    sentences, signs = [], []
    for name, each in compared.items():
        comparable = abs(each["initial"].mean) <= SAME and not missed[name]
        signs.append(each["personalized"].sign if comparable else 0)
        sentences += [format_difference(f"{what}: {model} over {name}", each[what]) for what in BOTH]
        if missed[name]:
            sentences.append(f"{name} did not reach the target in {missed[name]} seeds: it decides nothing")
        elif not comparable:
            sentences.append(
                f"{name}: the initial accuracies differ by more than {100 * SAME:g} points: not comparable"
            )
    than = "" if model == FEDAVG else ", than one of FedAvg with a decayed rate"
    return Claim(
        f"A model trained by a standard datacenter method to the same initial accuracy is harder to personalize{than}",
        "claim 3; no number is known" if model == FEDAVG else None,
        decide(signs),
        tuple(sentences),
    )


def _table(
    models: Sequence[_Federated],
    found: Mapping[str, Result],
    compared: Mapping[str, Mapping[str, Mapping[What, Difference]]],
) -> Table:
    rows = []
    for model in models:
        for name in model.experiments:
            result, each = found[name], compared[model.name].get(name)
            rows.append(
                (
                    name,
                    *accuracies(result),
                    mean_gain(result),
                    lower_accuracy(result),
                    "–" if each is None else f"{100 * each['personalized'].mean:+.1f}",
                    f"{result.items.mean():,.0f}",
                    f"{result.ends.mean():.0f}",
                    f"{result.epochs.min()} to {result.epochs.max()}",
                )
            )
    head = (
        "trained by", "initial", "personalized", "gain", "lower accuracy / expected from noise", "FedAvg over it",
        "trained on", "stopped after", "epochs chosen",
    )  # fmt: skip
    note = "FedAvg over it: of personalized accuracy, in points. Trained on: examples, counted every time one was used."
    return Table("The datacenter beside FedAvg", head, tuple(rows), note)


def _figures(
    found: Mapping[str, Result], compared: Mapping[str, Mapping[str, Mapping[What, Difference]]]
) -> tuple[FigureSpec, ...]:
    epochs = next(iter(found.values())).curves.shape[2]
    lines = [(name, np.arange(epochs), result.curves.mean(axis=1)) for name, result in found.items()]
    rows = [
        (f"{model} over {name}: {what}", each)
        for model, pairs in compared.items()
        for name, pair in pairs.items()
        for what, each in pair.items()
    ]
    return (
        curves(
            "datacenter",
            "Accuracy of test clients after every epoch of personalization",
            "Personalizing models of the same initial accuracy",
            [("", lines)],
            x_label="epochs of personalization",
            y_label="accuracy (%)",
        ),
        forest("datacenter-differences", "FedAvg less the datacenter", "FedAvg less the datacenter's model", rows),
    )


DATACENTER = Study("datacenter", datacenter)
