"""Settings: every bad one is refused, in Python as on the command line, before anything is touched."""

import dataclasses
import math
import typing
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import headstart
from headstart import (
    Centralized,
    Data,
    Experiment,
    FedAvg,
    ModelSpec,
    Optimizer,
    Parallel,
    Personalization,
    Schedule,
    Stage,
    UserError,
    run,
)
from headstart.experiment.loading import read
from headstart.experiment.serialization import override, to_json
from headstart.experiment.setup import prepare
from headstart.fields import MOST_SEED, hints_of
from headstart.flower.service import ServerConfig
from headstart.learning.rounds import seed_key
from headstart.methods import IFCA, Ditto, PerFedAvg, Scaffold
from headstart.runs.contents import read_json
from headstart.studies.compare.protocol import Protocol
from headstart.training.cluster import as_one, membership
from headstart.training.seed_run import Options
from small import experiment, first_stage_only
from tiny import SOFTMAX

NAN, INF = float("nan"), float("inf")
STAGE = Stage("s", FedAvg(), Optimizer(), 3)
WHOLE = Experiment("whole", (STAGE,))
ROWS = np.zeros((3, 4), np.float32), np.zeros(3, np.int32)
PARTS = headstart.Classification(), SOFTMAX


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: Stage("s", FedAvg(), Optimizer(), 2.5), r"Stage\.rounds is 2\.5, but must be a whole number"),
        (lambda: Stage("s", FedAvg(), Optimizer(), True), r"Stage\.rounds is True, but must be a whole number"),
        (lambda: Stage("s", FedAvg(), Optimizer(), "3"), r"Stage\.rounds is '3', but must be a whole number"),
        (lambda: Stage("s", FedAvg(), Optimizer(), 3, 0), r"Stage\.clients_per_round is 0, but must be at least 1"),
        (lambda: Stage("s", FedAvg(), Optimizer(), 10**13), r"but must be at most 2147483647"),
        (lambda: Stage("s", FedAvg, Optimizer(), 3), r"Stage\.update is .*, but must be a ClientUpdate"),
        (lambda: Stage("s", FedAvg(), "sgd", 3), r"Stage\.server is 'sgd', but must be an Optimizer"),
        (lambda: Stage("s", FedAvg(), Optimizer(), 3, weighting="fair"), "must be one of 'examples', 'uniform'"),
        (lambda: Stage("s", FedAvg(), Optimizer(), 3, stop_at=NAN), r"Stage\.stop_at is nan, but must be a finite"),
        (lambda: Centralized("c", Optimizer(), 3, steps=0), r"Centralized\.steps is 0, but must be at least 1"),
        (lambda: Experiment("e", STAGE), r"Experiment\.stages is .*, but must be a list"),
        (lambda: Experiment("e", (STAGE,), target=INF), r"Experiment\.target is inf, but must be a finite number"),
        (lambda: Experiment("e", (STAGE,), evaluate_every=-1), r"evaluate_every is -1, but must be at least 0"),
        (lambda: Experiment("e", (STAGE,), seed=2**32), rf"seed is {2**32}, but must be at most {MOST_SEED}"),
        (lambda: Experiment("e", (STAGE,), seed=-1), r"Experiment\.seed is -1, but must be at least 0"),
        (lambda: Experiment("e", (STAGE,), start=3), r"Experiment\.start is 3, but must be text or null"),
        (lambda: Experiment(7, (STAGE,)), r"Experiment\.name is 7, but must be text"),
        (lambda: Data(adapt_examples=0), r"Data\.adapt_examples is 0, but must be above 0"),
        (lambda: Data(train=2.5), r"Data\.train is 2\.5, but must be a share below 1, or a whole number"),
        (lambda: Data(options=[1]), r"Data\.options is \[1\], but must be a Mapping"),
        (lambda: Data(train="all"), r"Data\.train is 'all', but must be a number"),
        (lambda: Optimizer("sgd", -0.1), r"Optimizer\.learning_rate is -0\.1, but must be at least 0"),
        (lambda: Optimizer("sgd", 10**400), r"Optimizer\.learning_rate is 1000.*, but must be a finite number"),
        (lambda: Optimizer("sgd", 0.1, {"momentum": NAN}), r"must have numbers where it has nan"),
        (lambda: Optimizer(3), r"Optimizer\.name is 3, but must be text"),
        (lambda: Optimizer(schedule="cosine"), r"Optimizer\.schedule is 'cosine', but must be a Schedule or null"),
        (lambda: Schedule(None), r"Schedule\.name is None, but must be text"),
        (lambda: ModelSpec(3), r"ModelSpec\.path is 3, but must be text"),
        (lambda: FedAvg(learning_rate=NAN), r"FedAvg\.learning_rate is nan, but must be at least 0"),
        (lambda: FedAvg(learning_rate="fast"), r"FedAvg\.learning_rate is 'fast', but must be a number"),
        (lambda: FedAvg(epochs=10**13), r"FedAvg\.epochs is 10000000000000, but must be at most 10000"),
        (lambda: Scaffold(learning_rate=0), r"Scaffold\.learning_rate is 0, but must be above 0"),
        (lambda: PerFedAvg(learning_rate=0.0), r"PerFedAvg\.learning_rate is 0\.0, but must be above 0"),
        (lambda: Ditto(strength=INF), r"Ditto\.strength is inf, but must be a finite number"),
        (lambda: IFCA(models=10**9), r"IFCA\.models is 1000000000, but must be at most 1000"),
        (
            lambda: Personalization(epochs=10**13),
            r"Personalization\.epochs is 10000000000000, but must be at most 10000",
        ),
        (lambda: Personalization(learning_rates=(0.1, -1)), r"learning_rates is \(0\.1, -1\), but must be at least 0"),
        (lambda: Personalization(learning_rates=0.1), r"learning_rates is 0\.1, but must be a list, each a number"),
        (lambda: Options(lanes=10**9), r"Options\.lanes is 1000000000, but must be at most 10000"),
        (lambda: Options(devices=0), r"Options\.devices is 0, but must be at least 1"),
        (lambda: Options(checkpoint_seconds=NAN), r"Options\.checkpoint_seconds is nan, but must be at least 0"),
        (lambda: Parallel(lanes=0), r"Parallel\.lanes is 0, but must be at least 1"),
        (lambda: ServerConfig(nodes=0), r"ServerConfig\.nodes is 0, but must be at least 1"),
        (lambda: ServerConfig(deadline=NAN), r"ServerConfig\.deadline is nan, but must be above 0"),
        (lambda: Protocol(WHOLE, seeds=1001), r"Protocol\.seeds is 1001, but must be at most 1000"),
        (lambda: as_one(NAN).__enter__(), "--patience nan is no number of seconds; give at least 1"),
        (lambda: membership("127.0.0.1:99999", 2, 0), "is no HOST:PORT with a port from 1 to 65535"),
        (lambda: membership("127.0.0.1:²", 2, 0), "is no HOST:PORT with a port from 1 to 65535"),
    ],
)
def test_a_bad_setting_is_refused_in_python(make, complaint):
    with pytest.raises(UserError, match=complaint):
        make()


def _values() -> list[Any]:
    """A value of every class of values."""
    updates = [getattr(headstart.methods, name)() for name in headstart.methods.__all__]
    updates += [getattr(headstart, name)() for name in ("FOMAML", "MAML", "FedAvg", "FedSGD", "Reptile")]
    others = [Data(), Optimizer(), Personalization(), Options(), Parallel(), ServerConfig(), headstart.NextCharacter()]
    stages = [STAGE, Centralized("c", Optimizer(), 3), WHOLE, ModelSpec("mlp"), Schedule("linear_schedule")]
    return [*updates, *others, *stages, Protocol(WHOLE)]


@pytest.mark.parametrize("value", _values(), ids=lambda value: type(value).__name__)
def test_no_field_takes_what_is_of_another_type_or_no_number(value):
    for field in dataclasses.fields(value):
        hint = hints_of(type(value))[field.name]
        types = {hint, *typing.get_args(hint)}
        bad: list[Any] = [object(), {"a": NAN}, [NAN], [object()]]
        if types & {int, float}:
            bad += ["3", True, NAN, -INF, b"3", 1j, np.float64("nan"), -(10**400)]
        if types & {int, float} and typing.get_origin(hint) is not tuple:
            bad += [[1], np.array([1.0, 2.0])]
        if int in types and float not in types:
            bad += [2.5, INF, np.float32(2.5)]
        if hint is bool:
            bad += [1, "true", None]
        if hint is str:
            bad += [1, None, b"text", ["text"]]
        for item in bad:
            with pytest.raises(UserError, match=rf"{type(value).__name__}\.{field.name} is "):
                dataclasses.replace(value, **{field.name: item})


def test_numpys_numbers_and_lists_are_taken_for_pythons():
    stage = Stage("s", FedAvg(epochs=np.int64(2)), Optimizer("sgd", np.float32(0.5)), np.int32(3), np.array(4))
    assert stage == Stage("s", FedAvg(epochs=2), Optimizer("sgd", 0.5), 3, 4)
    assert type(stage.rounds) is int and type(stage.server.learning_rate) is float
    recipe = Personalization(learning_rates=list(np.array([0.1, 0.2])))  # pyright: ignore[reportArgumentType]
    assert recipe.learning_rates == (0.1, 0.2) and type(recipe.learning_rates[0]) is float
    assert Experiment("e", [stage]).stages == (stage,)  # pyright: ignore[reportArgumentType]
    assert to_json(stage)["rounds"] == 3


def test_a_number_under_a_transformation_is_let_through():
    def step(size):
        return Optimizer("sgd", size).learning_rate * FedAvg(learning_rate=size).learning_rate

    assert float(jax.jit(step)(jnp.array(0.5))) == 0.25


def test_the_fields_of_a_custom_method_are_checked_by_their_types():
    @dataclasses.dataclass(frozen=True)
    class Mine(headstart.ClientUpdate):
        steps: int = 3
        clip: float = math.inf
        salt: int = 2**40
        names: "Unknown" = ()  # pyright: ignore  # noqa: F821

        def __call__(self, task, model, broadcast, client, client_state, key):
            raise NotImplementedError

    assert Mine(names=("a",)).clip == math.inf

    @dataclasses.dataclass(frozen=True)
    class Other(headstart.ClientUpdate):
        steps: int = 3

        def __call__(self, task, model, broadcast, client, client_state, key):
            raise NotImplementedError

    with pytest.raises(UserError, match=r"Other\.steps is 2\.5, but must be a whole number"):
        Other(2.5)  # pyright: ignore[reportArgumentType]


def test_all_mistakes_of_an_experiment_are_told_at_once():
    settings = ["seed=-1", "stages.0.rounds=0", "stages.1.update.learning_rate=fast", "data.train=1.5", "target=NaN"]
    with pytest.raises(UserError) as refused:
        read(override(to_json(experiment(Path("data.npz"))), settings))
    for complaint in (
        "experiment.seed is -1, but must be at least 0",
        "experiment.stages.0.rounds is 0, but must be at least 1",
        'experiment.stages.1.update.learning_rate is "fast", but must be a number',
        "experiment.data.train is 1.5, but must be a share below 1, or a whole number",
        "experiment.target is NaN, but must be a finite number",
    ):
        assert complaint in str(refused.value)
    with pytest.raises(UserError, match=r"FedAvg\.epochs is 0.*; and FedAvg\.batch_size is 0"):
        FedAvg(epochs=0, batch_size=0)


def test_two_seeds_are_never_the_same():
    keys = [tuple(map(int, jax.random.key_data(seed_key(seed)))) for seed in (0, 1, 2**31, MOST_SEED)]
    assert len(set(keys)) == 4


@pytest.mark.parametrize("seeds", [0, -1, 2.5, True, "3", 10**9, None])
def test_a_number_of_seeds_that_is_none_is_refused(small_data, tmp_path, seeds):
    with pytest.raises(UserError, match=r"seeds is .*, but must be a whole number from 1 to 10000"):
        run(experiment(small_data), tmp_path / "out", seeds=seeds)
    assert not (tmp_path / "out").exists()


def test_what_is_no_experiment_is_refused(small_data, tmp_path):
    with pytest.raises(UserError, match=r"experiment is a str, but must be a headstart\.Experiment"):
        run("fedavg", tmp_path / "out")  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match=r"federation is a str, but must be a headstart\.Federation"):
        run(experiment(small_data), tmp_path / "out", federation="mine.npz")  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match="seeds from 4294967295 on would be beyond 4294967295"):
        run(dataclasses.replace(experiment(small_data), seed=MOST_SEED), tmp_path / "out", seeds=2)


BAD_SETTINGS = {
    "a seed beyond 64 bits": (["--seed", "18446744073709551617"], "experiment.seed is 18446744073709551617"),
    "a seed beyond 32 bits": (["--seed", "4294967296"], "must be at most 4294967295"),
    "seeds": (["--seeds", "1000000000"], "seeds is 1000000000, but must be a whole number from 1 to 10000"),
    "a model without a name": (["--model", ":"], "cannot import ':'"),
    "a model of quotes": (["--model", '"'], "there is no model '\"'"),
    "lanes": (["--lanes", "1000000000"], "Options.lanes is 1000000000, but must be at most 10000"),
    "devices": (["--devices", "1000000"], "1000000 devices are more than the 3 that JAX has here"),
    "no time": (["--checkpoint-seconds", "nan"], "checkpoint_seconds is nan"),
    "no patience": (["--patience", "nan"], "--patience nan is no number of seconds"),
    "a port": (
        ["--coordinator", "127.0.0.1:99999", "--processes", "2", "--process-id", "0"],
        "is no HOST:PORT with a port from 1 to 65535",
    ),
    "a negative rate": (["--set", "stages.0.server.learning_rate=-1"], "learning_rate is -1, but must be at least 0"),
    "no adapt examples": (["--set", "data.adapt_examples=0"], "adapt_examples is 0, but must be above 0"),
    "no target": (["--set", "target=NaN"], "target is NaN, but must be a finite number"),
    "epochs": (["--set", "personalization.epochs=10000000000000"], "must be at most 10000"),
    "a batch": (
        ["--set", "stages.0.update.batch_size=1000000000"],
        "stage 'FedAvg' has batches of 1000000000 examples",
    ),
    "a batch at home": (["--set", "personalization.batch_size=100000000"], "personalization has batches of 100000000"),
    "an optimizer": (["--set", "stages.0.server.name=sdg"], "optax has no optimizer named 'sdg'"),
    "an optimizer's option": (
        ["--set", "stages.0.server.options.momentum=much"],
        "optimizer 'sgd' refuses its options {'momentum': 'much'}",
    ),
    "an optimizer's flag": (
        ["--set", "stages.0.server.options.nesterov=perhaps"],
        "option 'nesterov' of optimizer 'sgd' is 'perhaps', but must be true or false",
    ),
    "a schedule that ends below 0": (
        [
            "--set",
            'stages.0.server.schedule={"type": "headstart.Schedule", "name": "linear_schedule", "options":'
            ' {"end_value": -1, "transition_steps": 50}}',
        ],
        "has the learning rate -1 at step 99; rates are at least 0",
    ),
    "a schedule of no numbers": (
        [
            "--set",
            'stages.0.server.schedule={"type": "headstart.Schedule", "name": "piecewise_constant_schedule", "options":'
            ' {"boundaries_and_scales": [1]}}',
        ],
        "schedule 'piecewise_constant_schedule' refuses its options",
    ),
    "a model larger than the machine": (
        ["--model", "mlp", "--set", "model.options.widths=[1000000000000]"],
        "more than this machine's memory",
    ),
    "a client's optimizer": (["--set", "personalization.optimizer.name=sdg"], "no optimizer named 'sdg'"),
    "a start": (["--set", "start=nowhere.safetensors"], "nowhere.safetensors"),
    "rounds": (["--set", "stages.0.rounds=10000000000000"], "rounds is 10000000000000, but must be at most"),
}


@pytest.mark.parametrize("mistake", BAD_SETTINGS)
def test_a_bad_setting_is_one_sentence_on_the_command_line_and_no_folder(command, small_data, tmp_path, mistake):
    words, complaint = BAD_SETTINGS[mistake]
    code, _, err = command("run", "fedavg", "--data", small_data, "--set", "stages.0.clients_per_round=2", *words)
    assert code == 2, err
    assert complaint in err
    assert len(err.strip().splitlines()) == 1 and "Traceback" not in err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--epochs", 10**13), "epochs is 10000000000000, but must be at most"),
        (("--learning-rates", ""), "no list of numbers"),
        (("--learning-rates", "nan"), "not positive"),
        (("--seeds", 10**9), "seeds is 1000000000, but must be at most 1000"),
        (("--tries", 10**9), "tries is 1000000000, but must be at most 1000"),
    ],
)
def test_a_bad_setting_of_a_comparison_is_one_sentence(command, small_data, tmp_path, words, complaint):
    code, _, err = command("compare", "fedavg", "--data", small_data, *words)
    assert code == 2 and complaint in err and len(err.strip().splitlines()) == 1
    assert not (tmp_path / "compared").exists()


def test_a_bad_length_of_personalization_is_one_sentence(command, small_run, small_data, tmp_path):
    words = ("personalize", small_run, "--data", small_data, "--out", "mine", "--epochs", 10**13)
    code, _, err = command(*words)
    assert code == 2 and "epochs is 10000000000000, but must be at most 10000" in err
    assert not (tmp_path / "mine").exists()


@pytest.mark.parametrize(
    ("ask", "complaint"),
    [
        (lambda run: run.clients("tests"), "group is 'tests', but must be one of 'validation', 'test'"),
        (lambda run: run.summary(3), "group is 3, but must be one of 'validation', 'test'"),
        (lambda run: run.params(stage=2), "stage is 2, but must be at most 1"),
        (lambda run: run.clients(stage=-3), "stage is -3, but must be at least -2"),
        (lambda run: run.report(stage=1.5), "stage is 1.5, but must be a whole number"),
        (lambda run: run.params(seed="0"), "seed 0 of .* is not finished"),
        (lambda run: run.personalize(*ROWS, epochs=-1), "epochs is -1, but must be at least 0"),
        (lambda run: run.personalize(*ROWS, epochs=2.5), "epochs is 2.5, but must be a whole number"),
        (lambda run: run.personalize(*ROWS, epochs=10**13), "but must be at most 10000"),
        (lambda run: run.personalize(ROWS[0][:0], ROWS[1][:0]), "there are no examples to personalize with"),
    ],
)
def test_a_run_refuses_what_it_does_not_have(small_run, ask, complaint):
    with pytest.raises(UserError, match=complaint):
        ask(headstart.open_run(small_run))


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: federated(weighting="fair"), "weighting is 'fair', but must be one of 'examples', 'uniform'"),
        (lambda: federated(participation=0), "participation is 0, but must be above 0"),
        (
            lambda: headstart.centralized(*PARTS, optax.sgd(1.0), batch_size=0),
            "batch_size is 0, but must be at least 1",
        ),
        (lambda: headstart.LocalSGD(*PARTS, optax.sgd(1.0), 2.5), r"LocalSGD\.batch_size is 2\.5, but must be a whole"),
    ],
)
def test_the_functions_under_an_experiment_refuse_bad_settings_too(make, complaint):
    with pytest.raises(UserError, match=complaint):
        make()


def federated(**settings: Any) -> headstart.Algorithm:
    return headstart.federated(*PARTS, FedAvg(), optax.sgd(1.0), **settings)


def test_a_typo_does_not_claim_the_folder(small_data, tmp_path):
    plan = first_stage_only(experiment(small_data, rounds=(1, 1)))
    typo = dataclasses.replace(plan, stages=(dataclasses.replace(plan.stages[0], server=Optimizer("sdg")),))
    for wrong in (typo, dataclasses.replace(plan, start=str(tmp_path / "nowhere"))):
        with pytest.raises(UserError):
            run(wrong, tmp_path / "out", progress=False)
        assert not (tmp_path / "out").exists()
    assert run(plan, tmp_path / "out", progress=False).finished


def test_a_batch_of_all_examples_and_more_is_taken(small_data):
    plan = first_stage_only(experiment(small_data))
    stage = dataclasses.replace(plan.stages[0], update=FedAvg(batch_size=2**16))
    assert prepare(dataclasses.replace(plan, stages=(stage,))).experiment.stages[0] == stage
    pool = Centralized("pool", Optimizer(), 1, steps=10**5, batch_size=10**4)
    with pytest.raises(UserError, match="a round of stage 'pool' has 1000000000 examples; give at most 33554432"):
        prepare(dataclasses.replace(plan, stages=(pool,)))


HOSPITALS = 6
OWN = ("--data", "visits.csv", "--client", "hospital", "--target", "outcome")


@pytest.fixture
def visits(tmp_path) -> Path:
    """Six hospitals of a few rows."""
    generator = np.random.default_rng(0)
    rows = [
        f"hospital {h},{generator.integers(20, 90)},{generator.normal():.3f},{generator.choice(['home', 'ward'])}"
        for h in range(HOSPITALS)
        for _ in range(5 + h)
    ]
    path = tmp_path / "visits.csv"
    path.write_text("hospital,age,pressure,outcome\n" + "\n".join(rows) + "\n")
    return path


def test_a_cohort_that_nobody_asked_for_is_at_most_all_training_clients(command, visits, tmp_path):
    words = ("run", "fedavg", *OWN, "--model", "logistic", "--set", "stages.0.rounds=2", "--set", "evaluate_every=1")
    code, out, err = command(*words)
    assert (code, err) == (0, "")
    assert "stage 'FedAvg' has a cohort of 4, all training clients that there are" in out
    assert read_json(tmp_path / "runs/fedavg/experiment.json")["stages"][0]["clients_per_round"] == 4
    assert command(*words)[0] == 0
    code, _, err = command(*words, "--set", "stages.0.clients_per_round=50", "--out", "fifty")
    assert code == 2 and "wants a cohort of 50 clients, more than the 4 training clients" in err
    assert not (tmp_path / "fifty").exists()


def test_a_cohort_that_nobody_asked_for_is_ten_where_there_are_as_many():
    plan = Experiment("plan", (STAGE,), Data("glyphs", {"writers": 20, "examples": 2}), ModelSpec("logistic"))
    assert prepare(plan).experiment.stages[0] == dataclasses.replace(STAGE, clients_per_round=10)
    assert STAGE.cohort == 10


def test_a_comparison_has_the_cohort_that_there_is(visits):
    from headstart.studies.compare.protocol import _Planner
    from headstart.studies.runner import Runs

    data = Data(str(visits), {"client": "hospital", "target": "outcome"})
    planner = _Planner(Protocol(Experiment("plan", (STAGE,), data)), Runs(visits.parent / "runs", seeds=1))
    assert planner.cohort == 4
