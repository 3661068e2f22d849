"""Experiments: values that say what to run, and nothing about how or where."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax

from headstart.data import Federation, as_input
from headstart.errors import UserError
from headstart.models import ALIASES, Model, as_model
from headstart.optimizers import Optimizer
from headstart.personalize import Personalization
from headstart.rounds import Algorithm, Weighting, centralized, federated
from headstart.tasks import Classification, NextCharacter, Regression, Task
from headstart.updates import ClientUpdate
from headstart.values import attribute, from_json, override, to_json


@dataclass(frozen=True)
class Imported:
    """A model by name: one of headstart's ("cnn", "char_lstm", "logistic", "linear", "mlp"), or `module:name`.

    options: keyword arguments for it. A parameter `classes` that is not given is taken from the data.
    """

    path: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Data:
    """Which federation, and who of it trains.

    source: the name of a federation that headstart knows, or the path of a file.
    options: for the reader or generator of that source.
    train, validation: numbers of clients if at least 1, shares if below; the rest test.
    seed: of the split, apart from the seed of a run, so that all runs share it.
    """

    source: str = "glyphs"
    options: Mapping[str, Any] = field(default_factory=dict)
    train: float = 0.7
    validation: float = 0.1
    seed: int = 0


@dataclass(frozen=True)
class Stage:
    """Rounds of one client update under one server optimizer."""

    name: str
    update: ClientUpdate
    server: Optimizer
    rounds: int
    clients_per_round: int = 10
    weighting: Weighting = "examples"

    def algorithm(self, task: Task, model: Model, lanes: int) -> Algorithm:
        """What a round does."""
        server = self.server.build()
        return federated(task, model, self.update, server, weighting=self.weighting, lanes=lanes)


@dataclass(frozen=True)
class Centralized:
    """A stage as a datacenter would do it: the clients' examples pooled and shuffled.

    steps: how many batches make one round, for curves and checkpoints.
    """

    name: str
    optimizer: Optimizer
    rounds: int
    steps: int = 100
    batch_size: int = 20

    def algorithm(self, task: Task, model: Model, lanes: int) -> Algorithm:
        """What a round does; there are no clients to put in lanes."""
        return centralized(task, model, self.optimizer.build(), batch_size=self.batch_size)


@dataclass(frozen=True)
class Experiment:
    """All that decides a result.

    model, task: None takes what suits the data.
    seed: of initial parameters, cohorts, batches and dropout.
    evaluate_every: rounds between evaluations on validation clients; 0 evaluates only at the end of a stage.
    evaluation_clients: how many validation clients those curves use; all of them choose the length of personalization.
    target: the value of the first metric whose round is reported, as the paper's 0.8.
    """

    name: str
    stages: tuple[Stage | Centralized, ...]
    data: Data = Data()
    model: Imported | None = None
    task: Task | None = None
    personalization: Personalization = Personalization()
    seed: int = 0
    evaluate_every: int = 10
    evaluation_clients: int = 20
    target: float | None = None


def suited(experiment: Experiment, federation: Federation) -> Experiment:
    """The experiment with the model and the task that suit the data where none is given."""
    kind = federation.facts.get("kind", "features")
    regression = not federation.facts.get("classes")
    task = {"text": NextCharacter()}.get(kind, Regression() if regression else Classification())
    model = {"text": "char_lstm", "image": "cnn"}.get(kind, "linear" if regression else "logistic")
    return replace(experiment, task=experiment.task or task, model=experiment.model or Imported(model))


def build_model(model: Imported, federation: Federation, *, trusted: Collection[str] = ()) -> Model:
    """The model an experiment names, for the examples of a federation.

    Raises:
        UserError: if it cannot be imported, refuses its options, or is no model.
    """
    thing = ALIASES.get(model.path) or attribute(model.path, trusted, "model")
    options = dict(model.options)
    if callable(thing) and not isinstance(thing, Model):
        parameters = inspect.signature(thing).parameters
        unknown = sorted(set(options) - set(parameters))
        if unknown:
            raise UserError(f"model {model.path} has no option {unknown[0]!r}; it accepts {', '.join(parameters)}")
        classes = federation.facts.get("classes")
        if "classes" in parameters and classes:
            options.setdefault("classes", int(classes))
        if not _is_nnx_factory(parameters):
            thing = thing(**_as_tuples(options))
    x, _ = federation.example()
    example = jax.tree.map(lambda leaf: as_input(jax.numpy.asarray(leaf[:1])), x)
    return as_model(thing, example)


def load(name_or_path: str, *, settings: Sequence[str] = (), trusted: Collection[str] = ()) -> Experiment:
    """The experiment of this name, or in this file (.json, or .py that defines `EXPERIMENT`), with settings applied.

    Raises:
        UserError: if there is none, or a setting does not fit it.
    """
    path = Path(name_or_path)
    if path.suffix == ".json":
        document = _read_json(path)
    else:
        module = _module_at(path) if path.suffix == ".py" else _named(name_or_path)
        experiment = getattr(module, "EXPERIMENT", None)
        if not isinstance(experiment, Experiment):
            raise UserError(f"{name_or_path} defines no EXPERIMENT; assign a headstart.Experiment to that name")
        document, trusted = to_json(experiment), {*trusted, module.__name__}
    return read(override(document, settings), trusted=trusted)


def read(document: Any, *, trusted: Collection[str] = ()) -> Experiment:
    """The experiment of a JSON document."""
    experiment = from_json(document, trusted=trusted)
    if not isinstance(experiment, Experiment):
        raise UserError("the document is not an experiment; one is written by `headstart run` as experiment.json")
    return experiment


def names() -> list[str]:
    """The names of the experiments that come with headstart."""
    import headstart.experiments as package

    return sorted(path.stem for path in Path(package.__path__[0]).glob("[a-z]*.py"))


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the experiment {path}: {error}") from error


def _named(name: str) -> Any:
    if name not in names():
        raise UserError(f"there is no experiment {name!r}; give a file (.py or .json) or one of {', '.join(names())}")
    return importlib.import_module(f"headstart.experiments.{name}")


def _module_at(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.exists():
        raise UserError(f"there is no experiment file {path}; give a .py or .json file")
    module = importlib.util.module_from_spec(spec)
    # Values of the file's own classes are found again by this name.
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever the user's own code raises
        raise UserError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
    return module


def _is_nnx_factory(parameters: Mapping[str, Any]) -> bool:
    return "rngs" in parameters


def _as_tuples(options: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
