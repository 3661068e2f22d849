"""What of clients is written: no examples unless they are asked for, and pseudonyms where ids are hidden."""

import csv
import json
import re
import zipfile

import numpy as np
import pytest

from headstart import UserError, open_run
from headstart.data.load import load
from headstart.deploy.adapt import personalize_run
from headstart.runs.directory import write_samples
from headstart.runs.pseudonyms import KEY, hidden, hidden_texts, key_of, pseudonym
from headstart.training.seed_run import Options
from small import experiment, first_stage_only, run


@pytest.fixture(scope="module")
def secret(made_once, small_data):
    """A run that hides ids."""
    plan = first_stage_only(experiment(small_data))
    return made_once("secret", lambda folder: run(plan, folder / "run", options=Options(hide_ids=True)).write_clients())


def everything(folder):
    """The content of all files of a folder, unpacked."""
    for path in folder.rglob("*"):
        if path.suffix == ".npz":
            with zipfile.ZipFile(path) as file:
                yield from (file.read(name) for name in file.namelist())
        elif path.is_file():
            yield path.read_bytes()


def test_a_run_that_hides_ids_comes_to_the_same_and_writes_none(secret, small_run, small_data):
    folder = secret / "run"
    for content in everything(folder):
        assert not re.search(rb"client-[01]\d(?![0-9a-f])", content.replace(b"\0", b""))
    with np.load(folder / "seed-0/stage-0.npz") as mine, np.load(small_run / "seed-0/stage-0.npz") as theirs:
        np.testing.assert_array_equal(mine["test/gain"], theirs["test/gain"])
    federation = load(small_data)
    key = key_of(federation)
    known = open_run(folder).members
    assert known is not None and (folder / KEY).read_text().strip() == key.hex()
    assert {name for group in known.values() for name in group} == {pseudonym(key, name) for name in federation.ids}


def test_who_trained_a_run_that_hides_ids_is_known_by_its_key_alone(secret, small_data, tmp_path):
    personalize_run(secret / "run", small_data, tmp_path / "mine", hide_ids=True)
    with (tmp_path / "mine/clients.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    members = open_run(secret / "run").members
    assert {line["client"] for line in lines if line["group in the run"] == "train"} == set(members["train"])
    assert {path.stem for path in (tmp_path / "mine/parameters").iterdir()} == {line["client"] for line in lines}
    notes = json.loads((tmp_path / "mine/summary.json").read_text())["notes"]
    assert "clients trained the run (client-" in notes[0] and not re.search(r"client-[01]\d(?![0-9a-f])", notes[0])


def test_a_run_that_was_begun_with_ids_cannot_hide_them(small_data, small_run):
    with pytest.raises(UserError, match="begun without --hide-ids"):
        run(experiment(small_data), small_run, options=Options(hide_ids=True))


def test_no_rows_are_kept_unless_asked_for(secret, small_run, small_data, tmp_path):
    for folder in (secret / "run", small_run):
        with np.load(folder / "samples.npz") as file:
            assert not len(file["ids"]) and not file["x0"].any() and not file["y0"].any()
            assert file["x0"].shape[1:] == (4,) and file["x0"].dtype == np.float32
    federation = load(small_data)
    write_samples(tmp_path, federation, np.arange(4), readable=True)
    with np.load(tmp_path / "samples.npz") as file:
        assert len(file["ids"]) == 4 and file["x3"].any()


def test_ids_in_sentences_are_hidden_too(small_data):
    federation = load(small_data)
    names = {"a": "client-1", "ab": "client-2"}
    assert hidden_texts(["ab has few rows, a and 'ab' none: abc"], names) == [
        "client-2 has few rows, client-1 and 'client-2' none: abc"
    ]
    assert hidden(federation, b"key").ids[0] == pseudonym(b"key", federation.ids[0]) != federation.ids[0]
