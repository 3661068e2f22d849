"""Data of which nobody could be measured: refused, or said, before anything is trained."""

from dataclasses import replace

import numpy as np
import pytest

import headstart as hs
from test_divergence import PLAN


def federation(*with_tests):
    """Eight clients with local test examples for these only."""
    sizes = np.array([(4, 1) if i in with_tests else (5, 0) for i in range(8)])
    generator = np.random.default_rng(0)
    x = generator.normal(size=(40, 3)).astype(np.float32)
    metadata = {"kind": "features"}
    return hs.from_arrays("few", [f"c{i}" for i in range(8)], sizes, x, x.sum(axis=1), metadata=metadata)


def groups():
    split = hs.split_clients(federation(), train=0.5, validation=0.25)
    return split.validation, split.test


def test_one_example_each_is_refused_before_a_folder_is_touched(command, tmp_path):
    generator = np.random.default_rng(0)
    client, x = [f"u{i}" for i in range(40)], generator.normal(size=(40, 4))
    np.savez("one.npz", client=client, x=x, y=np.arange(40) % 3)
    code, _, error = command("run", "fedavg", "--data", "one.npz", "--model", "logistic", "--out", "run")
    assert code == 2 and "none of the 4 validation and 8 test clients has a local test (query) example" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("plan", [PLAN, replace(PLAN, data=hs.Data(train=0.5, validation=0))])
def test_what_cannot_be_chosen_is_said_and_is_the_most(tmp_path, plan):
    validation, _ = groups()
    everybody_else = [i for i in range(8) if i not in validation] if plan is PLAN else range(8)
    notes = []
    run = hs.run(
        replace(plan, personalization=replace(plan.personalization, epochs=2)),
        tmp_path / "out",
        federation=federation(*everybody_else),
        progress=False,
        on_event=lambda record: notes.append(record.get("text", "")),
    )
    expected = "no validation client has local test examples: personalization is not chosen, but is 2 epochs with the"
    assert notes[0].startswith(expected) and run.chosen_epochs() == 2
    assert run.summary("test")["clients"] == (2 if plan is PLAN else 4)


def test_test_clients_that_cannot_be_measured_are_said(tmp_path):
    validation, _ = groups()
    notes = []
    run = hs.run(
        PLAN,
        tmp_path / "out",
        federation=federation(*validation),
        progress=False,
        on_event=lambda record: notes.append(record.get("text", "")),
    )
    assert "no test client has local test examples: nothing is measured on test clients" in notes
    assert run.finished and run.summary("validation")["clients"] == 2 and run.summary("test")["clients"] == 0


def test_a_model_alone_may_be_what_is_wanted(tmp_path):
    plan = replace(PLAN, data=hs.Data(train=0.5, validation=0), test=False)
    run = hs.run(plan, tmp_path / "out", federation=federation(), progress=False)
    assert run.finished and run.params()


def test_an_end_that_nobody_could_tell_is_refused(tmp_path):
    stopping = replace(PLAN, stages=(replace(PLAN.stages[0], stop_at=0.1),), evaluate_every=1)
    _, test = groups()
    with pytest.raises(hs.UserError, match=r"has `stop_at`, but validation clients are never evaluated"):
        hs.run(stopping, tmp_path / "out", federation=federation(*test), progress=False)
    assert not (tmp_path / "out").exists()
