"""Successive halving: settings are tried with one seed, the better half with one seed more, and so on.

All runs are of the full budget, and every method has as many of them: what it does not need for settings goes into
seeds of its last rung. Runs of a rung are those of the rungs before and one seed more, so that none is repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from headstart.experiment.experiment import Experiment
from headstart.studies.evidence import Choice
from headstart.studies.runner import Runs

# Of each method, beyond an edge that suited best, or between two values.
FURTHER = 2
What = Literal["initial", "personalized"]
Experiments = Mapping[str, Experiment]
# What else to try of a method, given the settings that were tried, the best first.
Propose = Callable[[str, Sequence[str]], Experiments]


class Rung(NamedTuple):
    """How many settings are compared, and with how many seeds each."""

    settings: int
    seeds: int


class Chosen(NamedTuple):
    """What halving came to: the best setting by its name, the values of all, and the rungs that there were."""

    best: str
    choice: Choice
    rungs: tuple[Rung, ...]


def rungs(settings: int, seeds: int) -> tuple[Rung, ...]:
    """The rungs of n settings: half of them at each, two at least, with one seed more, up to `seeds`.

    >>> rungs(12, 3)
    (Rung(settings=12, seeds=1), Rung(settings=6, seeds=2), Rung(settings=3, seeds=3))
    """
    least = min(2, settings)
    return tuple(Rung(max(least, -(-settings // 2**index)), index + 1) for index in range(seeds if settings > 1 else 1))


def runs_of(ladder: Sequence[Rung]) -> int:
    """How many runs it takes: those of a rung count for the next, too."""
    before = [0, *(rung.seeds for rung in ladder[:-1])]
    return sum(rung.settings * (rung.seeds - seeds) for rung, seeds in zip(ladder, before, strict=True))


def allowance(tries: int, seeds: int) -> int:
    """How many runs the search of a method may take, of n settings at first and these seeds at the last rung."""
    return runs_of(rungs(tries, seeds)) + FURTHER


def halve(
    runs: Runs,
    candidates: Mapping[str, Experiments],
    *,
    tries: int,
    seeds: int,
    by: Mapping[str, What],
    propose: Propose,
) -> dict[str, Chosen]:
    """The best setting of each method on validation clients; without methods that diverge with all settings.

    candidates: by the method's name, then by their own. tries, seeds: how many settings a method may have, and the
        seeds of the last rung at least. by: the model whose value decides.
    """
    own = {name: len(each) for name, each in candidates.items()}
    rankings, values, seen = _first(runs, candidates, by, propose)
    ladders = {name: (Rung(len(seen[name]), 1), *rungs(own[name], seeds)[1:]) for name in rankings}
    for name, ladder in ladders.items():
        last = ladder[-1]
        # A single setting is not compared with anything.
        more = (allowance(tries, seeds) - runs_of(ladder)) // last.settings if len(ladder) > 1 else 0
        ladders[name] = (*ladder[:-1], last._replace(seeds=last.seeds + max(0, more)))
    compared = {name: dict.fromkeys(values[name], 1) for name in rankings}
    for level in range(1, max(map(len, ladders.values()), default=0)):
        going = {name: ladder[level] for name, ladder in ladders.items() if len(ladder) > level}
        for count in sorted({rung.seeds for rung in going.values()}):
            names = [name for name, rung in going.items() if rung.seeds == count]
            found = _compared(runs, {name: seen[name] for name in names}, rankings, going, by)
            for name, ranked in found.items():
                rankings[name] = list(ranked)
                values[name] |= ranked
                compared[name] |= dict.fromkeys(ranked, count)
    return {
        name: Chosen(ranking[0], _choice(name, values[name], compared[name], ranking[0]), ladders[name])
        for name, ranking in rankings.items()
        if ranking
    }


def _first(
    runs: Runs, candidates: Mapping[str, Experiments], by: Mapping[str, What], propose: Propose
) -> tuple[dict[str, list[str]], dict[str, dict[str, float]], dict[str, Experiments]]:
    """The first rung and what is tried further: rankings, values (NaN: it diverged), and all that was tried."""
    seen: dict[str, Experiments] = dict(candidates)
    rankings, values = {}, {}
    asked = set[str]()
    while True:
        found = runs.choose_each(seen, seeds=1, by=by, strict=False)
        for name, (choice, _) in found.items():
            values[name], rankings[name] = dict(choice.values), _ranked(runs, seen[name], choice)
        new = {name: propose(name, rankings[name]) for name in found if name not in asked and len(seen[name]) > 1}
        asked |= set(found)
        if not any(new.values()):
            return rankings, values, seen
        seen = {name: {**each, **new.get(name, {})} for name, each in seen.items()}


def _compared(
    runs: Runs,
    seen: Mapping[str, Experiments],
    rankings: Mapping[str, Sequence[str]],
    going: Mapping[str, Rung],
    by: Mapping[str, What],
) -> dict[str, dict[str, float]]:
    """The values of the best at a rung, the best first; where all of these diverge, those of the next ones."""
    found: dict[str, dict[str, float]] = {}
    left = {name: list(rankings[name]) for name in seen}
    while any(left.values()):
        entering = {name: ranking[: going[name].settings] for name, ranking in left.items() if ranking}
        count = max(going[name].seeds for name in entering)
        experiments = {name: {label: seen[name][label] for label in labels} for name, labels in entering.items()}
        chosen = runs.choose_each(experiments, seeds=count, by=by, strict=False)
        for name, (choice, _) in chosen.items():
            found[name] = {label: choice.values[label] for label in _ranked(runs, experiments[name], choice)}
        left = {name: left[name][len(labels) :] for name, labels in entering.items() if name not in found}
    return found | {name: {} for name in seen if name not in found}


def _ranked(runs: Runs, experiments: Experiments, choice: Choice) -> list[str]:
    """The settings of a choice that did not diverge, the best first, equal ones in their order."""
    metric = runs.prepared(next(iter(experiments.values()))).task.metrics[0]
    finite = [label for label, value in choice.values.items() if np.isfinite(value)]
    return sorted(finite, key=lambda label: -metric.sign * choice.values[label])


def _choice(name: str, values: Mapping[str, float], seeds: Mapping[str, int], best: str) -> Choice:
    """All settings, each with the seeds that its value is the mean of."""

    def with_seeds(label: str) -> str:
        return f"{label} ({seeds[label]} seed{'' if seeds[label] == 1 else 's'})"

    return Choice(name, {with_seeds(label): value for label, value in values.items()}, with_seeds(best))
