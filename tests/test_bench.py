"""`headstart bench`: what it counts, against hand counts and XLA; and the command, as a user types it."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from headstart.bench.measure import Report, Result, Tried, sensible_lanes, spread
from headstart.bench.table import clipped
from headstart.bench.timing import PERSONAL_EPOCHS, machine_of, personal_operations, timed
from headstart.bench.workload import ARITHMETIC, client_sizes, padded_rows, padding, rows_computed, work_of
from headstart.data.federation import Examples
from headstart.learning.local_sgd import mean_loss
from headstart.learning.parallel import Parallel
from headstart.learning.tasks import Classification


@pytest.mark.parametrize("name", ["logistic", "mlp"])
def test_the_arithmetic_is_what_xla_counts(name):
    work, rows = work_of(name, 2), 64
    x, y = jnp.zeros((rows, 28, 28, 1)), jnp.zeros(rows, jnp.int32)
    examples = Examples(x, y, jnp.ones(rows, bool))
    params = work.model.init(jax.random.key(0))
    forward = jax.jit(lambda params: work.model.apply(params, x)[0])
    gradient = jax.jit(jax.grad(lambda params: mean_loss(Classification(), work.model, params, examples, None)[0]))
    for program, expected in ((forward, work.arithmetic.forward), (gradient, work.arithmetic.training)):
        counted = program.lower(params).compile().cost_analysis()["flops"]
        # XLA also counts biases, activations and the loss.
        assert expected * rows < counted < 1.05 * expected * rows


def test_the_arithmetic_of_the_large_models_is_the_closed_form():
    assert ARITHMETIC["cnn"].forward == 2 * (194_688 + 10_616_832 + 1_179_648 + 7_936)
    assert ARITHMETIC["cnn"].training == 3 * ARITHMETIC["cnn"].forward - 2 * 194_688
    assert ARITHMETIC["cnn_lean"].forward == 2 * (97_344 + 460_800 + 102_400 + 7_936)
    assert ARITHMETIC["char_lstm"].training == 3 * 2 * 80 * (8 * 1024 + 3 * 256 * 1024 + 256 * 90)


def test_rows_computed_are_those_of_a_hand_count():
    # Batches of 20 are cut to 5, 10 or 20 rows; 0 examples are 0 rows.
    assert padded_rows(np.array([0, 3, 5, 6, 10, 11, 20, 25, 47]), 20).tolist() == [0, 5, 5, 10, 10, 20, 20, 25, 50]
    assert rows_computed(np.array([[45, 20], [7, 0]]), 20, 1) == 45 + 20 + 10
    # Side by side: 3 batches beside 1, then nothing on the first device; 1 beside 0 on the second.
    assert rows_computed(np.array([[45, 0, 20, 0], [7, 0, 0, 0]]), 20, 2) == 2 * 3 * 20 + 2 * 1 * 20


def test_lanes_waste_more_than_one_client_after_another():
    work = work_of("mlp", 20)
    alone, beside = (padding(work, range(1, 9), Parallel(lanes)) for lanes in (1, 4))
    assert 0 < alone < 0.05 < beside < 0.5


def test_little_is_computed_for_padding():
    # Shakespeare's clients have 22 snippets on average in TensorFlow Federated; their batches are of ten.
    for mean, batch_size in ((104, 20), (22, 10)):
        sizes = client_sizes(2000, mean=mean, low=2, high=4 * mean)
        assert 1 < padded_rows(sizes, batch_size).sum() / sizes.sum() < 1.05


def test_clients_are_as_large_as_the_writers_of_femnist():
    sizes = client_sizes(2000, mean=104, low=10, high=400)
    assert sizes.min() >= 10 and sizes.max() == 400 and 98 < sizes.mean() < 105
    work = work_of("logistic", 5)
    assert len(work.training) == 200 and len(work.held_out) == 5
    assert (work.federation.sizes[work.training, 1] == 0).all() and (work.federation.sizes[work.held_out, 1] > 0).all()


def test_personalizing_counts_training_and_every_test():
    work = work_of("logistic", 3)
    adapt, test = work.federation.sizes[work.held_out].sum(axis=0)
    operations = 2 * 784 * 62
    assert (
        personal_operations(work)
        == PERSONAL_EPOCHS * adapt * 2 * operations + (PERSONAL_EPOCHS + 1) * test * operations
    )


def test_matrix_products_are_really_computed():
    product = jax.jit(jnp.matmul)
    factors = jnp.ones((11520, 288)), jnp.ones((288, 64))
    timed(lambda: product(*factors))
    single = max(2 * 11520 * 288 * 64 / timed(lambda: product(*factors)) for _ in range(5))
    # A loop from which XLA took the product would be thousands of times faster.
    assert 0.02 < machine_of(1).operations_per_second() / single < 50


def test_lanes_worth_trying():
    assert sensible_lanes("cpu", 2, 20) == [1, 2, 4] and sensible_lanes("cpu", 8, 5) == [1]
    assert sensible_lanes("gpu", 1, 20) == [20, 16, 4, 1] and sensible_lanes("gpu", 4, 4) == [1]
    assert spread([3.0, 1.0, 2.0]) == (2.0, 1.0, 3.0, 3)


def test_lanes_that_no_client_is_left_for_are_reported():
    one = spread([1.0])
    tried = tuple(Tried(lanes, one, one, 0.0, one, 0.0) for lanes in (2, 4))
    report = Report("cpu", "cpu", 3, 10, one, (Result("mlp", tried, (), one, 0.0),), 1.0)
    assert clipped(report) == []
    assert clipped(report._replace(cohort=6)) == [
        "Lanes above 2 change nothing: a device has at most 2 clients of a round"
    ]


@pytest.mark.slow
def test_the_command_measures_and_writes_its_numbers(command, tmp_path):
    path = tmp_path / "bench.json"
    words = ("bench", "--models", "logistic", "--seconds", 1, "--cohort", 3, "--lanes", "1", "--json", path)
    code, out, err = command(*words)
    assert (code, err) == (0, ""), err
    assert "logistic: " in out and "best with 1 lane" in out and "--model logistic --lanes 1" in out
    report = json.loads(path.read_text())
    (result,) = report["results"]
    (tried,) = result["tried"]
    speed, share = tried["examples_per_second"]["median"], tried["machine_share"]["median"]
    operations = ARITHMETIC["logistic"].training
    product = report["product_flops"]
    assert product["low"] * share * 0.99 < speed * operations < product["high"] * share * 1.01
    assert tried["lanes"] == 1 and 0 < tried["padding"] < 0.2 and result["personalize_cost"]["median"] > 0
    assert tried["outside"]["median"] < 1 and tried["compile_seconds"] > 0 and report["cohort"] == 3


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--models", "cnm"], "there is no model 'cnm' to measure; give some of cnn"),
        (["--models", ""], "there is no model ''"),
        (["--lanes", "few"], "is no list of numbers; write it as 1,2,4"),
        (["--lanes", "0"], "0 lanes do not fit a cohort of 20 clients"),
        (["--cohort", "0"], "a cohort of 0 clients"),
        (["--seconds", "0"], "nothing can be measured in 0 seconds"),
        (["--models", "logistic", "--json", "/proc/x/bench.json"], "cannot write /proc/x/bench.json"),
    ],
)
def test_a_mistake_gets_one_sentence_and_exit_code_2(command, words, complaint):
    code, _, err = command("bench", *words)
    assert code == 2 and complaint in err
    assert len(err.strip().splitlines()) == 1 and "Traceback" not in err


def test_help_explains_with_examples(command):
    code, out, _ = command("bench", "--help")
    assert code == 0 and "headstart bench --models cnn --lanes 1,2,4" in " ".join(out.split())
