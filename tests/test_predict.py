"""Predictions for the rows of a file, and the clients of a run as a table."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest

from headstart import Data, Experiment, FedAvg, Optimizer, Personalization, Stage, UserError, open_run
from headstart.data.by_column import values_by_client
from headstart.data.sample import write_sample
from headstart.deploy.adapt import personalize_run
from headstart.training.seed_run import Options
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
        run(plan, folder / "run", options=Options(baselines=False)).write_clients()
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


def test_a_clients_value_of_a_column_is_its_own_or_its_most_frequent_or_a_quarter(tmp_path):
    rows = [f"{c},{'north' if c < 4 else 'south'},{'xyx'[i]},{c + i / 10},1" for c in range(8) for i in range(3)]
    (tmp_path / "t.csv").write_text("client,region,ward,age,y\n" + "\n".join(rows) + "\n8,,,,1\n")
    region = values_by_client(tmp_path / "t.csv", {}, "region")
    assert region.values["0"] == "north" and region.values["7"] == "south" and region.values["8"] == "(no value)"
    assert region.how == "the value of each client"
    ward = values_by_client(tmp_path / "t.csv", {}, "ward")
    assert set(ward.values.values()) == {"x", "(no value)"} and "within which it varies" in ward.how
    age = values_by_client(tmp_path / "t.csv", {}, "age")
    assert [list(age.values.values()).count(name) for name in age.order] == [2, 2, 2, 2, 1]
    with pytest.raises(UserError, match="did you mean 'region'"):
        values_by_client(tmp_path / "t.csv", {}, "regio")


def test_results_are_shown_by_a_columns_values(command, hospitals, no_figures):
    code, out, err = command("report", hospitals / "run", "--by", "crp", "--out", "page.html")
    assert code == 0 and "test clients by 'crp', each client's mean, in quarters of the clients" in out, err
    page = Path("page.html").read_text()
    assert "For whom personalization pays" in page and "predicted recovered" in page
    trained, counts = open_run(hospitals / "run"), re.findall(r", (\d+) clients?: initial accuracy", out)
    assert sum(map(int, counts)) == len(trained.clients()["id"])
    words = ["--data", hospitals / "hospitals.csv", "--client", "hospital", "--target", "outcome", "--by", "ward"]
    code, out, err = command("personalize", hospitals / "run", *words, "--out", "again")
    assert code == 0 and "clients that did not train the run by 'ward', the most frequent" in out, err
    found = json.loads(Path("again/summary.json").read_text())["by"]["values"]
    assert sum(each["clients"] for each in found) == 10 - len(trained.members["train"])
