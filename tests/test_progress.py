"""How far runs have come: the line of it, and the work that it goes by."""

from pathlib import Path

import pytest

import headstart as hs
from headstart.experiment.setup import prepare
from headstart.methods import FedRep
from headstart.methods.paper import FedAvg, Reptile
from headstart.studies.progress import Progress, work_of

A, B, C, D = map(Path, "abcd")


class Clock:
    seconds = 0.0

    def __call__(self):
        return self.seconds


def test_a_line_says_the_share_of_the_work_and_the_time_left():
    clock = Clock()
    progress = Progress(clock=clock)
    progress.add({A: 10.0, B: 30.0, C: 40.0})
    clock.seconds = 60
    assert progress.end(A) == "1 of 3 runs, 12 %, about 7 min left"
    clock.seconds = 240
    assert progress.end(B) == "2 of 3 runs, 50 %, about 4 min left"
    assert progress.end(C) == "3 of 3 runs"
    # The next ones are counted anew, where nobody said how many there would be.
    clock.seconds = 1000
    progress.add({D: 1.0, A: 1.0})
    clock.seconds = 1010
    assert progress.end(D) == "1 of 2 runs, 50 %, about 10 s left"


def test_runs_that_are_expected_and_those_done_before_count():
    clock = Clock()
    progress = Progress(clock=clock)
    progress.expect(4)
    progress.add({A: 10.0, B: 10.0}, done=[A])
    clock.seconds = 5000
    assert progress.end(B) == "2 of 4 runs, 50 %, about 2.8 h left"
    progress.add({C: 10.0, D: 10.0})
    clock.seconds = 10000
    assert progress.end(C).startswith("3 of 4 runs, 75 %")
    # Fewer are to come than there might have been.
    progress.expect(0)
    assert progress.end(D) == "4 of 4 runs"


def test_work_is_counted_in_examples():
    data = hs.Data("glyphs", {"writers": 10, "examples": 25}, train=0.5, validation=0.2)

    def work(update, **more):
        stage = hs.Stage("stage", update, hs.Optimizer(), 7, 3)
        recipe = hs.Personalization(epochs=4, learning_rates=(0.1, 0.2))
        plan = hs.Experiment(
            "plan", (stage,), data, hs.ModelSpec("mlp", {"widths": (5,)}), personalization=recipe, **more
        )
        return work_of(plan, prepare(plan))

    # 22 examples to train on and 3 to test; two validation and three test clients, after none to four epochs.
    measured = 22 * 4 + 3 * 5 / 3
    assert work(FedAvg(2)) == pytest.approx(7 * 3 * 2 * 22 + (2 * 2 + 3) * measured)
    assert work(Reptile(5, batch_size=4), test=False) == pytest.approx(7 * 3 * 5 * 4 + 2 * 2 * measured)
    assert work(FedRep(2, 3)) - work(FedAvg(5)) == pytest.approx(0)
