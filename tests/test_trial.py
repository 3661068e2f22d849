"""The trial before training: settings of the first stage that are chosen on validation clients."""

import json
from dataclasses import replace

import numpy as np
import pytest

import headstart as hs
from headstart.experiment.choice import with_choice, with_server
from headstart.experiment.loading import load
from headstart.experiment.suited import TABLE_CLIP, suited_to_table
from headstart.learning.personalization import edges
from headstart.methods.paper import client_sgd
from headstart.reports.page import write
from headstart.training import run as training
from small import experiment, first_stage_only, run

FAST = hs.Trial(rounds=2)


@pytest.fixture
def plan(small_data):
    """One stage of two rounds, with a trial."""
    stage = replace(first_stage_only(experiment(small_data, rounds=(2, 1))).stages[0], rounds=2)
    return replace(experiment(small_data), stages=(stage,), model=hs.ModelSpec("logistic"), trial=FAST)


def lines(records):
    return [record["text"] for record in records if record["event"] == "note" and record["text"].startswith("trial")]


def test_a_trial_is_shown_kept_and_not_repeated(plan, tmp_path, monkeypatch, no_figures):
    records = []
    whole = run(plan, tmp_path / "run", on_event=records.append)
    kept = json.loads((tmp_path / "run" / "trial.json").read_text())
    tried = {(each["learning_rate"], each["server"]): each["value"] for each in kept["candidates"]}
    assert {(0.01, "decayed"), (0.1, "decayed"), (1.0, "decayed")} < set(tried)
    enough = kept["start"] - 0.99 * (kept["start"] - min(tried.values()))
    near = {setting: value for setting, value in tried.items() if value <= enough}
    assert min(near, key=lambda setting: setting[0]) == (kept["chosen"]["learning_rate"], kept["chosen"]["server"])
    assert len(lines(records)) == len(tried) + 2
    # What is saved holds the choice, as any other setting.
    assert whole.experiment.trial is None
    assert (
        whole.experiment.stages == with_choice(plan, kept["chosen"]["learning_rate"], kept["chosen"]["server"]).stages
    )
    again = run(whole.experiment, tmp_path / "again")
    for name, array in whole.params()["params"]["Dense_0"].items():
        np.testing.assert_array_equal(array, again.params()["params"]["Dense_0"][name])
    page = write([tmp_path / "run"]).read_text(encoding="utf-8")
    assert "Trial" in page and "a decaying server rate" in page
    said = whole.report()["edges"]
    assert said == edges(plan.personalization, 0.1, whole.report()["validation"]["length"])
    assert all(text in page for text in said) and all(any(text in str(r) for r in records) for text in said)
    monkeypatch.setattr(training, "run_trial", lambda *_: pytest.fail("the trial is repeated"))
    assert run(plan, tmp_path / "run").finished
    with pytest.raises(hs.UserError, match=r"by its trial \(trial.rounds was 2, now 1\)"):
        run(replace(plan, trial=hs.Trial(rounds=1)), tmp_path / "run")


def test_rates_that_diverge_are_out_and_lower_ones_are_tried(plan, tmp_path):
    with np.load(plan.data.source) as arrays:
        x = arrays["x"] * 1e3
        np.savez(tmp_path / "large.npz", client=arrays["client"], x=x, y=x.sum(axis=1) + 0.5)
    source = replace(plan.data, source=str(tmp_path / "large.npz"))
    records = []
    finished = run(replace(plan, data=source, model=None), tmp_path / "run", on_event=records.append)
    chosen = finished.trial["chosen"]
    assert finished.finished and 1e-10 < chosen["learning_rate"] < 1e-5
    assert sum("diverged" in line for line in lines(records)) > 3
    assert chosen["value"] < finished.trial["start"] / 2


def test_without_validation_clients_nothing_is_tried(plan, tmp_path):
    nobody = replace(plan, data=replace(plan.data, validation=0))
    records = []
    finished = run(nobody, tmp_path / "run", on_event=records.append)
    assert any(record.get("text", "").startswith("nothing was tried, for no validation client") for record in records)
    assert (
        finished.trial["candidates"] == [] and finished.experiment.stages == with_choice(nobody, 0.1, "decayed").stages
    )


def test_built_in_experiments_have_a_trial_on_data_of_a_users_own_alone(small_data):
    own = str(small_data)
    assert load("fedavg").trial is None and load("fedavg", data="emnist").trial is None
    assert load("fedavg", data=own).trial == hs.Trial()
    assert load("fedavg", data=own, settings=["trial=null"]).trial is None
    learning_rate = load("fedavg", data=own, settings=["stages.0.update.learning_rate=0.3"]).trial
    assert learning_rate == hs.Trial(learning_rates=(0.3,))
    server = load("personalized_fedavg", data=own, settings=["stages.0.server.learning_rate=0.5"]).trial
    assert server == hs.Trial(servers=("own",))
    assert load("fedavg", data=own, settings=["personalization.epochs=9"]).trial == hs.Trial(personalization=False)
    assert load("fedavg", data=own, settings=["trial.rounds=3"]).trial == hs.Trial(rounds=3)


def test_later_stages_follow_the_rate_of_the_first():
    plan = with_choice(load("personalized_fedavg"), 0.2, "adam")
    assert [stage.update.learning_rate for stage in plan.stages] == [0.2, 0.2]
    assert plan.stages[0].server.name == "adam" and plan.stages[1].server == hs.Optimizer("adam", 1e-3)
    pooled = load("centralized").stages[0]
    assert with_server(pooled, "decayed").optimizer.schedule.options == {"decay_steps": 10_000}


@pytest.mark.parametrize(
    ("recipe", "learning_rate", "count", "said"),
    [
        (hs.Personalization(epochs=3), 0.02, 3, ["the most epochs of personalization that were tried (3)"]),
        (hs.Personalization(epochs=3), 0.02, 2, []),
        (hs.Personalization(steps=4, learning_rates=(0.1, 0.01, 1.0)), 0.1, 3, []),
        (hs.Personalization(learning_rates=(0.1, 0.01)), 0.01, 2, ["the smallest learning rate"]),
        (hs.Personalization(learning_rates=(0.1, 0.01)), 0.1, 5, ["the most epochs", "the largest learning rate"]),
        (hs.Personalization(learning_rates=(0.1, 0.01)), 0.1, 0, []),
        (hs.Personalization(pulls=(3.0, 0.3)), 0.02, 2, ["the weakest pull of personalization that was tried (0.3)"]),
        (hs.Personalization(pulls=(3.0, 0.3)), 0.02, 1, []),
    ],
)
def test_a_choice_at_an_edge_is_said(recipe, learning_rate, count, said):
    found = edges(recipe, learning_rate, count)
    assert len(found) == len(said) and all(text.startswith(start) for text, start in zip(found, said, strict=True))


def test_a_stage_ends_when_its_patience_is_over(small_data, tmp_path):
    # Evaluated after every second round; at a rate of zero nothing improves.
    whole = replace(first_stage_only(experiment(small_data, rounds=(8, 1))), model=hs.ModelSpec("logistic"))
    still = replace(whole.stages[0], update=hs.FedAvg(1, 0.0, 4), patience=2)
    ended = run(replace(whole, stages=(still,)), tmp_path / "still")
    assert ended.finished and ended.report()["round"] == 4 and run(ended.experiment, tmp_path / "still").finished
    moving = replace(whole.stages[0], update=hs.FedAvg(1, 0.01, 4), patience=2)
    assert run(replace(whole, stages=(moving,)), tmp_path / "moving").report()["round"] == 8
    two = replace(experiment(small_data), stages=(still, replace(still, patience=None)))
    with pytest.raises(hs.UserError, match="has `patience` and is not the last one"):
        run(two, tmp_path / "two")


def test_what_suits_a_table_where_nothing_is_said_of_it(small_data):
    table, own = load("personalized_fedavg", data=str(small_data)), hs.ModelSpec("mlp")
    plan = suited_to_table(replace(table, model=own))
    assert plan.personalization == hs.Personalization(epochs=20, learning_rates=(0.02, 0.002, 0.2))
    assert [stage.update.clip for stage in plan.stages] == [TABLE_CLIP, TABLE_CLIP]
    assert suited_to_table(replace(table, model=hs.ModelSpec("logistic"))).personalization.pulls
    said = load("fedavg", data=str(small_data), settings=["personalization.epochs=5"])
    assert suited_to_table(replace(said, model=own)).personalization == said.personalization
    assert suited_to_table(replace(load("fedavg"), model=own)).stages == load("fedavg").stages


def test_a_gradient_beyond_the_clip_is_shrunk_to_it():
    gradient = {"w": np.array([3.0, 4.0], np.float32)}
    for clip, expected in ((None, (-3, -4)), (10.0, (-3, -4)), (1.0, (-0.6, -0.8))):
        sgd = client_sgd(1.0, clip)
        np.testing.assert_allclose(sgd.update(gradient, sgd.init(gradient))[0]["w"], expected, rtol=1e-6)
