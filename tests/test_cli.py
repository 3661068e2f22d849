"""The command, as a user types it."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from headstart import __version__
from headstart.experiment.serialization import to_json
from headstart.files import write_json
from headstart.runs.checkpoint import read_arrays
from small import experiment


@pytest.fixture
def finished(small_data, small_run) -> tuple[Path, Path]:
    """A federation file, and a finished run on it."""
    return small_data, small_run


def test_help_explains_with_examples(command):
    for words, expected in {
        ("--help",): "personalize",
        ("run", "--help"): "headstart run fedavg --seeds 5",
        ("personalize", "--help"): "--data mine.npz",
        ("report", "--help"): "--out report.html",
        ("data", "--help"): "--picture",
    }.items():
        code, out, _ = command(*words)
        assert code == 0 and expected in " ".join(out.split()), words


@pytest.mark.parametrize(
    "words", [("-c", "import headstart"), ("-m", "headstart", "--help"), ("-m", "headstart", "--version")]
)
def test_what_answers_at_once_imports_nothing_heavy(words):
    ended = subprocess.run([sys.executable, "-X", "importtime", *words], capture_output=True, text=True, check=True)
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in ended.stderr.splitlines()}
    assert "headstart" in imported
    assert not imported & {"jax", "jaxlib", "numpy", "scipy", "matplotlib", "flax", "optax", "pyarrow"}


def test_a_run_imports_nothing_before_its_first_round_that_it_does_not_need():
    modules = "headstart.cli.main", "headstart.cli.run", "headstart.training.run", "headstart.reports.tables"
    script = f"import sys, {', '.join(modules)}, headstart.data.glyphs.atlas as a; a.atlas(); print(*sys.modules)"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    heavy = {"scipy.stats", "matplotlib", "pandas", "pyarrow", "urllib.request", "jinja2", "tensorboardX"}
    assert not heavy & set(ended.stdout.split())


def test_the_version_is_printed(command):
    assert command("--version") == (0, f"headstart {__version__}\n", "")


def test_a_quiet_command_prints_only_its_results(command, finished, tmp_path):
    data, folder = finished
    write_json(tmp_path / "mine.json", to_json(experiment(data)))
    code, out, err = command("--quiet", "run", "mine.json", "--set", "stages.0.rounds=2", "--out", "runs/a")
    assert (code, err) == (0, "")
    assert "training accuracy" not in out and "headstart report" not in out
    assert all("initial accuracy" in line for line in out.splitlines()) and out
    code, out, err = command("-q", "personalize", folder, "--data", data, "--out", "mine")
    assert (code, err) == (0, "") and "mine/clients.csv" in out and "personalizing" not in out
    code, _, err = command("--quiet", "report", "nothing")
    assert code == 2 and "nothing is no run folder" in err


def test_a_verbose_command_tells_files_programs_and_time(command, finished, tmp_path):
    data, folder = finished
    code, out, err = command("--verbose", "personalize", folder, "--data", data, "--out", "mine")
    assert (code, err) == (0, "")
    for detail in (f"files in {tmp_path / 'mine'}: clients.csv", "programs: ", "devices: ", "time: "):
        assert detail in out
    code, out, _ = command("personalize", folder, "--data", data, "--out", "mine")
    assert code == 0 and "programs: " not in out


def test_quiet_and_verbose_contradict_each_other(command):
    code, _, err = command("-q", "-v", "data", "glyphs")
    assert code == 2 and "give one of them" in err


def test_a_run_prints_plain_lines_in_a_pipe_and_its_result(command, finished, tmp_path):
    data, _ = finished
    write_json(tmp_path / "mine.json", to_json(experiment(data)))
    words = ["run", "mine.json", "--set", "stages.0.rounds=2", "--seed", 3, "--seeds", 2, "--tensorboard"]
    code, out, err = command(*words, "--out", "runs/a")
    assert (code, err) == (0, "")
    assert all(any((tmp_path / f"runs/a/seed-{seed}/events").iterdir()) for seed in (3, 4))
    lines = out.splitlines()
    assert "seed 3 round 1 (FedAvg): training accuracy" in lines[1]
    assert any("validation accuracy initial" in line for line in lines)
    assert "initial accuracy" in lines[-2] and "[" in lines[-2] and "2 seeds" in lines[-2]
    assert "\x1b" not in out
    assert json.loads((tmp_path / "runs/a/experiment.json").read_text())["stages"][0]["rounds"] == 2


def test_own_data_and_own_model_without_registration(command, tmp_path):
    generator = np.random.default_rng(0)
    rows = [
        f"site{i % 8},{a:.3f},{b:.3f},{2 * a - b + i % 8:.3f}"
        for i, (a, b) in enumerate(generator.normal(size=(160, 2)))
    ]
    (tmp_path / "visits.csv").write_text("hospital,age,dose,days\n" + "\n".join(rows) + "\n")
    (tmp_path / "mymodels.py").write_text(
        "import jax.numpy as jnp\n\n\ndef line(slope=0.0):\n"
        "    def init(key):\n        return {'w': jnp.full((2, 1), slope), 'b': jnp.zeros(1)}\n\n"
        "    def apply(params, x):\n        return x @ params['w'] + params['b']\n\n"
        "    return init, apply\n"
    )
    words = ["run", "fedavg", "--data", "visits.csv", "--client", "hospital", "--target", "days", "--out", "runs/days"]
    words += [
        "--model",
        "mymodels:line",
        "--set",
        "model.options.slope=0.5",
        "--set",
        "stages.0.rounds=3",
        "--set",
        "trial=null",
    ]
    code, out, err = command(*words, "--set", "stages.0.clients_per_round=3")
    assert (code, err) == (0, ""), err
    assert "mean squared error" in out
    saved = json.loads((tmp_path / "runs/days/experiment.json").read_text())
    assert saved["model"]["path"] == "mymodels:line"
    assert saved["task"]["type"] == "headstart.Regression"
    code, out, err = command(
        "personalize", "runs/days", "--data", "visits.csv", "--client", "hospital", "--target", "days"
    )
    assert code == 2 and "add --import mymodels" in err
    words = ["personalize", "runs/days", "--data", "visits.csv", "--client", "hospital", "--target", "days"]
    code, out, err = command(*words, "--import", "mymodels")
    assert (code, err) == (0, ""), err


def test_personalize_gives_every_client_its_result_and_its_parameters(command, finished, tmp_path):
    data, folder = finished
    code, out, err = command("personalize", folder, "--data", data, "--out", "mine", "--epochs", 2)
    assert (code, err) == (0, "")
    rows = list(csv.DictReader((tmp_path / "mine/clients.csv").read_text().splitlines()))
    assert [row["client"] for row in rows] == [f"client-{i:02d}" for i in range(12)]
    initial, _ = read_arrays(folder / "seed-0/stage-1.safetensors")
    for row in rows:
        adapted, about = read_arrays(tmp_path / f"mine/parameters/{row['client']}.safetensors")
        assert about["client"] == row["client"]
        assert any(np.any(adapted[name] != value) for name, value in initial.items())
    summary = json.loads((tmp_path / "mine/summary.json").read_text())
    trained = set(json.loads((folder / "members.json").read_text())["train"])
    assert {row["client"] for row in rows if row["group in the run"] == "train"} == trained and len(trained) == 7
    for group, mine in ((summary, False), (summary["training_clients"], True)):
        values = [float(row["personalized accuracy"]) for row in rows if (row["client"] in trained) == mine]
        assert group["clients"] == len(values)
        assert group["accuracy"]["personalized"]["mean"] == pytest.approx(np.mean(values), abs=1e-5)
    assert "7 of 12 clients trained the run (client-0" in out and "they are left out here" in out


def test_report_writes_a_page(command, finished, tmp_path):
    _, folder = finished
    code, out, err = command("report", folder, "--out", "page.html")
    assert (code, err) == (0, "")
    assert "page.html" in out and "<html" in (tmp_path / "page.html").read_text()


def test_data_shows_a_federation_and_draws_a_picture(command, finished, tmp_path):
    data, _ = finished
    code, out, err = command("data", data, "--picture", "picture.png")
    assert (code, err) == (0, "")
    assert "clients: 12" in out and "classes: 3" in out
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


QUICK = [
    "--set",
    "trial=null",
    "--set",
    "stages.0.clients_per_round=2",
    "--set",
    "evaluate_every=0",
    "--out",
    "diverging",
]

MISTAKES = {
    "no such experiment": (["run", "nothing"], "there is no experiment 'nothing'; give a file"),
    "no such file": (["run", "nothing.json"], "cannot read the experiment nothing.json"),
    "a file that is no experiment": (["run", "broken.json"], "cannot read the experiment broken.json"),
    "a file without an experiment": (["run", "empty.py"], "defines no EXPERIMENT"),
    "a file that is no python": (["run", "broken.py"], "cannot be imported"),
    "no such data": (["run", "fedavg", "--data", "nothing.csv"], "nothing.csv"),
    "data of another format": (["run", "fedavg", "--data", "broken.json"], "broken.json"),
    "an unknown setting": (["run", "fedavg", "--set", "speed=1"], "there is no 'speed'; accepted here"),
    "an ill-typed setting": (["run", "fedavg", "--set", "seed=many"], "must be a whole number"),
    "a model that is not there": (["run", "fedavg", "--model", "nowhere:Net"], "cannot import 'nowhere:Net'"),
    "a model that is none": (["run", "fedavg", "--model", "math:pi"], "is no model"),
    "an option the model has not": (["run", "fedavg", "--set", "model.options.depth=3"], "has no option 'depth'"),
    "an option the data has not": (["run", "fedavg", "--data-option", "pens=3"], "pens"),
    "an option without a value": (["data", "glyphs", "--data-option", "writers"], "write it as key=value"),
    "a cohort that is too large": (
        ["run", "fedavg", "--set", "stages.0.clients_per_round=999"],
        "choose a smaller cohort",
    ),
    "a folder that cannot be written": (["run", "fedavg", "--out", "/proc/x"], "cannot write the folder /proc/x"),
    "a cohort of nobody": (["run", "fedavg", "--set", "stages.0.clients_per_round=0"], "must be at least 1"),
    "no stages": (["run", "fedavg", "--set", "stages=[]"], "has no stages"),
    "a negative seed": (["run", "fedavg", "--set", "seed=-1"], "experiment.seed is -1, but must be at least 0"),
    "a model of the wrong kind": (
        ["run", "fedavg", "--data", "days.csv", "--model", "logistic"],
        "the data have no classes",
    ),
    "a model with too few outputs": (
        ["run", "fedavg", "--set", "model.options.classes=10"],
        "10 outputs for 62 classes",
    ),
    "a misspelt model": (["run", "fedavg", "--model", "cnm"], "there is no model 'cnm'; give one of cnn"),
    "code of headstart that is no model": (
        ["run", "fedavg", "--model", "headstart.experiment:load"],
        "is no model of headstart's",
    ),
    "a truncated file": (["data", "truncated.npz"], "truncated.npz"),
    "no number where one is needed": (["run", "fedavg", "--data", "inf.csv"], "inf.csv"),
    "training that diverges": (
        ["run", "fedavg", "--data", "days.csv", "--set", "stages.0.update.learning_rate=1e30", *QUICK],
        "diverged in stage 'FedAvg', round 1",
    ),
    "a folder that is no run": (["report", "."], "experiment.json"),
    "a run that is not there": (["personalize", "nothing", "--data", "glyphs"], "nothing is no run folder"),
}


def test_an_experiment_file_keeps_its_relative_data_its_task_and_its_model(command, finished, tmp_path):
    (tmp_path / "mine.npz").write_bytes(finished[0].read_bytes())
    (tmp_path / "my_experiment.py").write_text(
        "from dataclasses import dataclass\nimport headstart as hs\n\n\n"
        "@dataclass(frozen=True)\nclass Mine(hs.Classification):\n    note: str = 'mine'\n\n\n"
        "EXPERIMENT = hs.Experiment(\n"
        "    'relative', (hs.Stage('one', hs.FedAvg(1, 0.1, 4), hs.Optimizer(), 2, 3),),\n"
        "    data=hs.Data('mine.npz', {'classes': 3}), model=hs.ModelSpec('mlp', {'widths': (4,)}), task=Mine(),\n)\n"
    )
    code, _, err = command("run", "my_experiment.py")
    assert (code, err) == (0, ""), err
    saved = json.loads((tmp_path / "runs/relative/experiment.json").read_text())
    assert saved["data"]["source"] == str(tmp_path / "mine.npz") and saved["data"]["options"] == {"classes": 3}
    assert saved["model"]["options"] == {"widths": [4]} and saved["task"]["type"] == "my_experiment.Mine"


def test_a_longer_personalization_than_the_run_tried_can_be_asked_for(command, finished, tmp_path):
    data, folder = finished
    code, _, err = command("personalize", folder, "--data", data, "--out", "mine", "--epochs", 9)
    assert (code, err) == (0, "")
    assert json.loads((tmp_path / "mine/summary.json").read_text())["length"] == 9


def test_classes_that_a_user_lacks_keep_their_numbers(command, finished, tmp_path):
    data, folder = finished
    with np.load(data) as arrays:
        kept = arrays["y"] != 1
        np.savez(tmp_path / "lacking.npz", **{name: arrays[name][kept] for name in arrays.files})
    code, _, err = command("personalize", folder, "--data", "lacking.npz", "--out", "mine")
    assert (code, err) == (0, "")
    assert json.loads((tmp_path / "mine/summary.json").read_text())["accuracy"]["initial"]["mean"] > 0.5


def test_ids_of_any_length_get_a_file_each(command, finished, tmp_path):
    data, folder = finished
    ids = [f"Городская клиническая больница номер {i} имени Дмитрия Плетнёва" for i in range(10)]
    with np.load(data) as arrays:
        _, number = np.unique(arrays["client"], return_inverse=True)
        np.savez(tmp_path / "long.npz", **{**arrays, "client": np.array([*ids, "Anna", "anna"])[number]})
    code, _, err = command("personalize", folder, "--data", "long.npz", "--out", "mine")
    assert (code, err) == (0, "")
    files = list((tmp_path / "mine/parameters").iterdir())
    assert len({file.name.casefold() for file in files}) == 12
    assert {read_arrays(file)[1]["client"] for file in files} == {*ids, "Anna", "anna"}


def test_personalization_leaves_files_of_others_as_they_are(command, finished, tmp_path):
    data, folder = finished
    (tmp_path / "clients.csv").write_text("my own table\n")
    code, _, err = command("personalize", folder, "--data", data, "--out", ".")
    assert code == 2 and "clients.csv is there already, and of no earlier personalization" in err
    assert [path.name for path in tmp_path.iterdir()] == ["clients.csv"]
    code, _, err = command("personalize", folder, "--data", data, "--out", "/dev/null/mine")
    assert code == 2 and "cannot write the folder /dev/null/mine" in err


def test_a_report_that_cannot_be_written_is_a_mistake(command, finished):
    code, _, err = command("report", finished[1], "--out", "/dev/null/x")
    assert code == 2 and err.startswith("headstart: cannot write /dev/null/"), err


def test_a_run_is_under_runs_whatever_its_name(command, finished, tmp_path):
    write_json(tmp_path / "mine.json", to_json(experiment(finished[0], rounds=(1, 1))))
    for name in ("../../evil", str(tmp_path / "victim"), ".."):
        code, _, err = command("run", "mine.json", "--set", f"name={name}", "--devices", 3)
        assert code == 0 or (code == 2 and "name" in err), err
    assert {path.name for path in tmp_path.iterdir()} <= {"mine.json", "runs"}
    assert not {path.name for path in tmp_path.parent.iterdir()} & {"evil", "victim"}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gets_one_sentence_and_exit_code_2(command, finished, tmp_path, mistake):
    words, complaint = MISTAKES[mistake]
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "broken.py").write_text("def (")
    (tmp_path / "empty.py").write_text("")
    (tmp_path / "truncated.npz").write_bytes(finished[0].read_bytes()[:300])
    days = [f"site{i % 24},{i % 7 / 3},{i / 8}" for i in range(96)]
    (tmp_path / "days.csv").write_text("client,dose,y\n" + "\n".join(days) + "\n")
    (tmp_path / "inf.csv").write_text("client,dose,y\na,inf,1\na,2,0\nb,1,1\nb,3,0\n")
    code, _, err = command(*words)
    assert code == 2, err
    assert complaint in err
    assert len(err.strip().splitlines()) == 1 and "Traceback" not in err
    assert not (tmp_path / "runs").exists()
