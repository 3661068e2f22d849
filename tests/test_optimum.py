"""Personalization of convex models to their optimum: it is SciPy's, for every pull, and the choice among pulls."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from scipy.optimize import minimize

import headstart as hs
from headstart.data.device_data import on_device
from headstart.data.federation import from_arrays
from headstart.data.load import load
from headstart.deploy.programs import Like, export_adapt
from headstart.errors import UserError
from headstart.experiment.suited import pull_problems, suited
from headstart.learning.optimum import INTERCEPT, PULLS
from headstart.learning.personalization import Curves, adapt_client, choose_recipe, deciding_metric, personalizer
from headstart.methods import FedBABU
from headstart.models.zoo import Linear, Logistic, as_model
from headstart.runs.log import personalized_value
from headstart.runs.run import Run
from headstart.training.display import describe
from small import experiment as small_experiment
from small import first_stage_only
from small import run as run_small

CLASSES, FEATURES, SIZES = 3, 4, np.array([[40, 10], [7, 5], [0, 5]])
KEY = jax.random.key(0)
GRID = (30.0, 1.0, 0.1)
RECIPE = hs.Personalization(pulls=GRID)


def problem(kind: str):
    """Three clients, the last without support examples; task, model and parameters to start from."""
    generator = np.random.default_rng(0)
    x = generator.normal(0, 1, (SIZES.sum(), FEATURES)).astype(np.float32)
    x[:, 1] = x[:, 0] + 0.2 * x[:, 1]
    score = x @ generator.normal(0, 1.5, (FEATURES, CLASSES)) + generator.gumbel(size=(len(x), CLASSES))
    y = score.argmax(axis=1) if kind == "logistic" else score[:, 0].astype(np.float32)
    federation = from_arrays("made", ["a", "b", "c"], SIZES, x, y, has_predefined_split=False)
    task = hs.Classification() if kind == "logistic" else hs.Regression()
    model = as_model(Logistic(CLASSES) if kind == "logistic" else Linear(), x[:1])
    return federation, task, model, model.init(KEY)


def by_scipy(kind: str, x: np.ndarray, y: np.ndarray, start: dict, pull: float) -> np.ndarray:
    """The optimum in float64: weights, then intercepts."""
    layer = start["params"]["Dense_0"]
    center = np.concatenate([np.asarray(layer["kernel"], float).ravel(), np.asarray(layer["bias"], float)])
    outputs = len(layer["bias"])
    strength = np.where(np.arange(len(center)) < FEATURES * outputs, pull, INTERCEPT * pull)

    def objective(flat: np.ndarray) -> float:
        output = x @ flat[: -outputs or None].reshape(FEATURES, outputs) + flat[-outputs:]
        if kind == "linear":
            losses = (output[:, 0] - y) ** 2
        else:
            losses = np.logaddexp.reduce(output, axis=1) - output[np.arange(len(y)), y]
        return losses.sum() + (strength * (flat - center) ** 2).sum() / 2

    return minimize(objective, center, method="BFGS", options={"gtol": 1e-5}).x


@pytest.mark.parametrize("kind", ["logistic", "linear"])
def test_local_training_comes_to_the_optimum_of_every_pull_and_is_measured_there(kind):
    federation, task, model, start = problem(kind)
    gather = on_device(federation)
    curves = personalizer(task, model, RECIPE)(start, np.arange(3), gather, KEY)
    adapt = jax.jit(partial(adapt_client, task, model, RECIPE, start))
    for number, (support, _) in enumerate(SIZES):
        x, y = federation.fetch(np.array([number]))
        for count, pull in enumerate(GRID, 1):
            found = adapt(gather(np.arange(3)).at(number), KEY, count)
            loss = task.loss(model.apply(found, x[support:])[0], y[support:])[0].mean()
            metric = deciding_metric(task, RECIPE)
            np.testing.assert_allclose(loss, curves.means(metric)[number, count], rtol=1e-5)
            if support:
                layer = found["params"]["Dense_0"]
                flat = np.concatenate([np.ravel(layer["kernel"]), layer["bias"]])
                np.testing.assert_allclose(flat, by_scipy(kind, x[:support], y[:support], start, pull), atol=2e-3)
            else:
                assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), found, start))


def test_folds_test_on_every_row_once_and_the_first_is_the_split():
    federation = from_arrays("made", ["a", "b"], np.array([[8, 2], [4, 1]]), np.arange(15.0)[:, None], np.arange(15.0))
    gather = on_device(federation)
    tested = []
    for turn in range(5):
        adapt, test = gather.turned(turn).parts(np.array([1, -1]), "adapt", "test")
        mine, others = (each.rows[0, : int(each.size[0])].tolist() for each in (test, adapt))
        assert sorted(mine + others) == [10, 11, 12, 13, 14] and int(test.size[1]) == 0
        tested += mine
    assert tested[0] == 14 and sorted(tested) == [10, 11, 12, 13, 14]


def test_a_pull_is_chosen_by_the_loss_which_tells_more_of_few_examples():
    task = hs.Classification()
    assert (
        deciding_metric(task, RECIPE).name == "loss" and deciding_metric(task, hs.Personalization()).name == "accuracy"
    )
    sums = {
        "accuracy": (np.array([[3.0, 4, 4, 3]]), np.array([5])),
        "loss": (np.array([[5.0, 4, 2, 3]]), np.array([5])),
    }
    curves = Curves(sums, np.zeros((1, 4)), np.zeros((1, 4)))
    assert choose_recipe([curves], task) == (0, 1)
    assert choose_recipe([curves], task, by=deciding_metric(task, RECIPE)) == (0, 2)


def test_pulls_go_from_strong_to_weak_and_with_convex_models_and_plain_methods_alone():
    assert RECIPE.unit == "pulls" and RECIPE.most == 3 and RECIPE.at_most(0).most == 0 and RECIPE.unchosen == 2
    with pytest.raises(UserError, match="from strong to weak"):
        hs.Personalization(pulls=(1.0, 1.0))
    with pytest.raises(UserError, match="there are 3 pulls"):
        RECIPE.at_most(4)
    whole = replace(small_experiment(Path("x")), personalization=RECIPE, task=hs.Classification())
    assert "the model is mlp" in " ".join(pull_problems(whole))
    stage = replace(whole.stages[0], update=FedBABU())
    own_way = replace(whole, model=hs.ModelSpec("logistic"), stages=(stage,))
    assert "personalizes in its own way" in " ".join(pull_problems(own_way))


def test_a_table_is_personalized_to_the_optimum_unless_something_else_is_asked_for():
    federation, *_ = problem("linear")
    table = replace(federation, metadata={"columns": [], "kind": "features"})
    plan = replace(small_experiment(Path("x")), model=None, personalization=hs.Personalization())
    assert suited(plan, table).personalization.pulls == PULLS
    assert suited(plan, federation).personalization.pulls is None
    assert suited(replace(plan, model=hs.ModelSpec("mlp")), table).personalization.pulls is None
    assert suited(replace(plan, personalization=hs.Personalization(epochs=3)), table).personalization.pulls is None


@pytest.fixture(scope="module")
def pulled(tmp_path_factory, small_data) -> Run:
    """A run of the small data that personalizes to the optimum."""
    plan = replace(first_stage_only(small_experiment(small_data)), model=hs.ModelSpec("logistic"))
    return run_small(replace(plan, personalization=RECIPE), tmp_path_factory.mktemp("pulled") / "run")


def test_a_run_personalizes_to_the_optimum_and_says_with_which_pull(pulled, no_figures, tmp_path):
    from headstart.reports.page import write
    from headstart.reports.tables import rows

    count, federation = pulled.chosen_epochs(), load(pulled.experiment.data.source)
    assert pulled.unit == "pulls" and pulled.summary()["pulls"] == [pulled.pulls[count]]
    clients = pulled.clients()
    number = list(federation.ids).index(clients["id"][0])
    support = int(federation.sizes[number, 0])
    x, y = federation.fetch(np.array([number]))
    mine = pulled.personalize(x[:support], y[:support], client=federation.ids[number])
    share = np.mean(mine.predict(x[support:]).astype(str) == y[support:].astype(str))
    assert share == pytest.approx(clients["personalized"][0])
    assert rows([pulled])[0].pulls == (np.inf, *GRID)
    assert "pulls" in write([pulled], tmp_path / "page.html").read_text()


def test_before_a_pull_is_chosen_the_middle_one_is_shown_which_is_no_extreme():
    values = {"accuracy": [0.1, 0.2, 0.3, 0.0]}
    record = {"event": "evaluation", "seed": 0, "round": 1, "stage": "s", "validation": values}
    assert personalized_value(record, "accuracy") == 0.0
    assert "personalized 0.3000" in describe({**record, "middle": 2})


def test_the_program_of_an_artifact_comes_to_the_same_optimum_bit_for_bit():
    federation, task, model, start = problem("logistic")
    one = on_device(federation)(np.arange(3)).at(1)
    x, y = federation.fetch(np.array([1]))
    like = Like(start, x, y)
    program = export_adapt(task, model, RECIPE, like, platforms=("cpu",))
    rows, support = 16, int(SIZES[1, 0])
    inputs = np.concatenate([x[:support], np.zeros((rows - support, FEATURES), np.float32)])
    targets = np.concatenate([y[:support], np.zeros(rows - support)]).astype(np.int32)
    leaves, words = jax.tree.leaves(start), jax.random.key_data(KEY)
    found = program.call(leaves, inputs, targets, np.int32(support), words, one.key_data, np.int32(2))
    expected = jax.jit(partial(adapt_client, task, model, RECIPE, start))(one, KEY, 2)
    for mine, theirs in zip(jax.tree.leaves(expected), found, strict=True):
        np.testing.assert_array_equal(mine, theirs)
