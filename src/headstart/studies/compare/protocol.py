"""The protocol: equal budgets of client compute, choices on validation clients, test clients measured once."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from headstart.devices import cores
from headstart.errors import UserError
from headstart.experiment.experiment import COHORT, Experiment, Stage
from headstart.experiment.personal import check_personalization
from headstart.experiment.setup import Prepared
from headstart.experiment.suited import pull_problems
from headstart.fields import MOST_EPOCHS, at_least, check_fields, refuse
from headstart.learning.optimizers import Optimizer, Schedule
from headstart.learning.tasks import NextCharacter, Task
from headstart.methods.paper import FedAvg
from headstart.studies.compare.arithmetic import Cost, cost, counting_of, sampled
from headstart.studies.compare.further import further
from headstart.studies.compare.halving import FURTHER, Rung, allowance, halve
from headstart.studies.compare.methods import (
    BASELINE,
    FEDAVG,
    LEARNING_RATE,
    SECOND_SERVER,
    SECOND_SERVERS,
    SERVER,
    SERVERS,
    MethodSpec,
    Settings,
)
from headstart.studies.comparisons import What
from headstart.studies.evidence import Choice, Result
from headstart.studies.runner import TUNING_SEED, Runs

FIRST_STAGE_SHARE = 0.75  # of the budget, where there are two stages
# Local training alone may take this many times the epochs of personalization.
LOCAL_EPOCHS_FACTOR = 5
# Personalization tries the learning rates of training, and one beyond either end: this many times that end.
SMALLER, LARGER = 0.3, 3.0
# Of one method, and of one setting.
MOST_TRIES, MOST_RUNS = 1000, TUNING_SEED
LEARNING_RATES, TEXT_LEARNING_RATES = (0.01, 0.03, 0.1), (0.3, 1.0, 3.0)


@dataclass(frozen=True)
class Protocol:
    """What all methods of a comparison share.

    base: brings data, model and task, and the cohort and the batch size of its first stage.
    budget: the client compute of every run, in rounds of FedAvg with one epoch.
    tries: how many candidate settings each method has at first. seeds: of the reported runs.
    tuning_seeds: of the candidates that are left at the end of successive halving; as many rungs it has.
    participants: how many training clients are measured too, at most, with what they kept; 0 for none.
    epochs: of personalization, at most. learning_rates: the clients' candidates; by default those that suit the task.
        Personalization tries them too, and one beyond either end.
    by_examples: how many of the best methods, and fine-tuning, are measured with fewer local examples, too; 0: none.
    """

    base: Experiment
    budget: int = at_least(1, 200)
    tries: int = at_least(1, 12, most=MOST_TRIES)
    seeds: int = at_least(1, 5, most=MOST_RUNS)
    tuning_seeds: int = at_least(1, 3, most=MOST_RUNS)
    epochs: int = at_least(1, 10, most=MOST_EPOCHS // LOCAL_EPOCHS_FACTOR)
    learning_rates: tuple[float, ...] = at_least(0, (), above=True)
    by_examples: int = at_least(0, 3)
    participants: int = at_least(0, 200)

    def __post_init__(self) -> None:
        check_fields(self)


class Entry(NamedTuple):
    """The outcome of a method.

    result: on test clients, who are new. participants: on clients that took part, with what they kept.
    settings: those that were chosen. stages: as they were run, each with the cost of a round for a client.
    """

    method: MethodSpec
    result: Result
    settings: Settings
    stages: Sequence[tuple[Stage, Cost]]
    participants: Result | None = None

    @property
    def operations(self) -> float:
        """Floating-point operations that clients computed in the training of one run."""
        return sum(stage.rounds * stage.cohort * each.operations for stage, each in self.stages)

    @property
    def examples(self) -> float:
        """Examples that clients trained on in one run, each as often as it was used."""
        return sum(stage.rounds * stage.cohort * each.examples for stage, each in self.stages)

    @property
    def sent(self) -> float:
        """Bytes over the network in one run, both ways."""
        return sum(stage.rounds * stage.cohort * (each.down + each.up) for stage, each in self.stages)


class Compared(NamedTuple):
    """The outcome of a comparison.

    entries: by the method's name. choices: of settings. left_out: the reason, by the name of a method that was.
    learning_rates, personal_rates: the clients' candidates in training and in personalization.
    rungs, tried: of the search, and all settings that it tried, by the method's name.
    experiments: with the settings that were chosen, by the method's name.
    """

    entries: Mapping[str, Entry]
    choices: Sequence[Choice]
    left_out: Mapping[str, str]
    learning_rates: Sequence[float]
    personal_rates: Sequence[float]
    rungs: Mapping[str, Sequence[Rung]]
    tried: Mapping[str, Sequence[Settings]]
    experiments: Mapping[str, Experiment]


def compare(protocol: Protocol, methods: Sequence[MethodSpec], runs: Runs) -> Compared:
    """Choose settings for every method, then measure all methods on test clients once.

    Raises:
        UserError: if FedAvg itself diverges with every candidate.
    """
    planner = _Planner(protocol, runs)
    candidates = {
        method.name: {
            _label(method.resolved(settings)): settings
            for settings in method.candidates(planner.learning_rates, protocol.tries)
        }
        for method in methods
    }
    runs.log(
        f"{len(methods)} methods, {sum(map(len, candidates.values()))} settings: counting the cost of their rounds"
    )
    # While one program is compiled, another is traced.
    with ThreadPoolExecutor(len(cores())) as threads:
        each = threads.map(lambda method: planner.experiments(method, candidates[method.name]), methods)
        planned = dict(zip([method.name for method in methods], each, strict=True))
    affordable = {name: experiments for name, (experiments, _) in planned.items() if experiments}
    left_out = {name: reasons[0] for name, (experiments, reasons) in planned.items() if not experiments}
    by: dict[str, What] = {method.name: "personalized" if method.personalizes else "initial" for method in methods}
    named = {method.name: method for method in methods}

    def propose(name: str, ranking: Sequence[str]) -> dict[str, Experiment]:
        found = planner.further(named[name], [candidates[name][label] for label in ranking], affordable[name])
        candidates[name] |= {label: settings for label, (settings, _) in found.items()}
        affordable[name] |= {label: experiment for label, (_, experiment) in found.items()}
        return {label: experiment for label, (_, experiment) in found.items()}

    seeds = protocol.tuning_seeds
    # Methods that train alike share their runs; one with nothing to choose has a single one.
    unlike = {repr(sorted(map(repr, each.values()))): len(each) for each in affordable.values()}
    searched = sum(allowance(protocol.tries, seeds) if count > 1 else 1 for count in unlike.values())
    runs.progress.expect(searched + protocol.seeds * len(unlike))
    chosen = halve(runs, affordable, tries=protocol.tries, seeds=seeds, by=by, propose=propose)
    settings = {name: candidates[name][each.best] for name, each in chosen.items()}
    best = {name: affordable[name][each.best] for name, each in chosen.items()}
    runs.progress.expect(protocol.seeds * len(set(map(repr, best.values()))))
    results = runs.finish(best, seeds=protocol.seeds, strict=False)
    taken_part = runs.participants({name: best[name] for name in results}, seeds=protocol.seeds)
    entries = {
        name: Entry(method, results[name], settings[name], planner.stages(method, settings[name]), taken_part.get(name))
        for method in methods
        if (name := method.name) in results
    }
    left_out |= {name: "it diverged with every setting" for name in affordable if name not in chosen}
    left_out |= {name: "it diverged in one of the seeds" for name in chosen if name not in entries}
    _check_references(entries, left_out)
    for name, reason in left_out.items():
        runs.log(f"{name} is left out: {reason}")
    return Compared(
        entries,
        [each.choice for each in chosen.values()],
        left_out,
        planner.learning_rates,
        planner.personal_rates,
        {name: each.rungs for name, each in chosen.items()},
        {name: [candidates[name][label] for label in affordable[name]] for name in chosen},
        best,
    )


def _check_references(entries: Mapping[str, Entry], left_out: Mapping[str, str]) -> None:
    for name in (FEDAVG, BASELINE):
        if name not in entries:
            raise UserError(
                f"{name} is what all others are compared to, but {left_out[name]}; try other --learning-rates"
            )


class _Planner:
    """Experiments of settings, with as many rounds as the budget allows."""

    def __init__(self, protocol: Protocol, runs: Runs) -> None:
        self.protocol, base = protocol, protocol.base
        first = next((stage for stage in base.stages if isinstance(stage, Stage)), None)
        self.batch_size = getattr(first.update, "batch_size", None) or 20 if first else 20
        self._costs: dict[tuple[type, str], Cost] = {}
        self.prepared: Prepared = runs.prepared(replace(base, stages=(Stage("FedAvg", FedAvg(), Optimizer(), 1),)))
        given = first and first.clients_per_round
        self.cohort = given or min(COHORT, len(self.prepared.groups.train))
        self._clients, self._counting = sampled(self.prepared), counting_of(self.prepared)
        self.learning_rates = protocol.learning_rates or default_learning_rates(self.prepared.task)
        low, high = min(self.learning_rates), max(self.learning_rates)
        self.personal_rates = (SMALLER * low, *self.learning_rates, LARGER * high)
        one = self._cost(self._stage("FedAvg", FedAvg(1, batch_size=self.batch_size)))
        self.operations = protocol.budget * self.cohort * one.operations

    def _stage(self, name: str, update: Any, server: Optimizer | None = None) -> Stage:
        return Stage(name, update, server or Optimizer(), 1, self.cohort, update.weighting)

    def _cost(self, stage: Stage) -> Cost:
        """The cost of a round; learning rates and proximal strengths do not change what is computed."""
        update: Any = stage.update
        same = [name for name in (LEARNING_RATE, *update.scaled_by_learning_rate) if hasattr(update, name)]
        update = replace(update, **dict.fromkeys(same, 0.1))  # any number will do
        key = type(update), repr(update)
        if key not in self._costs:
            self._costs[key] = cost(replace(stage, update=update), self.prepared, self._clients, self._counting)
        return self._costs[key]

    def stages(self, method: MethodSpec, settings: Settings) -> list[tuple[Stage, Cost]]:
        update = method.update(settings, self.batch_size)
        first = self._stage(method.kind.__name__, update, SERVERS[settings[SERVER]])
        if method.second_kind is None:
            return [self._within(first, self.operations)]
        update = method.update({LEARNING_RATE: settings[LEARNING_RATE]}, self.batch_size, method.second_kind)
        second = self._stage(method.second_kind.__name__, update, SECOND_SERVERS[settings[SECOND_SERVER]])
        return [
            self._within(first, FIRST_STAGE_SHARE * self.operations),
            self._within(second, (1 - FIRST_STAGE_SHARE) * self.operations),
        ]

    def _within(self, stage: Stage, operations: float) -> tuple[Stage, Cost]:
        each = self._cost(stage)
        # A quotient of sums that differ by rounding must not lose a round.
        rounds = int(operations / (self.cohort * each.operations) + 1e-6) if each.examples else 1
        if not rounds:
            raise UserError(f"one round of {stage.update} exceeds the budget")
        # Otherwise methods would differ mostly by the noise that a large rate in the last rounds leaves in the model.
        decay = Schedule("cosine_decay_schedule", {"decay_steps": rounds})
        return replace(stage, rounds=rounds, server=replace(stage.server, schedule=decay)), each

    def experiments(
        self, method: MethodSpec, candidates: Mapping[str, Settings]
    ) -> tuple[dict[str, Experiment], list[str]]:
        """The candidates that suit the model and the budget, and the reasons why the others do not.

        Where clients change nothing that a server could step by, candidates that differ in their servers come to the
        same, and the first stands for all.
        """
        suitable, reasons, untrained = {}, [], set[str]()
        for label, settings in candidates.items():
            try:
                stages = self.stages(method, settings)
                if not any(each.examples or each.up for _, each in stages):
                    updates = repr([stage.update for stage, _ in stages])
                    if updates in untrained:
                        continue
                    untrained.add(updates)
                experiment = self.experiment(method, stages)
                if not suitable:
                    self._check(experiment)
                suitable[label] = experiment
            except UserError as error:
                reasons.append(str(error))
        return suitable, reasons

    def further(
        self, method: MethodSpec, tried: Sequence[Settings], known: Collection[str]
    ) -> dict[str, tuple[Settings, Experiment]]:
        """What else to try of a method within the budget: settings and experiments, by their names.

        tried: the best first, without those that diverged. known: the names of all.
        """
        found: dict[str, tuple[Settings, Experiment]] = {}
        for settings in further(tried):
            try:
                label = _label(method.resolved(settings))
                if label not in known and label not in found:
                    found[label] = settings, self.experiment(method, self.stages(method, settings))
            except UserError:  # beyond the budget, or what the method takes
                continue
            if len(found) == FURTHER:
                break
        return found

    def _check(self, experiment: Experiment) -> None:
        """Refuse an experiment whose personalization does not suit the model or the task."""
        of, task, model, federation, _ = self.prepared
        refuse([*pull_problems(replace(experiment, model=of.model, task=task))])
        check_personalization(experiment, task, model, federation)

    def experiment(self, method: MethodSpec, stages: Sequence[tuple[Stage, Cost]]) -> Experiment:
        protocol, base = self.protocol, self.protocol.base
        # A method that spends nothing on federated training may train longer alone.
        epochs = protocol.epochs * (1 if any(each.examples for _, each in stages) else LOCAL_EPOCHS_FACTOR)
        # The same for a method that does not personalize, so that its training is not done twice.
        recipe = method.recipe(self.batch_size, epochs, self.personal_rates)
        return replace(
            base,
            start=None,
            name=method.kind.__name__ if method.second_kind is None else "Personalized",
            stages=tuple(stage for stage, _ in stages),
            personalization=recipe,
            evaluate_every=0,
            evaluation_clients=0,
            target=None,
            test=True,
            participants=protocol.participants,
        )


def _label(settings: Settings) -> str:
    return "; ".join(f"{name} {value}" for name, value in settings.items())


def default_learning_rates(task: Task) -> tuple[float, ...]:
    """The clients' learning rates that are tried where none are given."""
    return TEXT_LEARNING_RATES if isinstance(task, NextCharacter) else LEARNING_RATES
