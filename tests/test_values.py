"""Values as JSON: they come back equal, and nothing else is let in."""

import json
import sys
import types
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from headstart import Data, Experiment, FedAvg, Optimizer, Schedule, Stage, UserError
from headstart.experiment.loading import load, names, read
from headstart.experiment.serialization import from_json, override, to_json
from headstart.methods import Ditto
from small import experiment


@pytest.mark.parametrize("name", names())
def test_every_experiment_survives_the_way_through_json(name):
    original = load(name)
    assert to_json(read(json.loads(json.dumps(to_json(original))))) == to_json(original)


def test_a_schedule_and_its_optimizer_survive_and_decay():
    optimizer = Optimizer("sgd", 0.5, {"momentum": 0.9}, Schedule("cosine_decay_schedule", {"decay_steps": 10}))
    assert from_json(to_json(optimizer)) == optimizer
    assert optimizer.schedule is not None
    schedule = optimizer.schedule.build(0.5)
    assert float(schedule(0)) == 0.5 and float(schedule(10)) == 0.0


@pytest.mark.parametrize(
    ("optimizer", "complaint"),
    [
        (Optimizer("no_such"), "optax has no optimizer named 'no_such'"),
        (Optimizer("apply_updates"), "optax has no optimizer named 'apply_updates'"),
        (Optimizer("sgd", options={"speed": 1}), "has no option 'speed'"),
        (Optimizer(schedule=Schedule("no_such")), "optax has no schedule named 'no_such'"),
    ],
)
def test_an_optimizer_that_optax_does_not_know_is_refused(optimizer, complaint):
    with pytest.raises(UserError, match=complaint):
        optimizer.build()


@pytest.fixture
def document():
    return to_json(experiment(Path("data.npz")))


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ("seed", "has no value; write it as path=value"),
        ("sead=1", "there is no 'sead'; accepted here: name, stages"),
        ("stages.7.rounds=1", "'7' is not a number from 0 to 1"),
        ("stages.0.update.epoch=1", "there is no 'epoch'; accepted here: epochs, learning_rate, batch_size"),
        ("stages.0.rounds.more=1", "accepted here: nothing"),
    ],
)
def test_an_unknown_setting_is_refused_and_says_what_is_accepted(document, setting, complaint):
    with pytest.raises(UserError, match=complaint):
        override(document, [setting])


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ("seed=many", 'experiment.seed is "many", but must be a whole number'),
        ("seed=1.5", "experiment.seed is 1.5, but must be a whole number"),
        ("seed=true", "experiment.seed is true, but must be a whole number"),
        ("stages.0.update.learning_rate=fast", "must be a number"),
        ("stages.0.weighting=fair", "must be one of 'examples', 'uniform'"),
        ("target=[1]", "must be a number or null"),
        ("stages.0=3", "experiment.stages is"),
    ],
)
def test_a_setting_of_the_wrong_type_is_refused(document, setting, complaint):
    with pytest.raises(UserError, match=complaint):
        read(override(document, [setting]))


def test_settings_change_what_they_name_and_nothing_else(document):
    changed = read(override(document, ["stages.0.update.epochs=5", "target=0.8", "model.options.widths=[4]"]))
    original = read(document)
    assert isinstance(changed.stages[0], type(original.stages[0]))
    assert changed.stages[0].update == FedAvg(5, 0.1, 4)  # pyright: ignore[reportAttributeAccessIssue]
    assert changed.target == 0.8 and changed.stages[1] == original.stages[1]
    assert changed.model is not None and changed.model.options == {"widths": (4,)}


@dataclass(frozen=True)
class Foreign:
    x: int = 0


def test_code_that_the_command_does_not_name_is_not_imported(document, monkeypatch):
    module = types.ModuleType("stranger")
    Foreign.__module__ = "stranger"
    module.Foreign = Foreign  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "stranger", module)
    document["task"] = {"type": "stranger.Foreign", "x": 1}
    with pytest.raises(UserError, match="add --import stranger"):
        read(document)
    assert read(document, allowed_modules={"stranger"}).task == Foreign(1)


@pytest.mark.parametrize("path", ["os.system", "headstart.no_such.Thing", "headstart.experiment.load", "Thing", 3])
def test_a_type_that_is_no_value_is_refused(path):
    with pytest.raises(UserError):
        from_json({"type": path})


def test_a_missing_field_is_named(document):
    del document["stages"][0]["rounds"]
    with pytest.raises(UserError, match=r"missing setting experiment\.stages\.0\.rounds of Stage"):
        read(document)


def test_an_experiment_is_read_from_a_python_file(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import headstart as hs\n"
        "EXPERIMENT = hs.Experiment('mine', (hs.Stage('one', hs.FedSGD(), hs.Optimizer(), 3),))\n"
    )
    loaded = load(str(tmp_path / "mine.py"), settings=["seed=4"])
    assert isinstance(loaded, Experiment) and loaded.name == "mine" and loaded.seed == 4
    assert replace(loaded, seed=0) == load(str(tmp_path / "mine.py"))


def test_values_are_saved_by_their_public_names(document):
    assert document["type"] == "headstart.Experiment" and document["stages"][0]["update"]["type"] == "headstart.FedAvg"
    assert to_json(Ditto())["type"] == "headstart.methods.Ditto"
    assert to_json(Foreign())["type"].endswith(".Foreign")


def test_an_experiment_of_a_newer_format_is_refused(document):
    assert read({"format": 2, **document}) == read(document)
    with pytest.raises(UserError, match="has the format 3, newer than this headstart reads"):
        read({"format": 3, **document})
    for number in (0, -1, "x", 1.5, True, None):
        with pytest.raises(UserError, match="; give a whole number from 1 to 2, or leave it out"):
            read({"format": number, **document})


@pytest.mark.parametrize("path", ["headstart.__main__.main", "headstart.cli.main", "headstart.experiment.load"])
def test_no_module_of_headstart_is_imported_by_its_path(path, monkeypatch):
    monkeypatch.delitem(sys.modules, "headstart.__main__", raising=False)
    with pytest.raises(UserError, match="not the name of a value"):
        from_json({"type": path})
    assert "headstart.__main__" not in sys.modules


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: FedAvg(epochs=0), r"FedAvg\.epochs is 0, but must be at least 1"),
        (lambda: Stage("s", FedAvg(), Optimizer(), 0), r"Stage\.rounds is 0, but must be at least 1"),
        (lambda: Ditto(strength=float("nan")), r"Ditto\.strength is nan, but must be at least 0"),
        (lambda: Data(train=-0.5), r"Data\.train is -0\.5, but must be at least 0"),
    ],
)
def test_a_value_out_of_range_is_refused_in_python_too(make, complaint):
    with pytest.raises(UserError, match=complaint):
        make()


def test_a_value_out_of_range_is_refused_with_its_path(document):
    with pytest.raises(UserError, match=r"experiment\.stages\.0\.update\.epochs is 0, but must be at least 1"):
        read(override(document, ["stages.0.update.epochs=0"]))


def test_a_method_that_a_setting_names_brings_the_weighting_of_its_paper():
    named, said = "stages.0.update=headstart.methods.PFedMe", "stages.0.weighting=examples"
    for settings, expected in (([named], "uniform"), ([named, said], "examples"), ([said, named], "examples")):
        stage = load("fedavg", settings=settings).stages[0]
        assert isinstance(stage, Stage) and stage.weighting == expected


def test_a_method_in_a_settings_document_brings_it_too():
    made = 'stages.0.update={"type": "headstart.Reptile", "steps": 2}'
    for settings, expected in (([made], "uniform"), ([made, "stages.0.weighting=examples"], "examples")):
        stage = load("fedavg", settings=settings).stages[0]
        assert isinstance(stage, Stage) and stage.weighting == expected
    with pytest.raises(UserError, match=r"unknown setting experiment\.stages\.0\.update\.speed"):
        load("fedavg", settings=['stages.0.update={"type": "headstart.Reptile", "speed": 2}'])


def test_a_setting_may_name_a_method_and_others_change_it(tmp_path, monkeypatch):
    (tmp_path / "own_method.py").write_text(
        "import dataclasses, headstart as hs\n"
        "@dataclasses.dataclass(frozen=True)\n"
        "class Mine(hs.ClientUpdate):\n"
        "    steps: int = 3\n"
        "    def __call__(self, task, model, broadcast, client, client_state, key):\n"
        "        return hs.Reptile(self.steps)(task, model, broadcast, client, client_state, key)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    settings = ["stages.0.update=own_method:Mine", "stages.0.update.steps=5"]
    update = load("fedavg", settings=settings).stages[0].update  # pyright: ignore[reportAttributeAccessIssue]
    assert type(update).__name__ == "Mine" and update.steps == 5
    update = load("fedavg", settings=["stages.0.update=headstart.methods.Ditto"]).stages[0].update  # pyright: ignore[reportAttributeAccessIssue]
    assert update == Ditto()
    with pytest.raises(UserError, match=r"is no method; give a class that derives from headstart\.ClientUpdate"):
        load("fedavg", settings=["stages.0.update=own_method:dataclasses"])
