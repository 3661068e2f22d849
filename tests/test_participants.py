"""Clients that took part, measured with what they kept: beside plain loops, and without a look at what is measured."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import headstart as hs
from headstart.data.federation import from_arrays, split_clients, split_examples
from headstart.experiment.serialization import earlier, to_json
from headstart.experiment.setup import prepare
from headstart.methods import APFL, Ditto, FedPer, FedRep
from headstart.methods.paper import FedAvg
from headstart.training.participants import participants_of

CLIENTS, SUPPORT, QUERY, CLASSES = 12, 6, 8, 3
DATA = hs.Data(train=0.6, validation=0.2)


def federation(seed=0, *, predefined=True):
    """Clients who call the classes by names of their own, so that their own heads are worth something."""
    generator = np.random.default_rng(seed)
    rows = CLIENTS * (SUPPORT + QUERY)
    x = generator.normal(size=(rows, 4)).astype(np.float32)
    client = np.repeat(np.arange(CLIENTS), SUPPORT + QUERY)
    y = ((x[:, :CLASSES].argmax(axis=1) + client) % CLASSES).astype(np.int32)
    sizes = np.tile([SUPPORT, QUERY], (CLIENTS, 1))
    ids = [f"c{i}" for i in range(CLIENTS)]
    found = from_arrays("names", ids, sizes, x, y, metadata={"kind": "features", "classes": CLASSES})
    return found if predefined else split_examples(found, test_fraction=0.5)


def experiment(update, *, learning_rates=(0.1, 0.5), epochs=3, data=DATA, **more):
    # A batch holds all of a client's examples, so that their order is of no account.
    recipe = hs.Personalization(
        hs.Optimizer("sgd", learning_rates[0]), batch_size=20, epochs=epochs, learning_rates=learning_rates
    )
    stage = hs.Stage("train", update, hs.Optimizer("sgd", 1.0), 4, 7)
    return hs.Experiment(
        "participants", (stage,), data, hs.ModelSpec("mlp", {"widths": (5,)}), personalization=recipe, **more
    )


def run(update, out, **more):
    return hs.run(experiment(update, participants=4, **more), out, federation=federation(), progress=False)


def network(params, x):
    layers = params["params"]
    hidden = jax.nn.relu(x @ layers["Dense_0"]["kernel"] + layers["Dense_0"]["bias"])
    return hidden @ layers["Dense_1"]["kernel"] + layers["Dense_1"]["bias"]


def loss(params, x, y):
    return optax.softmax_cross_entropy_with_integer_labels(network(params, x), y).mean()


def rows_of(client):
    x, y = federation().fetch(np.array([client]))
    return (x[:SUPPORT], y[:SUPPORT]), (x[SUPPORT:], y[SUPPORT:])


def accuracy(params, client):
    x, y = rows_of(client)[1]
    return float((network(params, x).argmax(axis=1) == y).mean())


@pytest.fixture
def kept(monkeypatch):
    """What clients have kept at the end of training, by client, filled when a run ends."""
    from headstart.training import stage_end

    found = {}
    measure = stage_end.measure_participants

    def watch(seed_run, position):
        states = position.client_states
        found.update({client: None if states is None else states.of(np.array([client])) for client in range(CLIENTS)})
        return measure(seed_run, position)

    monkeypatch.setattr(stage_end, "measure_participants", watch)
    return lambda client: jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), found[client])


def descend(params, gradient, learning_rate):
    return jax.tree.map(lambda p, g: p - learning_rate * g, params, gradient)


def own_head(params, state):
    """The body of a model with a client's own head, whose leaves are in the order of their names."""
    bias, kernel = state
    return {"params": {**params["params"], "Dense_1": {"bias": bias, "kernel": kernel}}}


def curve(start, client, learning_rate, epochs=3, *, only_head=False, strength=0.0):
    """Accuracies before and after each epoch of a plain loop."""
    (x, y), _ = rows_of(client)
    params, found = start, [accuracy(start, client)]
    for _ in range(epochs):
        gradient = jax.grad(loss)(params, x, y)
        gradient = jax.tree.map(lambda g, p, w: g + strength * (p - w), gradient, params, start)
        if only_head:
            gradient["params"]["Dense_0"] = jax.tree.map(jnp.zeros_like, gradient["params"]["Dense_0"])
        params = descend(params, gradient, learning_rate)
        found.append(accuracy(params, client))
    return found


STARTS = {
    "FedPer": (FedPer(2, 0.3), {}, True),
    "FedRep": (FedRep(1, 1, 0.3), {"only_head": True}, True),
    "Ditto": (Ditto(2, 0.3, strength=0.3), {"strength": 0.3}, False),
    "FedAvg": (FedAvg(2, 0.3), {}, False),
}


@pytest.mark.parametrize("name", STARTS)
def test_each_starts_from_what_is_broadcast_and_what_it_kept(name, tmp_path, kept):
    update, how, has_head = STARTS[name]
    found = run(update, tmp_path / "run")
    result, params = found.results["participants"][-1], found.params()
    learning_rate = result.reports[0]["participants"]["personal_rate"]
    measured = [int(name.removeprefix("c")) for name in result.ids]
    assert len(measured) == 4 and set(measured) <= set(found_train())
    for row, client in enumerate(measured):
        start = own_head(params, kept(client)) if has_head else params
        sums, counts = result.curves[0].metrics["accuracy"]
        assert list(sums[row] / counts[row]) == pytest.approx(curve(start, client, learning_rate, **how))
    if has_head:
        heads = [np.asarray(kept(client)[1]) for client in measured]
        assert not np.allclose(heads[0], heads[1])


def test_one_that_was_in_no_round_starts_as_a_new_client(tmp_path):
    plan = experiment(FedPer(2, 0.3), participants=4)
    plan = replace(plan, stages=(replace(plan.stages[0], rounds=1, clients_per_round=1),))
    found = hs.run(plan, tmp_path / "run", federation=federation(), progress=False)
    result = found.results["participants"][-1]
    sums, counts = result.curves[0].metrics["accuracy"]
    new = [accuracy(found.params(), int(name.removeprefix("c"))) for name in result.ids]
    # One of the four, at most, was drawn.
    assert sum(value == pytest.approx(own) for value, own in zip(new, sums[:, 0] / counts, strict=True)) >= 3


def found_train():
    return split_clients(federation(), train=0.6, validation=0.2).train


def test_apfl_measures_the_clients_own_mixture(tmp_path, kept):
    found = run(APFL(2, 0.3, mixing=0.7), tmp_path / "run")
    result, params = found.results["participants"][-1], found.params()
    for row, name in enumerate(result.ids):
        client = int(name.removeprefix("c"))
        state = kept(client)
        mixed = jax.tree.map(lambda v, w, a=state["mixing"]: a * v + (1 - a) * w, state["own"], params)
        sums, counts = result.curves[0].metrics["accuracy"]
        assert sums[row, 0] / counts[row] == pytest.approx(accuracy(mixed, client))
        assert not np.allclose(state["own"]["params"]["Dense_1"]["bias"], params["params"]["Dense_1"]["bias"])


def test_the_choice_is_made_on_other_participants(tmp_path, kept):
    found = run(FedPer(2, 0.3), tmp_path / "run")
    result = found.results["participants"][-1]
    prepared = prepare(experiment(FedPer(2, 0.3), participants=4), federation=federation())
    choosing, measured = participants_of(prepared)
    assert [f"c{client}" for client in measured] == result.ids and not set(choosing) & set(measured)
    assert len(choosing) == 2 and set(choosing) | set(measured) <= set(found_train())
    starts = {client: own_head(found.params(), kept(client)) for client in choosing}
    curves = [[curve(start, client, each) for each in (0.1, 0.5)] for client, start in starts.items()]
    mean = np.mean(curves, axis=0)
    report = result.reports[0]["participants"]
    assert mean[(0.1, 0.5).index(report["personal_rate"]), report["length"]] == pytest.approx(mean.max())


@pytest.mark.parametrize(("hold_out", "unchanged"), [(True, True), (False, False)])
def test_rows_that_are_held_out_train_nothing(tmp_path, hold_out, unchanged):
    """The model trained on a federation, and on one whose clients' test rows have other labels."""
    given = federation(predefined=False)

    def other(clients):
        x, y = given.fetch(clients)
        starts = np.cumsum(given.sizes[clients].sum(axis=1)) - given.sizes[clients].sum(axis=1)
        tests = np.concatenate(
            [np.arange(a + n, a + n + m) for a, (n, m) in zip(starts, given.sizes[clients], strict=True)]
        )
        y = y.copy()
        y[tests] = (y[tests] + 1) % CLASSES
        return x, y

    data = hs.Data(train=0.6, validation=0.2, hold_out=hold_out)
    plan = experiment(FedAvg(1, 0.3), data=data, participants=4)
    ends = []
    for number, each in enumerate((given, given.__class__(**{**vars_of(given), "fetch": other}))):
        found = hs.run(plan, tmp_path / str(number), federation=each, progress=False)
        ends.append(found.params())
        assert bool(found.results["participants"]) == hold_out
    same = jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), *ends))
    assert same == unchanged


def vars_of(federation):
    names = ("name", "ids", "sizes", "fetch", "has_predefined_split", "metadata", "holds_out")
    return {name: getattr(federation, name) for name in names}


def test_an_experiment_that_measures_no_participants_is_saved_as_before():
    document = earlier(to_json(experiment(FedAvg())))
    assert "participants" not in document and "hold_out" not in document["data"]
    assert earlier(to_json(experiment(FedAvg(), participants=3)))["participants"] == 3
