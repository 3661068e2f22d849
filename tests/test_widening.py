"""Grids of the server's learning rate that continue beyond their edges."""

import math

import pytest

from headstart import Optimizer
from headstart.studies.evidence import Choice
from headstart.studies.paper.settings import setting_of
from headstart.studies.paper.widening import choose_widened, server_rate

SETTING = setting_of("smoke", "glyphs", {})


class Known:
    """Runs whose value is known: the nearer to a learning rate on a log scale the better."""

    def __init__(self, best):
        self.best, self.calls = best, []

    def choose_each(self, candidates, *, seeds, by):
        self.calls.append({what: sorted(each) for what, each in candidates.items()})
        chosen = {}
        for what, each in candidates.items():
            values = {label: -abs(math.log(server_rate(experiment) / self.best)) for label, experiment in each.items()}
            chosen[what] = Choice(what, values, max(values, key=values.get)), dict.fromkeys(each)
        return chosen


def candidates(*learning_rates, form="rate {:g}", **options):
    return {
        form.format(learning_rate): SETTING.experiment(
            "a", SETTING.fedavg(server=Optimizer("adam", learning_rate, options))
        )
        for learning_rate in learning_rates
    }


def found(best, grid, most=4):
    runs = Known(best)
    return choose_widened(runs, {"a": grid}, seeds=1, most=most)["a"], runs


@pytest.mark.parametrize(
    ("best", "label"), [(0.003, "rate 0.003"), (0.2, "rate 0.11"), (0.0004, "rate 0.00033"), (0.031, "rate 0.033")]
)
def test_the_best_is_at_no_edge(best, label):
    chosen, _ = found(best, candidates(1e-3, 3e-3, 1e-2))
    assert chosen.choice.chosen == label
    assert f"rate {server_rate(chosen.experiment):g}" == label
    tried = sorted(
        server_rate(each) for each in candidates(*[float(name.split()[1]) for name in chosen.results]).values()
    )
    assert tried[0] < server_rate(chosen.experiment) < tried[-1]


def test_it_ends_after_as_many_as_are_allowed():
    chosen, runs = found(1e9, candidates(1e-3, 1e-2), most=2)
    assert chosen.choice.chosen == "rate 1" and len(runs.calls) == 3
    chosen, runs = found(1e9, candidates(1e-3, 1e-2), most=0)
    assert chosen.choice.chosen == "rate 0.01" and len(runs.calls) == 1


def test_one_candidate_alone_is_no_grid():
    chosen, runs = found(1e9, candidates(1e-3))
    assert chosen.choice.chosen == "rate 0.001" and len(runs.calls[-1]["a"]) == 1


def test_only_the_rate_of_those_alike_is_continued():
    grid = candidates(1e-3, 1e-2, form="rate {:g}, β₁ 0", b1=0.0) | candidates(1e-3, form="rate {:g}, β₁ 0.9", b1=0.9)
    chosen, runs = found(0.05, grid)
    assert set(runs.calls[-1]["a"]) - set(grid) == {"rate 0.1, β₁ 0", "rate 1, β₁ 0"}
    assert chosen.experiment.stages[-1].server.options == {"b1": 0.0}


def test_a_label_without_the_rate_gets_one():
    grid = dict(zip(("10^-2.5", "10^-2"), candidates(10**-2.5, 1e-2).values(), strict=True))
    chosen, _ = found(0.03, grid)
    assert chosen.choice.chosen == "rate 0.032"
