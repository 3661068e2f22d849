"""`headstart reproduce` as a user gives it, at the smallest scale."""

import json
from pathlib import Path

import pytest

from small import federation_file

pytestmark = pytest.mark.usefixtures("no_figures")


def test_a_study_runs_reports_and_is_not_run_again(command):
    words = ("reproduce", "table1", "--scale", "smoke", "--out", "out", "--processes", "1")
    code, output, errors = command(*words)
    assert (code, errors) == (0, "")
    assert "table1 on glyphs" in output
    document = json.loads(Path("out/results/table1-glyphs.json").read_text())
    assert document["name"] == "table1"
    # Two seeds decide nothing, whatever they show.
    assert {claim["decision"] for claim in document["claims"]} == {"inconclusive"}
    page = Path("out/report.html").read_text()
    assert "headstart reproduce table1 --scale smoke --data glyphs --out out" in page
    assert "How do the local epochs E" in page

    code, output, _ = command(*words)
    assert code == 0
    assert "runs:" not in output
    assert json.loads(Path("out/results/table1-glyphs.json").read_text()) == document

    # More seeds continue from what is done.
    code, output, _ = command(*words, "--seeds", 3)
    assert code == 0
    assert "4 of 4 runs" in output and ", seed 0" not in output
    assert any("3 seeds" in note for note in json.loads(Path("out/results/table1-glyphs.json").read_text())["notes"])
    assert "--seeds 3" in Path("out/report.html").read_text()


@pytest.mark.slow
def test_a_centralized_model_is_stopped_and_compared(command):
    code, _, errors = command("reproduce", "datacenter", "--scale", "smoke", "--out", "out", "--processes", "1")
    assert (code, errors) == (0, "")
    constant, decayed = json.loads(Path("out/results/datacenter-glyphs.json").read_text())["claims"]
    assert len([text for text in constant["evidence"] if text.startswith("personalized: FedAvg over")]) == 3
    against = [text for text in decayed["evidence"] if text.startswith("personalized: FedAvg, decayed rate over")]
    assert len(against) == 3 and all(", to FedAvg, decayed rate: " in text for text in against)
    assert decayed["paper"] is None
    ends = {
        json.loads(path.read_text())["round"] for path in Path("out/runs").glob("glyphs/datacenter-*/*/seed-*/*.json")
    }
    assert max(ends) <= 40


@pytest.mark.parametrize(
    ("study", "claims", "names"),
    [
        pytest.param(
            "finetune",
            6,
            ["nothing more", "FedAvg, Adam", "Reptile(3), Adam", "FedAvg, decayed rate"],
            marks=pytest.mark.long,
        ),
        pytest.param(
            "updates", 2, ["FedAvg(2)", "Reptile(3)", "FOMAML(3)", "MAML(3)", "FedSGD"], marks=pytest.mark.long
        ),
        pytest.param("server", 1, ["SGD", "momentum", "Adam", "Yogi", "Adagrad"], marks=pytest.mark.slow),
    ],
)
def test_every_study_runs_at_the_smallest_scale(command, study, claims, names):
    code, _, errors = command("reproduce", study, "--scale", "smoke", "--out", "out", "--processes", "1")
    assert (code, errors) == (0, "")
    document = json.loads(Path(f"out/results/{study}-glyphs.json").read_text())
    assert len(document["claims"]) == claims
    assert {row[0] for row in document["tables"][0]["rows"]} >= set(names)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("table2",), "there is no study 'table2'; give some of identity, table1"),
        (("--scale", "huge"), "there is no scale 'huge'; give one of smoke, small, medium, full"),
        (("--data", "data.npz"), "data.npz holds features; the paper's claims are tested on images and on text"),
        (("--seeds", 1), "1 is not in the range x>=2"),
        (("--data", "glyphs", "--data", "glyphs"), "two of the federations glyphs, glyphs have the same name"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_a_sentence(command, tmp_path, words, expected):
    federation_file(tmp_path / "data.npz")
    code, _, errors = command("reproduce", *words)
    assert code == 2
    assert expected in " ".join(errors.split())
    assert not Path("reproduction").exists()
