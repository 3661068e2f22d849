"""Any saved experiment, setting or option ends in a result or in a `UserError`, soon and in few bytes."""

import json
import os
import sys
import time
from pathlib import Path

import click
import jax.numpy as jnp
import numpy as np
import pytest
import typer
from hypothesis import assume, given
from hypothesis import strategies as st

import tiny
from arbitrary import NAMES, changed, documents, examples, peak_bytes
from headstart import UserError
from headstart.cli.main import app
from headstart.cli.options import data_options, learning_rates_given, modules_named, numbers, overrides
from headstart.documents import parse_json
from headstart.experiment.loading import document_of, load, names, read
from headstart.experiment.serialization import from_json, override, parse, to_json
from headstart.experiment.setup import prepare
from headstart.learning.optimizers import Optimizer, Schedule
from headstart.methods import Ditto, FedRep
from small import experiment

SOUND = [document_of(load(name)) for name in names()]
SOUND += [json.loads(json.dumps(to_json(experiment(Path("data.npz")))))]
SOUND[1]["stages"][0]["update"] = to_json(Ditto())
SOUND[2]["stages"][0]["update"] = to_json(FedRep())


@pytest.fixture(autouse=True)
def soon():
    """No example takes 10 s or 2 GB, so far as the whole test shows."""
    before = peak_bytes()
    yield
    assert peak_bytes() - before < 2 * 2**30


def ends(attempt, *arguments, **options):
    """The result of an attempt; None where it is refused in a sentence."""
    began = time.monotonic()
    try:
        return attempt(*arguments, **options)
    except UserError as error:
        assert str(error).strip()
        return None
    finally:
        assert time.monotonic() - began < 10


@examples(300)
@given(st.sampled_from(SOUND).flatmap(changed) | documents)
def test_any_saved_experiment_is_read_or_refused(document):
    modules = set(sys.modules)
    found = ends(read, document)
    ends(from_json, document)
    if found is not None:
        assert to_json(read(json.loads(json.dumps(document_of(found))))) == to_json(found)
    assert not {name for name in set(sys.modules) - modules if not name.startswith(("headstart.", "jax", "optax"))}


@examples(200)
@given(st.text() | st.binary() | st.sampled_from(SOUND).flatmap(changed).map(json.dumps))
def test_any_file_is_a_document_or_refused(text):
    try:
        json.dumps(parse_json(text))
    except ValueError as error:
        assert str(error)


FIELDS = ("stages", "update", "server", "options", "data", "model", "schedule", "rounds", "epochs", "name")
STEPS = [*NAMES, *FIELDS, "0", "1", "7"]
VALUES = documents.map(lambda value: json.dumps(value)) | st.text(max_size=20) | st.sampled_from(NAMES)


@examples(300)
@given(
    st.sampled_from(SOUND),
    st.lists(
        st.tuples(
            st.lists(st.sampled_from(STEPS), min_size=1, max_size=4).map(".".join), st.sampled_from("=: "), VALUES
        )
        | st.text(max_size=20).map(lambda text: (text, "", "")),
        max_size=3,
    ),
)
def test_any_setting_is_applied_or_refused(document, settings):
    words = ["".join(setting) for setting in settings]
    found = ends(override, document, words)
    if found is not None:
        ends(read, found)


@examples(100)
@given(st.sampled_from(names()), st.lists(VALUES, max_size=2), st.sampled_from(("model=", "stages.0.update=", "data=")))
def test_any_setting_of_a_name_is_applied_or_refused(name, values, path):
    ends(load, name, settings=[path + value for value in values])


@examples(25)
@given(changed(json.loads(json.dumps(to_json(experiment(Path("data.npz")))))))
def test_any_experiment_that_can_be_read_is_prepared_or_refused(document):
    found = ends(read, document)
    if found is not None:
        ends(prepare, found, federation=tiny.federation())


OPTIONS = st.dictionaries(st.sampled_from(("momentum", "nesterov", "b1", "eps", "mask", *NAMES)), documents, max_size=2)
PARAMS = {"w": jnp.zeros(3)}


@examples(100)
@given(
    st.sampled_from(("sgd", "adam", "lion", "adafactor", "apply_if_finite", "chain", "__name__", "losses", *NAMES)),
    documents,
    OPTIONS,
    st.none() | st.tuples(st.sampled_from(("cosine_decay_schedule", "piecewise_constant_schedule", *NAMES)), OPTIONS),
)
def test_any_optimizer_is_built_or_refused(name, learning_rate, options, schedule):
    def build():
        made = Optimizer(name, learning_rate, options, None if schedule is None else Schedule(*schedule))
        made.try_on(PARAMS, 10)

    ends(build)


def can_be_typed(value: str) -> bool:
    """Whether a command line can hold the text."""
    try:
        return b"\0" not in os.fsencode(value)
    except UnicodeEncodeError:
        return False


COMMANDS = typer.main.get_command(app)
COMMAND_OPTIONS = [
    (command, option.opts[0])
    for command, found in COMMANDS.commands.items()  # pyright: ignore[reportAttributeAccessIssue]
    for option in found.params
    if isinstance(option, click.Option) and "--help" not in option.opts
]


@examples(300)
@given(st.sampled_from(COMMAND_OPTIONS), VALUES)
def test_any_option_of_the_command_is_parsed_or_refused(option, value):
    assume(can_be_typed(value))
    command, name = option
    found = COMMANDS.commands[command]  # pyright: ignore[reportAttributeAccessIssue]
    needed = ["x" for each in found.params if isinstance(each, click.Argument) and each.required]
    try:
        values = found.make_context(command, [f"{name}={value}", *needed]).params
    except click.UsageError as error:
        assert error.exit_code == 2
        return
    ends(numbers, value)
    ends(learning_rates_given, value)
    ends(data_options, values.get("client"), values.get("target"), values.get("features"), values.get("data_option"))
    ends(load, "fedavg", settings=overrides(values.get("settings"), values.get("seed"), values.get("model")))
    path = list(sys.path)
    ends(modules_named, values.get("imports"), values.get("model"))
    sys.path[:] = path


@examples(200)
@given(VALUES)
def test_any_value_of_a_setting_is_json_or_text(text):
    value = parse(text)
    assert value == text or json.dumps(value) or np.isnan(value)
