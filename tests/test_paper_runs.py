"""The runs of studies: done once, side by side or not, and what is read of them."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from headstart import FedSGD, Optimizer, Schedule
from headstart.devices import cores
from headstart.errors import UserError
from headstart.experiment.loading import document_of
from headstart.files import write_json
from headstart.runs.directory import read_curves
from headstart.studies.pool import Job, Pool, Worker, _Waiting
from headstart.studies.runner import TUNING_SEED, Runs
from headstart.training.compilation_cache import ProgramCache, crowded
from headstart.training.run import run_into
from small import experiment, federation_file, first_stage_only


@pytest.fixture
def plain(tmp_path):
    """One stage of six rounds, evaluated along training."""
    return first_stage_only(experiment(federation_file(tmp_path / "data.npz")))


@pytest.fixture
def messages():
    return []


@pytest.fixture
def runs(tmp_path, messages):
    return Runs(tmp_path / "runs", seeds=2, log=messages.append)


def with_server(plain, learning_rate, **options):
    return replace(plain, stages=(replace(plain.stages[0], server=Optimizer("sgd", learning_rate, options)),))


def test_what_is_finished_is_not_run_again_and_more_seeds_add_to_it(runs, messages, plain):
    first = runs.finish({"a": plain})["a"]
    assert len(messages) == 2
    again = runs.finish({"a": plain}, seeds=3)["a"]
    assert len(messages) == 3
    np.testing.assert_array_equal(again.curves[:2], first.curves)
    assert first.curves.shape[::2] == (2, 3)
    assert first.history.shape[:2] == (2, len(first.rounds))
    np.testing.assert_array_equal(first.initial, first.curves[:, :, 0])
    for seed, epochs in enumerate(first.epochs):
        np.testing.assert_array_equal(first.personalized[seed], first.curves[seed, :, epochs])


@pytest.mark.slow
def test_the_results_are_those_of_the_command_that_is_told(runs, plain, command):
    result = runs.finish({"a": plain}, seeds=2)["a"]
    words = result.command.split()
    assert words[0] == "headstart"
    assert command(*words[1:])[0] == 0
    for seed in range(2):
        curves = read_curves(Path(words[-1]) / f"seed-{seed}" / "stage-0.npz", "test")[1]
        sums, counts = curves.metrics["accuracy"]
        values = (sums / counts[:, None])[counts > 0]
        np.testing.assert_allclose(values, result.curves[seed], rtol=1e-6)


def test_finished_runs_of_other_data_or_code_are_not_shown(plain, tmp_path, monkeypatch):
    def finished(plan):
        # A command of its own: nothing is prepared yet.
        done = []
        return Runs(tmp_path / "runs", seeds=1, log=done.append).finish({"a": plan})["a"], len(done)

    before, _ = finished(plain)
    kept = (tmp_path / "data.npz").read_bytes()
    federation_file(tmp_path / "data.npz", seed=1)
    changed, count = finished(plain)
    assert count == 1 and not np.array_equal(changed.curves, before.curves)
    assert finished(plain)[1] == 0
    (tmp_path / "data.npz").write_bytes(kept)
    again, count = finished(plain)
    assert count == 0
    np.testing.assert_array_equal(again.curves, before.curves)

    monkeypatch.setattr("headstart.studies.runner.code_digests", lambda experiment: {"mine": "other"})
    assert finished(plain)[1] == 1


def test_a_choice_sees_validation_clients_alone_and_passes_over_what_diverges(runs, messages, plain):
    candidates = {"slow": with_server(plain, 1e-3), "good": plain, "wild": with_server(plain, 1e30)}
    choice, results = runs.choose("rate", candidates, seeds=2)
    assert np.isnan(choice.values["wild"])
    assert set(results) == {"slow", "good"}
    means = {name: result.personalized.mean() for name, result in results.items()}
    assert choice.chosen == max(means, key=means.__getitem__)
    assert choice.values["good"] == pytest.approx(means["good"])
    for folder in (runs.root).glob(f"*/{TUNING_SEED}/seed-*"):
        report = json.loads((folder / "stage-0.json").read_text()) if (folder / "stage-0.json").exists() else {}
        assert "test" not in report
    count = len(messages)
    runs.choose("rate", candidates, seeds=2)
    assert len(messages) == count


def test_a_choice_in_which_all_diverge_says_so(runs, plain):
    with pytest.raises(UserError, match="every candidate for rate diverged"):
        runs.choose("rate", {"wild": with_server(plain, 1e30)}, seeds=1)


@pytest.mark.slow
def test_an_experiment_goes_on_where_another_ended_seed_by_seed(runs, plain):
    runs.finish({"first": plain})
    second = runs.finish({"second": replace(plain, start=runs.start(plain))})["second"]
    first = runs.finish({"first": plain})["first"]
    np.testing.assert_allclose(second.history[:, 0], first.history[:, -1])


def test_the_folder_does_not_depend_on_where_the_runs_are(tmp_path, plain):
    one, other = (Runs(tmp_path / name, seeds=1) for name in ("one", "other"))
    ahead = [runs.folder(replace(plain, start=runs.start(plain))).name for runs in (one, other)]
    assert ahead[0] == ahead[1]
    assert one.folder(plain).name == one.folder(replace(plain, seed=5)).name
    assert one.folder(plain).name != one.folder(replace(plain, test=False)).name


@pytest.mark.slow
def test_processes_side_by_side_come_to_the_same(runs, plain, tmp_path, messages):
    alone = runs.finish({"a": plain})["a"]
    with Pool(2) as pool:
        beside = Runs(tmp_path / "beside", seeds=2, log=messages.append, pool=pool)
        beside.finish({"a": with_server(plain, 0.3)})
        processes = working()
        together = beside.finish({"a": plain})["a"]
        # What they have compiled serves the next runs, too.
        assert working() == processes and len(processes) == min(2, len(cores()))
    np.testing.assert_allclose(together.curves, alone.curves, rtol=1e-5)
    assert not working()


def working() -> list[str]:
    """The processes that this one has do runs."""
    words = ["pgrep", "-P", str(os.getpid()), "-f", "studies.worker"]
    return subprocess.run(words, stdout=subprocess.PIPE, text=True).stdout.split()


def test_a_process_prefers_runs_like_those_it_has_done_and_leaves_others_theirs(plain, tmp_path):
    other = replace(plain, stages=(replace(plain.stages[0], update=FedSGD(0.1)),))
    jobs = [
        Job(each, tmp_path / "a.json", tmp_path / str(number))
        for number, each in enumerate((plain, with_server(plain, 0.1), other, other, plain))
    ]
    waiting, one, two = _Waiting(jobs), set(), set()
    taken = []
    for known in (one, two, one, two, one):
        job = waiting.take(known)
        known.add(job.kind)
        taken.append(job.folder.name)
    assert taken == ["0", "2", "1", "3", "4"]
    # Nobody is idle while there is something to do.
    waiting = _Waiting(jobs[:3])
    assert [waiting.take(set()).folder.name for _ in range(3)] == ["0", "2", "1"]


def test_a_run_that_fails_elsewhere_is_told_with_its_reason(plain, tmp_path):
    broken = replace(plain, start=str(tmp_path / "nothing.safetensors"))
    with Pool(2) as pool, pytest.raises(UserError, match="nothing"):
        Runs(tmp_path / "runs", seeds=1, pool=pool).finish({"a": broken})


@pytest.mark.slow
@pytest.mark.skipif(len(cores()) < 2, reason="a single core has no other processes do its runs")
def test_after_runs_that_fail_others_are_done_by_processes_of_their_own(plain, tmp_path, messages, capfd):
    broken = replace(plain, start=str(tmp_path / "nothing.safetensors"))
    with Pool(2) as pool:
        runs = Runs(tmp_path / "runs", seeds=1, log=messages.append, pool=pool)
        with pytest.raises(UserError, match="nothing"):
            runs.finish({"broken": broken, "a": plain})
        assert not working()
        # The one that was stopped is done now; the process of the other would have answered for it.
        assert runs.finish({"a": plain, "b": with_server(plain, 0.3)}).keys() == {"a", "b"}
        for process in working():
            os.kill(int(process), signal.SIGKILL)
        with pytest.raises(UserError, match="has ended; repeat the command"):
            runs.finish({"c": with_server(plain, 0.5)})
        assert not working()
    assert "Traceback" not in capfd.readouterr().err


def test_a_request_to_stop_is_not_lost_in_a_callback_of_garbage():
    """An exception that is raised there is printed, and forgotten."""
    code = """
import gc, os, signal, time
from headstart.studies.worker import _interrupt
for number in (signal.SIGTERM, signal.SIGALRM):
    signal.signal(number, _interrupt)
def _xla_gc_callback(phase, info):
    if phase == "start" and not seen:
        seen.append(os.kill(os.getpid(), signal.SIGTERM))
seen = []
gc.callbacks.append(_xla_gc_callback)
try:
    gc.collect()
    time.sleep(60)
except KeyboardInterrupt:
    print("stopped")
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (found.stdout, found.stderr) == ("stopped\n", "")


@pytest.mark.slow
def test_a_run_that_is_stopped_in_a_process_of_a_study_comes_to_the_same_bits(plain, tmp_path):
    """Of Adam on a schedule, by the program that serves every usual server and every schedule."""
    server = Optimizer("adam", 0.03, {}, Schedule("cosine_decay_schedule", {"decay_steps": 100}))
    plan = replace(plain, stages=(replace(plain.stages[0], server=server, rounds=100),))
    whole, stopped = (Job(plan, tmp_path / "plan.json", tmp_path / name / "0") for name in ("whole", "stopped"))
    write_json(whole.file, document_of(plan))
    with Worker(cores()) as worker, ThreadPoolExecutor() as threads:
        # Another kind of server first, whose program it shares.
        other = Job(with_server(plain, 1.0, momentum=0.9), tmp_path / "other.json", tmp_path / "other" / "0")
        write_json(other.file, document_of(other.experiment))
        assert [worker(other), worker(whole)] == ["done", "done"]
        answer, log = threads.submit(worker, stopped), stopped.results / "metrics.jsonl"
        while not answer.done() and not (log.exists() and '"round": 10,' in log.read_text()):
            time.sleep(0.01)
        worker.process.terminate()
        assert answer.result() == "interrupted" and not stopped.done
    with Worker(cores()) as worker:
        assert worker(stopped) == "done"
    one, other = (load_file(job.results / "stage-0.safetensors") for job in (whole, stopped))
    assert all(np.array_equal(one[name], other[name]) for name in one)
    # The file of parameters names its run.
    for name in ("stage-0.npz", "stage-0.json"):
        assert (stopped.results / name).read_bytes() == (whole.results / name).read_bytes(), name


@pytest.mark.slow
def test_ctrl_c_stops_the_runs_and_the_next_call_goes_on(runs, plain, messages):
    def stop(text: str) -> None:
        messages.append(text)
        signal.raise_signal(signal.SIGINT)

    jobs = [Job(replace(plain, seed=seed), runs.root / "a.json", runs.root / str(seed)) for seed in range(2)]
    earlier = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have had it ignored
    try:
        with pytest.raises(KeyboardInterrupt):
            Pool(1).run(jobs, stop)
    finally:
        signal.signal(signal.SIGINT, earlier)
    assert [job.done for job in jobs] == [True, False]
    Pool(1).run([job for job in jobs if not job.done], messages.append)
    assert all(job.done for job in jobs)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="memory maps are counted on Linux")
def test_programs_are_let_go_before_a_process_has_no_room_for_more(plain, tmp_path, monkeypatch):
    def maps() -> int:
        return len(Path("/proc/self/maps").read_bytes().splitlines())

    cache = ProgramCache()
    # Options of an optimizer are in its program.
    for number, momentum in enumerate((0.1, 0.2, 0.3)):
        run_into(with_server(plain, 1.0, momentum=momentum), tmp_path / str(number), cache=cache)
    many = maps()
    # As if there were room for a few more.
    monkeypatch.setattr(sys.modules[ProgramCache.__module__], "crowded", lambda: maps() > many - 100)
    run_into(with_server(plain, 1.0, momentum=0.1), tmp_path / "again", cache=cache)
    assert maps() < many - 100
    first, again = (load_file(tmp_path / folder / "seed-0" / "stage-0.safetensors") for folder in ("0", "again"))
    assert first.keys() == again.keys()
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert crowded() == (maps() > int(Path("/proc/sys/vm/max_map_count").read_text()) // 2)
