"""What an experiment may ask of a run: a start, an early end, fewer examples, no look at test clients."""

import json
from dataclasses import replace

import numpy as np
import pytest

import headstart as hs
from headstart.data.federation import limited, split_examples
from headstart.data.load import load
from headstart.errors import UserError
from headstart.runs import checkpoint
from headstart.runs.log import read_records
from small import experiment, federation_file, first_stage_only, run


@pytest.fixture
def plain(small_data):
    """One stage of six rounds."""
    return first_stage_only(experiment(small_data))


def params(folder, number=0):
    """The initial model a stage ended with."""
    return checkpoint.read_arrays(folder / "seed-0" / f"stage-{number}.safetensors")[0]


def evaluations(folder):
    return [record for record in read_records(folder / "seed-0" / "metrics.jsonl") if record["event"] == "evaluation"]


def test_a_run_starts_from_the_parameters_of_another(plain, tmp_path):
    run(plain, tmp_path / "first")
    start = str(tmp_path / "first" / "seed-{seed}" / "stage-0.safetensors")
    run(replace(plain, start=start), tmp_path / "second")
    ended, began = evaluations(tmp_path / "first")[-1], evaluations(tmp_path / "second")[0]
    assert (ended["round"], began["round"]) == (6, 0)
    assert ended["validation"]["accuracy"] == began["validation"]["accuracy"]
    before, after = params(tmp_path / "first"), params(tmp_path / "second")
    assert any(not np.array_equal(before[name], after[name]) for name in before)


def test_a_start_that_is_of_another_model_is_refused(plain, tmp_path):
    run(plain, tmp_path / "first")
    start = str(tmp_path / "first" / "seed-0" / "stage-0.safetensors")
    other = replace(plain, start=start, model=hs.ModelSpec("mlp", {"widths": (5,)}))
    with pytest.raises(UserError, match="another model"):
        run(other, tmp_path / "second")


def test_a_stage_ends_at_its_target_and_stays_ended(plain, tmp_path):
    run(plain, tmp_path / "whole")
    target = evaluations(tmp_path / "whole")[1]["validation"]["accuracy"][0]
    assert target > evaluations(tmp_path / "whole")[0]["validation"]["accuracy"][0], "the test needs some progress"
    stages = (replace(plain.stages[0], stop_at=target),)
    run(replace(plain, stages=stages), tmp_path / "ended")
    report = json.loads((tmp_path / "ended" / "seed-0" / "stage-0.json").read_text())
    assert report["round"] == evaluations(tmp_path / "ended")[-1]["round"] == 2
    assert evaluations(tmp_path / "ended")[-1]["validation"]["accuracy"] == [target]

    # Killed after the target was reached, before the stage was written: it ends at the same round.
    for name in ("stage-0.json", "stage-0.npz", "stage-0.safetensors"):
        (tmp_path / "ended" / "seed-0" / name).unlink()
    run(replace(plain, stages=stages), tmp_path / "ended")
    again = json.loads((tmp_path / "ended" / "seed-0" / "stage-0.json").read_text())
    assert again == report


def test_a_target_needs_somebody_who_looks(plain, tmp_path):
    blind = replace(plain, stages=(replace(plain.stages[0], stop_at=0.5),), evaluate_every=0)
    with pytest.raises(UserError, match="never evaluated"):
        run(blind, tmp_path / "out")


def test_only_the_last_stage_may_end_early(small_data, tmp_path):
    both = experiment(small_data)
    stages = (replace(both.stages[0], stop_at=0.5), both.stages[1])
    with pytest.raises(UserError, match="only the last"):
        run(replace(both, stages=stages), tmp_path / "out")


@pytest.mark.usefixtures("no_figures")
def test_test_clients_are_left_alone_where_settings_are_chosen(plain, tmp_path, command):
    run(replace(plain, test=False), tmp_path / "out")
    report = json.loads((tmp_path / "out" / "seed-0" / "stage-0.json").read_text())
    assert "validation" in report
    assert "test" not in report
    with np.load(tmp_path / "out" / "seed-0" / "stage-0.npz") as arrays:
        assert not any(name.startswith("test/") for name in arrays.files)
    code, _, errors = command("report", tmp_path / "out")
    assert (code, errors) == (0, "")


def test_a_log_tells_every_client_and_how_much_was_trained_on(plain, tmp_path):
    run(plain, tmp_path / "out")
    for record in evaluations(tmp_path / "out"):
        means = np.mean(record["clients_values"], axis=0)
        np.testing.assert_allclose(means, record["validation"]["accuracy"], rtol=1e-5)
    rounds = [r for r in read_records(tmp_path / "out" / "seed-0" / "metrics.jsonl") if r["event"] == "round"]
    federation = load(plain.data.source)
    groups = hs.split_clients(federation, train=0.6, validation=0.2)
    most = 2 * federation.sizes[groups.train].sum(axis=1).max() * 3
    assert all(0 < record["items"] <= most for record in rounds)


def test_limited_clients_keep_some_of_their_own_examples_and_all_tests(tmp_path):
    whole = split_examples(load(federation_file(tmp_path / "data.npz")))
    few = limited(whole, 4)
    np.testing.assert_array_equal(few.sizes[:, 0], np.minimum(whole.sizes[:, 0], 4))
    np.testing.assert_array_equal(few.sizes[:, 1], whole.sizes[:, 1])
    for client in range(len(whole)):
        (x, y), (kept, labels) = whole.fetch(np.array([client])), few.fetch(np.array([client]))
        adapt, size = whole.sizes[client, 0], few.sizes[client, 0]
        rows = {(*row, label) for row, label in zip(x[:adapt].tolist(), y[:adapt].tolist(), strict=True)}
        assert {(*row, label) for row, label in zip(kept[:size].tolist(), labels[:size].tolist(), strict=True)} <= rows
        np.testing.assert_array_equal(kept[size:], x[adapt:])
        np.testing.assert_array_equal(labels[size:], y[adapt:])
    # Whatever else is fetched with it.
    together = few.fetch(np.array([3, 1]))[0]
    np.testing.assert_array_equal(together[few.sizes[3].sum() :], few.fetch(np.array([1]))[0])


def test_a_run_uses_the_limited_federation(plain, tmp_path):
    run(replace(plain, data=replace(plain.data, adapt_examples=3)), tmp_path / "out")
    with np.load(tmp_path / "out" / "seed-0" / "stage-0.npz") as arrays:
        assert arrays["test/sizes"][:, 0].max() == 3
