from dataclasses import replace
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from headstart.data.federation import from_arrays
from headstart.errors import UserError
from headstart.experiment.experiment import Experiment, ModelSpec
from headstart.experiment.setup import build_model, check_fit
from headstart.experiment.suited import TABLE_WIDTHS, suited
from headstart.learning.tasks import Classification, Regression
from headstart.models.zoo import (
    ALIASES,
    CNN,
    MLP,
    CharLSTM,
    LeanCNN,
    Linear,
    Logistic,
    Model,
    as_model,
    count_parameters,
)

IMAGES = np.zeros((3, 28, 28, 1), np.float32)
TOKENS = np.zeros((3, 80), np.int32)
FEATURES = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
KEY = jax.random.key(7)


def drawn(model, *lead):
    """Variables of the model's shapes, small and random; quicker to make than by compiling its own `init`."""
    generator = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, KEY)
    return jax.tree.map(lambda leaf: np.float32(generator.normal(size=(*lead, *leaf.shape)) / 10), shapes)


class Normalised(nn.Module):
    """With batch statistics and dropout, and `training` for its flag."""

    @nn.compact
    def __call__(self, x, training):
        x = nn.BatchNorm(use_running_average=not training, momentum=0.5)(x)
        return nn.Dropout(0.5, deterministic=not training)(x)


class Deterministic(nn.Module):
    @nn.compact
    def __call__(self, x, *, deterministic):
        return nn.Dropout(0.5)(x, deterministic=deterministic)


class NewStyle(nnx.Module):
    def __init__(self, *, rngs):
        self.norm = nnx.BatchNorm(4, momentum=0.5, rngs=rngs)
        self.first, self.second = nnx.Dropout(0.5, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)
        self.dense = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        return self.dense(self.second(self.first(self.norm(x))))


@pytest.mark.parametrize(
    ("module", "x", "parameters", "output"),
    [
        (CNN(), IMAGES, 1_206_590, (3, 62)),
        (LeanCNN(), IMAGES, 115_326, (3, 62)),
        (CharLSTM(), TOKENS, 820_522, (3, 80, 90)),
        (Logistic(62), IMAGES, 784 * 62 + 62, (3, 62)),
        (Linear(), FEATURES, 5, (6, 1)),
        (MLP(62), IMAGES, 785 * 200 + 201 * 62, (3, 62)),
        (MLP(3, widths=(5, 6)), FEATURES, 5 * 5 + 6 * 6 + 7 * 3, (6, 3)),
    ],
)
def test_parameter_counts_and_output_shapes(module, x, parameters, output):
    model = as_model(module, x)
    variables = jax.eval_shape(model.init, KEY)
    assert count_parameters(variables) == parameters
    assert jax.eval_shape(model.apply, variables, x)[0].shape == output


@pytest.mark.slow
def test_initial_values_are_those_of_keras():
    variables = as_model(CharLSTM(), TOKENS).init(KEY)["params"]
    recurrent = variables["LSTM_0"]["recurrent_kernel"]
    np.testing.assert_allclose(recurrent @ recurrent.T, np.eye(256), atol=1e-5)
    np.testing.assert_array_equal(
        variables["LSTM_1"]["bias"].reshape(4, 256), [[0.0] * 256, [1.0] * 256] + [[0.0] * 256] * 2
    )
    embedding = variables["Embed_0"]["embedding"]
    assert 0.045 < jnp.abs(embedding).max() <= 0.05
    kernel = as_model(CNN(), IMAGES).init(KEY)["params"]["Conv_1"]["kernel"]
    limit = np.sqrt(6 / (9 * 32 + 9 * 64))
    assert 0.99 * limit < jnp.abs(kernel).max() <= limit


@pytest.mark.parametrize("dropout", [None, (0, 0)])
def test_cnn_without_dropout_traces_no_random_bits(dropout):
    def bits(module):
        model = as_model(module, IMAGES)
        # Threefry is the only thing here that shifts bits.
        return "shift_left" in str(jax.make_jaxpr(model.apply)(jax.eval_shape(model.init, KEY), IMAGES, key=KEY))

    assert bits(CNN())
    assert not bits(CNN(dropout=dropout))


def test_cnn_drops_only_with_a_key_and_by_the_key():
    x = jax.random.uniform(KEY, (2, 8, 8, 1))
    model = as_model(CNN(filters=(2, 3), hidden=8), x)
    variables = drawn(model)
    apply = jax.jit(model.apply)
    first, again, other = (apply(variables, x, key=jax.random.key(i))[0] for i in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert not np.array_equal(first, apply(variables, x)[0])


def test_cnn_is_the_network_it_says_by_lax_convolutions():
    model = as_model(CNN(filters=(32, 9), hidden=8, dropout=None), IMAGES)
    params = drawn(model)["params"]
    x = jax.random.uniform(KEY, (2, 28, 28, 1))
    y = x
    for name in ("Conv_0", "Conv_1"):
        y = jax.lax.conv_general_dilated(
            y, params[name]["kernel"], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        y = jnp.maximum(y + params[name]["bias"], 0)
    y = jax.lax.reduce_window(y, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID").reshape(2, -1)
    y = jnp.maximum(y @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"], 0)
    y = y @ params["Dense_1"]["kernel"] + params["Dense_1"]["bias"]
    np.testing.assert_allclose(jax.jit(model.apply)({"params": params}, x)[0], y, atol=1e-5)


@pytest.mark.parametrize("size", [28, 11, 10])
def test_the_lean_cnn_is_the_network_it_says_by_flax(size):
    class Plain(nn.Module):
        @nn.compact
        def __call__(self, x):
            for filters in (8, 9):
                x = nn.max_pool(nn.relu(nn.Conv(filters, (3, 3), padding="VALID")(x)), (2, 2), (2, 2))
            x = nn.relu(nn.Dense(8)(x.reshape(x.shape[0], -1)))
            return nn.Dense(62)(x)

    x = jax.random.uniform(KEY, (2, size, size, 1))
    model, plain = as_model(LeanCNN(filters=(8, 9), hidden=8), x), as_model(Plain(), x)
    params = drawn(model)
    np.testing.assert_allclose(jax.jit(model.apply)(params, x)[0], jax.jit(plain.apply)(params, x)[0], atol=1e-5)


@pytest.mark.parametrize(("module", "size"), [(LeanCNN(), 9), (CNN(), 5)])
def test_images_of_which_nothing_would_be_left_are_refused(module, size):
    with pytest.raises(UserError, match=r"images are too small: what is left of them, [01] x [01], cannot be pooled"):
        as_model(module, np.zeros((1, size, size, 1), np.float32))


@pytest.mark.parametrize("module", [CNN(filters=(2, 3), hidden=4), CharLSTM(embedding=2, width=4), MLP(3)])
def test_models_keep_float64(module):
    with jax.enable_x64(True):
        x = TOKENS if isinstance(module, CharLSTM) else np.zeros((3, 8, 8, 1))
        model = as_model(module, x)
        abstract = jax.eval_shape(model.init, KEY)
        variables = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, np.float64), abstract)
        assert jax.eval_shape(model.apply, variables, x)[0].dtype == np.float64


def test_models_map_over_clients_parameters_and_data():
    x = jax.random.uniform(KEY, (3, 2, 8, 8, 1))
    model = as_model(CNN(filters=(8, 2), hidden=4, dropout=None), x[0])
    variables = drawn(model, 3)

    def gradient(variables, x):
        return jax.grad(lambda v: (model.apply(v, x)[0] ** 2).sum())(variables)

    mapped = jax.jit(jax.vmap(gradient))(variables, x)
    one = jax.jit(gradient)
    for i in range(3):
        alone = one(jax.tree.map(lambda leaf, i=i: leaf[i], variables), x[i])
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=2e-3, atol=1e-5), mapped, alone)


@pytest.mark.parametrize("flag", ["training", "nnx"])
def test_batch_statistics_change_in_training_only(flag):
    model = as_model(Normalised() if flag == "training" else NewStyle, FEATURES)
    variables = model.init(KEY)
    _, same = model.apply(variables, FEATURES)
    output, updated = model.apply(variables, FEATURES, key=KEY)
    jax.tree.map(np.testing.assert_array_equal, same, variables)
    jax.tree.map(np.testing.assert_array_equal, updated["params"], variables["params"])
    mean = updated["batch_stats"]["BatchNorm_0"]["mean"] if flag == "training" else updated["rest"]["norm"]["mean"]
    np.testing.assert_allclose(mean, FEATURES.mean(axis=0) / 2, rtol=1e-5)
    assert output.shape[0] == 6


def test_a_deterministic_flag_is_turned_the_right_way():
    model = as_model(Deterministic(), FEATURES)
    np.testing.assert_array_equal(model.apply(model.init(KEY), FEATURES)[0], FEATURES)
    assert (model.apply(model.init(KEY), FEATURES, key=KEY)[0] == 0).any()


def test_nnx_factories_draw_parameters_and_dropout_from_the_keys():
    model = as_model(NewStyle, FEATURES)
    first, again, other = (model.init(jax.random.key(i)) for i in (1, 1, 2))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert not np.array_equal(first["params"]["dense"]["kernel"], other["params"]["dense"]["kernel"])
    outputs = [jax.jit(model.apply)(first, FEATURES, key=jax.random.key(i))[0] for i in (1, 1, 2)]
    np.testing.assert_array_equal(outputs[0], outputs[1])
    assert not np.array_equal(outputs[0], outputs[2])


def test_nnx_factories_may_be_functions_or_partials():
    class Sized(nnx.Module):
        def __init__(self, width, *, rngs):
            self.dense = nnx.Linear(4, width, rngs=rngs)

        def __call__(self, x):
            return self.dense(x)

    for factory in (partial(Sized, 3), lambda rngs: Sized(3, rngs=rngs)):
        model = as_model(factory, FEATURES)
        assert model.apply(model.init(KEY), FEATURES)[0].shape == (6, 3)


def test_nnx_modules_compute_what_they_would_alone():
    module = NewStyle(rngs=nnx.Rngs(3))
    module.eval()
    expected = module(FEATURES)
    model = as_model(module, FEATURES)
    variables = model.init(KEY)
    np.testing.assert_allclose(model.apply(variables, FEATURES)[0], expected, rtol=1e-5)
    assert count_parameters(variables) == 2 * 4 + 4 * 2 + 2
    gradient = jax.jit(jax.grad(lambda v: model.apply(v, FEATURES, key=KEY)[0].sum()))(variables)
    np.testing.assert_allclose(gradient["params"]["dense"]["bias"], [6, 6])


def test_a_pair_of_functions_serves_with_and_without_a_key():
    def init(key):
        return {"w": jax.random.normal(key, (4,))}

    def plain(params, x):
        return x @ params["w"]

    def keyed(params, x, *, key=None):
        return x @ params["w"] + (0 if key is None else 1)

    for apply, shift in ((plain, 0), (keyed, 1)):
        model = as_model((init, apply), FEATURES)
        variables = model.init(KEY)
        np.testing.assert_allclose(model.apply(variables, FEATURES)[0], FEATURES @ variables["w"], rtol=1e-5)
        output, same = model.apply(variables, FEATURES, key=KEY)
        np.testing.assert_allclose(output, FEATURES @ variables["w"] + shift, rtol=1e-5)
        assert same is variables


def test_a_model_is_taken_as_it_is():
    model = Model(lambda key: jnp.zeros(4), lambda variables, x, *, key=None: (x @ variables, variables))
    assert as_model(model, FEATURES) is model


@pytest.mark.parametrize("thing", [CNN, "cnn", 3, (1, 2), lambda x: x])
def test_what_is_no_model_is_refused_in_one_sentence(thing):
    with pytest.raises(UserError, match=r"^\w+ is no model: give a Model") as caught:
        as_model(thing, IMAGES)
    assert "\n" not in str(caught.value)


def test_a_model_that_does_not_fit_the_data_is_refused_in_one_sentence():
    with pytest.raises(UserError, match=r"the model CNN fails on a batch of float32\[1, 4\]") as caught:
        as_model(CNN(), FEATURES)
    assert "\n" not in str(caught.value)


def test_aliases_are_the_models_of_the_command_line():
    expected = {
        "cnn": CNN,
        "cnn_lean": LeanCNN,
        "char_lstm": CharLSTM,
        "logistic": Logistic,
        "linear": Linear,
        "mlp": MLP,
    }
    assert expected == ALIASES


@pytest.mark.parametrize("name", ["mlp", "linear"])
@pytest.mark.parametrize("width", [(), (1,), (3,)])
def test_models_of_quantities_have_as_many_outputs_as_the_target(name, width):
    y = np.zeros((5, *width), np.float32)
    federation = from_arrays("mine", ["a"], np.array([[3, 2]]), np.zeros((5, 4), np.float32), y)
    experiment = suited(Experiment("e", (), model=ModelSpec(name)), federation)
    assert experiment.task == Regression() and experiment.model == ModelSpec(name)
    model = build_model(experiment.model, federation)
    check_fit(experiment.task, model, federation)
    assert model.apply(model.init(jax.random.key(0)), jnp.zeros((2, 4)))[0].shape == (2, *(width or (1,)))


def test_a_single_output_is_no_model_of_classes():
    unsaid = from_arrays("mine", ["a"], np.array([[3, 2]]), np.zeros((5, 4), np.float32), np.zeros(5, np.int32))
    with pytest.raises(UserError, match="1 outputs for any classes"):
        check_fit(Classification(), build_model(ModelSpec("mlp"), unsaid), unsaid)


def test_an_mlp_on_a_table_has_widths_of_its_own():
    federation = from_arrays("t", ["a"], np.array([[3, 2]]), np.zeros((5, 4), np.float32), np.zeros(5))
    table = replace(federation, metadata={**federation.metadata, "columns": []})
    mlp = Experiment("e", (), model=ModelSpec("mlp"))
    assert suited(mlp, federation).model == ModelSpec("mlp")
    assert suited(mlp, table).model.options["widths"] == TABLE_WIDTHS
    own = replace(mlp, model=ModelSpec("mlp", {"widths": [7]}))
    assert suited(own, table).model.options["widths"] == [7]
