"""`headstart compare`: what a round costs, what is tried and what is decided; and the command, from words to page."""

import json
import runpy
from collections import Counter
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from markupsafe import escape

import headstart.methods
from headstart import Data, Experiment, ModelSpec, Optimizer, Stage
from headstart.experiment.setup import prepare
from headstart.learning.optimum import PULLS
from headstart.learning.tasks import Classification, Regression
from headstart.methods import ANIL, APFL, IFCA, LPFT, FedPer, FedRep, KNNPer, LocalOnly, MetaSGD, PFedMe, Scaffold
from headstart.methods.paper import FOMAML, MAML, FedAvg, FedSGD, Reptile
from headstart.reports.format import typeset
from headstart.studies.compare.arithmetic import SAMPLE, Cost, cost, representative, sampled
from headstart.studies.compare.authors import authors_table
from headstart.studies.compare.design import design
from headstart.studies.compare.leaderboard import gain_by_data_size, group_means, leaderboard, size_groups, values_of
from headstart.studies.compare.methods import (
    BASELINE,
    FEDAVG,
    LEARNING_RATE,
    SERVER,
    SERVERS,
    MethodSpec,
    built_in_methods,
    select_methods,
)
from headstart.studies.compare.notes import examples_note
from headstart.studies.compare.protocol import Entry, Protocol, _Planner
from headstart.studies.compare.words import claims, conclusion
from headstart.studies.evidence import Result
from headstart.studies.runner import Runs
from small import federation_file

ACCURACY, ERROR = Classification().metrics[0], Regression().metrics[0]
METHODS = {name: getattr(headstart.methods, name) for name in headstart.methods.__all__}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Twelve clients of 6 to 19 examples, and a network of one hidden layer: 4 → 8 → 3."""
    data = Data(str(federation_file(tmp_path_factory.mktemp("data") / "data.npz")), train=0.6, validation=0.2)
    plan = Experiment("costs", (Stage("plain", FedAvg(), Optimizer(), 1, 3),), data, ModelSpec("mlp", {"widths": (8,)}))
    return prepare(plan)


UNIFORM = {"Reptile", "FOMAML", "MAML", "MetaSGD", "ANIL", "APFL", "PerFedAvg", "PFedMe", "FedRep", "Scaffold"}


def test_every_method_weights_replies_as_its_paper_does():
    kinds = {kind for each in built_in_methods().values() for kind in (each.kind, each.second_kind) if kind}
    found = {kind.__name__: Stage("stage", kind(), Optimizer(), 1).weighting for kind in kinds}
    assert {name for name, weighting in found.items() if weighting == "uniform"} == UNIFORM
    assert set(found.values()) == {"uniform", "examples"}
    assert built_in_methods()["personalized_fedavg"].second_kind is Reptile
    assert Stage("stage", Reptile(), Optimizer(), 1, weighting="examples").weighting == "examples"


BODY, HEAD = 4 * (4 * 8 + 8), 4 * (8 * 3 + 3)
# The examples that a client of n trains on in a round, and the bytes down and up.
COSTS = {
    "FedSGD": (FedSGD(), lambda n: n, BODY + HEAD, BODY + HEAD),
    "FedAvg": (FedAvg(3, batch_size=4), lambda n: 3 * n, BODY + HEAD, BODY + HEAD),
    "MAML": (MAML(2, batch_size=1), lambda n: 3, BODY + HEAD, BODY + HEAD),
    "MAML, partial batches": (
        MAML(2, batch_size=4),
        lambda n: sum(min(4, n - 4 * (index % -(-n // 4))) for index in range(3)),
        BODY + HEAD,
        BODY + HEAD,
    ),
    "Meta-SGD": (MetaSGD(2, batch_size=1), lambda n: 3, 2 * (BODY + HEAD), 2 * (BODY + HEAD)),
    "LP-FT": (LPFT(3, batch_size=4), lambda n: 3 * n, BODY + HEAD, BODY + HEAD),
    "kNN-Per": (KNNPer(3, batch_size=4), lambda n: 3 * n, BODY + HEAD, BODY + HEAD),
    "APFL": (APFL(3, batch_size=4), lambda n: 3 * n, BODY + HEAD, BODY + HEAD),
    "FOMAML": (FOMAML(4, batch_size=1), lambda n: 5, BODY + HEAD, BODY + HEAD),
    "FedPer": (FedPer(2, batch_size=4), lambda n: 2 * n, BODY, BODY),
    "FedRep": (FedRep(2, 1, batch_size=4), lambda n: 3 * n, BODY, BODY),
    "ANIL": (ANIL(4, batch_size=1), lambda n: 5, BODY + HEAD, BODY + HEAD),
    "IFCA": (IFCA(3, 2, batch_size=4), lambda n: 2 * n, 3 * (BODY + HEAD) + 12, BODY + HEAD + 4),
    "LocalOnly": (LocalOnly(), lambda n: 0, 0, 0),
    "pFedMe": (PFedMe(3, 5, batch_size=1), lambda n: 15, BODY + HEAD, BODY + HEAD),
    "SCAFFOLD": (Scaffold(4, batch_size=1), lambda n: 4, 2 * (BODY + HEAD), 2 * (BODY + HEAD)),
}


@pytest.mark.parametrize("name", COSTS)
def test_a_round_costs_what_its_method_says(name, prepared):
    update, examples, down, up = COSTS[name]
    found = cost(Stage(name, update, Optimizer(), 1, 3), prepared, sampled(prepared))
    sizes = prepared.federation.training_sizes[prepared.groups.train]
    assert found.examples == pytest.approx(np.mean([examples(size) for size in sizes]))
    assert (found.operations > 0) == (found.examples > 0)
    assert (found.down, found.up) == pytest.approx((down, up))


def test_two_models_cost_about_twice_one(prepared):
    one, two = (
        cost(Stage("stage", update, Optimizer(), 1, 3), prepared, sampled(prepared)).operations
        for update in (FedAvg(2, batch_size=4), APFL(2, batch_size=4))
    )
    # Of so small a model it costs something to mix the parameters themselves.
    assert 2 < two / one < 2.5


def test_the_clients_whose_cost_is_counted_are_like_all_in_size():
    sizes = np.round(np.random.default_rng(0).lognormal(4, 0.8, 700))
    train = np.arange(100, 700)
    prepared = SimpleNamespace(federation=SimpleNamespace(training_sizes=sizes), groups=SimpleNamespace(train=train))
    chosen = representative(prepared)
    assert set(chosen) <= set(train) and len(set(chosen)) == SAMPLE
    assert sizes[chosen].mean() == pytest.approx(sizes[train].mean(), rel=0.05)


@pytest.mark.parametrize("name", built_in_methods())
@pytest.mark.parametrize(
    ("learning_rates", "count"), [((0.01, 0.03, 0.1), 12), ((0.01, 0.03, 0.1), 9), ((1.0, 3.0), 8), ((1.0, 3.0), 5)]
)
def test_all_methods_try_the_same_rates_and_servers_and_no_setting_stands_for_another(name, learning_rates, count):
    method = built_in_methods()[name]
    candidates = method.candidates(learning_rates, count)
    assert len({json.dumps(settings) for settings in candidates}) == len(candidates)
    if name == "localonly":
        # Nothing is trained at any rate.
        assert len(candidates) == 4
        return
    pairs = Counter((settings[SERVER], settings[LEARNING_RATE]) for settings in candidates)
    assert pairs == Counter(
        (settings[SERVER], settings[LEARNING_RATE])
        for settings in built_in_methods()["fedavg"].candidates(learning_rates, count)
    )
    values = {LEARNING_RATE: learning_rates, SERVER: tuple(SERVERS), **method.kind.search_space}
    for one, other in combinations(values, 2):
        met = Counter((settings[one], settings[other]) for settings in candidates)
        cells = len(values[one]) * len(values[other])
        # As evenly as whole numbers can, give or take one.
        assert max(met.values()) <= -(-count // cells) + 1
        assert len(met) >= min(cells, count) - 3, (one, other, met)
    for setting, given in values.items():
        seen = Counter(settings[setting] for settings in candidates)
        assert set(seen) == set(given) and max(seen.values()) - min(seen.values()) <= 1
    for settings in candidates:
        assert method.update(settings, 7).batch_size == 7


def test_a_design_that_has_room_for_all_has_all():
    found = design({"a": (1, 2), "b": (3, 4)}, {"c": (True, False)}, 9)
    assert len(found) == 8 and len({tuple(each.values()) for each in found}) == 8
    assert design({"a": (1, 2), "b": (3,)}, {}, 1) == [{"a": 1, "b": 3}]
    # One less than all, which no balanced design is.
    assert len({tuple(each.values()) for each in design({"a": (1, 2), "b": (3, 4)}, {"c": (True, False)}, 7)}) == 7


def test_a_method_that_does_not_suit_the_model_is_left_out_with_the_reason(prepared, tmp_path):
    planner = _Planner(Protocol(prepared.experiment, 20), Runs(tmp_path, seeds=1))
    method = built_in_methods()["fedbn"]
    candidates = {str(each): each for each in method.candidates((0.1, 0.3), 4)}
    suitable, reasons = planner.experiments(method, candidates)
    assert not suitable and reasons[0].startswith("the model has no layers with batch statistics")


def test_personalization_is_tried_in_what_it_counts(prepared, tmp_path):
    table = built_in_methods()
    steps, optimum, mixed = (table[name].recipe(20, 7, (0.1, 0.3)) for name in ("ditto", "optimum", "knnper"))
    assert (steps.candidate_rates, steps.unit, steps.most) == ((0.1, 0.3), "epochs", 7)
    assert (optimum.unit, optimum.most) == ("pulls", len(PULLS)) and len(optimum.candidate_rates) == 1
    # One mixing weight after another, at no learning rate.
    assert (mixed.most, len(mixed.candidate_rates)) == (10, 1) and KNNPer.spacing * mixed.most == 1
    method, reasons = table["optimum"], {}
    convex = prepare(replace(prepared.experiment, model=ModelSpec("logistic")))
    for of in (convex, prepared):
        planner = _Planner(Protocol(of.experiment, 20), Runs(tmp_path / of.experiment.model.path, seeds=1))
        suitable, reasons = planner.experiments(method, {str(each): each for each in method.candidates((0.1,), 2)})
        assert len(suitable) == (2 if of is convex else 0)
    assert "whose loss has one optimum, and the model is mlp" in reasons[0]


def test_the_page_says_where_a_method_is_not_as_its_authors_have_it():
    entries = made({BASELINE: 0.0})
    assert authors_table(entries) == []
    mixed = entry(built_in_methods()["knnper"], *(values_of(entries[BASELINE]),) * 2)
    (table,) = authors_table({**entries, "kNN-Per": mixed})
    ((name, text),) = table.rows
    assert name == "kNN-Per" and text == f"{KNNPer.differs.capitalize()}."
    # None of the methods that are made for clients that take part, or trained in another way, is without a sentence.
    without = {name for name, kind in METHODS.items() if not kind.differs}
    assert without == {"LocalOnly"}


def test_servers_of_clients_that_change_nothing_are_not_tried_one_after_another(prepared, tmp_path):
    planner = _Planner(Protocol(prepared.experiment, 20), Runs(tmp_path, seeds=1))
    tried = {}
    for name in ("LocalOnly", "FedPer"):
        method = next(each for each in built_in_methods().values() if each.kind.__name__ == name)
        candidates = {str(each): each for each in method.candidates((0.1, 0.3), 4)}
        tried[name], reasons = planner.experiments(method, candidates)
        assert not reasons
    assert [len(each) for each in tried.values()] == [1, 4]


def test_settings_are_resolved_as_they_run():
    method = built_in_methods()["ditto"]
    assert method.resolved({SERVER: "averaging", LEARNING_RATE: 0.03, "epochs": 5, "strength": 0.001}) == {
        SERVER: "averaging",
        LEARNING_RATE: 0.03,
        "epochs": 5,
        "strength": 0.0333333,
    }


@pytest.mark.parametrize("name", ["fedprox", "ditto", "pfedme", "perfedavg"])
def test_a_methods_own_rates_and_pulls_are_tried_in_units_of_the_clients_rate(name):
    method = built_in_methods()[name]
    for settings in method.candidates((0.01, 0.1), 6):
        update = method.update(settings, 7)
        for field, power in method.kind.scaled_by_learning_rate.items():
            assert getattr(update, field) == pytest.approx(settings[field] * settings[LEARNING_RATE] ** power)
        pull = getattr(update, "strength", getattr(update, "mu", 0.0))
        # A step of a pulled local_sgd must not throw the model to the other side.
        assert pull * settings[LEARNING_RATE] < 1 and pull * getattr(update, "outer_rate", 0.0) < 1


def test_every_method_is_known_and_fedavg_is_always_there():
    assert {method.kind for method in built_in_methods().values()} >= set(METHODS.values())
    assert [method.name for method in select_methods(["Fed_Rep"])] == [FEDAVG, BASELINE, "FedRep"]
    assert len(select_methods([])) == len(built_in_methods())


def entry(method: MethodSpec, initial: np.ndarray, personalized: np.ndarray) -> Entry:
    """A method on these seeds and clients, which chose one epoch."""
    seeds, clients = initial.shape
    result = Result(
        tuple(map(str, range(clients))),
        np.stack([initial, personalized], axis=2),
        np.ones(seeds, int),
        np.zeros(0),
        np.zeros((seeds, 0, clients, 2)),
        np.zeros(seeds),
        np.zeros(seeds),
        np.full(seeds, 0.05),
        "headstart run",
        np.zeros(seeds, bool),
        np.ones(seeds),
        np.full(seeds, 0.1),
    )
    stage = Stage("plain", FedAvg(), Optimizer(), 7, 3)
    return Entry(method, result, {}, ((stage, Cost(1e3, 10.0, 1e6, 1e6)),))


def made(shifts: dict[str, float], *, seeds: int = 5, clients: int = 40, sign: float = 1.0) -> dict[str, Entry]:
    """Methods whose clients all end so much better than with FedAvg + fine-tuning, give or take a little."""
    generator = np.random.default_rng(0)
    base = generator.normal(0.6, 0.1, (1, clients))
    table = {name: MethodSpec(name, FedAvg) for name in shifts} | {
        FEDAVG: MethodSpec(FEDAVG, FedAvg, personalizes=False)
    }
    entries = {}
    for name, method in table.items():
        noise = generator.normal(0, 0.01, (seeds, clients))
        final = base + sign * shifts.get(name, -0.2) + noise
        entries[name] = entry(method, final if name == FEDAVG else base - 0.2 * sign + np.zeros((seeds, 1)), final)
    return entries


@pytest.mark.parametrize(("metric", "sign"), [(ACCURACY, 1.0), (ERROR, -1.0)])
def test_the_leaderboard_ranks_and_decides_in_the_metrics_direction(metric, sign):
    entries = made({BASELINE: 0.0, "better": 0.05, "worse": -0.05, "same": 0.0}, sign=sign)
    rows = leaderboard(entries, metric)
    assert [row.name for row in rows if row.name != "same"] == ["better", BASELINE, "worse", FEDAVG]
    decided = {row.name: row.decided for row in rows}
    assert decided == {"better": 1, "worse": -1, "same": 0, BASELINE: 0, FEDAVG: -1}
    best = rows[0]
    assert best.versus.mean == pytest.approx(0.05, abs=0.01)
    np.testing.assert_allclose(best.personalized.mean, entries["better"].result.personalized.mean())
    assert best.below_fedavg == 0.0 and (best.rounds, best.examples, best.operations, best.sent) == (7, 210, 21e3, 42e6)
    values = np.sort(sign * entries["better"].result.personalized, axis=1)[:, :4]
    assert best.worst_tenth == pytest.approx(sign * values.mean())
    (fedavg,) = (row for row in rows if row.name == FEDAVG)
    assert (fedavg.harmed, fedavg.beyond_chance) == (0.0, None)


def test_four_seeds_decide_nothing():
    rows = leaderboard(made({BASELINE: 0.0, "better": 0.5}, seeds=4), ACCURACY)
    assert {row.decided for row in rows} == {0}


CASES = [
    (
        {"better": 0.05, "worse": -0.05},
        "holds",
        ("Better than well-tuned", "better {+5.}", "Worse (in {unit}): worse {-5.}", "% of what better"),
    ),
    (
        {"same": 0.0, "alike": 0.0},
        "inconclusive",
        (
            "No method is shown",
            "Inconclusive (in {unit}): ",
            "None of those that are inconclusive leads by more than",
            "? All of it, as far as these runs show, and no less than 9",
        ),
    ),
    ({"worse": -0.05}, "does not hold", ("No method is shown to be better", "All of it: every other")),
]


@pytest.mark.parametrize(("shifts", "decision", "expected"), CASES, ids=["better", "same", "worse"])
@pytest.mark.parametrize(("metric", "sign"), [(ACCURACY, 1.0), (ERROR, -1.0)], ids=["accuracy", "error"])
def test_the_conclusion_says_what_was_decided(metric, sign, shifts, decision, expected):
    rows = leaderboard(made({BASELINE: 0.0, **shifts}, sign=sign), metric)
    helps, better, beaten = claims(rows, metric)
    assert (helps.decision, better.decision, beaten.decision) == ("holds", "holds", decision)
    text = " ".join(conclusion(rows, metric))
    assert "For these clients, fine-tuning helps" in text
    # An error that falls by 0.05 is reported to fall.
    signs = {"+5.": "+" if metric is ACCURACY else "-0.0", "-5.": "-" if metric is ACCURACY else "+0.0"}
    for part in expected:
        filled = part.replace("{unit}", "points" if metric is ACCURACY else "mean squared error")
        for mark, sign in signs.items():
            filled = filled.replace(f"{{{mark}}}", sign)
        assert filled in text


def test_a_gain_that_is_chance_is_not_decided():
    rows = leaderboard(made({BASELINE: -0.2}), ACCURACY)
    assert claims(rows, ACCURACY)[0].decision == "inconclusive"
    assert "inconclusive whether fine-tuning helps" in conclusion(rows, ACCURACY)[0]


@pytest.mark.parametrize(
    ("fedavg", "answer"),
    [
        (0.0, "Inconclusive: what FedAvg + fine-tuning has over FedAvg (global model), "),
        (0.03, "Nothing: FedAvg (global model) does better. better gains 5.0 points more than it."),
    ],
)
def test_without_a_gain_of_fine_tuning_there_is_nothing_to_divide(fedavg, answer):
    entries = made({BASELINE: 0.0, "better": 0.05})
    final = values_of(entries[BASELINE])
    noise = np.random.default_rng(5).normal(0, 0.01, final.shape)
    entries[FEDAVG] = entry(MethodSpec(FEDAVG, FedAvg, personalizes=False), final + fedavg + noise, final)
    rows = leaderboard(entries, ACCURACY)
    text = " ".join(conclusion(rows, ACCURACY))
    assert f"just fine-tuning? {answer}" in text
    # Fine-tuning helps its own model, and another one is as good or better without it.
    assert "For these clients, fine-tuning helps" in text and ("(worse)" if fedavg else "(inconclusive)") in text
    # What is better than fine-tuning may be better than FedAvg as well, whatever fine-tuning is.
    assert "Against FedAvg (global model), without personalization, better: better" in text


def test_the_gain_from_fine_tuning_is_reported_with_intervals_to_its_own_model_and_by_data_size():
    entries = made({BASELINE: 0.0})
    initial, final = entries[BASELINE].result.initial, entries[BASELINE].result.personalized
    entries[BASELINE] = entry(MethodSpec(BASELINE, FedAvg), initial - 0.1, final)
    rows = leaderboard(entries, ACCURACY)
    (row,) = (row for row in rows if row.name == BASELINE)
    assert row.gain.mean == pytest.approx((final - initial).mean() + 0.1)
    low, high = row.gain.interval()
    sizes = np.repeat([4, 30], 20)
    groups = gain_by_data_size(entries, sizes, ACCURACY)
    gains = final - entries[BASELINE].result.initial
    assert [group.gain.mean for group in groups] == pytest.approx([gains[:, :20].mean(), gains[:, 20:].mean()])
    text = " ".join(conclusion(rows, ACCURACY, groups, {"FedPer": "the head is all of the model"}))
    assert f"after it, {100 * row.gain.mean:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}]. FedAvg's" in text
    assert (
        f"starts from is {100 * groups[0].gain.mean:+.1f} points [" in text
        and "for the 20 clients with 30 local training examples" in text
    )
    assert "Left out: FedPer, since the head is all of the model." in text


def test_the_page_says_how_many_examples_clients_learn_from_and_that_they_were_cut():
    sizes = np.array([10, 20, 30, 140])
    whole = examples_note(None, sizes)
    assert (
        whole.startswith("Clients learn from all of their")
        and "50 in the mean, half of the clients from 18 to 58" in whole
    )
    assert examples_note(0.15, sizes).startswith("Clients are cut to 15% of their")
    assert examples_note(12.0, sizes).startswith("Clients are cut to at most 12 of their")


def test_one_seed_decides_nothing_and_promises_no_bound():
    rows = leaderboard(made({BASELINE: 0.0, "better": 0.5}, seeds=1), ACCURACY)
    text = " ".join(conclusion(rows, ACCURACY))
    assert "With 1 seed nothing is decided" in text and "inconclusive leads" not in text and "[-∞, +∞]" in text


def test_lost_clients_never_speak_for_the_method_that_lost_them():
    entries = made({BASELINE: 0.0, "better": 0.05, "worse": -0.05, "gone": 0.0})
    for name, lost in (("better", slice(3, 4)), ("worse", slice(3, 4)), ("gone", slice(None))):
        entries[name].result.curves[:, lost, 1] = np.nan
    rows = leaderboard(entries, ACCURACY)
    decided = {row.name: row.decided for row in rows if row.name not in (FEDAVG, BASELINE)}
    assert decided == {"better": 0, "worse": -1, "gone": 0}
    assert rows[-1].name == "gone" and rows[-1].lost == 1.0 and rows[0].lost == pytest.approx(1 / 40)
    entries[BASELINE].result.curves[:, 5, 1] = np.nan
    decided = {row.name: row.decided for row in leaderboard(entries, ACCURACY)}
    assert (decided["worse"], decided[FEDAVG]) == (0, 0)


def test_clients_are_grouped_by_what_they_adapt_on():
    sizes = np.array([5, 5, 5, 5, 5, 8, 9, 20])
    groups = size_groups(sizes)
    assert sum(groups.clients) == len(sizes)
    for index, size in enumerate(groups.sizes):
        assert sizes[groups.group == index].mean() == size
    # Those with five examples are in one group, whatever the quartiles say.
    assert len(set(groups.group[:5])) == 1 and list(groups.sizes) == sorted(groups.sizes)
    values = np.tile(sizes / 10, (3, 1))
    np.testing.assert_allclose(group_means(values, groups), np.tile(groups.sizes / 10, (3, 1)))
    assert len(size_groups(np.full(6, 4)).sizes) == 1


WORDS = "--set", "data.train=0.6", "--set", "data.validation=0.2", "--set", "stages.0.clients_per_round=3"
SHORT = *WORDS, "--by-examples", 0, "--tries", 1, "--seeds", 2, "--budget", 4, "--epochs", 1, "--learning-rates", 0.1


@pytest.mark.usefixtures("no_figures")
def test_the_guides_method_is_on_the_leaderboard_and_nothing_is_run_again(command, tmp_path):
    federation_file(tmp_path / "data.npz")
    guide = (Path(__file__).parents[1] / "docs" / "guide.md").read_text()
    (own,) = (block for block in guide.split("```") if "class Normalized" in block)
    (tmp_path / "normalized.py").write_text(own.removeprefix("python"))
    words = "compare", "fedavg", "--data", "data.npz", "--methods", "normalized:Normalized,fedper", *SHORT
    # Two processes, which import it too.
    code, output, errors = command(*words, "--processes", 2)
    assert (code, errors) == (0, "")
    assert "FedPer is left out: the head Dense_0 is all of the model" in output
    assert any(note.startswith("Clients learn from all of their") for note in document_of()["notes"])
    assert "Normalized: initial" in output and "The report: compared/report.html" in output
    document = document_of()
    assert [row[0] for row in document["tables"][0]["rows"] if row[0] == "Normalized"] == ["Normalized"]
    assert document["conclusion"][0].startswith("For these clients it is inconclusive")
    page = Path("compared/report.html").read_text()
    assert str(escape(typeset(document["conclusion"][0]))) in page and "normalized:Normalized" in page
    code, output, _ = command(*words, "--processes", 1)
    assert code == 0 and "runs:" not in output
    assert document_of() == document


def document_of() -> dict:
    return json.loads(Path("compared/leaderboard.json").read_text())


@pytest.mark.slow
@pytest.mark.usefixtures("no_figures")
def test_a_regression_federation_is_compared_by_its_error(command, tmp_path):
    runpy.run_path(str(Path(__file__).parents[1] / "examples" / "farms.py"))["write"](tmp_path / "farms.npz")
    words = "compare", "fedavg", "--data", "farms.npz", "--methods", "localonly", *SHORT[:-4], "--epochs", 5
    code, _, errors = command(*words, "--learning-rates", "0.1", "--budget", 30, "--processes", 1)
    assert (code, errors) == (0, "")
    document = json.loads(Path("compared/leaderboard.json").read_text())
    rows = {row[0]: row for row in document["tables"][0]["rows"]}
    values = {name: float(row[2].split()[0]) for name, row in rows.items()}
    # Their slopes differ, so a local model has the smaller error.
    assert values[BASELINE] < values[FEDAVG]
    assert "has mean squared error" in document["conclusion"][0]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--methods", "fedmagic"), "there is no method 'fedmagic'; give some of fedavg, fedavg+ft"),
        (("--methods", "nowhere:Mine"), "cannot import the method 'nowhere:Mine'"),
        (("--methods", "json:dumps"), "json:dumps is no method; make it a frozen dataclass"),
        (("--learning-rates", "fast"), "--learning-rates 'fast' is no list of numbers"),
        (("--learning-rates", "-1"), "a rate that is not positive"),
        (("--set", "data.validation=0"), "no validation client has examples to test on"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_a_sentence(command, tmp_path, words, expected):
    federation_file(tmp_path / "data.npz")
    code, _, errors = command("compare", "fedavg", "--data", "data.npz", *WORDS, *words)
    assert code == 2
    assert expected in " ".join(errors.split())
    assert not Path("compared").exists()
