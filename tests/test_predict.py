"""Predictions for the rows of a file, and the clients of a run as a table."""

import csv

import numpy as np
import pytest

from headstart import Data, Experiment, FedAvg, Optimizer, Personalization, Stage, open_run
from headstart.data.sample import write_sample
from headstart.deploy.adapt import personalize_run
from small import run

FEATURES = ["ward", "age", "crp", "admitted"]


def lines_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def hospitals(made_once):
    """A sample table, a short run on it, and its clients personalized."""

    def make(folder):
        write_sample(folder / "hospitals.csv", clients=10, rows=24, missing=0.05)
        options = {"client": "hospital", "target": "outcome", "features": FEATURES}
        stage = Stage("FedAvg", FedAvg(1, 0.1, 8), Optimizer("sgd", 1.0), 2, 3)
        data = Data(str(folder / "hospitals.csv"), options, train=0.6, validation=0.2)
        recipe = Personalization(Optimizer("sgd", 0.1), 8, 2)
        plan = Experiment("hospitals", (stage,), data, personalization=recipe, evaluate_every=0)
        run(plan, folder / "run").write_clients()
        personalize_run(folder / "run", folder / "hospitals.csv", folder / "mine", options=options, epochs=2)

    return made_once("hospitals", make)


def test_rows_are_predicted_in_their_order_without_targets(command, hospitals, tmp_path):
    rows = lines_of(hospitals / "hospitals.csv")
    generator = np.random.default_rng(0)
    chosen = [rows[i] for i in generator.permutation(len(rows))[:70]]
    with (tmp_path / "new.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["age", "hospital", "ward", "admitted", "crp"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(chosen)
    words = ["predict", hospitals / "run", "--data", "new.csv", "--client", "hospital"]
    code, out, err = command(*words, "--out", "plain.csv")
    assert code == 0, err
    assert "predictions for 70 rows" in out
    trained, found = open_run(hospitals / "run"), lines_of(tmp_path / "plain.csv")
    columns = {
        name: np.array([row[name] or None for row in chosen], object) for name in ("ward", "age", "crp", "admitted")
    }
    assert [row["prediction"] for row in found] == trained.predict(columns).tolist()
    assert [row["client"] for row in found] == [row["hospital"] for row in chosen]
    shares = np.array([[float(row[f"probability of {label}"]) for label in trained.labels] for row in found])
    np.testing.assert_allclose(shares.sum(axis=1), 1, rtol=1e-5)

    code, out, err = command(*words, "--out", "own.csv", "--personalized", hospitals / "mine")
    assert code == 0 and "70 of them by their client's own parameters" in out, err
    own = lines_of(tmp_path / "own.csv")
    assert {row["predicted by"] for row in own} == {"its own parameters"}
    probabilities = [name for name in own[0] if name.startswith("probability")]
    assert any(row[name] != other[name] for row, other in zip(own, found, strict=True) for name in probabilities)
    code, _, err = command(*words, "--out", "own.csv")
    assert code == 2 and "own.csv is there already" in err


def test_a_run_writes_its_clients_as_a_table(hospitals):
    lines, trained = lines_of(hospitals / "run" / "clients.csv"), open_run(hospitals / "run")
    assert [line["client"] for line in lines] == [*trained.members["validation"], *trained.members["test"]]
    test = [line for line in lines if line["group in the run"] == "test"]
    np.testing.assert_allclose(
        [float(line["initial accuracy"]) for line in test], trained.clients()["initial"], rtol=1e-5
    )
    assert {"personalized balanced accuracy", "initial AUC", "test examples"} <= set(lines[0])
