"""A run in hand: the same from the call and from its folder, with its clients, parameters and models."""

import csv
from dataclasses import replace

import flax.linen as nn
import numpy as np
import pandas
import pytest

import headstart as hs
from headstart.deploy.adapt import personalize_run
from headstart.reports.tables import rows
from headstart.runs.checkpoint import read_arrays
from headstart.runs.contents import read_json
from small import experiment, federation_file, first_stage_only


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return federation_file(tmp_path_factory.mktemp("data") / "small.npz")


@pytest.fixture(scope="module")
def run(data, tmp_path_factory) -> hs.Run:
    return hs.run(experiment(data), tmp_path_factory.mktemp("runs") / "run", seeds=2, progress=False)


def test_a_run_from_the_call_and_from_the_folder_is_the_same(run):
    again = hs.open_run(run.path)
    assert run.finished and again.finished and again.experiment == run.experiment and again.seeds == (0, 1)
    assert again.experiment.name == "small" and again.ends == (6, 10)
    np.testing.assert_array_equal(run.history.personalized, again.history.personalized)
    assert run.history.rounds.tolist() == [0, 2, 4, 6, 8, 10] and run.history.initial.shape == (2, 6)
    assert "finished" in repr(again) and "2 seeds" in repr(again)


def test_its_parameters_are_a_plain_tree_of_what_was_saved(run):
    tree, arrays = run.params(seed=1, stage=0), read_arrays(run.path / "seed-1" / "stage-0.safetensors")[0]
    kernel = "['params']['Dense_0']['kernel']"
    np.testing.assert_array_equal(tree["params"]["Dense_0"]["kernel"], arrays[kernel])
    assert set(tree["params"]) == {"Dense_0", "Dense_1"}
    np.testing.assert_array_equal(
        run.params()["params"]["Dense_1"]["bias"], run.params(seed=0, stage=1)["params"]["Dense_1"]["bias"]
    )


def test_its_clients_are_those_of_the_files(run):
    clients, report = run.clients("test"), read_json(run.path / "seed-0" / "stage-1.json")
    assert len(clients["id"]) == report["test"]["clients"] and set(clients["n_test"]) - {0}
    with np.load(run.path / "seed-0" / "stage-1.npz") as first, np.load(run.path / "seed-1" / "stage-1.npz") as second:
        each = [a["test/accuracy/sums"][:, 0] / a["test/accuracy/counts"] for a in (first, second)]
    np.testing.assert_allclose(clients["initial"], np.mean(each, axis=0))
    np.testing.assert_allclose(clients["gain"], clients["personalized"] - clients["initial"])
    frame = clients.to_pandas()
    assert isinstance(frame, pandas.DataFrame) and list(frame["id"]) == list(clients["id"])
    assert {"initial_loss", "personalized_loss"} <= set(frame)


def test_its_summary_is_what_the_report_tells(run):
    summary, row = run.summary("test"), rows([run])[-1]
    found = summary["accuracy"]["difference"]
    assert found["mean"] == pytest.approx(row.difference.mean)
    assert found["interval"] == pytest.approx([row.difference.low, row.difference.high])
    assert summary["clients"] == row.clients and summary["seeds"] == [0, 1] and summary["epochs"] == list(row.epochs)
    assert summary["harmed"]["share"] == pytest.approx(row.harmed)
    assert run.summary("validation")["clients"] == 2


def test_a_client_personalizes_in_hand_as_by_the_command(run, data, tmp_path):
    personalize_run(run, str(data), tmp_path, epochs=3)
    with np.load(data) as arrays:
        mine = arrays["client"] == "client-03"
        x, y = arrays["x"][mine], arrays["y"][mine]
    federation = hs.load(data).select(np.array([3]))
    support = int(federation.sizes[0, 0])
    own_x, own_y = federation.fetch(np.array([0]))
    model = run.personalize(own_x[:support], own_y[:support], client="client-03", epochs=3)
    saved, _ = read_arrays(tmp_path / "parameters" / "client-03.safetensors")
    kernel = model.params["params"]["Dense_1"]["kernel"]
    np.testing.assert_allclose(kernel, saved["['params']['Dense_1']['kernel']"], rtol=1e-6)
    assert np.mean(model.predict(x) == y.astype(str)) >= np.mean(run.predict(x) == y.astype(str)) - 0.2
    with (tmp_path / "clients.csv").open() as file:
        row = list(csv.reader(file))[4]
    correct = model.predict(own_x[support:]) == own_y[support:].astype(str)
    assert row[0] == "client-03" and float(row[4]) == pytest.approx(correct.mean(), abs=1e-5)


def test_predictions_are_labels_and_any_number_of_rows_will_do(run, data):
    with np.load(data) as arrays:
        x = arrays["x"]
    many = np.concatenate([x] * 20)
    assert run.predict(many).shape == (len(many),) and set(run.predict(many)) <= {"0", "1", "2"}
    np.testing.assert_array_equal(run.predict(many)[: len(x)], run.predict(x))
    assert run.initial_model().outputs(x).shape == (len(x), 3)


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf, 1e39])
def test_inputs_that_are_no_numbers_get_no_prediction(run, number):
    x = np.ones((3, 4))
    x[1, 2] = number
    for use in (run.predict, run.initial_model().outputs, lambda x: run.personalize(x, [0, 1, 2], epochs=1)):
        with pytest.raises(hs.UserError, match="the inputs hold a number in row 2 that is missing, infinite or beyond"):
            use(x)


class Net(nn.Module):
    """A model of the user's own."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(x)


def test_a_federation_and_a_model_may_be_handed_over_as_objects(data, tmp_path, capsys):
    federation, plan = hs.load(data), first_stage_only(experiment(data))
    run = hs.run(plan, tmp_path / "run", federation=federation, model=Net())
    captured = capsys.readouterr()
    assert run.finished and "round 1" in captured.err and not captured.out
    assert run.experiment.data.source == "in memory" and run.predict(np.ones((2, 4), np.float32)).shape == (2,)
    again = hs.open_run(run.path, model=Net())
    np.testing.assert_array_equal(again.predict(np.ones((2, 4))), run.predict(np.ones((2, 4))))
    with pytest.raises(hs.UserError, match=r"given in memory; give it again: open_run\(path, model=\.\.\.\)"):
        hs.open_run(run.path).predict(np.ones((2, 4)))
    with pytest.raises(hs.UserError, match=r"federation was given in memory; give it again as federation="):
        hs.run(run.experiment, run.path, model=Net(), progress=False)
    by_name = hs.run(plan, tmp_path / "named", model="logistic", progress=False)
    capsys.readouterr()
    assert by_name.finished and by_name.experiment.model == hs.ModelSpec("logistic")


def test_what_is_not_there_is_said(run, data, tmp_path):
    with pytest.raises(hs.UserError, match=r"seed 7 of .* is not finished"):
        run.params(seed=7)
    with pytest.raises(hs.UserError, match="no run folder"):
        hs.open_run(tmp_path)
    untested = replace(first_stage_only(experiment(data)), test=False, evaluate_every=0)
    quiet = hs.run(untested, tmp_path / "r", progress=False)
    with pytest.raises(hs.UserError, match="no test clients that were measured"):
        quiet.clients("test")
    assert len(quiet.clients("validation")["id"]) == 2


def test_runs_in_hand_are_reported_and_drawn(run, tmp_path):
    page = hs.report([run], tmp_path / "report.html")
    assert page.exists() and (tmp_path / "figures" / "rounds.png").exists()
    assert hs.report(run, tmp_path / "other.html").exists()
    figure = run.plot.rounds()
    assert figure.axes and run.plot.clients().axes
    axes = figure.add_subplot()
    assert run.plot.rounds(ax=axes) is axes and len(axes.lines) >= 2
