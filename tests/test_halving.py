"""The search for settings: successive halving at equal cost, and what is tried beyond an edge."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from headstart.studies.compare.further import at_edges, further
from headstart.studies.compare.halving import FURTHER, Rung, halve, rungs, runs_of
from headstart.studies.evidence import Choice


class FakeRuns:
    """Answers `choose_each` from a table of values, and remembers which runs it was asked for."""

    def __init__(self, value, *, sign=1.0):
        self.value, self.asked, self.metric = value, Counter(), SimpleNamespace(sign=sign)

    def prepared(self, experiment):
        return SimpleNamespace(task=SimpleNamespace(metrics=(self.metric,)))

    def choose_each(self, candidates, *, seeds, by, strict):
        assert not strict
        found = {}
        for name, experiments in candidates.items():
            for label in experiments:
                self.asked |= {(name, label, seed): 1 for seed in range(seeds)}
            values = {label: np.mean([self.value(label, seed) for seed in range(seeds)]) for label in experiments}
            finite = {label: value for label, value in values.items() if np.isfinite(value)}
            if finite:
                best = max(finite, key=lambda label: self.metric.sign * finite[label])
                found[name] = Choice(name, values, best), {}
        return found


def noisy(label, seed):
    """A setting's worth is its number; a seed adds up to ten."""
    return int(label) + 10 * np.random.default_rng([int(label), seed]).uniform()


def settings(count):
    return {str(number): object() for number in range(count)}


def nothing(name, ranking):
    return {}


def test_rungs_halve_the_settings_and_add_a_seed():
    assert rungs(12, 3) == (Rung(12, 1), Rung(6, 2), Rung(3, 3)) and runs_of(rungs(12, 3)) == 12 + 6 + 3
    assert rungs(5, 4) == (Rung(5, 1), Rung(3, 2), Rung(2, 3), Rung(2, 4))
    assert rungs(1, 3) == (Rung(1, 1),) and rungs(8, 1) == (Rung(8, 1),)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_better_half_goes_on_and_the_best_of_the_last_rung_is_chosen(sign):
    runs = FakeRuns(noisy, sign=sign)
    (chosen,) = halve(runs, {"A": settings(8)}, tries=8, seeds=3, by={}, propose=nothing).values()

    left, seeds = list(map(str, range(8))), 1
    for count in (4, 2, 1):
        worth = {label: np.mean([noisy(label, seed) for seed in range(seeds)]) for label in left}
        left, seeds = sorted(left, key=lambda label, worth=worth: -sign * worth[label])[:count], seeds + 1
        # What FURTHER did not need is a seed more for the two that are left.
        seeds += seeds == 3
    assert chosen.best == left[0]
    assert chosen.rungs == (Rung(8, 1), Rung(4, 2), Rung(2, 4))
    assert chosen.choice.chosen == f"{left[0]} (4 seeds)" and len(chosen.choice.values) == 8
    assert Counter(label.split(" ", 1)[1] for label in chosen.choice.values) == {
        "(1 seed)": 4,
        "(2 seeds)": 2,
        "(4 seeds)": 2,
    }


def test_every_method_costs_the_same_and_no_run_is_done_twice():
    def propose(name, ranking):
        more = {str(100 + number): object() for number in range({"all": FURTHER, "one": 1}.get(name, 0))}
        candidates[name] |= more
        return more

    runs = FakeRuns(noisy)
    candidates = {
        "all": settings(12),
        "one": settings(12),
        "none": settings(12),
        "few": settings(5),
        "single": settings(1),
    }
    chosen = halve(runs, candidates, tries=12, seeds=3, by={}, propose=propose)
    cost = Counter(name for name, _, _ in runs.asked)
    whole = 12 + 6 + 3 + FURTHER
    assert cost["all"] == whole
    # To less than one seed of the last rung.
    assert all(whole - chosen[name].rungs[-1].settings < cost[name] <= whole for name in ("one", "none", "few"))
    assert cost["single"] == 1 and chosen["single"].best == "0"
    assert all(runs_of(each.rungs) == cost[name] for name, each in chosen.items())
    assert all(each.rungs[-1].seeds >= 3 for name, each in chosen.items() if name != "single")
    for name in ("all", "one"):
        candidates[name] = {label: each for label, each in candidates[name].items() if int(label) < 100}
    again = halve(FakeRuns(noisy), candidates, tries=12, seeds=3, by={}, propose=propose)
    assert again == chosen


def test_what_diverges_is_out_and_the_next_comes_up():
    def value(label, seed):
        # The three best diverge with the second seed, and the worst at once.
        return np.nan if (int(label) > 4 and seed) or label == "0" else float(label)

    (chosen,) = halve(FakeRuns(value), {"A": settings(8)}, tries=8, seeds=3, by={}, propose=nothing).values()
    assert chosen.best == "4"
    assert not halve(FakeRuns(lambda *_: np.nan), {"A": settings(4)}, tries=4, seeds=3, by={}, propose=nothing)


def tried(*values, server="averaging"):
    return [{"server": server, "learning_rate": learning_rate, "epochs": epochs} for learning_rate, epochs in values]


def test_an_edge_that_suits_best_is_gone_beyond_once():
    found = list(further(tried((0.1, 5), (0.03, 1), (0.01, 5), (0.03, 5))))
    # Both best values are the largest: by the factor between the last two.
    assert found[0] == {"server": "averaging", "learning_rate": 0.33, "epochs": 5}
    assert found[1] == {"server": "averaging", "learning_rate": 0.1, "epochs": 25}
    assert [each["learning_rate"] for each in found[2:]] == [0.055, 0.1] and found[3]["epochs"] == 2
    # No count is below 1, and no server has a next one.
    assert next(further(tried((0.01, 1), (0.03, 5))))["learning_rate"] == 0.0033
    assert all(each["epochs"] == 1 for each in further(tried((0.01, 1), (0.03, 5))) if each["learning_rate"] != 0.01)


def test_inside_of_a_grid_what_is_between_the_best_and_its_better_neighbour_is_tried():
    found = list(further(tried((0.03, 5), (0.1, 5), (0.01, 5))))
    assert [each["learning_rate"] for each in found] == [0.055, 0.017]


def test_a_choice_at_an_edge_of_what_was_tried_is_told():
    grid = tried((0.03, 5), (0.1, 1), (0.01, 5))
    assert at_edges({"server": "averaging", "learning_rate": 0.1, "epochs": 1}, grid) == ["learning_rate"]
    assert at_edges({"server": "averaging", "learning_rate": 0.03, "epochs": 5}, grid) == ["epochs"]
    assert at_edges({"server": "averaging", "learning_rate": 0.1, "epochs": 1}, tried((0.1, 1), (0.1, 1))) == []
