"""The learning rates that all studies of one federation share, chosen on its validation clients."""

from __future__ import annotations

from itertools import product

from headstart.studies.evidence import Choice, Result
from headstart.studies.paper.study import Setting
from headstart.studies.runner import Runs


def tuned(setting: Setting, runs: Runs) -> tuple[Setting, tuple[Choice, ...]]:
    """The setting with the client's rates that suit FedAvg best.

    The same client optimizer trains and personalizes (arXiv:1909.12488, Algorithm 2).
    """
    pairs = {
        f"{learning_rate:g} × {factor:g}": setting.with_rates(learning_rate, factor)
        for learning_rate, factor in product(setting.client_rates, setting.personal_factors)
    }
    candidates = {name: each.experiment("FedAvg", each.fedavg()) for name, each in pairs.items()}
    choice, _ = runs.choose("client rate × factor of the personal rate", candidates, seeds=setting.tuning_seeds)
    return pairs[choice.chosen], (choice,)


def first_stage(setting: Setting, runs: Runs) -> Result:
    """The result of FedAvg with the chosen rates, on validation clients."""
    what = "FedAvg"
    _, results = runs.choose(what, {what: setting.experiment(what, setting.fedavg())}, seeds=setting.tuning_seeds)
    return results[what]
