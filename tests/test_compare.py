"""`headstart compare`: what a round costs, what is tried and what is decided; and the command, from words to page."""

import json
import runpy
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import headstart.methods
from headstart import Data, Experiment, Imported, Optimizer, Stage
from headstart.compare.arithmetic import SAMPLE, cost, representative, sampled
from headstart.compare.contenders import BASELINE, FEDAVG, RATE, SERVER, Contender, contenders, known
from headstart.compare.leaderboard import amounts, by_amount, leaderboard, values_of
from headstart.compare.protocol import Entry
from headstart.compare.words import claims, conclusion
from headstart.methods import ANIL, IFCA, FedPer, FedRep, LocalOnly, PFedMe, Scaffold
from headstart.prepare import prepare
from headstart.studies.evidence import Result
from headstart.studies.shown import sentence
from headstart.tasks import Classification, Regression
from headstart.updates import FOMAML, MAML, FedAvg, FedSGD
from small import federation_file

ACCURACY, ERROR = Classification().metrics[0], Regression().metrics[0]
METHODS = {name: getattr(headstart.methods, name) for name in headstart.methods.__all__}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Twelve clients of 6 to 19 examples, and a network of one hidden layer: 4 → 8 → 3."""
    data = Data(str(federation_file(tmp_path_factory.mktemp("data") / "data.npz")), train=0.6, validation=0.2)
    plan = Experiment("costs", (Stage("plain", FedAvg(), Optimizer(), 1, 3),), data, Imported("mlp", {"widths": (8,)}))
    return prepare(plan)


BODY, HEAD = 4 * (4 * 8 + 8), 4 * (8 * 3 + 3)
COSTS = {
    "FedSGD": (FedSGD(), lambda n: n, BODY + HEAD, BODY + HEAD),
    "FedAvg": (FedAvg(3, batch_size=4), lambda n: 3 * n, BODY + HEAD, BODY + HEAD),
    "MAML": (MAML(2, batch_size=1), lambda n: 3 + 2 * 2, BODY + HEAD, BODY + HEAD),
    "MAML, partial batches": (
        MAML(2, batch_size=4),
        lambda n: sum(min(4, n - 4 * (place % -(-n // 4))) for place in range(3)) + 2 * 2 * n / -(-n // 4),
        BODY + HEAD,
        BODY + HEAD,
    ),
    "FOMAML": (FOMAML(4, batch_size=1), lambda n: 5, BODY + HEAD, BODY + HEAD),
    "FedPer": (FedPer(2, batch_size=4), lambda n: 2 * n, BODY, BODY),
    # A step on the head alone is a forward pass, a third.
    "FedRep": (FedRep(2, 1, batch_size=4), lambda n: 2 * n / 3 + n, BODY, BODY),
    "ANIL": (ANIL(4, batch_size=1), lambda n: 4 / 3 + 1, BODY + HEAD, BODY + HEAD),
    "IFCA": (IFCA(3, 2, batch_size=4), lambda n: 3 * n, 3 * (BODY + HEAD) + 12, BODY + HEAD + 4),
    "LocalOnly": (LocalOnly(), lambda n: 0, 0, 0),
    "pFedMe": (PFedMe(3, 5, batch_size=1), lambda n: 15, BODY + HEAD, BODY + HEAD),
    "SCAFFOLD": (Scaffold(4, batch_size=1), lambda n: 4, 2 * (BODY + HEAD), 2 * (BODY + HEAD)),
}


@pytest.mark.parametrize("name", COSTS)
def test_a_round_costs_what_its_method_says(name, prepared):
    update, gradients, down, up = COSTS[name]
    found = cost(Stage(name, update, Optimizer(), 1, 3), prepared, sampled(prepared))
    sizes = prepared.federation.training_sizes[prepared.groups.train]
    assert found.gradients == pytest.approx(np.mean([gradients(size) for size in sizes]))
    assert (found.down, found.up) == pytest.approx((down, up))


def test_the_clients_whose_cost_is_counted_are_like_all_in_size():
    sizes = np.round(np.random.default_rng(0).lognormal(4, 0.8, 700))
    train = np.arange(100, 700)
    prepared = SimpleNamespace(federation=SimpleNamespace(training_sizes=sizes), groups=SimpleNamespace(train=train))
    chosen = representative(prepared)
    assert set(chosen) <= set(train) and len(set(chosen)) == SAMPLE
    assert sizes[chosen].mean() == pytest.approx(sizes[train].mean(), rel=0.05)


@pytest.mark.parametrize("name", known())
def test_all_methods_try_the_same_rates_and_servers_as_often(name):
    tries = known()[name].tries((0.01, 0.03, 0.1), 9)
    if name == "localonly":
        # Nothing is trained at any rate.
        assert len(tries) == 3
        return
    assert Counter((tried[SERVER], tried[RATE]) for tried in tries) == Counter(
        (tried[SERVER], tried[RATE]) for tried in known()["fedavg"].tries((0.01, 0.03, 0.1), 9)
    )
    kind = known()[name].kind
    for field, values in getattr(kind, "tries", {}).items():
        seen = Counter(tried[field] for tried in tries)
        assert set(seen) == set(values)
        assert max(seen.values()) - min(seen.values()) <= 1
    for tried in tries:
        assert known()[name].update(tried, 7).batch_size == 7


@pytest.mark.parametrize("name", ["fedprox", "ditto", "pfedme", "perfedavg"])
def test_a_methods_own_rates_and_pulls_are_tried_in_units_of_the_clients_rate(name):
    contender = known()[name]
    for tried in contender.tries((0.01, 0.1), 6):
        update = contender.update(tried, 7)
        for field, power in contender.kind.relative.items():
            assert getattr(update, field) == pytest.approx(tried[field] * tried[RATE] ** power)
        pull = getattr(update, "strength", getattr(update, "mu", 0.0))
        # A step of a pulled descent must not throw the model to the other side.
        assert pull * tried[RATE] < 1 and pull * getattr(update, "outer_rate", 0.0) < 1


def test_every_method_is_known_and_fedavg_is_always_there():
    assert {contender.kind for contender in known().values()} >= set(METHODS.values())
    assert [contender.name for contender in contenders(["Fed_Rep"])] == [FEDAVG, BASELINE, "FedRep"]
    assert len(contenders([])) == len(known())


def entry(contender: Contender, initial: np.ndarray, personalized: np.ndarray) -> Entry:
    """A method of so many seeds and clients, which chose one epoch."""
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
    return Entry(contender, result, {}, ())


def made(shifts: dict[str, float], *, seeds: int = 5, clients: int = 40, sign: float = 1.0) -> dict[str, Entry]:
    """Methods whose clients all end so much better than with FedAvg + fine-tuning, give or take a little."""
    generator = np.random.default_rng(0)
    base = generator.normal(0.6, 0.1, (1, clients))
    table = {name: Contender(name, FedAvg) for name in shifts} | {FEDAVG: Contender(FEDAVG, FedAvg, personalizes=False)}
    entries = {}
    for name, contender in table.items():
        noise = generator.normal(0, 0.01, (seeds, clients))
        final = base + sign * shifts.get(name, -0.2) + noise
        entries[name] = entry(contender, final if name == FEDAVG else base + np.zeros((seeds, 1)), final)
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
    assert best.below_fedavg == 0.0
    values = np.sort(sign * entries["better"].result.personalized, axis=1)[:, :4]
    assert best.worst_tenth == pytest.approx(sign * values.mean())
    (fedavg,) = (row for row in rows if row.name == FEDAVG)
    assert (fedavg.hurt, fedavg.beyond_chance) == (0.0, None)


def test_four_seeds_decide_nothing():
    rows = leaderboard(made({BASELINE: 0.0, "better": 0.5}, seeds=4), ACCURACY)
    assert {row.decided for row in rows} == {0}


@pytest.mark.parametrize(
    ("shifts", "decision", "said"),
    [
        (
            {"better": 0.05, "worse": -0.05},
            "holds",
            ("Better than well-tuned", "better +5.", "Worse (in points): worse -", " % of what better"),
        ),
        (
            {"same": 0.0},
            "not decided",
            (
                "No method is shown",
                "Not decided (in points): same",
                "None of these leads by more than +",
                "? Not decided; all of it",
            ),
        ),
        ({"worse": -0.05}, "does not hold", ("No method is shown to be better", "All of it: every other")),
    ],
    ids=["better", "same", "worse"],
)
def test_the_conclusion_says_what_was_decided(shifts, decision, said):
    entries = made({BASELINE: 0.0, **shifts})
    rows = leaderboard(entries, ACCURACY)
    helps, beaten = claims(rows, ACCURACY)
    assert (helps.decision, beaten.decision) == ("holds", decision)
    text = " ".join(conclusion(rows, ACCURACY))
    assert "personalization helps" in text
    for part in said:
        assert part in text


def test_a_gain_that_is_chance_is_not_decided():
    entries = made({BASELINE: -0.2})
    rows = leaderboard(entries, ACCURACY)
    assert claims(rows, ACCURACY)[0].decision == "not decided"
    assert "not decided whether personalization helps" in conclusion(rows, ACCURACY)[0]


@pytest.mark.parametrize(
    ("fedavg", "answer"),
    [(0.0, "is not shown to gain anything over FedAvg as it is; what better gains"), (0.03, "loses against FedAvg")],
)
def test_without_a_gain_of_fine_tuning_there_is_nothing_to_divide(fedavg, answer):
    entries = made({BASELINE: 0.0, "better": 0.05})
    final = values_of(entries[BASELINE])
    noise = np.random.default_rng(5).normal(0, 0.01, final.shape)
    entries[FEDAVG] = entry(Contender(FEDAVG, FedAvg, personalizes=False), final + fedavg + noise, final)
    text = " ".join(conclusion(leaderboard(entries, ACCURACY), ACCURACY))
    assert f"just fine-tuning? None that is decided: fine-tuning {answer}" in text


def test_what_fine_tuning_adds_to_its_own_model_is_told_with_intervals():
    entries = made({BASELINE: 0.0})
    initial, final = entries[BASELINE].result.initial, entries[BASELINE].result.personalized
    tuned = entry(Contender(BASELINE, FedAvg), initial - 0.1, final)
    (row,) = (row for row in leaderboard({**entries, BASELINE: tuned}, ACCURACY) if row.name == BASELINE)
    assert row.gain.mean == pytest.approx((final - initial).mean() + 0.1)
    low, high = row.gain.over_seeds
    assert low < row.gain.mean < high
    text = conclusion(leaderboard({**entries, BASELINE: tuned}, ACCURACY), ACCURACY)[0]
    assert (
        f"the model that it starts from, fine-tuning makes {100 * row.gain.mean:+.1f} points, [{100 * low:+.1f}, "
        in text
    )


def test_clients_are_grouped_by_what_they_adapt_on():
    sizes = np.array([5, 5, 5, 5, 5, 8, 9, 20])
    groups = amounts(sizes)
    assert sum(groups.clients) == len(sizes)
    for place, size in enumerate(groups.sizes):
        assert sizes[groups.group == place].mean() == size
    # Those with five examples are in one group, whatever the quartiles say.
    assert len(set(groups.group[:5])) == 1 and list(groups.sizes) == sorted(groups.sizes)
    values = np.tile(sizes / 10, (3, 1))
    np.testing.assert_allclose(by_amount(values, groups), np.tile(groups.sizes / 10, (3, 1)))
    assert len(amounts(np.full(6, 4)).sizes) == 1


WORDS = "--set", "data.train=0.6", "--set", "data.validation=0.2", "--set", "stages.0.clients_per_round=3"
SHORT = *WORDS, "--tries", 1, "--seeds", 2, "--budget", 4, "--length", 1, "--rates", 0.1


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
    assert "Normalized: initial" in output and "The report: compared/report.html" in output
    document = json.loads(Path("compared/leaderboard.json").read_text())
    assert [row[0] for row in document["tables"][0]["rows"] if row[0] == "Normalized"] == ["Normalized"]
    assert document["conclusion"][0].startswith("For these clients it is not decided")
    page = Path("compared/report.html").read_text()
    assert sentence(document["conclusion"][0]) in page and "normalized:Normalized" in page
    code, output, _ = command(*words, "--processes", 1)
    assert code == 0 and "runs:" not in output
    assert json.loads(Path("compared/leaderboard.json").read_text()) == document


def test_a_regression_federation_is_compared_by_its_error(command, tmp_path):
    runpy.run_path(str(Path(__file__).parents[1] / "examples" / "farms.py"))["write"](tmp_path / "farms.npz")
    words = "compare", "fedavg", "--data", "farms.npz", "--methods", "localonly", *SHORT[:-4], "--length", 5
    code, _, errors = command(*words, "--rates", "0.1", "--budget", 30, "--processes", 1)
    assert (code, errors) == (0, "")
    document = json.loads(Path("compared/leaderboard.json").read_text())
    rows = {row[0]: row for row in document["tables"][0]["rows"]}
    values = {name: float(row[2].split()[0]) for name, row in rows.items()}
    # Their slopes differ, so a model of one's own has the smaller error.
    assert values[BASELINE] < values[FEDAVG]
    assert "has mean squared error" in document["conclusion"][0]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--methods", "fedmagic"), "there is no method 'fedmagic'; give some of fedavg, fedavg+ft"),
        (("--methods", "nowhere:Mine"), "cannot import the method 'nowhere:Mine'"),
        (("--methods", "json:dumps"), "json:dumps is no method; make it a frozen dataclass"),
        (("--rates", "fast"), "--rates 'fast' is no list of numbers"),
        (("--rates", "-1"), "a rate that is not positive"),
        (("--set", "data.validation=0"), "no validation client has examples to test on"),
    ],
)
def test_what_cannot_be_compared_is_told_in_a_sentence(command, tmp_path, words, said):
    federation_file(tmp_path / "data.npz")
    code, _, errors = command("compare", "fedavg", "--data", "data.npz", *WORDS, *words)
    assert code == 2
    assert said in " ".join(errors.split())
    assert not Path("compared").exists()
