"""Methods whose personalization is no local SGD on one gradient: each beside a loop in numpy, or in plain jax."""

from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import reference
import tiny
from headstart import Data, Experiment, ModelSpec, Optimizer, Personalization, Stage, UserError
from headstart.data.federation import named as data_named
from headstart.experiment.personal import check_client_states, check_personalization
from headstart.learning.personalization import adapt_client, client_curves
from headstart.learning.rounds import client_key
from headstart.learning.tasks import Classification, Regression
from headstart.methods import APFL, LPFT, FedBN, KNNPer, MetaSGD
from headstart.methods.fedbn import normalization_of
from headstart.methods.paper import MAML, FedAvg
from headstart.methods.partial import select_leaves
from headstart.models.last_layer import features_and_output
from headstart.models.zoo import CNN, LeanCNN, Logistic, Model, as_model

RATE, BATCH = 0.2, 3
KEY = jax.random.key(11)
TASK = Classification()
PROBLEM = reference.softmax_regression(tiny.FEATURES, tiny.CLASSES)


def network():
    """3 → 5 → 4, with layers that Flax would call dense."""

    def apply(params, x, *, key=None):
        hidden = jnp.tanh(x @ params["Dense_0"]["kernel"])
        return hidden @ params["Dense_1"]["kernel"] + params["Dense_1"]["bias"], params

    def init(key):
        return start_params()

    return Model(init, apply)


def start_params():
    generator = np.random.default_rng(5)
    body, head, bias = (generator.normal(0, 0.4, shape) for shape in ((3, 5), (5, 4), 4))
    return {
        "Dense_0": {"kernel": jnp.asarray(body)},
        "Dense_1": {"kernel": jnp.asarray(head), "bias": jnp.asarray(bias)},
    }


NETWORK = network()


def softmax(logits):
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def arrays_of(params):
    return params["Dense_0"]["kernel"], params["Dense_1"]["kernel"], params["Dense_1"]["bias"]


def gradient_by_hand(arrays, batch):
    """The gradient of the mean cross-entropy by the chain rule: of body, head and bias."""
    (body, head, _), (x, y) = arrays, batch
    hidden = np.tanh(x @ body)
    error = (softmax(hidden @ head + arrays[2]) - np.eye(4)[y]) / len(y)
    return x.T @ ((error @ head.T) * (1 - hidden**2)), hidden.T @ error, error.sum(axis=0)


def members():
    """A client's support and query examples, and the key of its personalization."""
    adapt, test = (tiny.one(tiny.federation(), 2, part) for part in ("adapt", "test"))
    return adapt, test, client_key(KEY, adapt)


def adapted(method, params, *, epochs, recipe=None, model=NETWORK):
    adapt, _, key = members()
    recipe = recipe or Personalization(Optimizer("sgd", RATE), BATCH, 9)
    return jax.jit(lambda broadcast: adapt_client(TASK, model, recipe, broadcast, adapt, key, epochs, method))(
        method.init_server(params)
    )


def curves(method, params, *, recipe=None, model=NETWORK, epochs=None):
    adapt, test, key = members()
    recipe = recipe or Personalization(Optimizer("sgd", RATE), BATCH, 4)

    def measured(broadcast):
        return client_curves(TASK, model, recipe, broadcast, adapt, test, key, method, epochs=epochs)

    return jax.jit(measured)(method.init_server(params))


def query():
    """The query examples `(x, y)` in numpy."""
    _, test, _ = members()
    examples = test.examples(jnp.arange(int(test.size)), jnp.ones(int(test.size), bool))
    return np.asarray(examples.x), np.asarray(examples.y)


def losses_of(found, name="loss"):
    sums, counts = found[0][name]
    return np.asarray(sums) / np.asarray(counts)


@pytest.mark.parametrize("unit", ["epochs", "steps"])
def test_lp_ft_moves_the_head_alone_and_then_everything(unit, float64):
    method, params, (adapt, _, key) = LPFT(head_epochs=2), start_params(), members()
    steps = 4 if unit == "epochs" else 1
    recipe = Personalization(Optimizer("sgd", RATE), BATCH, 9, steps=None if unit == "epochs" else 9)
    at, visited = [np.asarray(leaf) for leaf in arrays_of(params)], []
    for number, batch in enumerate(tiny.drawn(adapt, key, range(5 * steps), BATCH)):
        body, head, bias = gradient_by_hand(at, batch)
        at = [at[0] - RATE * body * (number >= 2 * steps), at[1] - RATE * head, at[2] - RATE * bias]
        if (number + 1) % steps == 0:
            visited.append(at)
    for epochs in (1, 2, 3, 5):
        found = arrays_of(adapted(method, params, epochs=epochs, recipe=recipe))
        for mine, expected in zip(found, visited[epochs - 1], strict=True):
            np.testing.assert_allclose(mine, expected, rtol=1e-10)
    x, y = query()
    measured = losses_of(curves(method, params, recipe=recipe))
    for epochs in range(1, 6):
        body, head, bias = visited[epochs - 1]
        expected = -np.log(softmax(np.tanh(x @ body) @ head + bias)[np.arange(len(y)), y]).mean()
        np.testing.assert_allclose(measured[epochs], expected, rtol=1e-10)


def test_lp_ft_without_epochs_on_the_head_is_fine_tuning_after_fedavg(float64):
    params = start_params()
    mine, plain = adapted(LPFT(head_epochs=0), params, epochs=3), adapted(FedAvg(), params, epochs=3)
    np.testing.assert_allclose(tiny.flat(mine), tiny.flat(plain), rtol=1e-12)
    client = members()[0]
    replies = [
        jax.jit(lambda method=method: method(TASK, NETWORK, params, client, None, KEY))().delta
        for method in (LPFT(2, RATE, BATCH), FedAvg(2, RATE, BATCH))
    ]
    np.testing.assert_array_equal(*map(tiny.flat, replies))


def experiment(method):
    """An experiment of one stage, of which only data and personalization count here."""
    stage = Stage("only", method, Optimizer("sgd", 1.0), 1)
    return Experiment("own", (stage,), Data("nowhere"), ModelSpec("mlp"))


def test_a_method_that_does_not_suit_the_model_is_refused_before_anything_runs():
    federation = tiny.federation()
    check_personalization(experiment(LPFT()), TASK, NETWORK, federation)
    logistic = as_model(Logistic(4), federation.example()[0])
    with pytest.raises(UserError, match="the head Dense_0 is all of the model"):
        check_personalization(experiment(LPFT()), TASK, logistic, federation)
    # What personalizes in the plain way is not tried.
    check_personalization(experiment(FedAvg()), TASK, logistic, federation)


def meta_sgd(theta, learning_rates, path, query):
    """The gradients of the query's loss after steps θ ← θ − α ∘ g, in θ and in α: the chain rule, written out."""
    visited = [theta]
    for batch in path:
        visited.append(visited[-1] - learning_rates * PROBLEM.gradient(visited[-1], batch))
    vector, of_rates = PROBLEM.gradient(visited[-1], query), np.zeros_like(theta)
    for point, batch in reversed(list(zip(visited[:-1], path, strict=True))):
        of_rates = of_rates - PROBLEM.gradient(point, batch) * vector
        vector = vector - PROBLEM.hessian(point, batch) @ (learning_rates * vector)
    return vector, of_rates


@pytest.mark.parametrize("steps", [1, 3])
def test_meta_sgd_differentiates_in_parameters_and_in_their_learning_rates(steps, float64):
    method, theta = MetaSGD(steps, RATE, BATCH, rate_factor=7.0), tiny.theta()
    client, key = members()[0], client_key(KEY, members()[0])
    learning_rates = np.abs(tiny.normal(4, theta["theta"].size)) / 5
    broadcast = {"params": theta, "learning_rates": {"theta": jnp.asarray(learning_rates)}}
    assert tiny.flat(method.init_server(theta)["learning_rates"]) == pytest.approx(RATE)
    found = jax.jit(lambda shared: method(TASK, tiny.SOFTMAX, shared, client, None, key))(broadcast).delta
    *path, query = tiny.drawn(client, key, range(steps + 1), BATCH)
    of_params, of_rates = meta_sgd(tiny.flat(theta), learning_rates, path, query)
    np.testing.assert_allclose(found["params"]["theta"], RATE * of_params, rtol=1e-10)
    np.testing.assert_allclose(found["learning_rates"]["theta"], 7 * RATE * of_rates, rtol=1e-10)


def test_meta_sgd_with_equal_rates_is_maml_and_personalizes_with_what_it_learned(float64):
    theta, (client, _, key) = tiny.theta(), members()
    method = MetaSGD(2, RATE, BATCH)
    shared = method.init_server(theta)
    replies = [
        jax.jit(lambda method=method, shared=shared: method(TASK, tiny.SOFTMAX, shared, client, None, key))().delta
        for method, shared in ((method, shared), (MAML(2, RATE, BATCH), theta))
    ]
    np.testing.assert_allclose(replies[0]["params"]["theta"], replies[1]["theta"], rtol=1e-12)
    learning_rates = np.linspace(-0.1, 0.4, theta["theta"].size)
    shared["learning_rates"] = {"theta": jnp.asarray(learning_rates)}
    for own_rate in (RATE, 3 * RATE):
        recipe, at = Personalization(Optimizer("sgd", own_rate), BATCH, 9), tiny.flat(theta)
        for batch in tiny.drawn(client, key, range(8), BATCH):
            at = at - own_rate / RATE * learning_rates * PROBLEM.gradient(at, batch)
        found = jax.jit(
            lambda recipe=recipe: adapt_client(TASK, tiny.SOFTMAX, recipe, shared, client, key, 2, method)
        )()
        np.testing.assert_allclose(found["theta"], at, rtol=1e-10)


def support():
    """The support examples `(x, y)` in numpy."""
    adapt, _, _ = members()
    examples = adapt.examples(jnp.arange(int(adapt.size)), jnp.ones(int(adapt.size), bool))
    return np.asarray(examples.x), np.asarray(examples.y)


def of_neighbors(point, known, labels, neighbors, scale):
    """The probabilities `[classes]` that the nearest of the known rows give, one row after another."""
    distances = [float(np.sqrt(((point - row) ** 2).sum())) for row in known]
    total = np.zeros(4)
    for index in sorted(range(len(known)), key=distances.__getitem__)[:neighbors]:
        total[labels[index]] += np.exp(-distances[index] / scale)
    return total / total.sum()


@pytest.mark.parametrize(("neighbors", "scale"), [(3, 1.0), (1000, 0.4)], ids=["three", "all there are"])
def test_knn_per_mixes_the_model_with_the_nearest_of_the_clients_own_examples(neighbors, scale, float64):
    method, params = KNNPer(neighbors=neighbors, scale=scale, spacing=0.25), start_params()
    (x, y), (own_x, own_y) = query(), support()
    body, head, bias = (np.asarray(leaf) for leaf in arrays_of(params))
    p = softmax(np.tanh(x @ body) @ head + bias)
    near = [of_neighbors(row, np.tanh(own_x @ body), own_y, neighbors, scale) for row in np.tanh(x @ body)]
    found = curves(method, params, recipe=Personalization(Optimizer("sgd", RATE), BATCH, 6))
    for unit, share in enumerate((0, 0.25, 0.5, 0.75, 1, 1, 1)):
        mixed = share * np.array(near) + (1 - share) * p
        right = np.maximum(mixed[np.arange(len(y)), y], 1e-6 if share else 0)
        # What is predicted is normalized again, which is felt where a probability was lifted to the least.
        normalized = right / np.maximum(mixed, 1e-6 if share else 0).sum(axis=1)
        np.testing.assert_allclose(losses_of(found)[unit], -np.log(normalized).mean(), rtol=1e-9)
        np.testing.assert_allclose(losses_of(found, "accuracy")[unit], (mixed.argmax(axis=1) == y).mean())


def test_a_client_of_knn_per_without_examples_keeps_the_model():
    method, params = KNNPer(), jax.tree.map(jnp.float32, start_params())
    nobody, (x, _) = tiny.one(tiny.federation(), 3), query()
    recipe = Personalization(Optimizer("sgd", RATE), BATCH, 9)
    own = jax.jit(lambda: adapt_client(TASK, NETWORK, recipe, params, nobody, KEY, 5, method))()
    mine = method.personal_model(TASK, NETWORK).apply(own, jnp.float32(x))[0]
    np.testing.assert_array_equal(mine, NETWORK.apply(params, jnp.float32(x))[0])


def test_knn_per_needs_classes_and_a_last_layer():
    federation = tiny.federation()
    plan = experiment(KNNPer())
    check_personalization(plan, TASK, NETWORK, federation)
    with pytest.raises(UserError, match="the task is Regression; choose another method"):
        check_personalization(plan, Regression(), NETWORK, federation)

    def apply(params, x, *, key=None):
        output, _ = NETWORK.apply(params, x)
        return output + x[:, :1] ** 2, params

    with pytest.raises(UserError, match="the model has no last dense layer whose inputs"):
        check_personalization(plan, TASK, Model(NETWORK.init, apply), federation)


@pytest.mark.parametrize("kind", [LeanCNN, CNN, Logistic], ids=lambda kind: kind.__name__)
def test_features_are_what_the_last_layer_multiplies(kind):
    x = np.random.default_rng(0).random((5, 28, 28, 1)).astype(np.float32)
    model = as_model(kind(7), x)
    variables = model.init(jax.random.key(0))
    features, output = jax.jit(lambda variables, x: features_and_output(model, variables, x))(variables, x)
    layer = variables["params"][max(name for name in variables["params"] if name.startswith("Dense"))]
    assert features.shape == (5, layer["kernel"].shape[0])
    np.testing.assert_allclose(features @ layer["kernel"] + layer["bias"], output, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(output, model.apply(variables, x)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "method", [LPFT(head_epochs=1), KNNPer(), MetaSGD(), APFL()], ids=lambda method: type(method).__name__
)
def test_one_number_of_epochs_is_measured_as_in_the_curve(method, float64):
    whole, alone = losses_of(curves(method, start_params())), losses_of(curves(method, start_params(), epochs=3))
    np.testing.assert_allclose(alone, whole[[0, 3]], rtol=1e-12)


def apfl_step(w, own, mixing, batch, *, learning_rate=RATE, global_moves=True, adaptive=True):
    """A step of the client's copy of the global model, of its own, and of their mixture, as the paper has them."""
    mixed = mixing * own + (1 - mixing) * w
    gradient = PROBLEM.gradient(mixed, batch)
    moved = np.clip(mixing - learning_rate * (own - w) @ gradient, 0, 1) if adaptive else mixing
    new_w = w - learning_rate * PROBLEM.gradient(w, batch) if global_moves else w
    return new_w, own - learning_rate * mixing * gradient, moved


@pytest.mark.parametrize("adaptive", [True, False])
def test_apfl_trains_the_global_model_the_clients_own_and_their_mixture(adaptive, float64):
    method, theta = APFL(2, RATE, BATCH, 0.4, adaptive), tiny.theta()
    client, key = members()[0], client_key(KEY, members()[0])
    state = {"own": tiny.theta(7), "mixing": jnp.asarray(0.3)}
    w, own, mixing = tiny.flat(theta), tiny.flat(tiny.theta(7)), 0.3
    for batch in tiny.drawn(client, key, range(8), BATCH):
        w, own, mixing = apfl_step(w, own, mixing, batch, adaptive=adaptive)
    reply = jax.jit(lambda state: method(TASK, tiny.SOFTMAX, theta, client, state, key))(state)
    np.testing.assert_allclose(reply.delta["theta"], tiny.flat(theta) - w, rtol=1e-10)
    np.testing.assert_allclose(reply.client_state["own"]["theta"], own, rtol=1e-10)
    np.testing.assert_allclose(reply.client_state["mixing"], mixing, rtol=1e-10)
    assert (abs(mixing - 0.3) > 1e-3) == adaptive
    # What the server gets is FedAvg's, with its metrics.
    fedavg = jax.jit(lambda: FedAvg(2, RATE, BATCH)(TASK, tiny.SOFTMAX, theta, client, None, key))()
    np.testing.assert_allclose(reply.delta["theta"], fedavg.delta["theta"], rtol=1e-10)
    for name, sums in fedavg.metrics.items():
        np.testing.assert_allclose(reply.metrics[name], sums, rtol=1e-10)


@pytest.mark.parametrize(("mixing", "adaptive", "own_rate"), [(0.6, True, RATE), (0.6, False, RATE), (0.9, True, 40.0)])
def test_a_held_out_client_of_apfl_trains_its_own_model_and_the_mixture(mixing, adaptive, own_rate, float64):
    method, theta, (client, _, key) = APFL(mixing=mixing, adaptive=adaptive), tiny.theta(), members()
    w = own = tiny.flat(theta)
    at, visited = mixing, []
    for batch in tiny.drawn(client, key, range(8), BATCH):
        _, own, at = apfl_step(w, own, at, batch, learning_rate=own_rate, global_moves=False, adaptive=adaptive)
        visited.append(at)
    recipe = Personalization(Optimizer("sgd", own_rate), BATCH, 9)
    found = jax.jit(lambda: adapt_client(TASK, tiny.SOFTMAX, recipe, theta, client, key, 2, method))()
    np.testing.assert_allclose(found["theta"], at * own + (1 - at) * w, rtol=1e-9)
    # A large rate takes α to its end, where it stays no longer than the gradient has it.
    assert (max(visited) == 1) == (own_rate == 40.0)


def test_batch_statistics_of_apfl_are_of_the_mixture_and_of_the_global_model():
    def apply(variables, x, *, key=None):
        mean = variables["batch_stats"]["mean"] if key is None else x.mean(axis=0) + variables["params"]["w"]
        output = jnp.stack([(x - mean) @ variables["params"]["w"]] * tiny.CLASSES, axis=1)
        return output, variables if key is None else {**variables, "batch_stats": {"mean": mean}}

    params = {"params": {"w": jnp.ones(3)}, "batch_stats": {"mean": jnp.full(3, 5.0)}}
    model, client, method = Model(lambda key: params, apply), members()[0], APFL(1, RATE, 12)
    state = {"own": jax.tree.map(lambda leaf: 3 * leaf, params), "mixing": jnp.float32(0.5)}
    reply = jax.jit(lambda: method(TASK, model, params, client, state, KEY))()
    mean = support()[0].mean(axis=0)
    np.testing.assert_allclose(5 - reply.delta["batch_stats"]["mean"], mean + 1, rtol=1e-5)
    np.testing.assert_allclose(reply.client_state["own"]["batch_stats"]["mean"], mean + 2, rtol=1e-5)


def test_states_of_clients_that_memory_does_not_hold_are_refused(monkeypatch):
    plan, theta_bytes = experiment(APFL()), 16 * 4
    for clients, gigabytes in ((10, 1), (2 * 10**7, 1), (10, 1e-9 * 10 * (theta_bytes + 4))):
        monkeypatch.setattr("headstart.experiment.personal.host_memory", lambda gigabytes=gigabytes: 1e9 * gigabytes)
        if clients == 10:
            check_client_states(plan, tiny.SOFTMAX, clients)
        else:
            # A stage of 10,000 rounds of 2,000 clients.
            long = replace(plan, stages=(replace(plan.stages[0], rounds=10_000, clients_per_round=2_000),))
            with pytest.raises(UserError, match=r"keeps something of every client.*1\.4 GB.*memory of 1\.0 GB"):
                check_client_states(long, tiny.SOFTMAX, clients)
            # Those that are never drawn have no state.
            check_client_states(plan, tiny.SOFTMAX, clients)
    monkeypatch.setattr("headstart.experiment.personal.host_memory", lambda: 10 * (theta_bytes + 4) - 1)
    with pytest.raises(UserError, match="choose a smaller model"):
        check_client_states(plan, tiny.SOFTMAX, 10)


class Normalized(nn.Module):
    """3 → 5 → 4 with batch normalization between, under a name that is not Flax's own."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        """Logits."""
        x = nn.BatchNorm(use_running_average=not train, momentum=0.8, name="between")(nn.Dense(5)(x))
        return nn.Dense(4)(jnp.tanh(x))


def normalized_by_hand(trained, statistics, x, y):
    """The mean cross-entropy with the batch's own mean and variance, and the running ones after it."""
    hidden = x @ trained["Dense_0"]["kernel"] + trained["Dense_0"]["bias"]
    mean, variance = hidden.mean(axis=0), hidden.var(axis=0)
    between = trained["between"]
    hidden = (hidden - mean) / jnp.sqrt(variance + 1e-5) * between["scale"] + between["bias"]
    logits = jnp.tanh(hidden) @ trained["Dense_1"]["kernel"] + trained["Dense_1"]["bias"]
    loss = -(logits - jax.scipy.special.logsumexp(logits, axis=1, keepdims=True))[jnp.arange(len(y)), y].mean()
    after = {"mean": 0.8 * statistics["mean"] + 0.2 * mean, "var": 0.8 * statistics["var"] + 0.2 * variance}
    return loss, after


def test_fedbn_keeps_normalization_with_the_client_and_averages_the_rest(float64):
    x = tiny.federation().example()[0]
    model = as_model(Normalized(), x)
    params = jax.tree.map(jnp.float64, model.init(jax.random.key(0)))
    client, method = members()[0], FedBN(1, RATE, BATCH)
    own = jax.tree.map(lambda leaf: leaf + 0.3, {name: params[name] for name in ("params", "batch_stats")})
    part = normalization_of(params, None)
    named = dict(zip([path for path, _ in data_named(params)], jax.tree.leaves(part), strict=True))
    assert {path for path, inside in named.items() if inside} == {
        *(f"['params']['between']['{leaf}']" for leaf in ("scale", "bias")),
        *(f"['batch_stats']['between']['{leaf}']" for leaf in ("mean", "var")),
    }
    state = select_leaves(part, own)
    reply = jax.jit(lambda: method(TASK, model, params, client, state, KEY))()
    trained = {**params["params"], "between": own["params"]["between"]}
    statistics = own["batch_stats"]["between"]
    for batch_x, batch_y in tiny.drawn(client, KEY, range(4), BATCH):
        gradient, after = jax.grad(normalized_by_hand, has_aux=True)(trained, statistics, batch_x, batch_y)
        trained, statistics = jax.tree.map(lambda p, g: p - RATE * g, trained, gradient), after
    end = {"params": trained, "batch_stats": {"between": statistics}}
    for found, before, expected in zip(*map(jax.tree.leaves, (reply.delta, params, end)), strict=True):
        np.testing.assert_allclose(found, before - expected, rtol=1e-9, atol=1e-12)
    for found, expected in zip(reply.client_state, select_leaves(part, end), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-9)
    # The state of a client that takes part for the first time is that of the model that all start from.
    for found, expected in zip(method.init_client_state(params), select_leaves(part, params), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_fedbn_needs_layers_with_statistics_or_their_names():
    with pytest.raises(UserError, match="the model has no layers with batch statistics"):
        FedBN().init_client_state(start_params())
    kept = FedBN(layers=("Dense_0",)).init_client_state(start_params())
    np.testing.assert_array_equal(kept[0], start_params()["Dense_0"]["kernel"])
