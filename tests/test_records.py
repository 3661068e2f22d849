"""Records: results of studies' runs that outlive the runs' folders."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

from headstart import Optimizer
from headstart.errors import UserError
from headstart.studies.paper.tuning import widened
from headstart.studies.records import spent
from headstart.studies.runner import Runs
from headstart.training.divergence import DivergedError
from small import experiment, federation_file, first_stage_only


@pytest.fixture
def plain(tmp_path):
    """One stage of six rounds, evaluated along training."""
    return first_stage_only(experiment(federation_file(tmp_path / "data.npz")))


@pytest.fixture
def done():
    return []


@pytest.fixture
def runs(tmp_path, done):
    """Runs as each command makes them anew."""
    return lambda: Runs(tmp_path / "runs", seeds=2, log=done.append, records=tmp_path / "records")


def test_what_is_recorded_is_the_same_and_not_run_again(runs, plain, done, tmp_path):
    first = runs().finish({"a": plain})["a"]
    assert len(done) == 2
    shutil.rmtree(tmp_path / "runs")
    again = runs().finish({"a": plain})["a"]
    assert len(done) == 2
    assert again.ids == first.ids and again.command == first.command
    for name, values in again._asdict().items():
        np.testing.assert_array_equal(values, getattr(first, name), err_msg=name)
    more = runs().finish({"a": plain}, seeds=3)["a"]
    assert len(done) == 3
    np.testing.assert_array_equal(more.curves[:2], first.curves)
    assert spent(tmp_path / "records") > 0


def test_records_are_of_the_data_wherever_their_file_is(runs, plain, done, tmp_path):
    runs().finish({"a": plain}, seeds=1)
    shutil.rmtree(tmp_path / "runs")
    (tmp_path / "elsewhere").mkdir()
    moved = shutil.move(tmp_path / "data.npz", tmp_path / "elsewhere" / "data.npz")
    runs().finish({"a": replace(plain, data=replace(plain.data, source=str(moved)))}, seeds=1)
    assert len(done) == 1


def test_participants_are_on_record_too(runs, plain, done, tmp_path):
    plain = replace(plain, participants=2, data=replace(plain.data, hold_out=True))
    assert not runs().participants({"a": plain}, seeds=1)
    runs().finish({"a": plain}, seeds=1)
    shutil.rmtree(tmp_path / "runs")
    again = runs()
    again.finish({"a": plain}, seeds=1)
    assert len(done) == 1
    assert again.participants({"a": plain}, seeds=1)["a"].curves.shape[1] > 0


def test_whole_seeds_come_first(runs, plain, done):
    runs().finish({"a": plain, "b": replace(plain, name="b")})
    assert [line.rpartition(", seed ")[2] for line in done] == ["0", "0", "1", "1"]


def test_what_is_finished_when_others_are_stopped_is_on_record(plain, done, tmp_path):
    def stop(line):
        done.append(line)
        raise KeyboardInterrupt

    for log in (stop, done.append):
        runs = Runs(tmp_path / "runs", seeds=2, log=log, records=tmp_path / "records")
        if log is stop:
            with pytest.raises(KeyboardInterrupt):
                runs.finish({"a": plain})
            shutil.rmtree(tmp_path / "runs")
        else:
            runs.finish({"a": plain})
    assert [line.rpartition(", seed ")[2] for line in done] == ["0", "1"]


def test_records_of_other_data_are_not_used(runs, plain, done, tmp_path):
    first = runs().finish({"a": plain})["a"]
    shutil.rmtree(tmp_path / "runs")
    federation_file(tmp_path / "data.npz", seed=1)
    changed = runs().finish({"a": plain})["a"]
    assert len(done) == 4 and not np.array_equal(changed.curves, first.curves)


def test_divergence_is_remembered(runs, plain, done, tmp_path):
    wild = replace(plain, stages=(replace(plain.stages[0], server=Optimizer("sgd", 1e30)),))
    for expected in (2, 2):
        with pytest.raises(DivergedError, match="round"):
            runs().finish({"wild": wild})
        assert len(done) == expected
        shutil.rmtree(tmp_path / "runs", ignore_errors=True)


def test_divergence_on_other_data_is_none_on_these(runs, plain, done, tmp_path):
    wild = replace(plain, stages=(replace(plain.stages[0], server=Optimizer("sgd", 1e30)),))
    with pytest.raises(DivergedError):
        runs().finish({"wild": wild}, seeds=1)
    shutil.rmtree(tmp_path / "runs")
    federation_file(tmp_path / "data.npz", seed=1)
    with pytest.raises(DivergedError):
        runs().finish({"wild": wild}, seeds=1)
    assert len(done) == 2


def test_parameters_that_a_stage_starts_from_are_made_again(runs, plain, done, tmp_path):
    def second():
        these = runs()
        first = these.finish({"first": plain}, seeds=1)["first"]
        return first, these.finish({"second": replace(plain, name="b", start=these.start(plain))}, seeds=1)["second"]

    kept = second()
    assert len(done) == 2
    shutil.rmtree(tmp_path / "runs")
    shutil.rmtree(next((tmp_path / "records").glob("b-*")))
    again = second()
    assert len(done) == 4
    for one, other in zip(kept, again, strict=True):
        np.testing.assert_array_equal(one.curves, other.curves)


def test_a_damaged_record_says_what_to_do(runs, plain, tmp_path):
    runs().finish({"a": plain}, seeds=1)
    (record,) = (tmp_path / "records").glob("*/*.npz")
    record.write_bytes(record.read_bytes()[:100])
    with pytest.raises(UserError, match=r"no record of a run, or a damaged one .* delete it"):
        runs().finish({"a": plain}, seeds=1)


@pytest.mark.parametrize(
    ("learning_rates", "best", "wider"),
    [
        ([0.01, 0.02, 0.05], 0.02, [0.01, 0.02, 0.05]),
        ([0.02, 0.01, 0.05], 0.05, [0.01, 0.02, 0.05, 0.1]),
        ([0.01, 0.02, 0.05], 0.01, [0.005, 0.01, 0.02, 0.05]),
        ([0.02], 0.02, [0.02]),
        ([0.5, 1.0], 1.0, [0.5, 1.0, 2.0]),
        ([0.003, 0.01], 0.003, [0.002, 0.003, 0.01]),
    ],
)
def test_a_grid_goes_on_beyond_the_edge_that_suits_best(learning_rates, best, wider):
    assert widened(learning_rates, best) == pytest.approx(wider)
