"""The study of the central identity, against plain numpy on softmax regression."""

import jax
import numpy as np
import pytest

import reference
import small
import tiny
from headstart.data.device_data import on_device
from headstart.experiment.experiment import Data, ModelSpec
from headstart.experiment.setup import prepare
from headstart.learning.rounds import client_key
from headstart.learning.tasks import Classification
from headstart.runs import checkpoint
from headstart.studies.evidence import Choice
from headstart.studies.paper.identity import decision, identity
from headstart.studies.paper.pseudo_gradients import (
    WITNESSES,
    Local,
    beside,
    distances,
    identity_errors,
    mean_fomaml,
    mean_gradients,
    mean_maml,
    measure,
    parts,
    products,
)
from headstart.studies.paper.study import Setting

RATE, BATCH, STEPS = 0.3, 3, 5
LENGTHS = (1, 3)
KEY = jax.random.key(4)
LOCAL = Local(Classification(), tiny.SOFTMAX, RATE, BATCH)
PROBLEM = reference.softmax_regression(tiny.FEATURES, tiny.CLASSES)
CLIENTS = (0, 1, 2, 4)


def cohort():
    return on_device(tiny.federation())(np.array(CLIENTS))


def paths(count):
    """Every client's first batches, drawn one by one."""
    clients = [tiny.one(tiny.federation(), number) for number in CLIENTS]
    return [tiny.drawn(client, client_key(KEY, client), range(count), BATCH) for client in clients]


def plain_gradients(theta):
    """The mean of g_1 … g_{STEPS + 1} by an ordinary loop of SGD, `[STEPS + 1, parameters]`."""
    of_clients = []
    for path in paths(STEPS + 1):
        current, gradients = theta, []
        for batch in path:
            gradients.append(PROBLEM.gradient(current, batch))
            current = current - RATE * gradients[-1]
        of_clients.append(gradients)
    return np.mean(of_clients, axis=0)


@pytest.fixture
def params(float64):
    return tiny.theta()


def test_the_gradients_of_a_path_are_those_of_an_ordinary_loop(params):
    expected = plain_gradients(tiny.flat(params))
    found = mean_gradients(LOCAL, params, cohort(), KEY, count=STEPS + 1)
    np.testing.assert_allclose(found["theta"], expected, rtol=1e-10)
    np.testing.assert_allclose(products(found), expected @ expected.T, rtol=1e-10)


def test_parts_are_what_vectors_say(params):
    g = plain_gradients(tiny.flat(params))
    found = parts((g @ g.T)[None])
    for k in range(1, STEPS + 1):
        total, terms = g[:k].sum(axis=0), g[1:k].sum(axis=0)
        cosine = lambda a, b: a @ b / np.linalg.norm(a) / np.linalg.norm(b)  # noqa: E731
        expected = (
            g[0] @ total / (total @ total),
            terms @ total / (total @ total),
            np.linalg.norm(terms) / np.linalg.norm(total),
            cosine(g[0], total),
            cosine(g[k], total),
            cosine(g[0], g[k]),
        )
        np.testing.assert_allclose([each[0, k - 1] for each in found], expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.fedsgd_share + found.fomaml_share, 1, rtol=1e-12)
    assert found.fomaml_share[0, 0] == found.norm_ratio[0, 0] == 0
    assert found.fedsgd_cosine[0, 0] == pytest.approx(1)
    assert (found.fomaml_share[0, 1:] > 0).all()


def test_equal_gradients_give_fomaml_k_minus_one_parts_of_k():
    steps = np.arange(1, 5)
    found = parts(np.full((5, 5), 2.0))
    np.testing.assert_allclose(found.fomaml_share, (steps - 1) / steps)
    np.testing.assert_allclose(found.fomaml_cosine, 1)


def test_the_identity_holds_to_rounding(params):
    errors = np.asarray(identity_errors(LOCAL, params, cohort(), KEY, lengths=LENGTHS))
    assert errors.shape == (len(CLIENTS), len(LENGTHS), 2)
    assert errors.max() < 1e-13


def test_distances_of_vectors(float64):
    fedsgd, terms = np.array([1.0, 0.0]), np.array([[0.0, 2.0], [1.0, 1.0]])
    steps = np.array([[1.0, 0.0], [0.0, 2.0], [1.0, 2.0]])
    deltas = np.array([[1.0, 0.0], [3.0, 4.0]])
    found = distances(deltas, fedsgd, terms, steps, (1, 3))
    np.testing.assert_allclose(found, [[0, 0], [np.hypot(1, 1) / 5, 1 / 5]])


@pytest.mark.parametrize("steps", LENGTHS)
def test_maml_beside_fomaml(params, steps):
    theta = tiny.flat(params)
    fomaml, maml = (
        np.mean([of(PROBLEM, theta, path[:-1], path[-1], RATE) for path in paths(steps + 1)], axis=0)
        for of in (reference.fomaml, reference.maml)
    )
    np.testing.assert_allclose(mean_fomaml(LOCAL, steps, params, cohort(), KEY)["theta"], fomaml, rtol=1e-9)
    np.testing.assert_allclose(mean_maml(LOCAL, steps, params, cohort(), KEY)["theta"], maml, rtol=1e-9)
    found = beside(LOCAL, steps, params, cohort(), KEY)
    lengths = np.linalg.norm(fomaml), np.linalg.norm(maml)
    assert found.cosine == pytest.approx(fomaml @ maml / lengths[0] / lengths[1], rel=1e-9)
    assert found.norm_ratio == pytest.approx(lengths[1] / lengths[0], rel=1e-9)
    assert found.cosine < 1 - 1e-5
    assert min(found.seconds) > 0


def test_measurements_are_of_their_checkpoint_and_repetition(params):
    cohorts = [on_device(tiny.federation())(np.array(chosen)) for chosen in ((0, 2, 1, 4), (4, 1, 2, 2), (2, 4, 0, 0))]
    models = {
        (rounds, repetition): tiny.theta(10 * rounds + repetition) for rounds in (0, 7) for repetition in range(3)
    }
    measured = measure(LOCAL, STEPS, LENGTHS, cohorts, (0, 7), lambda *key: models[key])
    assert measured.rounds == (0, 7)
    assert measured.products.shape == (2, 3, STEPS + 1, STEPS + 1)
    assert measured.errors.shape == (2, 3, min(4, WITNESSES), 2, 2)
    assert measured.cosines.shape == measured.norm_ratios.shape == (2, 3, 2)
    assert measured.seconds.shape == (2, 3, 2, 2)
    # On the models of another checkpoint alone, what is measured stays the same.
    alone = measure(LOCAL, STEPS, LENGTHS, cohorts, (7,), lambda *key: models[key])
    np.testing.assert_allclose(measured.products[1], alone.products[0], rtol=1e-12)
    np.testing.assert_allclose(measured.cosines[1], alone.cosines[0], rtol=1e-12)
    assert len(np.unique(measured.products[..., 0, 0])) == 6


DECISIONS = {
    "holds": (1e-6, [0.7, 0.72, 0.69, 0.71, 0.7], "holds"),
    "the identity fails": (1e-3, [0.7, 0.72, 0.69, 0.71, 0.7], "does not hold"),
    "a small share": (1e-6, [0.3, 0.32, 0.29, 0.31, 0.3], "does not hold"),
    "a share near one half": (1e-6, [0.3, 0.72, 0.49, 0.51, 0.6], "inconclusive"),
    "few repetitions": (1e-6, [0.7, 0.72, 0.69, 0.71], "inconclusive"),
    "not finite": (np.nan, [0.7, 0.72, 0.69, 0.71, 0.7], "inconclusive"),
}


@pytest.mark.parametrize("name", DECISIONS)
def test_the_rule_decides(name):
    error, shares, expected = DECISIONS[name]
    assert (
        decision(np.array([1e-7, error]), np.array([[0.9, 0.91, 0.92, 0.9, 0.91][: len(shares)], shares])) == expected
    )


class MadeRuns:
    """Runs that trained nothing: each left a model beside the untrained one."""

    def __init__(self, folder, seeds):
        self.root, self.seeds, self.prepared = folder, seeds, prepare

    def choose(self, what, candidates, *, seeds):
        first = next(iter(candidates))
        return Choice(what, {first: 0.5}, first), {}

    def with_parameters(self, experiments, seeds):
        assert all(self.ended(each, seed).exists() for each in experiments for seed in seeds)

    def ended(self, experiment, seed):
        return self.root / f"{experiment.name}-{experiment.stages[0].rounds}-{seed}.safetensors"

    def finish(self, wanted, *, seeds):
        assert seeds == self.seeds
        for experiment in wanted.values():
            for seed in range(seeds):
                model = self.prepared(experiment).model
                params = jax.tree.map(lambda leaf: 1.1 * leaf, model.init(jax.random.key(seed)))
                checkpoint.write(self.ended(experiment, seed), params, {"round": experiment.stages[0].rounds})
        return {name: small_result(name) for name in wanted}


def small_result(name):
    from headstart.studies.evidence import Result

    one, nothing = np.zeros((1, 1)), np.zeros(1)
    return Result(("a",), one[None], nothing, nothing, one, nothing, nothing, nothing, f"headstart run {name}")


@pytest.mark.slow
def test_the_study_gives_its_evidence(tmp_path):
    setting = Setting(
        scale="smoke",
        data=Data(str(small.federation_file(tmp_path / "data.npz")), train=0.6, validation=0.2),
        model=ModelSpec("mlp", {"widths": (4,)}),
        task=Classification(),
        client_rates=(0.1,),
        epochs=(1,),
        cohorts=(2,),
        rounds=6,
        more_rounds=1,
        seeds=2,
        most_seeds=2,
        spread_seeds=2,
        tuning_seeds=2,
        target=0.5,
        steps=2,
        cohort=3,
        batch_size=4,
        client_rate=0.1,
    )
    evidence = identity(setting, MadeRuns(tmp_path / "runs", 2))
    (claim,) = evidence.claims
    assert claim.decision in ("holds", "does not hold", "inconclusive")
    assert len(claim.evidence) == 6
    assert len(evidence.choices) == 1
    assert [len(table.rows) for table in evidence.tables] == [3, 6, 6, 2]
    assert all(len(row) == len(table.head) for table in evidence.tables for row in table.rows)
    assert [row[0] for row in evidence.tables[0].rows] == ["0", "2", "6"]
    assert list(evidence.commands.values()) == ["headstart run FedAvg, 2 rounds", "headstart run FedAvg, 6 rounds"]
    assert len({figure_spec.name for figure_spec in evidence.figure_specs}) == 3
