"""Clusters of real processes: the same results, one writer, and a quick end for all when one is lost."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import cluster_member
import small
import tiny
from headstart import ModelSpec, UserError
from headstart.experiment.serialization import to_json
from headstart.files import write_json
from headstart.training.cluster import LOST, Membership, means_loss, membership
from headstart.training.sampling import sample
from patience import HANGS, factor, until

HERE = Path(__file__).parent
PATHS = os.pathsep.join(filter(None, (str(HERE), os.environ.get("PYTHONPATH"))))
ENVIRONMENT = {**os.environ, "PYTHONPATH": PATHS, "JAX_ENABLE_X64": "1"}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextmanager
def started(commands: Sequence[Sequence[object]], devices: int = 1) -> Iterator[list[subprocess.Popen]]:
    """These commands as processes of this many devices each; nothing is left behind."""
    processes = [
        subprocess.Popen(
            [sys.executable, *map(str, command)],
            env=ENVIRONMENT | {"JAX_NUM_CPU_DEVICES": str(devices)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for command in commands
    ]
    try:
        yield processes
    finally:
        for process in processes:
            for one in (*children(process), process.pid):
                with suppress(ProcessLookupError):
                    os.kill(one, signal.SIGKILL)
            process.communicate()


def children(process: subprocess.Popen) -> list[int]:
    try:
        return list(map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()))
    except OSError:
        return []


def members(count: int, *arguments: object, out: Path) -> list[list[object]]:
    """The commands of a cluster; every process is given another folder, of which only the first may appear."""
    options = "--coordinator", f"127.0.0.1:{free_port()}", "--processes", count
    run = "-m", "headstart", "run", *arguments, "--import", "tiny", "--devices", 1, *options
    return [[*run, "--process-id", i, "--out", out / f"run-{i}"] for i in range(count)]


def finished(processes: Sequence[subprocess.Popen]) -> list[tuple[int, str]]:
    """Exit status and errors of each."""
    ends = [process.communicate(timeout=HANGS) for process in processes]
    return [(process.returncode, errors) for process, (_, errors) in zip(processes, ends, strict=True)]


def experiment_file(folder: Path, rounds: tuple[int, int] = (6, 4)) -> Path:
    """Two stages of a model in float64."""
    federation = tiny.federation(np.random.default_rng(0).integers(3, 12, (12, 2)))
    client = np.repeat(list(federation.ids), federation.sizes.sum(axis=1))
    x, y = federation.fetch(np.arange(len(federation)))
    np.savez(folder / "tiny.npz", client=client, x=x, y=y)
    whole = replace(small.experiment(folder / "tiny.npz", rounds=rounds), model=ModelSpec("tiny:SOFTMAX"))
    write_json(folder / "tiny.json", to_json(whole))
    return folder / "tiny.json"


def parameters(run: Path, stage: int = 1) -> np.ndarray:
    tree = load_file(run / "seed-0" / f"stage-{stage}.safetensors")
    return np.concatenate([tree[name].ravel() for name in sorted(tree)])


def alone(command, file: Path, out: Path, *words: object) -> Path:
    code, _, errors = command("run", file, "--out", out, "--import", "tiny", "--devices", 1, *words)
    assert code == 0, errors
    return out


def log(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "seed-0" / "metrics.jsonl").read_text().splitlines()]


EVERY = list(cluster_member.UPDATES)


@pytest.mark.slow
@pytest.mark.parametrize(("count", "devices", "updates"), [(2, 1, EVERY), (4, 1, ["fedavg"]), (1, 8, EVERY)])
def test_every_update_is_the_same_to_rounding_and_processes_read_their_own_clients(count, devices, updates, tmp_path):
    port = free_port()
    member = HERE / "cluster_member.py", f"127.0.0.1:{port}"
    commands = [[*member, count, i, tmp_path, *updates] for i in range(count)]
    with started(commands, devices) as processes:
        assert [code for code, _ in finished(processes)] == [0] * count
    with jax.enable_x64(True):
        read: list[int] = []
        alone = {name: cluster_member.trained(cluster_member.UPDATES[name], read) for name in updates}
        alone["personalized"] = cluster_member.personalized()
    for process in range(count):
        with np.load(tmp_path / f"results-{process}.npz") as results:
            for name, expected in alone.items():
                assert results[name].dtype == np.float64
                np.testing.assert_allclose(results[name], expected, rtol=1e-10, atol=1e-12)
    pieces = [json.loads((tmp_path / f"read-{i}.json").read_text()) for i in range(count)]
    # One process has all rows on its devices, whoever is drawn.
    for update in pieces[0] if count > 1 else ():
        cohorts = [sample(0, 1 + number, 5, len(cluster_member.SIZES)) for number in range(cluster_member.ROUNDS)]
        # Every client of every cohort is read once, by one process.
        assert sorted(client for piece in pieces for client in piece[update]) == sorted(np.concatenate(cohorts))


def test_an_experiment_of_two_stages_is_that_of_one_process_and_only_the_first_writes(tmp_path, command, float64):
    file = experiment_file(tmp_path)
    with started(members(2, file, out=tmp_path)) as processes:
        assert [code for code, _ in finished(processes)] == [0, 0]
    assert not (tmp_path / "run-1").exists()
    whole = alone(command, file, tmp_path / "alone")
    for stage in (0, 1):
        assert parameters(whole, stage).dtype == np.float64
        np.testing.assert_allclose(parameters(tmp_path / "run-0", stage), parameters(whole, stage), rtol=1e-9)
    assert [r["round"] for r in log(tmp_path / "run-0")] == [r["round"] for r in log(whole)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "rounds", "mark", "count"),
    [
        (signal.SIGINT, (150, 4), "checkpoints/round-*", 3),
        (signal.SIGTERM, (6, 150), "stage-0.json", 1),
    ],
    ids=["in the first stage", "after the first stage"],
)
def test_an_interrupted_cluster_resumes_with_more_or_fewer_processes(
    number, rounds, mark, count, tmp_path, command, float64
):
    file = experiment_file(tmp_path, rounds=rounds)
    with started(members(2, file, "--checkpoint-seconds", 0.1, out=tmp_path)) as processes:
        until(lambda: any((tmp_path / "run-0").glob(f"seed-0/{mark}")), lambda: processes[0].poll() is None)
        processes[1].send_signal(number)
        assert [code for code, _ in finished(processes)] == [130, 130]
    assert not (tmp_path / "run-0" / "seed-0" / "stage-1.json").exists()
    if count == 1:
        alone(command, file, tmp_path / "run-0")
    else:
        with started(members(count, file, out=tmp_path)) as processes:
            assert [code for code, _ in finished(processes)] == [0] * count
    whole = alone(command, file, tmp_path / "alone")
    np.testing.assert_allclose(parameters(tmp_path / "run-0"), parameters(whole), rtol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lost", "blow"),
    [(1, signal.SIGKILL), (0, signal.SIGKILL), (0, signal.SIGSTOP)],
    ids=["killed", "coordinator killed", "coordinator hangs"],
)
def test_when_one_is_lost_the_others_leave_with_a_sentence(lost, blow, tmp_path):
    file = experiment_file(tmp_path, rounds=(100_000, 4))
    with started(members(2, file, "--checkpoint-seconds", 0.1, out=tmp_path)) as processes:
        saved = tmp_path / "run-0" / "seed-0" / "checkpoints"
        until(lambda: saved.exists() and any(saved.glob("round-*")), lambda: processes[0].poll() is None)
        os.kill(children(processes[lost])[0], blow)
        ((code, errors),) = finished([processes[1 - lost]])
        assert code == LOST
        assert len(errors.strip().splitlines()) == 1
        assert "what was saved last is kept" in errors


@pytest.mark.parametrize(
    ("error", "loss"),
    [
        (jax.errors.JaxRuntimeError("INTERNAL: Gloo all-gather failed"), True),
        (ValueError("UNKNOWN: Gloo all-reduce failed: Connection reset by peer"), True),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory"), False),
        (ValueError("operands could not be broadcast together"), False),
    ],
)
def test_only_the_runtimes_own_errors_mean_that_a_process_is_lost(error, loss):
    assert means_loss(error) is loss


@pytest.mark.slow
def test_a_process_that_sleeps_with_its_heart_beating_is_given_up(tmp_path):
    whole = json.loads(experiment_file(tmp_path, rounds=(100_000, 4)).read_text())
    whole["model"]["path"] = "hanging:SOFTMAX"
    write_json(tmp_path / "hanging.json", whole)
    words = tmp_path / "hanging.json", "--import", "hanging"
    first, second = members(2, *words, out=tmp_path)
    # Only one of them may lose patience: which watch is first is left to chance, and the other sees its connection end.
    with started([[*first, "--patience", 2 * factor()], [*second, "--patience", HANGS]]) as processes:
        records = tmp_path / "run-0" / "seed-0" / "metrics.jsonl"
        until(lambda: records.exists() and records.read_bytes().count(b"\n") > 40, lambda: processes[0].poll() is None)
        os.kill(children(processes[1])[0], signal.SIGUSR1)
        ((code, errors),) = finished([processes[0]])
    assert code == LOST
    assert "a process hangs" in errors and len(errors.strip().splitlines()) == 1


@pytest.mark.slow
def test_processes_that_differ_are_refused(tmp_path):
    file = experiment_file(tmp_path)
    first, second = members(2, file, out=tmp_path)
    with started([first, [*second, "--set", "stages.0.update.learning_rate=0.3"]]) as processes:
        ends = finished(processes)
    assert [code for code, _ in ends] == [2, 2]
    assert all("not the same experiment" in errors for _, errors in ends)
    assert not (tmp_path / "run-0").exists()


def test_a_cluster_is_joined_by_options_or_as_its_launcher_says():
    assert membership(None, None, None, {}) is None
    assert membership("10.0.0.1:4321", 4, 3, {}) == Membership("10.0.0.1:4321", 4, 3)
    slurm = {"SLURM_STEP_NODELIST": "a[1-2]", "SLURM_PROCID": "1", "SLURM_NTASKS": "2"}
    assert membership(None, None, None, slurm) == Membership()
    assert membership(None, None, None, slurm | {"SLURM_NTASKS": "1"}) is None
    assert membership(None, 1, None, slurm) is None
    assert membership(None, None, None, {"OMPI_COMM_WORLD_SIZE": "2"}) == Membership()
    kubernetes = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}
    assert membership(None, None, None, kubernetes) == Membership()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("10.0.0.1:4321", None, None), "needs all of"),
        (("10.0.0.1", 2, 0), "no HOST:PORT"),
        (("10.0.0.1:4321", 2, 2), "not one of 0 to 1"),
    ],
)
def test_half_a_membership_is_refused(options, sentence):
    with pytest.raises(UserError, match=sentence):
        membership(*options, {})
