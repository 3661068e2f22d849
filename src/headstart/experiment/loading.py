"""Experiments by name, from files and from documents."""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import reprlib
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from headstart.data.load import NAMES
from headstart.documents import LARGEST, check_plain, parse_json
from headstart.errors import UserError
from headstart.experiment.experiment import Experiment, Trial
from headstart.experiment.serialization import attribute, current, dataclass_at, from_json, override, parse, to_json
from headstart.learning.method import ClientUpdate

# Of experiment.json; 1 had no number, and named values by the modules they were in.
FORMAT = 2


def load(
    name_or_path: str,
    *,
    data: str | None = None,
    data_options: Mapping[str, Any] | None = None,
    settings: Sequence[str] = (),
    allowed_modules: Collection[str] = (),
) -> Experiment:
    """The experiment of this name, or in this file (.json, or .py that defines `EXPERIMENT`).

    data, data_options: what to use instead of its own data, or further options of them; then the settings apply. A
        method that one names, as in `stages.0.update=module:Class`, is made with its defaults, which others may change,
        and brings the weighting of its paper.

    Raises:
        UserError: if there is none, or a setting does not fit it.
    """
    path = Path(name_or_path)
    if path.suffix == ".json":
        experiment = read(_read_json(path), allowed_modules=allowed_modules)
    else:
        module = _module_at(path) if path.suffix == ".py" else _named(name_or_path)
        experiment = getattr(module, "EXPERIMENT", None)
        if not isinstance(experiment, Experiment):
            raise UserError(f"{name_or_path} defines no EXPERIMENT; assign a headstart.Experiment to that name")
        allowed_modules = {*allowed_modules, module.__name__}
    built_in, own = path.suffix not in (".json", ".py"), experiment.data.source
    experiment = with_data(experiment, data, data_options or {})
    if built_in and experiment.data.source not in (*NAMES, own):
        experiment = replace(experiment, trial=Trial())
    named = {module for setting in settings if (module := _module_named(setting))}
    allowed_modules = {*allowed_modules, *named}
    made = [one for setting in settings for one in _made(setting, settings, allowed_modules)]
    document = override(to_json(experiment), made)
    if experiment.trial is not None and document["trial"] is not None:
        set_here = [setting.partition("=")[0].strip() for setting in settings]
        document["trial"] = _without_settings(document["trial"], document["stages"], set_here)
    return read(document, allowed_modules=allowed_modules)


def _without_settings(trial: Any, stages: Any, settings: Collection[str]) -> Any:
    """The document of a trial that leaves alone what these settings, given by their paths, have set."""

    def is_set(*paths: str) -> bool:
        return any(setting == path or setting.startswith(f"{path}.") for setting in settings for path in paths)

    if not isinstance(trial, dict) or {"stages", "stages.0"} & set(settings):
        # Stages of the user's own are taken as they are.
        return None if isinstance(trial, dict) else trial
    learning_rate = stages[0].get("optimizer", stages[0].get("update", {})).get("learning_rate")
    if not is_set("trial.learning_rates") and is_set("stages.0.update.learning_rate", "stages.0.optimizer"):
        trial = {**trial, "learning_rates": [learning_rate]}
    if not is_set("trial.servers") and is_set("stages.0.server", "stages.0.optimizer"):
        trial = {**trial, "servers": ["own"]}
    return {**trial, "personalization": False} if is_set("personalization") else trial


def _module_named(setting: str) -> str:
    """The module of `stages.0.update=module:Class`; empty for any other setting."""
    path, _, text = setting.partition("=")
    return text.partition(":")[0] if path.strip().endswith(".update") and re.fullmatch(r"[\w.]+:\w+", text) else ""


def _made(setting: str, settings: Sequence[str], allowed_modules: Collection[str]) -> list[str]:
    """The setting with a document in place of the name of an update, and the update's weighting if none is set."""
    path, _, text = setting.partition("=")
    if not path.strip().endswith(".update"):
        return [setting]
    if isinstance(document := parse(text), dict) and "type" in document:
        kind = dataclass_at(document["type"], allowed_modules, f"experiment.{path.strip()}")
        return [setting, *_weighting(path, kind, settings)] if issubclass(kind, ClientUpdate) else [setting]
    if not re.fullmatch(r"[\w.]+[:.]\w+", text):
        return [setting]
    kind = attribute(text, allowed_modules, path.strip())
    if not (isinstance(kind, type) and issubclass(kind, ClientUpdate)):
        raise UserError(f"{text} is no method; give a class that derives from headstart.ClientUpdate")
    try:
        made = f"{path}={json.dumps(to_json(kind()))}"
    except UserError:
        raise
    except Exception as error:  # whatever a class of the user's own raises
        raise UserError(f"cannot make {text} with its defaults ({error}); give every setting of it one") from error
    return [made, *_weighting(path, kind, settings)]


def _weighting(path: str, kind: type[ClientUpdate], settings: Sequence[str]) -> list[str]:
    """The setting of the weighting of the update's paper; empty if another setting says one."""
    weighting = f"{path.strip().removesuffix('.update')}.weighting"
    given = any(other.partition("=")[0].strip() == weighting for other in settings)
    return [] if given else [f"{weighting}={kind.weighting}"]


def with_data(experiment: Experiment, source: str | None, options: Mapping[str, Any]) -> Experiment:
    """The experiment on this data (None: its own); other data bring a model and a task that suit them."""
    own = replace(experiment.data, source=absolute_source(experiment.data.source))
    if source is None or absolute_source(source) == own.source:
        return replace(experiment, data=replace(own, options={**own.options, **options}))
    return replace(
        experiment, task=None, model=None, data=replace(own, source=absolute_source(source), options=options)
    )


def absolute_source(source: str) -> str:
    """The absolute path of a file, so that a run resumes from any folder; the name of a federation as it is."""
    return source if source in NAMES or not _exists(Path(source)) else str(Path(source).resolve())


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that no file can have
        return False


def read(document: Any, *, allowed_modules: Collection[str] = ()) -> Experiment:
    """The experiment of a JSON document, such as `document_of` makes.

    Raises:
        UserError: for what is no experiment, or one that a newer headstart has written.
    """
    fields = dict(document) if isinstance(document, dict) else {}
    number = fields.pop("format", 1)
    if type(number) is not int or number < 1:
        raise UserError(
            f"the experiment has the format {reprlib.repr(number)}; give a whole number from 1 to {FORMAT}, or leave it"
            " out"
        )
    if number > FORMAT:
        raise UserError(
            f"the experiment has the format {reprlib.repr(number)}, newer than this headstart reads; update headstart"
        )
    try:
        check_plain(fields)
    except ValueError as error:
        raise UserError(f"the experiment cannot be read: {error}") from error
    experiment = from_json(current(fields), allowed_modules=allowed_modules)
    if not isinstance(experiment, Experiment):
        raise UserError("the document is not an experiment; one is written by `headstart run` as experiment.json")
    return experiment


def document_of(experiment: Experiment) -> dict[str, Any]:
    """The JSON document that a run keeps as experiment.json."""
    return {"format": FORMAT, **to_json(experiment)}


def names() -> list[str]:
    """The names of the experiments that come with headstart."""
    package = importlib.import_module("headstart.experiments")
    return sorted(path.stem for path in Path(package.__path__[0]).glob("[a-z]*.py"))


def _read_json(path: Path) -> Any:
    try:
        if not path.is_file():
            raise FileNotFoundError("there is no such file")
        with path.open("rb") as file:
            return parse_json(file.read(LARGEST + 1))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the experiment {path}: {error}") from error


def _named(name: str) -> Any:
    if name not in names():
        raise UserError(f"there is no experiment {name!r}; give a file (.py or .json) or one of {', '.join(names())}")
    return importlib.import_module(f"headstart.experiments.{name}")


def _module_at(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not _exists(path):
        raise UserError(f"there is no experiment file {path}; give a .py or .json file")
    if path.stem in sys.modules and getattr(sys.modules[path.stem], "__file__", None) != spec.origin:
        raise UserError(f"{path} has the name of a module that is in use; give the file another name")
    module = importlib.util.module_from_spec(spec)
    # Values of the file's own classes are found again by this name.
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever the user's own code raises
        raise UserError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
    return module
