"""The learning rates that all studies of one federation share, chosen on its validation clients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

from headstart.studies.evidence import Choice, Result
from headstart.studies.paper.study import Setting
from headstart.studies.runner import Runs


def tuned(setting: Setting, runs: Runs) -> tuple[Setting, tuple[Choice, ...]]:
    """The setting with the client's rates that suit FedAvg best; rates beyond an edge are tried while one suits best.

    The same client optimizer trains and personalizes (arXiv:1909.12488, Algorithm 2).
    """
    learning_rates = sorted(setting.client_rates)
    for _ in range(1 + setting.most_widened):
        pairs = {
            f"{learning_rate:g} × {factor:g}": setting.with_rates(learning_rate, factor)
            for learning_rate, factor in product(learning_rates, setting.personal_factors)
        }
        candidates = {name: each.experiment("FedAvg", each.fedavg()) for name, each in pairs.items()}
        choice, _ = runs.choose("client rate × factor of the personal rate", candidates, seeds=setting.tuning_seeds)
        chosen = pairs[choice.chosen]
        wider = widened(learning_rates, chosen.client_rate)
        if wider == learning_rates:
            break
        learning_rates = wider
    return chosen, (choice,)


def widened(learning_rates: Sequence[float], best: float) -> list[float]:
    """The learning rates, and the next beyond the edge at which the best lies; the same ones where it lies between.

    One alone is no grid, but a published value, and stays alone.

    Next come 1, 2, 5, 10, 20 and so forth.
    """
    least, most = min(learning_rates), max(learning_rates)
    if least == most:
        return list(learning_rates)
    beyond = [_next(most, up=True)] if best == most else []
    before = [_next(least, up=False)] if best == least else []
    return [*before, *sorted(learning_rates), *beyond]


def _next(learning_rate: float, *, up: bool) -> float:
    """The next of 1, 2 and 5 times a power of ten, above a learning rate or below."""
    power = math.floor(math.log10(learning_rate))
    series = [float(f"{digit}e{power + shift}") for shift in (-1, 0, 1) for digit in (1, 2, 5)]
    if up:
        return next(each for each in series if each > learning_rate * (1 + 1e-9))
    return next(each for each in reversed(series) if each < learning_rate * (1 - 1e-9))


def first_stage(setting: Setting, runs: Runs) -> Result:
    """The result of FedAvg with the chosen rates, on validation clients."""
    what = "FedAvg"
    _, results = runs.choose(what, {what: setting.experiment(what, setting.fedavg())}, seeds=setting.tuning_seeds)
    return results[what]
