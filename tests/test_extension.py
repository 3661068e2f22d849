"""A finished run whose last stage gets more rounds ends as if it had had them from the start."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from headstart import Centralized, Optimizer, Schedule, UserError, open_run
from headstart.methods import Scaffold
from headstart.runs.checkpoint import read_arrays
from headstart.runs.extension import reopen
from headstart.runs.log import read_records
from small import experiment, first_stage_only, run


def with_last(whole, **changes):
    """The experiment with another last stage."""
    return replace(whole, stages=(*whole.stages[:-1], replace(whole.stages[-1], **changes)))


def content(out: Path) -> dict:
    """All that a run has come to: its arrays, results and log, but for what takes its time."""
    found = {}
    for path in sorted(out.glob("seed-*/**/*")):
        name = str(path.relative_to(out))
        match path.suffix:
            case ".safetensors":
                arrays, about = read_arrays(path)
                found |= {name: about, **{f"{name} {key}": (a.dtype, a.tobytes()) for key, a in arrays.items()}}
            case ".npz":
                with np.load(path) as arrays:
                    found |= {f"{name} {key}": (arrays[key].dtype, arrays[key].tobytes()) for key in arrays.files}
            case ".json":
                found[name] = json.loads(path.read_text())
            case ".jsonl":
                found[name] = [{**record, "seconds": 0} for record in read_records(path)]
    return found


def assert_extends(whole, few: int, many: int, tmp_path: Path, between=lambda out: None) -> None:
    """Running the last stage for a few rounds and then for many comes to what many alone come to."""
    run(with_last(whole, rounds=many), tmp_path / "whole")
    run(with_last(whole, rounds=few), tmp_path / "out")
    between(tmp_path / "out")
    extended = run(with_last(whole, rounds=many), tmp_path / "out")
    assert extended.finished and extended.notes == ()
    found, expected = content(tmp_path / "out"), content(tmp_path / "whole")
    assert found == expected


def test_a_run_with_more_rounds_goes_on_with_its_optimizers_state(small_data, tmp_path):
    # The last stage has adam's moments, and ends between two evaluations.
    assert_extends(experiment(small_data, rounds=(2, 3)), 3, 7, tmp_path)


@pytest.mark.slow
def test_what_clients_keep_is_kept(small_data, tmp_path):
    whole = experiment(small_data)
    update = Scaffold(learning_rate=0.1, batch_size=4)
    whole = replace(whole, stages=(replace(whole.stages[0], update=update),), evaluate_every=0)
    assert_extends(whole, 3, 5, tmp_path)


@pytest.mark.slow
def test_a_pool_goes_on_where_it_was(small_data, tmp_path):
    pooled = Centralized("pool", Optimizer("adam", 0.01), rounds=3, steps=5, batch_size=4)
    assert_extends(replace(experiment(small_data), stages=(pooled,)), 3, 5, tmp_path)


def test_killed_while_it_was_extended_it_ends_the_same(small_data, tmp_path):
    whole = experiment(small_data, rounds=(2, 3))
    assert_extends(whole, 3, 7, tmp_path, lambda out: (out / "seed-0" / "stage-1.json").unlink())


def test_fewer_rounds_or_another_change_are_refused(small_data, small_run, tmp_path):
    out = shutil.copytree(small_run, tmp_path / "out")
    before, whole = content(out), experiment(small_data)
    for other in (
        with_last(whole, rounds=3),
        with_last(whole, rounds=8, clients_per_round=2),
        replace(with_last(whole, rounds=8), target=0.5),
        replace(whole, stages=(replace(whole.stages[0], rounds=9), whole.stages[1])),
    ):
        with pytest.raises(UserError, match="holds another experiment"):
            run(other, out)
    assert content(out) == before


def test_without_its_last_state_it_is_refused_and_left_as_it_was(small_data, small_run, tmp_path):
    out = shutil.copytree(small_run, tmp_path / "out")
    for state in (out / "seed-0" / "checkpoints").iterdir():
        state.write_bytes(state.read_bytes()[:-1])
    before = (out / "seed-0" / "stage-1.json").read_bytes()
    with pytest.raises(UserError, match="the state at the end of seed-0 is missing or damaged"):
        run(experiment(small_data, rounds=(6, 8)), out)
    assert (out / "seed-0" / "stage-1.json").read_bytes() == before and open_run(out).finished


def test_a_schedule_that_is_over_is_refused(small_data, tmp_path):
    cosine = Optimizer("sgd", 1.0, {}, Schedule("cosine_decay_schedule", {"decay_steps": 2}))
    whole = experiment(small_data)
    whole = replace(whole, stages=(replace(whole.stages[0], server=cosine, rounds=2),))
    run(whole, tmp_path)
    with pytest.raises(
        UserError, match=r"the schedule of stage 'FedAvg' \(cosine_decay_schedule\) is over after the 2"
    ):
        run(with_last(whole, rounds=4), tmp_path)
    assert open_run(tmp_path).finished


@pytest.mark.parametrize(
    ("name", "options", "over"),
    [
        ("exponential_decay", {"transition_steps": 4, "decay_rate": 0.5}, False),
        ("exponential_decay", {"transition_steps": 2, "decay_rate": 0.5, "transition_begin": 4}, False),
        ("warmup_constant_schedule", {"peak_value": 2.0, "warmup_steps": 4}, False),
        ("linear_schedule", {"end_value": 0.5, "transition_steps": 8, "transition_begin": 4}, False),
        ("linear_schedule", {"end_value": 0.5, "transition_steps": 4}, True),
        ("linear_schedule", {"end_value": 0.5, "transition_steps": 3, "transition_begin": 1}, True),
        ("cosine_decay_schedule", {"decay_steps": 4, "alpha": 0.1}, True),
    ],
)
def test_only_a_schedule_that_ended_is_over(small_data, tmp_path, name, options, over):
    server = Optimizer("sgd", 1.0, {}, Schedule(name, options))
    extended = with_last(first_stage_only(experiment(small_data)), server=server, rounds=8)
    if over:
        with pytest.raises(UserError, match="is over after the 4 rounds"):
            reopen(tmp_path, extended, 4)
    else:
        reopen(tmp_path, extended, 4)


def test_steps_in_an_exponential_decay_are_no_end(small_data, tmp_path):
    options = {"transition_steps": 5, "decay_rate": 0.5, "staircase": True}
    server = Optimizer("sgd", 1.0, {}, Schedule("exponential_decay", options))
    reopen(tmp_path, with_last(first_stage_only(experiment(small_data)), server=server, rounds=4), 1)
