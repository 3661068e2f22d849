"""Run folders made by headstart 0.1.0, before modules and fields got their present names.

`before/` holds them as they were written: `finished` (two stages, two seeds), `stopped_second` (the same, interrupted
in its second stage), `stopped` (FedRep, whose clients keep their heads, interrupted) and `whole` (the same, not
interrupted); in `expected/` what that version made of `finished` on its own clients, and its artifact.
"""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from headstart import Centralized, Optimizer, Regression, Stage, run
from headstart.deploy.adapt import personalize_run
from headstart.deploy.export import export_run
from headstart.experiment.loading import read
from headstart.methods import FedRep, Scaffold
from headstart.runs.checkpoint import read_arrays
from headstart.runs.contents import read_json
from headstart.runs.reading import open_runs
from headstart.studies.runner import Runs

BEFORE = Path(__file__).parent / "before"


@pytest.fixture
def before(tmp_path, monkeypatch) -> Path:
    """A copy, in the folder that its experiments name their data from."""
    folder = tmp_path / "before"
    shutil.copytree(BEFORE, folder)
    monkeypatch.chdir(folder)
    return folder


def saved(name: str):
    return read(read_json(BEFORE / name / "experiment.json"))


def test_an_experiment_saved_by_module_paths_is_read_with_all_its_values():
    finished, stopped = saved("finished"), saved("stopped")
    assert [stage.name for stage in finished.stages] == ["FedAvg", "Reptile"]
    assert finished.personalization.learning_rates == (0.01, 0.3) and finished.personalization.epochs == 3
    # The weighting that it was saved with, whatever the method's own is today.
    update = FedRep(1, 2, learning_rate=0.1, batch_size=4)
    assert stopped.stages == (Stage("FedRep", update, Optimizer("sgd", 1.0), 8, 3, "examples", stop_at=0.99),)
    assert stopped.personalization.unit == "steps"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stopped", "whole", "stage"),
    [("stopped", "whole", 0), ("stopped_second", "finished", 1)],
    ids=["FedRep", "Reptile"],
)
def test_a_run_interrupted_then_ends_as_the_one_that_was_not(before, stopped, whole, stage):
    run(saved(stopped), before / stopped)
    for end in (f"stage-{stage}.safetensors", f"checkpoints/round-{[8, 10][stage]:07d}.safetensors"):
        found, expected = (read_arrays(before / name / "seed-0" / end)[0] for name in (stopped, whole))
        assert found.keys() == expected.keys()
        for name, array in expected.items():
            np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-6, err_msg=name)
    records = [json.loads(line) for line in (before / stopped / "seed-0" / "metrics.jsonl").read_text().splitlines()]
    others = [json.loads(line) for line in (before / whole / "seed-0" / "metrics.jsonl").read_text().splitlines()]
    assert [set(record) for record in records] == [set(record) for record in others]


def test_a_finished_run_is_not_run_again(before):
    log = before / "finished" / "seed-1" / "metrics.jsonl"
    made = log.stat().st_mtime_ns
    run(saved("finished"), before / "finished", seeds=2)
    assert log.stat().st_mtime_ns == made


def test_a_finished_run_reports_what_it_did(before):
    (found,) = open_runs([before / "finished"])
    report = read_json(before / "finished" / "seed-1" / "stage-1.json")
    outcome = found.stage_results[1]
    assert outcome.seeds == (0, 1) and outcome.reports[1] == report
    assert found.history.rounds.tolist() == [0, 2, 4, 6, 8, 10]


def test_a_finished_run_personalizes_as_it_did(before):
    options = {"client": "ward", "target": "outcome"}
    summary, _ = personalize_run(before / "finished", "visits.csv", before / "out", options=options, epochs=2)
    expected = read_json(before / "expected" / "summary.json")
    assert summary["clients"] == expected["clients"] and summary["length"] == expected["length"]
    for when in ("initial", "personalized"):
        assert summary["loss"][when]["mean"] == pytest.approx(expected["loss"][when]["mean"], rel=1e-5)
    tables = [
        list(csv.reader((before / folder / "clients.csv").read_text().splitlines())) for folder in ("out", "expected")
    ]
    assert [row[0] for row in tables[0]] == [row[0] for row in tables[1]]
    numbers = [np.array([row[3:] for row in rows[1:]], float) for rows in tables]
    np.testing.assert_allclose(*numbers, rtol=1e-4)


def test_a_finished_run_exports_as_it_did(before):
    export_run(before / "finished", before / "artifact", platforms=["cpu"])
    found, expected = (read_json(before / name / "artifact.json") for name in ("artifact", "expected"))
    for part in ("format", "arguments", "parameters", "x", "y", "capacities", "output", "metric", "key", "facts"):
        assert found[part] == expected[part], part
    assert {k: v for k, v in found["recipe"].items() if k != "method"} == {
        k: v for k, v in expected["recipe"].items() if k != "method"
    }
    saved_then = read_arrays(before / "finished" / "seed-0" / "stage-1.safetensors")[0]
    exported = read_arrays(before / "artifact" / "parameters.safetensors")[0]
    assert all(np.array_equal(exported[name], array) for name, array in saved_then.items())


def test_the_folders_of_studies_have_the_digests_that_they_had():
    runs, expected = Runs(Path("/nowhere"), seeds=1), read_json(BEFORE / "digests.json")
    stages = (
        Stage("S", Scaffold(), Optimizer(), 3, weighting="examples"),
        Centralized("C", Optimizer("adam", 0.01), 4),
    )
    more = replace(saved("stopped"), stages=stages, task=Regression(), start="/nowhere/x-{seed}.safetensors")
    asked = {"finished": saved("finished"), "stopped": saved("stopped"), "scaffold": more}
    # What was saved has a model and a task; what was asked for had none.
    asked = {name: replace(each, task=each.task if name == "scaffold" else None) for name, each in asked.items()}
    assert {name: runs.folder(each).name for name, each in asked.items()} == expected
