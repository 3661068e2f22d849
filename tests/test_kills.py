"""Whatever is killed, at whatever moment: repeated, it ends with the same bits, and nothing is left running.

HEADSTART_KILLS, by default 2, is how often each command is killed.
"""

import json
import os
import signal
import sys
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen, TimeoutExpired
from typing import Any

import numpy as np
import pytest

import headstart
import small
from headstart import Centralized, Optimizer, Stage
from headstart.experiment.serialization import to_json
from headstart.files import write_json
from headstart.methods import IFCA, Ditto, FedRep, PFedMe, Scaffold
from headstart.runs.checkpoint import read_arrays
from patience import until

pytestmark = pytest.mark.long

KILLS = int(os.environ.get("HEADSTART_KILLS", "2"))
SGD = Optimizer("sgd", 1.0, {"momentum": 0.9})
METHODS = {
    "SCAFFOLD": Scaffold(2, 0.1, 4),
    "IFCA": IFCA(2, 2, 0.1, 4),
    "FedRep": FedRep(2, 1, 0.1, 4),
    "Ditto": Ditto(2, learning_rate=0.1, batch_size=4),
    "pFedMe": PFedMe(2, 2, batch_size=4),
}
RUNS = ("two stages", "two devices", "centralized", *METHODS)
COMPARE = (
    *("compare", "fedavg", "--data", "data.npz", "--model", "logistic", "--methods", "fedprox", "--budget", "4"),
    *("--set", "data.train=0.6", "--set", "data.validation=0.2", "--set", "stages.0.clients_per_round=3"),
    *("--tries", "2", "--seeds", "2", "--epochs", "1", "--learning-rates", "0.1"),
)
STUDIES = {"compare": COMPARE, "reproduce": ("reproduce", "identity", "--scale", "smoke")}


def words(case: str, folder: Path) -> tuple[str, ...]:
    """The command of a case, whose files are in the folder."""
    small.federation_file(folder / "data.npz")
    if case in STUDIES:
        return *STUDIES[case], "--processes", "2"
    whole = small.experiment(folder / "data.npz", rounds=(40, 40))
    stages = whole.stages
    if case == "centralized":
        stages = (Centralized("pooled", Optimizer("sgd", 0.05), rounds=60, steps=3, batch_size=4),)
    elif case in METHODS:
        stages = (Stage(case, METHODS[case], SGD, 60, 3),)
    fields = to_json(whole) | {"stages": to_json(stages)}
    write_json(folder / "experiment.json", fields)
    devices = "2" if case == "two devices" else "1"
    return "run", "experiment.json", "--checkpoint-seconds", "0", "--devices", devices


@pytest.mark.parametrize("case", [*RUNS, *STUDIES])
def test_a_command_killed_at_random_moments_ends_with_the_same_bits(case, tmp_path):
    command, generator = words(case, tmp_path), np.random.default_rng(3)
    assert finish(start(command, tmp_path, "undisturbed")) == 0
    kills = 0
    for _ in range(KILLS):
        process = start(command, tmp_path, "killed")
        assert process.stdout is not None
        process.stdout.readline()
        try:
            process.wait(generator.uniform(0, 2))
        except TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        finish(process)
        # Whoever worked for it ends with it.
        until(lambda session=process.pid: not members(session))
    assert finish(start(command, tmp_path, "killed")) == 0
    assert kills, "it was never killed"
    assert contents(tmp_path / "killed") == contents(tmp_path / "undisturbed")


def start(command: tuple[str, ...], folder: Path, out: str) -> Popen:
    """The command in a session of its own."""
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONPATH": str(Path(headstart.__file__).parents[1])}
    program = (sys.executable, "-m", "headstart", *command, "--out", out)
    return Popen(program, stdout=PIPE, stderr=DEVNULL, text=True, env=environment, start_new_session=True, cwd=folder)


def finish(process: Popen) -> int:
    """Read what it prints until it ends; returns its exit code."""
    assert process.stdout is not None
    with process.stdout:
        process.stdout.read()
    return process.wait()


def members(session: int) -> list[int]:
    """The processes of a session that have not ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, own = path.read_text().rpartition(")")[2].split()[:4]
        except (OSError, ValueError):
            continue  # it has just ended
        if int(own) == session and state != "Z":
            found.append(int(path.parent.name))
    return found


def contents(out: Path) -> dict[str, Any]:
    """All that a command leaves, by file, but for times and the names of the folder."""
    older = {path for folder in out.rglob("checkpoints") for path in sorted(folder.iterdir())[:-1]}
    readers = {".safetensors": state, ".npz": arrays, ".json": document, ".jsonl": log}
    files = (path for path in out.rglob("*") if path.suffix in readers and path.name != "environment.json")
    return {str(path.relative_to(out)): readers[path.suffix](path) for path in sorted(set(files) - older)}


def state(path: Path) -> Any:
    found, about = read_arrays(path)
    return {name: (str(array.dtype), array.tobytes()) for name, array in found.items()}, about


def arrays(path: Path) -> Any:
    with np.load(path) as file:
        return {name: (str(file[name].dtype), file[name].tobytes()) for name in file.files}


def document(path: Path) -> Any:
    return timeless(json.loads(path.read_text().replace("undisturbed", "killed")))


def log(path: Path) -> Any:
    return [timeless(json.loads(line)) for line in path.read_text().splitlines()]


def timeless(value: Any) -> Any:
    if isinstance(value, dict):
        if {"head", "rows"} <= value.keys():
            value = value | {"rows": [_timeless_row(value, row) for row in value["rows"]]}
        return {key: timeless(item) for key, item in value.items() if key != "seconds"}
    return [timeless(item) for item in value] if isinstance(value, list) else value


def _timeless_row(table: dict[str, Any], row: list[str]) -> list[str]:
    """A row of a table of a study, without its times."""
    timed = "time of" in table["title"]
    return [cell for head, cell in zip(table["head"], row, strict=True) if not (timed or "seconds" in head)]
