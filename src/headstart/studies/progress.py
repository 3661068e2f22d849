"""How far runs have come, in a line: how many are done, which share of their work, and about how long the rest takes.

The work of a run is counted from its settings and the clients' sizes, in examples that are trained on or measured, so
that a long run counts for more than a short one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from headstart.experiment.experiment import Centralized, Experiment, Stage
from headstart.experiment.setup import Prepared

# A pass forwards, as a share of one with a gradient.
_FORWARD = 1 / 3


def work_of(experiment: Experiment, prepared: Prepared) -> float:
    """About how many examples a run trains on, with those that it measures as the third of one each."""
    federation, groups, recipe = prepared.federation, prepared.groups, experiment.personalization
    size = float(federation.training_sizes[groups.train].mean())
    training = sum(_training(stage, size) for stage in experiment.stages)
    test = groups.test if experiment.test else groups.test[:0]
    times = np.concatenate([np.full(len(groups.validation), len(recipe.candidate_rates)), np.ones(len(test))])
    sizes = federation.sizes[np.concatenate([groups.validation, test])]
    each = sizes[:, 0] * recipe.most + _FORWARD * sizes[:, 1] * (recipe.most + 1)
    return training + len(experiment.stages) * float((times * each).sum())


def _training(stage: Stage | Centralized, size: float) -> float:
    """Examples that a stage trains on, where a client has this many."""
    if isinstance(stage, Centralized):
        return stage.rounds * stage.steps * stage.batch_size
    settings = {name: value for name, value in vars(stage.update).items() if isinstance(value, int | float)}
    epochs = sum(value for name, value in settings.items() if name.endswith("epochs"))
    steps = settings.get("steps", 0) * settings.get("rounds", 1) * settings.get("batch_size", size)
    return stage.rounds * stage.cohort * (epochs * size + steps or size)


class Progress:
    """The progress of runs, told apart by the file that each ends with.

    expected: how many runs there will be, as far as that is known; runs that are begun beyond it are added.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.expected, self._clock = 0, clock
        self._work: dict[Path, float] = {}
        self._done: set[Path] = set()
        self._began, self._worked = clock(), 0.0

    def expect(self, more: int) -> None:
        """Expect n more runs, beside those that were begun."""
        self.expected = len(self._work) + more

    def add(self, work: Mapping[Path, float], *, done: Iterable[Path] = ()) -> None:
        """Runs that are wanted, each with its work, and those of them that were done before."""
        if not self.expected and self._done >= set(self._work):
            # Of runs that nobody announced those before are done with.
            self._work, self._done = {}, set()
        if len(self._done) == len(self._work):
            self._began, self._worked = self._clock(), 0.0
        self._work |= work
        self._done |= set(done)

    def end(self, job: Path) -> str:
        """A run is done: `37 of 128 runs, 41 %, about 6 min left`."""
        self._done.add(job)
        self._worked += self._work[job]
        total = max(self.expected, len(self._work))
        known = sum(self._work.values())
        whole = known * total / len(self._work)
        done = sum(self._work[each] for each in self._done if each in self._work)
        share = min(done / whole, 1.0) if whole else 1.0
        text = f"{len(self._done)} of {total} runs"
        if len(self._done) >= total:
            return text
        left = (whole - done) * (self._clock() - self._began) / self._worked if self._worked else 0.0
        return f"{text}, {share:.0%}".replace("%", " %") + (f", about {_duration(left)} left" if left else "")


def _duration(seconds: float) -> str:
    """A duration as people say it: `40 s`, `6 min`, `2.5 h`."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
