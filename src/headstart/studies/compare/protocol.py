"""The protocol: equal budgets of client arithmetic, choices on validation clients, test clients touched once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from headstart.errors import UserError
from headstart.experiment.experiment import Experiment, Stage
from headstart.experiment.setup import Prepared
from headstart.learning.optimizers import Optimizer, Schedule
from headstart.learning.personalization import Personalization
from headstart.learning.tasks import NextCharacter, Task
from headstart.methods.paper import FedAvg
from headstart.studies.compare.arithmetic import Cost, cost, sampled
from headstart.studies.compare.contenders import (
    BASELINE,
    FEDAVG,
    RATE,
    SECOND_SERVER,
    SECOND_SERVERS,
    SERVER,
    SERVERS,
    Contender,
    Tried,
)
from headstart.studies.comparisons import What
from headstart.studies.evidence import Choice, Result
from headstart.studies.runner import Runs

# The share of a budget that the first of two stages gets.
FIRST = 0.75
# So many times as many epochs may local training alone take.
ALONE = 5
# Personalization tries the rates of training, and one beyond either end: so many times it.
SMALLER, LARGER = 0.3, 3.0
RATES, TEXT_RATES = (0.01, 0.03, 0.1), (0.3, 1.0, 3.0)


@dataclass(frozen=True)
class Protocol:
    """What is the same for all.

    base: brings data, model and task, and the cohort and the batch of its first stage.
    budget: the client arithmetic of every run, in rounds of FedAvg with one epoch.
    tries: how many settings each method tries. seeds, tuning_seeds: of what is told, and of what only chooses.
    epochs: of personalization, at most. rates: of the client that are tried; none: those that suit the task.
        Personalization tries them too, a smaller and a larger one.
    """

    base: Experiment
    budget: int = 200
    tries: int = 12
    seeds: int = 5
    tuning_seeds: int = 1
    epochs: int = 10
    rates: tuple[float, ...] = ()


class Entry(NamedTuple):
    """What a method came to.

    tried: the settings in force. stages: as they were run, each with what a round of it costs a client.
    """

    contender: Contender
    result: Result
    tried: Tried
    stages: Sequence[tuple[Stage, Cost]]

    @property
    def gradients(self) -> float:
        """How many gradients of single examples clients computed in a run, in training."""
        return sum(stage.rounds * stage.clients_per_round * each.gradients for stage, each in self.stages)

    @property
    def sent(self) -> float:
        """Bytes over the network in a run, both ways."""
        return sum(stage.rounds * stage.clients_per_round * (each.down + each.up) for stage, each in self.stages)


class Compared(NamedTuple):
    """What a comparison came to.

    entries: by the method's name. choices: of settings. left_out: why a method was, by its name. rates, personal_rates:
    the client's that were tried, in training and in personalization.
    """

    entries: Mapping[str, Entry]
    choices: Sequence[Choice]
    left_out: Mapping[str, str]
    rates: Sequence[float]
    personal_rates: Sequence[float]


def compare(protocol: Protocol, who: Sequence[Contender], runs: Runs) -> Compared:
    """Choose for every method, then measure all on test clients once.

    Raises:
        UserError: if FedAvg itself diverges whatever it tries.
    """
    made = _Made(protocol, runs)
    tries = {
        each.name: {_label(each.told(tried)): tried for tried in each.tries(made.rates, protocol.tries)} for each in who
    }
    runs.log(f"{len(who)} methods, {sum(map(len, tries.values()))} settings: counting what a round of each costs")
    asked: dict[str, dict[str, Experiment]] = {}
    left_out: dict[str, str] = {}
    for each in who:
        suitable, reasons = made.experiments(each, tries[each.name])
        if suitable:
            asked[each.name] = suitable
        else:
            left_out[each.name] = reasons[0]
    by: dict[str, What] = {each.name: "personalized" if each.personalizes else "initial" for each in who}
    chosen = runs.choose_each(asked, seeds=protocol.tuning_seeds, by=by, strict=False)
    picked = {name: tries[name][choice.chosen] for name, (choice, _) in chosen.items()}
    wanted = {name: asked[name][choice.chosen] for name, (choice, _) in chosen.items()}
    results = runs.finish(wanted, seeds=protocol.seeds, strict=False)
    entries = {
        each.name: Entry(each, results[each.name], picked[each.name], made.stages(each, picked[each.name]))
        for each in who
        if each.name in results
    }
    left_out |= {name: "it diverged with every setting" for name in asked if name not in chosen}
    left_out |= {name: "it diverged in one of the seeds" for name in chosen if name not in entries}
    for name in (FEDAVG, BASELINE):
        if name not in entries:
            raise UserError(f"{name} is what all others are compared to, but {left_out[name]}; try other --rates")
    for name, reason in left_out.items():
        runs.log(f"{name} is left out: {reason}")
    return Compared(entries, [choice for choice, _ in chosen.values()], left_out, made.rates, made.personal_rates)


class _Made:
    """Experiments of settings, with as many rounds as the budget has room for."""

    def __init__(self, protocol: Protocol, runs: Runs) -> None:
        self.protocol, base = protocol, protocol.base
        first = next((stage for stage in base.stages if isinstance(stage, Stage)), None)
        self.cohort = first.clients_per_round if first else 10
        self.batch_size = getattr(first.update, "batch_size", None) or 20 if first else 20
        self._costs: dict[tuple[type, str], Cost] = {}
        self.prepared: Prepared = runs.prepared(replace(base, stages=(self._stage("FedAvg", FedAvg()),)))
        self._drawn = sampled(self.prepared)
        self.rates = protocol.rates or rates_for(self.prepared.task)
        self.personal_rates = (SMALLER * min(self.rates), *self.rates, LARGER * max(self.rates))
        one = self._cost(self._stage("FedAvg", FedAvg(1, batch_size=self.batch_size)))
        self.gradients = protocol.budget * self.cohort * one.gradients

    def _stage(self, name: str, update: Any, server: Optimizer | None = None) -> Stage:
        return Stage(name, update, server or Optimizer(), 1, self.cohort, update.weighting)

    def _cost(self, stage: Stage) -> Cost:
        """Rates and pulls decide no number of steps, so they share one count."""
        update: Any = stage.update
        same = [name for name in (RATE, *update.scaled_by_learning_rate) if hasattr(update, name)]
        update = replace(update, **dict.fromkeys(same, 0.1))  # any number will do
        key = type(update), repr(update)
        if key not in self._costs:
            self._costs[key] = cost(replace(stage, update=update), self.prepared, self._drawn)
        return self._costs[key]

    def stages(self, contender: Contender, tried: Tried) -> list[tuple[Stage, Cost]]:
        first = self._stage(contender.kind.__name__, contender.update(tried, self.batch_size), SERVERS[tried[SERVER]])
        if contender.then is None:
            return [self._within(first, self.gradients)]
        update = contender.update({RATE: tried[RATE]}, self.batch_size, contender.then)
        second = self._stage(contender.then.__name__, update, SECOND_SERVERS[tried[SECOND_SERVER]])
        return [self._within(first, FIRST * self.gradients), self._within(second, (1 - FIRST) * self.gradients)]

    def _within(self, stage: Stage, gradients: float) -> tuple[Stage, Cost]:
        each = self._cost(stage)
        rounds = int(gradients / (self.cohort * each.gradients)) if each.gradients else 1
        if not rounds:
            raise UserError(f"one round of {stage.update} costs more than the budget")
        # Otherwise what is compared is mostly the noise of the last rounds, which a large rate leaves in the model.
        decay = Schedule("cosine_decay_schedule", {"decay_steps": rounds})
        return replace(stage, rounds=rounds, server=replace(stage.server, schedule=decay)), each

    def experiments(self, contender: Contender, tries: Mapping[str, Tried]) -> tuple[dict[str, Experiment], list[str]]:
        """Those that suit the model and the budget, and why the others do not."""
        suitable, reasons = {}, []
        for label, tried in tries.items():
            try:
                suitable[label] = self.experiment(contender, tried)
            except UserError as error:
                reasons.append(str(error))
        return suitable, reasons

    def experiment(self, contender: Contender, tried: Tried) -> Experiment:
        protocol, base = self.protocol, self.protocol.base
        stages = self.stages(contender, tried)
        # Whoever has spent nothing on training together may take longer alone.
        epochs = protocol.epochs * (1 if any(each.gradients for _, each in stages) else ALONE)
        # The same for who does not personalize, so that its training is not done twice.
        recipe = Personalization(Optimizer("sgd"), self.batch_size, epochs, learning_rates=self.personal_rates)
        return replace(
            base,
            start=None,
            name=contender.kind.__name__ if contender.then is None else "Personalized",
            stages=tuple(stage for stage, _ in stages),
            personalization=recipe,
            evaluate_every=0,
            evaluation_clients=0,
            target=None,
            test=True,
        )


def _label(tried: Mapping[str, Any]) -> str:
    return "; ".join(f"{name} {value}" for name, value in tried.items())


def rates_for(task: Task) -> tuple[float, ...]:
    """The client's rates that are tried where none are given."""
    return TEXT_RATES if isinstance(task, NextCharacter) else RATES
