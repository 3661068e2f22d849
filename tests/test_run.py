"""The loop: what a run leaves behind, and that nothing that happens to it changes the result."""

import os
import resource
import shutil
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from subprocess import PIPE, Popen

import numpy as np
import pytest

import headstart
from headstart import Centralized, Data, Optimizer, Reptile, UserError, load
from headstart.experiment.serialization import to_json
from headstart.runs.checkpoint import read_arrays
from headstart.runs.contents import read_json
from headstart.runs.directory import read_curves
from headstart.runs.log import read_records
from headstart.training.seed_run import Options
from small import experiment, federation_file, first_stage_only, run

KILLED = Path(__file__).parent / "killed.py"


@pytest.fixture
def data(small_data) -> Path:
    return small_data


@pytest.fixture
def undisturbed(small_run) -> Path:
    return small_run


@pytest.fixture
def own(undisturbed, tmp_path) -> Path:
    """A copy of the undisturbed run: who writes a folder, or claims to, has one of its own."""
    return shutil.copytree(undisturbed, tmp_path / "own")


def final_parameters(out: Path, seed: int = 0, stage: int = 1) -> dict[str, np.ndarray]:
    return read_arrays(out / f"seed-{seed}" / f"stage-{stage}.safetensors")[0]


def assert_same_bits(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_a_run_leaves_its_log_its_models_and_per_client_results(undisturbed):
    records = read_records(undisturbed / "seed-0" / "metrics.jsonl")
    assert [r["round"] for r in records if r["event"] == "round"] == list(range(1, 11))
    assert [r["round"] for r in records if r["event"] == "evaluation"] == [0, 2, 4, 6, 8, 10]
    assert {r["stage"] for r in records} == {"FedAvg", "Reptile"}
    for stage in (0, 1):
        report = read_json(undisturbed / "seed-0" / f"stage-{stage}.json")
        ids, curves = read_curves(undisturbed / "seed-0" / f"stage-{stage}.npz", "test")
        sums, counts = curves.metrics["accuracy"]
        assert len(ids) == report["test"]["clients"] == 3
        assert report["test"]["accuracy"]["initial"]["mean"] == pytest.approx(np.mean(sums[:, 0] / counts))


def test_the_length_of_personalization_comes_from_validation_clients(undisturbed):
    _, curves = read_curves(undisturbed / "seed-0" / "stage-1.npz", "validation")
    sums, counts = curves.metrics["accuracy"]
    best = int(np.argmax((sums / counts[:, None]).mean(axis=0)))
    report = read_json(undisturbed / "seed-0" / "stage-1.json")
    assert report["test"]["length"] == report["validation"]["length"] == best


def test_the_rate_of_personalization_is_chosen_on_validation_clients_too(data, undisturbed, tmp_path):
    plain = experiment(data)
    recipe = replace(plain.personalization, learning_rates=(1e-6, 0.1))
    assert run(replace(plain, personalization=recipe), tmp_path).finished
    for stage in (0, 1):
        one, several = (read_json(out / "seed-0" / f"stage-{stage}.json") for out in (undisturbed, tmp_path))
        assert one["test"]["length"] > 0  # so that a rate differs from none
        assert several.pop("edges")[-1].startswith("the largest learning rate") and one.pop("edges") is not None
        assert several == one and several["personal_rate"] == 0.1
    assert headstart.open_run(tmp_path).personal_experiment().personalization == plain.personalization


def test_no_client_is_in_two_groups(undisturbed):
    groups = [read_curves(undisturbed / "seed-0" / "stage-0.npz", group)[0] for group in ("validation", "test")]
    assert not set(groups[0]) & set(groups[1])


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(data, undisturbed, tmp_path):
    assert run(experiment(data), tmp_path / "again", seeds=2).finished
    assert_same_bits(final_parameters(undisturbed), final_parameters(tmp_path / "again"))
    other = final_parameters(tmp_path / "again", seed=1)
    assert any(np.any(other[name] != value) for name, value in final_parameters(undisturbed).items())


def test_a_finished_run_is_not_run_again(data, own):
    before = (own / "seed-0" / "metrics.jsonl").stat().st_mtime_ns
    assert run(experiment(data), own).finished
    assert (own / "seed-0" / "metrics.jsonl").stat().st_mtime_ns == before


@pytest.mark.skipif(
    bool(os.environ.get("JAX_DISABLE_MOST_OPTIMIZATIONS")), reason="bits are promised of programs as users compile them"
)
def test_a_federation_too_large_for_the_device_gives_the_same_bits(data, undisturbed, tmp_path):
    assert run(experiment(data), tmp_path, options=Options(device_bytes=0)).finished
    assert_same_bits(final_parameters(undisturbed), final_parameters(tmp_path))


def test_lanes_change_nothing_but_rounding(data, undisturbed, tmp_path):
    assert run(experiment(data), tmp_path, options=Options(lanes=2)).finished
    for name, value in final_parameters(tmp_path).items():
        np.testing.assert_allclose(value, final_parameters(undisturbed)[name], atol=1e-4)


def start(experiment_file: Path, out: Path, *extra: str, program: Sequence[str] = ("-m", "headstart")) -> Popen:
    """The command in a process group of its own, its lines in a pipe."""
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONPATH": str(Path(headstart.__file__).parents[1])}
    command = [sys.executable, *program, "run", str(experiment_file), "--out", str(out), *extra]
    return Popen(command, stdout=PIPE, text=True, env=environment, start_new_session=True, cwd=out.parent)


def experiment_file(whole, folder: Path) -> Path:
    from headstart.files import write_json

    write_json(folder / "experiment.json", to_json(whole))
    return folder / "experiment.json"


# Two kills, one in each stage; and ten, after a random number of lines.
KILLS = [
    pytest.param((6, 10), (3, 14), id="twice"),
    pytest.param((14, 40), tuple(np.random.default_rng(7).integers(1, 8, 10)), id="ten times", marks=pytest.mark.long),
]


@pytest.mark.parametrize(("rounds", "kills"), KILLS)
def test_killed_at_random_moments_it_ends_with_the_same_bits(data, tmp_path, rounds, kills):
    whole = experiment(data, rounds=rounds)
    assert run(whole, tmp_path / "undisturbed").finished
    file, out, generator = experiment_file(whole, tmp_path), tmp_path / "killed", np.random.default_rng(7)
    rounds_at_kill = []
    for lines in kills:
        # After those lines, then at a random moment within the rounds that follow.
        doom = str(KILLED), str(lines), str(generator.uniform(0, 0.02))
        process = start(file, out, "--checkpoint-seconds", "0", program=doom)
        process.communicate()
        assert process.returncode == -signal.SIGKILL, f"it ended before {rounds_at_kill}"
        records = read_records(out / "seed-0" / "metrics.jsonl") if out.exists() else []
        rounds_at_kill.append(max((r["round"] for r in records), default=0))
    process = start(file, out, "--checkpoint-seconds", "0")
    process.communicate()
    assert process.returncode == 0
    assert min(rounds_at_kill) < rounds[0] < max(rounds_at_kill), f"not both sides of the boundary: {rounds_at_kill}"
    assert_same_bits(final_parameters(tmp_path / "undisturbed"), final_parameters(out))
    log = [[r["round"] for r in read_records(p / "seed-0" / "metrics.jsonl")] for p in (tmp_path / "undisturbed", out)]
    assert log[0] == log[1]


@pytest.mark.slow
def test_ctrl_c_saves_and_the_same_command_goes_on(data, tmp_path):
    whole = experiment(data, rounds=(30, 10))
    assert run(whole, tmp_path / "undisturbed").finished
    file, out = experiment_file(whole, tmp_path), tmp_path / "interrupted"
    process = start(file, out)
    assert process.stdout is not None
    with process.stdout:
        lines = [process.stdout.readline() for _ in range(4)]
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
    assert process.wait() == 130, lines
    assert "Repeat the same command to resume" in rest
    assert not (out / "seed-0" / "stage-1.json").exists()
    process = start(file, out)
    assert process.stdout is not None
    with process.stdout:
        assert "resumes after round" in process.stdout.read()
    assert process.wait() == 0
    assert_same_bits(final_parameters(tmp_path / "undisturbed"), final_parameters(out))


def damaged_and_resumed(whole, out: Path, damage) -> list[str]:
    """Run the first stage, damage its newest state, then run the whole; returns the notes on the way."""
    half = first_stage_only(whole)
    assert run(half, out).finished
    for path in out.glob("seed-0/stage-0.*"):
        path.unlink()
    newest = sorted((out / "seed-0" / "checkpoints").glob("*"))[-1]
    damage(newest)
    notes = []
    assert run(half, out, on_event=lambda record: notes.append(record.get("text", ""))).finished
    return [note for note in notes if note]


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda path: path.write_bytes(path.read_bytes()[:-9]), id="truncated"),
        pytest.param(lambda path: path.write_bytes(b""), id="empty"),
        pytest.param(
            lambda path: path.write_bytes(path.read_bytes()[:-4] + bytes([1, 2, 3, 4])), id="a few bytes changed"
        ),
    ],
)
def test_a_damaged_state_is_passed_over_for_the_one_before(data, undisturbed, tmp_path, damage):
    notes = damaged_and_resumed(experiment(data), tmp_path / "out", damage)
    assert "damaged" in notes[0]
    assert "resumes after round 5" in notes[1]
    assert_same_bits(final_parameters(undisturbed, stage=0), final_parameters(tmp_path / "out", stage=0))


def test_a_folder_of_another_experiment_is_left_alone(data, own):
    before = (own / "experiment.json").read_bytes()
    with pytest.raises(UserError, match=r"another experiment \(evaluate_every was 2, now 3\)"):
        run(replace(experiment(data), evaluate_every=3), own)
    assert (own / "experiment.json").read_bytes() == before


def test_a_folder_with_other_files_is_left_alone(data, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="holds files but no experiment"):
        run(experiment(data), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("name", [".env", ".git/config", ".lock", ".experiment.json.0123abcd", "experiment.json"])
def test_a_folder_with_hidden_files_is_left_alone(data, tmp_path, name):
    file = tmp_path / "out" / name
    file.parent.mkdir(parents=True)
    file.write_text("SECRET=1")
    if name == "experiment.json":  # of this experiment, and nothing else of a run
        experiment_file(experiment(data), tmp_path / "out")
        (tmp_path / "out" / ".netrc").write_text("a password")
    before = {path: path.read_bytes() for path in sorted((tmp_path / "out").rglob("*")) if path.is_file()}
    with pytest.raises(UserError, match="holds files but no experiment"):
        run(experiment(data), tmp_path / "out")
    assert {path: path.read_bytes() for path in sorted((tmp_path / "out").rglob("*")) if path.is_file()} == before


def test_resuming_removes_leftovers_of_its_own_and_nothing_else(data, own):
    mine = [own / ".headstart-tmp-0a1b2c3d", own / "seed-0" / "checkpoints" / ".headstart-tmp-00000000"]
    others = [own / ".env", own / ".report.html.0123abcd", own / "seed-0" / ".gitkeep", own / "a" / mine[0].name]
    (own / "a").mkdir()
    for path in (*mine, *others):
        path.write_text("x")
    assert run(experiment(data), own).finished
    assert [path.exists() for path in (*mine, *others)] == [False] * len(mine) + [True] * len(others)


def test_two_runs_cannot_write_one_folder(data, own):
    from headstart.runs.directory import claimed

    whole, federation = experiment_of(own), load(str(data), raw=True)
    with (
        claimed(own, whole, federation),
        pytest.raises(UserError, match="another process is writing"),
        claimed(own, whole, federation),
    ):
        pass


def test_data_that_changed_behind_the_same_path_are_another_run(tmp_path):
    whole = experiment(federation_file(tmp_path / "data.npz"))
    whole = first_stage_only(whole)
    assert headstart.run(whole, tmp_path / "out", progress=False).finished
    federation_file(tmp_path / "data.npz", seed=1)
    with pytest.raises(UserError, match="have changed since"):
        headstart.run(whole, tmp_path / "out", progress=False)


def experiment_of(out: Path):
    from headstart.experiment.loading import read

    return read(read_json(out / "experiment.json"))


def test_training_that_diverges_stops_with_stage_and_round(data, tmp_path):
    whole = experiment(data)
    wild = replace(whole.stages[1], update=Reptile(3, 1e30, 4))
    with pytest.raises(UserError, match=r"diverged in stage 'Reptile', round 7 of seed 0"):
        run(replace(whole, stages=(whole.stages[0], wild)), tmp_path)
    assert (tmp_path / "seed-0" / "stage-0.safetensors").exists()


def test_a_cohort_larger_than_the_federation_is_refused(data, tmp_path):
    whole = experiment(data)
    with pytest.raises(UserError, match=r"cohort of 20 clients, more than the 7 training clients"):
        run(replace(whole, stages=(replace(whole.stages[0], clients_per_round=20),)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_split_that_leaves_nobody_to_test_on_is_refused(data, tmp_path):
    with pytest.raises(UserError, match="leave no test client among the 12"):
        run(replace(experiment(data), data=Data(str(data), train=11, validation=1)), tmp_path / "out")


@pytest.mark.parametrize("where", ["under a file", "of the system"])
def test_a_folder_that_cannot_be_written_is_refused(data, tmp_path, where):
    (tmp_path / "file").write_text("")
    out = {"under a file": tmp_path / "file" / "out", "of the system": Path("/proc/headstart")}[where]
    with pytest.raises(UserError, match="cannot write the folder"):
        run(experiment(data), out)


def test_a_full_disk_leaves_what_was_saved_and_the_run_goes_on_later(data, undisturbed, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, limits[1]))
    try:
        with pytest.raises(UserError, match=r"cannot write .*; make room"):
            run(experiment(data), tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert [path.name for path in tmp_path.rglob(".*")] == [".lock"]
    assert run(experiment(data), tmp_path / "out").finished
    assert_same_bits(final_parameters(undisturbed), final_parameters(tmp_path / "out"))


def test_the_datacenter_baseline_runs_behind_the_same_contract(data, tmp_path):
    pooled = Centralized("datacenter", Optimizer("sgd", 0.1), rounds=8, steps=20, batch_size=4)
    whole = replace(experiment(data), stages=(pooled,), evaluate_every=4)
    assert run(whole, tmp_path).finished
    report = read_json(tmp_path / "seed-0" / "stage-0.json")
    assert report["test"]["accuracy"]["initial"]["mean"] > 0.6


def test_without_validation_clients_the_whole_length_is_used(data, tmp_path):
    whole = first_stage_only(experiment(data))
    assert run(replace(whole, data=replace(whole.data, validation=0.0)), tmp_path).finished
    assert read_json(tmp_path / "seed-0" / "stage-0.json")["test"]["length"] == whole.personalization.epochs
