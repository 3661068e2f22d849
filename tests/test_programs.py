"""One program per shape of work: settings that differ in numbers alone share what is compiled."""

import gc
import signal
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import monitoring
from safetensors.numpy import load_file

import headstart as hs
from headstart.data.device_data import on_device
from headstart.data.federation import Federation
from headstart.experiment.setup import prepare
from headstart.fields import at_least
from headstart.learning.personalization import client_curves
from headstart.learning.programs import SharedProgram, numbers_of, template, with_numbers
from headstart.methods import IFCA, Ditto, Scaffold
from headstart.models.zoo import as_model
from headstart.studies.compare.methods import (
    SECOND_SERVER,
    SECOND_SERVERS,
    SERVER,
    SERVERS,
    MethodSpec,
    Settings,
    built_in_methods,
)
from headstart.training.any_server import USUAL
from headstart.training.compilation_cache import ProgramCache
from headstart.training.run import run_into
from headstart.training.stage_program import stage_rounds
from small import PROGRAMS, experiment, federation_file, first_stage_only

# Of a stage that is not run.
NOTHING = SharedProgram(lambda *arguments: None)
COMPILED = "/jax/core/compile/backend_compile_duration"


@pytest.fixture
def compiled() -> Iterator[Counter]:
    """How many programs have been compiled, or read from the cache of compiled ones."""
    count: Counter = Counter()

    def count_one(event: str, duration_secs: float, **more: str | int) -> None:
        count[event] += 1

    monitoring.register_event_duration_secs_listener(count_one)
    yield count
    monitoring.unregister_event_duration_listener(count_one)


@dataclass(frozen=True)
class Line:
    """a x + b, n times, with a branch that needs a value and a number that belongs to a shape."""

    a: float
    b: float = 0.0
    n: int = 1
    width: int = 2
    name: str = ""

    def __call__(self, x):
        shift = self.b if self.b > 0 else 0.0
        once = jax.lax.fori_loop(0, self.n, lambda _, y: self.a * y + shift, x)
        return jnp.broadcast_to(once, (self.width,))


def test_numbers_are_arguments_and_what_needs_a_value_stays_a_constant():
    traces = []

    def function(line, x):
        traces.append(line)
        return line(x)

    shared = SharedProgram(function)
    for line in (Line(2.0), Line(3.0), Line(3.0, n=2), Line(-1.0, n=5)):
        np.testing.assert_array_equal(shared(line, 2.0), [2.0 * line.a**line.n] * 2)
    seen = len(traces)
    np.testing.assert_array_equal(shared(Line(0.5, n=3), 8.0), [1.0, 1.0])
    assert len(traces) == seen
    # These are in the program, so that they make another.
    np.testing.assert_array_equal(shared(Line(0.5, 1.0), 8.0), [5.0, 5.0])
    np.testing.assert_array_equal(shared(Line(0.5, 2.0), 8.0), [6.0, 6.0])
    np.testing.assert_array_equal(shared(Line(0.5, width=3), 8.0), [4.0, 4.0, 4.0])
    assert len(traces) == seen + 3


@dataclass(frozen=True)
class Pair:
    a: float
    b: float = 1.0

    def __call__(self, x):
        return x * self.a if self.a > 0 and (x.shape == (2,) or self.b > 0) else -x


def test_a_number_that_only_a_later_value_or_shape_needs_becomes_a_constant_then():
    shared = SharedProgram(lambda pair, x: pair(x))
    for pair, size, expected in ((Pair(-1.0), 3, -1), (Pair(2.0), 2, 2), (Pair(2.0), 3, 2), (Pair(2.0, -1.0), 3, -1)):
        np.testing.assert_array_equal(shared(pair, jnp.ones(size)), expected * np.ones(size))


class Derived(Pair):
    def __init__(self, more):
        super().__init__(1.0)
        object.__setattr__(self, "more", more)


def test_what_a_derived_class_holds_beside_its_fields_is_not_shared():
    shared = SharedProgram(lambda value, x: x * value.more)
    found = [float(shared(value, 1.0)) for value in (Derived(1.0), Derived(2.0))]
    assert found == [1.0, 2.0]


def test_an_error_that_is_no_matter_of_numbers_is_raised():
    def refuse(line):
        raise hs.UserError(f"{line.name} is refused")

    with pytest.raises(hs.UserError, match="it is refused"):
        SharedProgram(refuse)(Line(1.0, name="it"))


def test_an_error_of_a_method_is_told_as_it_is_where_it_depends_on_a_number():
    def refuse(line):
        if line.a < 0:
            raise ValueError(f"a is {line.a}")

    with pytest.raises(ValueError, match=r"a is -1\.5"):
        SharedProgram(refuse)(Line(-1.5))


@dataclass(frozen=True)
class Unit:
    precision: float = at_least(0, 3, constant=True)

    def __call__(self, x):
        unit = 10.0**-self.precision if isinstance(self.precision, int) else self.precision
        return unit * jnp.round(x / unit)


def test_a_field_that_is_declared_a_constant_keeps_its_type():
    shared = SharedProgram(lambda unit, x: unit(x))
    found = [float(shared(Unit(precision), 1.234)) for precision in (1, 0.5, 2, 1.0)]
    np.testing.assert_allclose(found, [1.2, 1.0, 1.23, 1.0], rtol=1e-6)


def test_numbers_that_float32_does_not_hold_stay_as_they_are():
    tiny = Line(1e-50, 1.0)
    assert set(numbers_of(tiny)) == {("b",), ("n",), ("width",)}
    assert float(SharedProgram(lambda line: line.a * 1e50)(tiny)) == 1.0


def test_what_a_value_makes_of_its_numbers_is_made_again():
    stage = hs.Stage("first", hs.FedAvg(2, 0.1, 4), hs.Optimizer("sgd", 1.0, {"momentum": 0.9}), 6)
    numbers = {("update", "learning_rate"): 0.3, ("server", "learning_rate"): 0.7}
    assert with_numbers(stage, numbers) == replace(
        stage, update=replace(stage.update, learning_rate=0.3), server=replace(stage.server, learning_rate=0.7)
    )
    assert ("update", "batch_size") not in numbers_of(stage)
    # Of options `1 - b2` is wanted in more digits than float32 has.
    assert ("server", "options", "momentum") not in numbers_of(stage)


def small_with(data, update, **more):
    base = first_stage_only(experiment(data))
    stage = replace(base.stages[0], update=update, **{"rounds": 3, **more})
    return replace(base, stages=(stage,))


def decaying(rounds: int, learning_rate: float) -> dict:
    schedule = hs.Schedule("cosine_decay_schedule", {"decay_steps": rounds})
    return {"rounds": rounds, "server": hs.Optimizer("sgd", learning_rate, {"momentum": 0.9}, schedule)}


def test_settings_of_a_method_share_their_programs_and_come_to_what_they_come_to_alone(small_data, tmp_path, compiled):
    cache = ProgramCache()
    first = small_with(small_data, Ditto(1, 0.1, 4, 0.1), **decaying(3, 1.0))
    again = replace(small_with(small_data, Ditto(2, 0.3, 4, 1.0), **decaying(5, 0.3)), seed=1)
    run_into(first, tmp_path / "first", cache=cache)
    before = compiled[COMPILED]
    run_into(again, tmp_path / "again", cache=cache)
    assert compiled[COMPILED] == before
    run_into(again, tmp_path / "alone")
    alone, shared = (hs.open_run(tmp_path / name) for name in ("alone", "again"))
    for one, other in zip(jax.tree.leaves(alone.params(1)), jax.tree.leaves(shared.params(1)), strict=True):
        np.testing.assert_array_equal(one, other)
    assert alone.report() == shared.report()


def test_of_the_data_of_many_runs_those_used_longest_ago_are_let_go(tmp_path, monkeypatch):
    def known() -> set[str]:
        gc.collect()
        return {each.name for each in gc.get_objects() if isinstance(each, Federation)} & set("abc")

    cache = ProgramCache(many=True)
    for number, (name, expected) in enumerate({"a": "a", "b": "ab", "a again": "ab", "c": "ac"}.items()):
        data = federation_file(tmp_path / f"{name[0]}.npz")
        # Room for one beside that in use.
        rows = [array.nbytes for key, array in np.load(data).items() if key != "client"]
        monkeypatch.setattr("headstart.training.compilation_cache.MOST_BYTES", 1.5 * sum(rows))
        plan = replace(small_with(data, hs.FedAvg(1, 0.1, 4), rounds=1), evaluate_every=0, test=False)
        run_into(plan, tmp_path / str(number), cache=cache)
        assert known() == set(expected)


def test_a_table_of_a_schedule_has_its_learning_rates():
    optimizer = hs.Optimizer("sgd", 0.4, {}, hs.Schedule("cosine_decay_schedule", {"decay_steps": 300}))
    assert optimizer.schedule is not None
    schedule, table = optimizer.schedule.build(0.4), optimizer.tabulated(300)
    assert len(table) == 512
    steps = np.array([0, 1, 150, 299, 300, 511])
    np.testing.assert_allclose(
        table[steps], np.array([float(np.real(schedule(step))) for step in steps]), rtol=1e-6, atol=1e-8
    )


def stages_of(method: MethodSpec, settings: Settings, rounds: int) -> Iterator[hs.Stage]:
    """The stages of a method in a comparison, of this many rounds each."""
    schedule = hs.Schedule("cosine_decay_schedule", {"decay_steps": rounds})
    first = replace(SERVERS[settings[SERVER]], schedule=schedule)
    yield hs.Stage("first", method.update(settings, 4), first, rounds, 3)
    if method.second_kind is not None:
        second = replace(SECOND_SERVERS[settings[SECOND_SERVER]], schedule=schedule)
        yield hs.Stage("second", method.update(settings, 4, method.second_kind), second, rounds, 3)


@pytest.mark.parametrize("name", built_in_methods())
def test_a_comparison_has_one_program_of_rounds_for_each_method(name):
    """And one for each kind of server where they are not to share it: SGD, that with momentum, and Adam."""
    method: MethodSpec = built_in_methods()[name]
    shared, own = set(), set()
    for number, settings in enumerate(method.candidates((0.01, 0.03, 0.1), 12), 1):
        for stage in stages_of(method, settings, 3 * number):
            for found, any_server in ((shared, True), (own, False)):
                rounds = stage_rounds(NOTHING, stage, any_server=any_server)
                found.add((rounds.number is None, template(rounds.stage, numbers_of(rounds.stage))))
    # Two values each of what decides a shape or a branch.
    constants = {"IFCA": 2, "MAML": 2, "MetaSGD": 2, "FedBABU": 2}.get(method.kind.__name__, 1)
    assert len(shared) == constants + (method.second_kind is not None)
    assert len(own) == 3 * constants + (method.second_kind is not None)


def test_what_is_compiled_ahead_is_not_compiled_again(compiled):
    program, x = SharedProgram(lambda line, x: line(x)), np.float32(1.5)
    program.ahead(Line(2.0, 1.0, 3), x)()
    ahead = compiled[COMPILED]
    assert ahead == 1
    assert np.asarray(program(Line(2.0, 1.0, 3), x)).tolist() == [19.0, 19.0]
    assert compiled[COMPILED] == ahead
    program.ahead(Line(3.0, 1.0, 4), x)()
    assert compiled[COMPILED] == ahead


def test_an_experiment_is_prepared_without_a_program_for_its_shapes(compiled):
    images = np.zeros((60, 9, 7, 1), np.uint8)
    federation = hs.from_arrays(
        "odd", [f"client {i}" for i in range(12)], np.full((12, 2), [4, 1]), images, np.arange(60) % 3
    )
    jax.random.key(0)
    before = compiled[COMPILED]
    prepare(first_stage_only(experiment(Path("none"))), federation=federation)
    # One takes the zeros that stand for an example to the device.
    assert compiled[COMPILED] - before <= 1


def test_a_client_is_personalized_by_a_program_that_calls_the_model_ten_times():
    calls = []

    def apply(params, x):
        calls.append(x.shape)
        return x @ params

    model = as_model((lambda key: jnp.zeros((3, 2)), apply), np.zeros((1, 3), np.float32))
    x, y = np.ones((12, 3), np.float32), np.arange(12) % 2
    gather = on_device(hs.from_arrays("two", ["a", "b"], np.array([[4, 2], [4, 2]]), x, y))
    adapt, test = (part.at(0) for part in gather.parts(np.array([[0]]), "adapt", "test"))
    adapt, test = adapt.at(0), test.at(0)
    calls.clear()
    recipe = hs.Personalization(batch_size=4)
    jax.make_jaxpr(lambda *given: client_curves(hs.Classification(), model, recipe, *given))(
        jnp.zeros((3, 2)), adapt, test, jax.random.key(0)
    )
    # A step at three lengths of batch and a measure at four, and three times for shapes.
    assert len(calls) == 10


@pytest.mark.parametrize(
    "update", [hs.FedAvg(1, 0.1, 4), Scaffold(2, 0.1, 4), IFCA(2, 1, 0.1, 4)], ids=lambda update: type(update).__name__
)
def test_the_usual_servers_share_a_program_and_come_to_what_they_come_to_alone(update, small_data, tmp_path, compiled):
    cache = ProgramCache(many=True)
    for number, server in enumerate((USUAL[0], replace(USUAL[1], learning_rate=0.3), hs.Optimizer("adam", 0.03))):
        plan, before = small_with(small_data, update, server=server, rounds=2), compiled[COMPILED]
        run_into(plan, tmp_path / f"{number}", cache=cache)
        # Zeros of the states that it begins with.
        assert not number or compiled[COMPILED] - before <= 6
        run_into(plan, tmp_path / f"{number}-alone", cache=PROGRAMS)
        one, other = (
            load_file(tmp_path / f"{number}{end}" / "seed-0" / "stage-0.safetensors") for end in ("", "-alone")
        )
        for name in one:
            np.testing.assert_allclose(one[name], other[name], rtol=2e-6, atol=1e-7)


def test_a_stopped_run_resumes_to_the_same_bits_where_servers_share_a_program(small_data, tmp_path):
    def stop(record):
        if record["event"] == "round" and record["round"] == 3:
            signal.raise_signal(signal.SIGINT)

    server = hs.Optimizer("adam", 0.03, {}, hs.Schedule("cosine_decay_schedule", {"decay_steps": 6}))
    plan = small_with(small_data, Scaffold(1, 0.1, 4), server=server, rounds=6)
    cache = ProgramCache(many=True)
    run_into(plan, tmp_path / "whole", cache=cache)
    stopped = tmp_path / "stopped"
    assert not run_into(plan, stopped, on_event=stop, cache=cache)
    # In another process, everything is compiled again.
    notes = []
    assert run_into(
        plan, stopped, on_event=lambda record: notes.append(record.get("text")), cache=ProgramCache(many=True)
    )
    assert "seed 0 resumes after round 3" in notes
    one, other = (load_file(folder / "seed-0" / "stage-0.safetensors") for folder in (tmp_path / "whole", stopped))
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])
