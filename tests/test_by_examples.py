"""Personalization against the number of local examples: subsets, values, decisions, and where they are reported."""

import hashlib
import json
import re
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import headstart as hs
from headstart import FedAvg, Optimizer, Personalization, as_model
from headstart.data.device_data import Subset, on_device
from headstart.data.federation import from_arrays
from headstart.errors import UserError
from headstart.experiment.setup import prepare
from headstart.learning.method import PLAIN
from headstart.learning.personalization import personalizer
from headstart.learning.rounds import client_key, personal_key, seed_key
from headstart.learning.tasks import Classification, Regression
from headstart.methods import LPFT, KNNPer
from headstart.models.zoo import MLP, Logistic
from headstart.reports.by_examples import edges, gain_figure, note, sentence, table
from headstart.reports.style import LIGHT
from headstart.runs.by_examples import ByExamples, by_examples_path, curve_of, curve_of_run, read_by_examples
from headstart.runs.directory import read_curves
from headstart.runs.pseudonyms import is_pseudonym
from headstart.statistics.by_examples import first_positive, gain_by_examples, half_of
from headstart.studies.compare.by_examples import GLOBAL, OWN, best_methods
from headstart.studies.compare.methods import BASELINE, FEDAVG, MethodSpec
from headstart.studies.evidence import Choice
from headstart.training import by_examples
from headstart.training.by_examples import is_measured, measure_by_examples
from headstart.training.seed_run import InterruptedRunError, Options
from small import PROGRAMS, experiment, first_stage_only, run
from tiny import drawn, federation

NUMBERS = (0, 3, 5)
ACCURACY = Classification().metrics[0]


def test_subsets_are_nested_repeatable_and_of_their_client():
    subset = Subset(5, 7, 1)
    fewer, more = (replace_most(subset, most).positions("a", 20) for most in (3, 9))
    assert set(fewer) < set(subset.positions("a", 20)) < set(more) and len(more) == 9
    np.testing.assert_array_equal(more, np.sort(more))
    np.testing.assert_array_equal(subset.positions("a", 20), Subset(5, 7, 1).positions("a", 20))
    others = Subset(5, 7, 2).positions("a", 20), Subset(5, 8, 1).positions("a", 20), subset.positions("b", 20)
    assert not any(np.array_equal(subset.positions("a", 20), each) for each in others)
    np.testing.assert_array_equal(subset.positions("a", 4), np.arange(4))
    assert not len(Subset(0, 7, 1).positions("a", 4))


def replace_most(subset, most):
    return subset._replace(most=most)


def test_a_gather_of_a_subset_has_its_rows_first_and_leaves_tests_alone():
    whole = on_device(federation())
    clients = np.array([2, 0, -1, 1])
    adapt, test = whole.limited(Subset(4, 0, 0)).parts(clients, "adapt", "test")
    np.testing.assert_array_equal(adapt.size, [4, 4, 0, 1])
    (all_of_it, all_tests), rows = whole.parts(clients, "adapt", "test"), np.asarray(adapt.rows)
    np.testing.assert_array_equal(rows[0, :4], np.asarray(all_of_it.rows)[0, Subset(4, 0, 0).positions("c", 12)])
    np.testing.assert_array_equal(rows[3, :1], np.asarray(all_of_it.rows)[3, :1])
    assert adapt.rows.shape == all_of_it.rows.shape
    np.testing.assert_array_equal(test.rows, all_tests.rows)
    np.testing.assert_array_equal(test.size, all_tests.size)
    unlimited = whole.limited(Subset(12, 0, 3)).parts(clients, "adapt")[0]
    np.testing.assert_array_equal(unlimited.size, all_of_it.size)
    for index, size in enumerate(all_of_it.size):
        np.testing.assert_array_equal(unlimited.rows[index, :size], all_of_it.rows[index, :size])


def shifted_file(path, *, clients=24, seed=0):
    """An .npz of clients each of whom numbers three classes from another one on, which no one model can know."""
    generator = np.random.default_rng(seed)
    sizes = generator.integers(5, 30, clients)
    y, client = generator.integers(0, 3, sizes.sum()), np.repeat([f"client-{i:02d}" for i in range(clients)], sizes)
    shift = np.repeat(generator.integers(0, 3, clients), sizes)
    x = (np.eye(4)[(y + shift) % 3] * 2 + generator.normal(0, 0.7, (len(y), 4))).astype(np.float32)
    np.savez(path, client=client, x=x, y=y)
    return path


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A finished run of one stage, and its values."""
    folder = tmp_path_factory.mktemp("by-examples")
    plan = first_stage_only(experiment(shifted_file(folder / "data.npz")))
    finished = run(plan, folder / "run")
    assert measure_by_examples(plan, folder / "run", 0, numbers=NUMBERS, cache=PROGRAMS)
    return plan, finished, read_by_examples(by_examples_path(folder / "run" / "seed-0", 0))


def test_without_examples_nothing_changes_and_all_examples_are_the_run_itself(measured):
    plan, finished, found = measured
    assert found.numbers.tolist() == [0, 3, 5, found.support.max()]
    np.testing.assert_array_equal(found.personalized[0], found.initial[0])
    ids, curves = read_curves(finished.path / "seed-0" / "stage-0.npz", "test")
    assert list(found.ids) == ids
    values = curves.means(finished.metric)
    for index in range(4):
        np.testing.assert_allclose(found.initial[index], np.broadcast_to(values[:, 0], found.initial[index].shape))
    # The same client, the same key, the same recipe: where the run had chosen as the curve did.
    if found.learning_rates[-1] == plan.personalization.optimizer.learning_rate:
        expected = values[:, found.epochs[-1]]
    else:
        again = replace(plan.personalization, epochs=int(found.epochs[-1])).with_learning_rate(found.learning_rates[-1])
        expected = with_recipe(plan, finished, again)
    np.testing.assert_allclose(found.personalized[-1], np.broadcast_to(expected, found.personalized[-1].shape))


def with_recipe(plan, finished, recipe):
    """Test clients' values with another recipe, by the personalization that a run uses."""
    prepared = prepare(plan)
    personalize = personalizer(prepared.task, prepared.model, recipe)
    params = finished.server_params(prepared.model, 0)
    key = personal_key(seed_key(0))
    curves = personalize(params, prepared.groups.test, on_device(prepared.federation), key)
    return curves.means(prepared.task.metrics[0])[:, -1]


def test_a_client_with_few_examples_is_the_same_for_every_draw_and_larger_ones_are_not(measured):
    _, _, found = measured
    few = found.support <= 5
    assert few.any() or found.support.min() > 5
    np.testing.assert_array_equal(found.personalized[2][:, few], found.personalized[2][:1, few].repeat(3, axis=0))
    assert (np.ptp(found.personalized[1], axis=0) > 0).any()


def plain_logits(params, x):
    """The network of `small.experiment`, by hand."""
    first, second = (params["params"][name] for name in ("Dense_0", "Dense_1"))
    return jnp.maximum(x @ first["kernel"] + first["bias"], 0) @ second["kernel"] + second["bias"]


def plain_loss(params, x, y):
    logits = plain_logits(params, x)
    return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - logits[jnp.arange(len(y)), y])


def test_a_plain_loop_over_five_examples_comes_to_the_same(measured):
    plan, finished, found = measured
    number, initial, whole = 2, finished.params(0), prepare(plan).federation
    learning_rate, epochs = found.learning_rates[number], int(found.epochs[number])
    assert epochs > 0, "this run is to personalize"
    expected = np.array(found.personalized[number])
    for index in np.flatnonzero(found.support > 5):
        name, support = found.ids[index], int(found.support[index])
        x, y = whole.select(np.array([list(whole.ids).index(name)])).fetch(np.array([0]))
        words = np.frombuffer(hashlib.sha256(name.encode()).digest()[:8], np.uint32)
        for order in range(3):
            generator = np.random.default_rng([0, 2, order, *map(int, words)])
            chosen = sorted(generator.permutation(support)[:5].tolist())
            few = from_arrays("few", [name], np.array([[5, 0]]), x[chosen], y[chosen])
            client, params = on_device(few)(np.array([0])).at(0), initial
            path = drawn(client, client_key(personal_key(seed_key(0)), client), range(2 * epochs), 4)
            for batch_x, batch_y in path:
                gradient = jax.grad(plain_loss)(params, batch_x, batch_y)
                params = jax.tree.map(lambda value, slope: value - learning_rate * slope, params, gradient)
            predicted = np.argmax(np.asarray(plain_logits(params, x[support:])), axis=-1)
            expected[order, index] = np.mean(predicted == y[support:])
    np.testing.assert_allclose(found.personalized[number], expected, atol=1e-6)
    assert (np.ptp(expected, axis=0) > 0).any() and not np.allclose(expected, found.initial[number])


def test_gains_are_asked_from_all_examples_to_few_and_no_further():
    numbers = (0, 5, 10, 20, 300)
    assert first_positive(np.array([0.0, 0.1, 0.2, 0.3, 0.4]), numbers) == 5
    assert first_positive(np.array([0.0, 0.1, -0.1, 0.3, 0.4]), numbers) == 20
    assert first_positive(np.array([0.5, 0.5, 0.5, 0.5, -0.1]), numbers) is None
    assert first_positive(np.array([np.nan] * 5), numbers) is None


def test_half_of_the_end_is_between_numbers_by_their_logarithm():
    numbers = (0, 9, 99, 999)
    assert half_of(np.array([0.0, 0.1, 0.3, 0.4]), numbers) == pytest.approx(np.sqrt(1000) - 1)
    # The last time that it comes there counts; a curve that begins there is there from the start.
    assert half_of(np.array([0.0, 0.3, 0.1, 0.4]), numbers) == pytest.approx(10 ** (2 + 1 / 3) - 1)
    assert half_of(np.array([0.4, 0.4, 0.4, 0.4]), numbers) == 0
    assert np.isnan(half_of(np.array([0.0, 0.1, 0.2, 0.0]), numbers))
    assert np.isnan(half_of(np.array([0.0, -0.1, -0.2, -0.3]), numbers))


def made_gains(means, *, seeds=5, clients=60):
    """Gains `[seeds, clients, numbers]` around these means, less noisy for fewer examples."""
    generator = np.random.default_rng(0)
    of_clients, of_seeds = generator.normal(size=(1, clients, 1)), generator.normal(size=(seeds, 1, 1))
    noise = generator.normal(size=(seeds, clients, len(means)))
    scale = np.array([0.0] + [1.0] * (len(means) - 1))
    return np.array(means) + scale * (0.05 * of_clients + 0.003 * of_seeds + 0.02 * noise)


def test_a_curve_says_where_it_is_positive_and_where_half():
    numbers, support = (0, 5, 10, 50, 120), np.repeat([8, 40, 120], 20)
    found = gain_by_examples(made_gains([0.0, 0.0, 0.04, 0.08, 0.1]), support, numbers)
    assert found.clients == (60, 60, 40, 20, 20) and found.is_two_way
    assert found.positive_from == 10
    assert 5 < found.half_interval[0] < found.half_at < found.half_interval[1] < 50
    np.testing.assert_array_equal(found.intervals()[0], [0, 0])
    np.testing.assert_allclose(found.intervals(), [each.interval for each in found.gains])
    # One that ends without a gain is half of it nowhere.
    none = gain_by_examples(made_gains([0.0, 0.1, 0.1, 0.1, 0.0]), support, numbers)
    assert none.positive_from is None
    fewer = gain_by_examples(made_gains([0.0, 0.0, 0.04, 0.08, 0.1], seeds=2), support, numbers)
    assert not fewer.is_two_way and fewer.positive_from == 10
    np.testing.assert_allclose(fewer.intervals(), [each.over_clients for each in fewer.gains])


def test_clients_without_a_value_are_left_out_everywhere():
    gains, support = made_gains([0.0, 0.05, 0.1]), np.repeat([3, 30], 30)
    gains[1, 0, 1] = np.nan
    found = gain_by_examples(gains, support, (0, 5, 30))
    assert found.clients == (59, 30, 30) and found.gains[0].clients == 59
    empty = gain_by_examples(np.full((5, 4, 3), np.nan), np.ones(4, int), (0, 5, 30))
    assert empty.positive_from is None and np.isnan(empty.half_at)


NUMBERS_ALL = (0, 5, 10, 50, 120)


def made_curve(means, **sizes):
    return gain_by_examples(made_gains(means, **sizes), np.repeat([8, 40, 120], 20), NUMBERS_ALL)


def test_clients_without_a_value_are_told_and_nothing_is_shown_for_want_of_them():
    gains = np.random.default_rng(0).normal(0.1, 0.01, (5, 20, 3))
    gains[2, 3, 1] = np.nan
    curve = gain_by_examples(gains, np.full(20, 9), (0, 5, 9))
    assert curve.left_out == 1 and curve.positive_from is None and curve.gains[1].clients == 19
    assert sentence("FedAvg", curve, ACCURACY).endswith("Without 1 client that lost a finite value.")


def test_few_seeds_speak_of_these_models_alone():
    curve = gain_by_examples(np.random.default_rng(0).normal(0.1, 0.01, (2, 20, 2)), np.full(20, 9), (5, 9))
    assert curve.positive_from == 5 and "of these trained models alone" in sentence("FedAvg", curve, ACCURACY)


@pytest.mark.parametrize(
    ("means", "expected"),
    [
        ([0.0, 0.0, 0.04, 0.08, 0.1], r"from 10 local examples on \(\+4\.\d points \[.*half of which is reached with"),
        ([0.0, 0.0, 0.0, 0.0, 0.1], "positive with all local examples alone; with all it is"),
        ([0.0, 0.1, 0.1, 0.1, 0.0], "with all local examples a gain is not shown, .* and so fewer are not asked about"),
    ],
)
def test_a_curve_in_words_says_what_was_decided(means, expected):
    assert re.search(f"^FedAvg: .*{expected}", sentence("FedAvg", made_curve(means), ACCURACY))


def test_a_table_has_a_line_for_each_number_and_marks_what_is_shown():
    curves = {"one": made_curve([0.0, 0.0, 0.04, 0.08, 0.1]), "other": made_curve([0.0, 0.1, 0.1, 0.1, 0.0])}
    head, lines = table(curves, ACCURACY)
    assert head[2:] == ["one", "other"] and [line[0] for line in lines] == ["0", "5", "10", "50", "all"]
    assert [line[1] for line in lines] == ["60", "60", "40", "20", "–"]
    assert [line[2].endswith("*") for line in lines] == [False, False, True, True, True]
    assert not any(line[3].endswith("*") for line in lines)
    assert "two-way" in note(curves, ACCURACY, 3) and "over 3 draws" in note(curves, ACCURACY, 3)
    few = {"one": made_curve([0.0, 0.0, 0.04, 0.08, 0.1], seeds=2)}
    assert "Intervals are over clients (95 %), of the models of 2 seeds" in note(few, ACCURACY, 3)


def made_seed(personalized, *, ids=("a", "b"), at_edge=(False, False)):
    """Two clients of four examples, with none of these and with all, on three draws; 9 before."""
    after = np.broadcast_to(np.array(personalized)[:, None, None], (2, 3, 2))
    chosen = np.zeros(2), np.zeros(2, int), np.array(at_edge)
    return ByExamples(np.array([0, 4]), ids, np.array([4, 4]), np.full((2, 3, 2), 9.0), after, *chosen)


def test_an_error_that_falls_is_a_gain():
    error, seeds = Regression().metrics[0], [made_seed([9.0, 8.0])] * 5
    found = curve_of(seeds, error)
    assert [each.mean for each in found.gains] == [0.0, 1.0] and found.positive_from == 4
    assert "-1 mean squared error" in sentence("FedAvg", found, error)
    # Over a model whose error was 8.5, with no examples it is worse.
    over = curve_of(seeds, error, over=[np.full(2, 8.5)] * 5)
    assert [each.mean for each in over.gains] == [-0.5, 0.5]
    assert [line[2] for line in table({"one": over}, error)[1]] == ["+0.5", "-0.5 [-0.5, -0.5] *"]
    with pytest.raises(UserError, match="the seeds measured other clients"):
        curve_of([seeds[0], made_seed([9.0, 8.0], ids=("a", "c"))], error)


def test_choices_at_an_edge_are_told_with_their_numbers():
    assert edges("one", [made_seed([9.0, 8.0])] * 2) == []
    (text,) = edges("one", [made_seed([9.0, 8.0]), made_seed([9.0, 8.0], at_edge=(False, True))])
    assert text.startswith("one: with 4 local examples the most epochs")


def test_a_figure_has_a_tick_for_every_number_that_has_room(tmp_path):
    near = gain_by_examples(made_gains([0.0, 0.02, 0.04, 0.08]), np.full(60, 104), (0, 20, 100, 104))
    figure = gain_figure({"": {"one": near}, "second": {"one": near}}, ACCURACY, "title", LIGHT)
    axes = figure.axes[0]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0", "20", "all\n(to 104)"]
    np.testing.assert_allclose(axes.lines[1].get_ydata(), [100 * each.mean for each in near.gains])
    assert axes.get_ylabel() == "gain in accuracy (points)" and len(figure.axes) == 2


def test_a_measured_seed_is_not_measured_again_and_a_damaged_file_is(measured, monkeypatch):
    plan, finished, found = measured
    path = by_examples_path(finished.path / "seed-0", 0)
    whole = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("headstart.training.by_examples.run_context", None)
        assert measure_by_examples(plan, finished.path, 0, numbers=NUMBERS, cache=PROGRAMS)
    path.write_bytes(whole[:100])
    with pytest.raises(UserError, match="remove it, and repeat"):
        read_by_examples(path)
    assert measure_by_examples(plan, finished.path, 0, numbers=NUMBERS, cache=PROGRAMS)
    again = read_by_examples(path)
    np.testing.assert_array_equal(again.personalized, found.personalized)
    assert not is_measured(finished.path, 0, 0) and is_measured(finished.path, 0, 0, numbers=NUMBERS)
    with pytest.raises(UserError, match=r"stage-0\.json"):
        measure_by_examples(plan, finished.path, 7, numbers=NUMBERS, cache=PROGRAMS)


@pytest.mark.slow
@pytest.mark.usefixtures("no_figures")
def test_the_study_measures_beside_its_runs_and_keeps_its_values(command):
    words = ("reproduce", "curve", "--scale", "smoke", "--out", "out", "--processes", 2)
    code, output, errors = command(*words)
    assert (code, errors) == (0, "")
    assert output.count(", by examples") == 4
    document = json.loads(Path("out/results/curve-glyphs.json").read_text())
    assert document["tables"][0]["head"][2:] == ["FedAvg", "Personalized FedAvg"]
    assert {claim["decision"] for claim in document["claims"]} == {"inconclusive"}
    page = Path("out/report.html").read_text()
    assert "How many local examples does it take until personalization pays?" in page
    assert "clients with as many" in page
    # What was measured is kept with the records, where the runs are gone.
    shutil.rmtree("out/runs")
    code, output, _ = command(*words)
    assert code == 0 and "by examples" not in output
    assert json.loads(Path("out/results/curve-glyphs.json").read_text())["tables"] == document["tables"]


def test_the_best_methods_are_those_of_validation_clients_and_fine_tuning():
    def method(name, *, personalizes=True):
        return SimpleNamespace(method=MethodSpec(name, FedAvg, personalizes=personalizes))

    values = {"a": 0.5, "b": 0.9, "c": 0.7, BASELINE: 0.6, FEDAVG: 0.95}
    compared = SimpleNamespace(
        entries={name: method(name, personalizes=name != FEDAVG) for name in values},
        choices=[Choice(name, {"worse": 0.1, "best": value}, "best") for name, value in values.items()],
    )
    assert best_methods(compared, ACCURACY, 2) == ["b", "c", BASELINE]
    assert best_methods(compared, ACCURACY, 3) == ["b", "c", BASELINE]
    assert best_methods(compared, Regression().metrics[0], 1) == ["a", BASELINE]


@pytest.mark.long
@pytest.mark.usefixtures("no_figures")
def test_a_comparison_says_how_many_examples_it_takes(command, tmp_path):
    shifted_file(tmp_path / "data.npz")
    words = "--set", "data.train=0.6", "--set", "data.validation=0.2", "--set", "stages.0.clients_per_round=3"
    words = *words, "--tries", 1, "--budget", 4, "--epochs", 3, "--learning-rates", 0.3, "--methods", "fedper,ditto"
    words = "compare", "fedavg", "--data", "data.npz", "--model", "mlp", *words, "--processes", 1, "--seeds", 5
    code, output, errors = command(*words, "--by-examples", 2)
    assert (code, errors) == (0, "")
    assert "How many local examples does it take until personalization pays?" in output
    document = json.loads(Path("compared/leaderboard.json").read_text())
    measured = document["by_examples"]
    assert BASELINE in measured and 2 <= len(measured) <= 3 and FEDAVG not in measured
    assert [each["title"] for each in document["tables"][-2:]] == [
        f"{OWN}, by local examples",
        f"{GLOBAL}, by local examples",
    ]
    curve = measured[BASELINE]["over_initial"]
    row = next(row for row in document["rows"] if row["name"] == BASELINE)
    # With no examples nothing is gained; the initial values are those of the leaderboard, and so is what FedAvg has.
    assert curve["gains"][0]["mean"] == 0
    over = measured[BASELINE]["over_fedavg"]["gains"][0]["mean"]
    fedavg = next(each for each in document["rows"] if each["name"] == FEDAVG)
    assert over == pytest.approx(row["initial"]["mean"] - fedavg["personalized"]["mean"], abs=1e-4)
    page = Path("compared/report.html").read_text()
    assert "by local examples" in page and "clients with as many" in page
    code, output, _ = command(*words, "--by-examples", 2)
    assert code == 0 and "runs:" not in output
    assert json.loads(Path("compared/leaderboard.json").read_text()) == document
    # Records are all it needs, participants' and those by examples too; the files in the page's commands are there.
    shutil.rmtree("compared/runs")
    code, output, _ = command(*words, "--by-examples", 2)
    assert code == 0 and "runs:" not in output
    assert json.loads(Path("compared/leaderboard.json").read_text()) == document
    assert document["participants"] and list(Path("compared/runs/experiments").glob("*.json"))


@pytest.mark.usefixtures("no_figures")
def test_a_finished_run_has_its_curve_in_hand_and_in_its_report(measured, tmp_path, command):
    _, finished, _ = measured
    folder = tmp_path / "run"
    shutil.copytree(finished.path, folder)
    by_examples_path(folder / "seed-0", 0).unlink()
    assert "How many local examples it takes" not in hs.report(folder, tmp_path / "before.html").read_text()
    assert curve_of_run(hs.open_run(folder)) is None
    seen = []
    curve = hs.gain_by_examples(folder, numbers=NUMBERS, progress=lambda *done: seen.append(done))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)] and curve.numbers[:3] == NUMBERS
    assert not curve.is_two_way and curve.gains[0].mean == 0
    found = read_by_examples(by_examples_path(folder / "seed-0", 0))
    means = (found.personalized - found.initial).mean(axis=(1, 2))
    np.testing.assert_allclose([each.mean for each in curve.gains], means)
    page = hs.report(folder, tmp_path / "after.html").read_text()
    assert "How many local examples it takes" in page and "of the models of 1 seed" in page
    # The command measures at its own numbers, and says so.
    code, output, errors = command("report", folder, "--by-examples", "--out", "again.html")
    assert (code, errors) == (0, "") and "By local examples, small: " in output
    assert read_by_examples(by_examples_path(folder / "seed-0", 0)).numbers.tolist()[:3] == [0, 5, 10]
    # More rounds make another model, whose curve is not that of the one before.
    report = json.loads((folder / "seed-0" / "stage-0.json").read_text())
    (folder / "seed-0" / "stage-0.json").write_text(json.dumps({**report, "round": report["round"] + 1}))
    assert curve_of_run(hs.open_run(folder)) is None


def test_what_cannot_be_measured_is_refused_in_a_sentence(measured, tmp_path):
    _, finished, _ = measured
    for wrong, expected in (
        ({"numbers": (5, 0)}, "give each once, from few to many"),
        ({"numbers": (-1,)}, "a number of examples is -1, but must be at least 0"),
        ({"draws": 0}, "draws is 0, but must be at least 1"),
    ):
        with pytest.raises(UserError, match=expected):
            hs.gain_by_examples(finished.path, **wrong)
    folder = tmp_path / "run"
    shutil.copytree(finished.path, folder)
    (folder / "seed-0" / "stage-0.json").unlink()
    with pytest.raises(UserError, match="is not finished"):
        hs.gain_by_examples(folder)
    shutil.copytree(finished.path, tmp_path / "other")
    document = json.loads((tmp_path / "other" / "experiment.json").read_text())
    document["data"]["source"] = str(shifted_file(tmp_path / "other.npz", seed=1))
    (tmp_path / "other" / "experiment.json").write_text(json.dumps(document))
    with pytest.raises(UserError, match="have changed since it was begun"):
        hs.gain_by_examples(tmp_path / "other")


def test_an_interrupted_measurement_resumes_with_the_number_that_it_was_at(measured, tmp_path, monkeypatch):
    plan, finished, found = measured
    folder = tmp_path / "run"
    shutil.copytree(finished.path, folder)
    path = by_examples_path(folder / "seed-0", 0)
    path.unlink()
    of_number, seen = by_examples._of_number, []

    def stopped(measured, number, *, is_all):
        seen.append(number)
        if number == 5 and seen.count(5) == 1:
            raise InterruptedRunError
        return of_number(measured, number, is_all=is_all)

    monkeypatch.setattr(by_examples, "_of_number", stopped)
    measure = partial(measure_by_examples, plan, folder, 0, numbers=NUMBERS, cache=PROGRAMS)
    assert not measure() and not path.exists()
    assert measure() and seen == [0, 3, 5, 5, found.numbers[-1]]
    again = read_by_examples(path)
    for name, value in found._asdict().items():
        np.testing.assert_array_equal(getattr(again, name), value)
    assert not list(folder.glob("*/*unfinished*"))


def test_hidden_ids_stay_hidden(tmp_path):
    plan = first_stage_only(experiment(shifted_file(tmp_path / "data.npz"), rounds=(1, 1)))
    run(plan, tmp_path / "run", options=Options(hide_ids=True))
    assert measure_by_examples(plan, tmp_path / "run", 0, numbers=(0,), cache=PROGRAMS)
    found = read_by_examples(by_examples_path(tmp_path / "run" / "seed-0", 0))
    assert list(found.ids) == read_curves(tmp_path / "run" / "seed-0" / "stage-0.npz", "test")[0]
    assert all(map(is_pseudonym, found.ids))


WITH_ONE_NUMBER = [
    (PLAIN, Personalization(pulls=(3.0, 0.3, 0.1)), Logistic(4)),
    (PLAIN, Personalization(Optimizer("adam", 0.1), 4, 3), MLP(4, (5,))),
    (LPFT(head_epochs=1), Personalization(Optimizer("sgd", 0.3), 4, 3), MLP(4, (5,))),
    (KNNPer(neighbors=3, spacing=0.3), Personalization(epochs=3), MLP(4, (5,))),
]


@pytest.mark.parametrize(("method", "recipe", "model"), WITH_ONE_NUMBER, ids=["pulls", "adam", "LP-FT", "kNN-Per"])
def test_one_number_of_epochs_is_measured_as_it_is_among_all(method, recipe, model):
    gather, task, everyone = on_device(federation()), Classification(), np.arange(5)
    model = as_model(model, jax.ShapeDtypeStruct((2, 3), jnp.float32))
    params, key = model.init(jax.random.key(1)), jax.random.key(2)
    personalize = personalizer(task, model, recipe, method=method)
    whole = personalize(params, everyone, gather, key)
    for epochs in (0, 1, 3):
        found = personalize(params, everyone, gather, key, epochs=epochs)
        for name in ("accuracy", "loss"):
            sums = whole.metrics[name][0][:, [0, epochs]]
            np.testing.assert_allclose(found.metrics[name][0], sums, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found.gain, whole.gain[:, [0, epochs]], rtol=1e-5, atol=1e-6)
