"""What clients keep, and runs of every method: to their end, over an interruption, and what is refused."""

from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import headstart.methods
import small
import tiny
from headstart import Experiment, Optimizer, Stage, UserError
from headstart.data.device_data import on_device
from headstart.data.load import load
from headstart.deploy.adapt import personalize_run
from headstart.deploy.export import export_run
from headstart.deploy.predict import parameter_files
from headstart.learning.client_state import ClientStates, from_tree, tree_shapes
from headstart.learning.method import Reply
from headstart.learning.rounds import Cohort, federated
from headstart.learning.tasks import Classification, no_sums
from headstart.methods import APFL, LPFT, FedBN, FedPer, KNNPer, MetaSGD, Scaffold
from headstart.methods.paper import FedAvg
from headstart.runs.checkpoint import read, read_arrays, write
from headstart.runs.directory import read_curves
from small import run

TASK, MODEL, KEY = Classification(), tiny.SOFTMAX, jax.random.key(11)
METHODS = {name: getattr(headstart.methods, name)() for name in headstart.methods.__all__}
METHODS["FedBN"] = FedBN(layers=("Dense_0",))


@pytest.mark.parametrize("expected", [0, 2, 9])
def test_a_memory_has_room_for_those_who_took_part_and_comes_back_from_disk(expected, tmp_path):
    default_state = {"head": np.full(2, 7.0, np.float32)}
    client_state = ClientStates(default_state, expected=expected)
    np.testing.assert_array_equal(client_state.of(np.array([5, -1]))["head"], [[7, 7], [7, 7]])
    for number, clients in enumerate([[9, 3], [3, -1], [1, 2]]):
        left = np.array([[number, client] for client in clients], np.float32)
        client_state.put(np.array(clients), {"head": left})
    write(tmp_path / "memory.safetensors", client_state.as_tree(), {})
    again = from_tree(
        read(tmp_path / "memory.safetensors", tree_shapes(default_state, len(client_state))).tree, expected=expected
    )
    for one in (client_state, again):
        found = one.of(np.array([[9, 3], [1, 8]]))["head"]
        np.testing.assert_array_equal(found, [[[0, 9], [1, 3]], [[2, 1], [7, 7]]])


def test_what_is_not_finite_is_not_kept():
    def spoiling(task, model, broadcast, client, client_state, key):
        left = jnp.where(client.size > 5, jnp.nan, client_state + 1)
        return Reply(
            jax.tree.map(jnp.zeros_like, broadcast), client.size.astype(jnp.float32), no_sums(task, left.dtype), left
        )

    algorithm = federated(TASK, MODEL, spoiling, Optimizer("sgd", 1.0).build())
    cohort = Cohort(on_device(tiny.federation())(np.arange(5)), jnp.zeros(5, jnp.float32))
    _, info = jax.jit(algorithm.step)(algorithm.init(tiny.theta()), cohort, KEY)
    # Too large, one, too large, without examples, one.
    np.testing.assert_array_equal(info.client_state, [0, 1, 0, 0, 1])


def experiment(data, method, **changes) -> Experiment:
    whole = small.experiment(data)
    stage = Stage(type(method).__name__, method, Optimizer("sgd", 1.0, {"momentum": 0.9}), 6, 3)
    return replace(whole, stages=(stage,), **changes)


# A personal head and a model beside the shared one stand for all, where time is short.
QUICK = "FedPer", "Ditto"


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in METHODS])
def test_every_method_runs_and_personalizes(name, small_data, tmp_path):
    assert run(experiment(small_data, METHODS[name]), tmp_path / "out").finished
    _, curves = read_curves(tmp_path / "out" / "seed-0" / "stage-0.npz", "test")
    assert np.isfinite(curves.gain).all() and curves.gain.shape[1] == 3


@pytest.mark.parametrize(
    ("method", "before"),
    [(FedPer(2, 0.1, 4), 2), (Scaffold(3, 0.1, 4), 0)],
    ids=["FedPer after FedAvg", "SCAFFOLD"],
)
def test_a_run_with_memory_goes_on_with_the_same_bits(method, before, small_data, tmp_path):
    plan = experiment(small_data, method)
    if before:
        first = Stage("first", FedAvg(1, 0.1, 4), Optimizer("sgd", 1.0), before, 3)
        plan = replace(plan, stages=(first, *plan.stages))
    assert run(plan, tmp_path / "whole").finished

    def on_event(record):
        if record["event"] == "round" and record["round"] == before + 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(plan, tmp_path / "parts", on_event=on_event)
    newest = max((tmp_path / "parts" / "seed-0" / "checkpoints").iterdir())
    assert newest.name == f"round-{before + 3:07d}.safetensors" and any(
        "kept" in name for name in read_arrays(newest)[0]
    )
    newest.write_bytes(newest.read_bytes()[:-100])  # a damaged one is passed over, with what it says of the clients
    assert run(plan, tmp_path / "parts").finished
    last = f"stage-{len(plan.stages) - 1}.safetensors"
    ends = [read_arrays(tmp_path / out / "seed-0" / last)[0] for out in ("whole", "parts")]
    assert ends[0].keys() == ends[1].keys()
    for name, array in ends[0].items():
        np.testing.assert_array_equal(array, ends[1][name])


def test_what_cannot_be_is_refused(small_data, tmp_path):
    plan = experiment(small_data, Scaffold(3, 0.1, 4))
    after = Stage("then", FedAvg(1, 0.1, 4), Optimizer("sgd", 1.0), 2, 3)
    with pytest.raises(UserError, match="shares more than one model"):
        run(replace(plan, stages=(*plan.stages, after)), tmp_path / "two")
    assert run(plan, tmp_path / "one").finished
    with pytest.raises(UserError, match="does not start every client from one model"):
        export_run(tmp_path / "one", tmp_path / "artifact")


@pytest.mark.slow
@pytest.mark.parametrize("method", [LPFT(2, 0.1, 4, head_epochs=1), APFL(2, 0.1, 4), MetaSGD(1, 0.1, 4)], ids=str)
def test_a_personalization_of_its_own_is_the_same_in_python_and_in_a_folder(method, small_data, tmp_path):
    ended, federation = run(experiment(small_data, method), tmp_path / "run"), load(small_data, raw=True)
    personalize_run(ended, small_data, tmp_path / "own", epochs=2)
    files, client = parameter_files(tmp_path / "own"), federation.ids[0]
    x, y = (leaf[: federation.sizes[0, 0]] for leaf in federation.fetch(np.array([0])))
    mine = ended.personalize(x, y, client=client, epochs=2).params
    saved = read(files[client], jax.eval_shape(lambda: mine)).tree
    for found, expected in zip(*map(jax.tree.leaves, (mine, saved)), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


class Normalized(nn.Module):
    """Batch normalization between two dense layers."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        """Logits `[batch, 3]`."""
        return nn.Dense(3)(nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Dense(8)(x))))


def test_normalization_of_every_client_is_in_what_a_run_saves(small_data, tmp_path):
    plan = experiment(small_data, FedBN(2, 0.1, 4))
    assert run(plan, tmp_path / "run", model=Normalized()).finished
    newest = max((tmp_path / "run" / "seed-0" / "checkpoints").iterdir())
    arrays = {name: array for name, array in read_arrays(newest)[0].items() if "kept" in name}
    # Scale, bias, mean and variance, of clients that differ in all of them.
    assert len(arrays) == 4 and all(np.ptp(array, axis=0).min() > 0 for array in arrays.values())
    _, curves = read_curves(tmp_path / "run" / "seed-0" / "stage-0.npz", "test")
    assert np.isfinite(curves.gain).all()
    with pytest.raises(UserError, match="the model has no layers with batch statistics"):
        run(plan, tmp_path / "without")


def test_clients_that_predict_with_their_own_examples_do_so_in_python_alone(small_data, tmp_path):
    ended = run(experiment(small_data, KNNPer(2, 0.1, 4)), tmp_path / "run")
    x, y = load(small_data, raw=True).fetch(np.array([0]))
    mine, shared = ended.personalize(x, y, epochs=2), ended.initial_model()
    # The last of the mixing weights is no edge beyond which others could be tried.
    assert ended.report()["edges"] == []
    probabilities = np.exp(mine.outputs(x))
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-4)
    right, before = probabilities[np.arange(len(y)), y], jax.nn.softmax(shared.outputs(x))[np.arange(len(y)), y]
    # Every example is its own nearest neighbour.
    assert before.min() < 0.2 and right[before.argmin()] > before.min() + 0.1
    with pytest.raises(UserError, match="have no parameters of their own to be written"):
        personalize_run(ended, small_data, tmp_path / "own")
    with pytest.raises(UserError, match="which an artifact does not hold"):
        export_run(tmp_path / "run", tmp_path / "artifact")
