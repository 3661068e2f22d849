"""Values as JSON and back: a value is named by its public name and its fields.

A saved experiment is data. Reading one imports nothing but headstart's public values and the modules that the user's
own command names. What was saved under an earlier name, of a value or of a field, is read as what it is called now.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
import re
import reprlib
from collections.abc import Collection, Mapping
from typing import Any

from headstart.documents import check_plain, parse_json
from headstart.errors import UserError
from headstart.fields import FieldError, complaints, refuse

Json = Any

# The values that a document may name, by the package that exports them; None stands for all that it lists.
_VALUES: Mapping[str, tuple[str, ...] | None] = {
    "headstart": (
        *(
            "Centralized",
            "Data",
            "Experiment",
            "ModelSpec",
            "Optimizer",
            "Personalization",
            "Schedule",
            "Stage",
            "Trial",
        ),
        *("Classification", "NextCharacter", "Regression"),
        *("FOMAML", "MAML", "FedAvg", "FedSGD", "Reptile"),
    ),
    "headstart.methods": None,
}

# Values by the paths they were saved under before they had public names.
_EARLIER_NAMES = {
    **{f"headstart.experiment.{name}": f"headstart.{name}" for name in ("Centralized", "Data", "Experiment", "Stage")},
    "headstart.experiment.Imported": "headstart.ModelSpec",
    **{f"headstart.optimizers.{name}": f"headstart.{name}" for name in ("Optimizer", "Schedule")},
    **{f"headstart.tasks.{name}": f"headstart.{name}" for name in ("Classification", "NextCharacter", "Regression")},
    **{f"headstart.updates.{name}": f"headstart.{name}" for name in ("FOMAML", "MAML", "FedAvg", "FedSGD", "Reptile")},
    "headstart.personalize.Personalization": "headstart.Personalization",
    "headstart.methods.anil.ANIL": "headstart.methods.ANIL",
    "headstart.methods.ditto.Ditto": "headstart.methods.Ditto",
    "headstart.methods.fedbabu.FedBABU": "headstart.methods.FedBABU",
    "headstart.methods.fedper.FedPer": "headstart.methods.FedPer",
    "headstart.methods.fedprox.FedProx": "headstart.methods.FedProx",
    "headstart.methods.fedrep.FedRep": "headstart.methods.FedRep",
    "headstart.methods.ifca.IFCA": "headstart.methods.IFCA",
    "headstart.methods.local_only.LocalOnly": "headstart.methods.LocalOnly",
    "headstart.methods.per_fedavg.PerFedAvg": "headstart.methods.PerFedAvg",
    "headstart.methods.pfedme.PFedMe": "headstart.methods.PFedMe",
    "headstart.methods.scaffold.Scaffold": "headstart.methods.Scaffold",
}


# Fields by the names they were saved under before, of the values that have them.
_EARLIER_FIELDS = {
    "headstart.Stage": {"until": "stop_at"},
    "headstart.Centralized": {"until": "stop_at"},
    "headstart.Personalization": {"rates": "learning_rates"},
}


# What fields had for a default that now is None, and taken from the data.
_EARLIER_DEFAULTS = {("headstart.Stage", "clients_per_round"): 10}


# Fields that values did not have at first, with what they are where nothing was said.
_LATER_FIELDS: Mapping[str, Mapping[str, Any]] = {
    "headstart.Classification": {"more": []},
    "headstart.Regression": {"center": [], "scale": [], "more": []},
    "headstart.Experiment": {"trial": None, "participants": 0},
    "headstart.Data": {"hold_out": False},
    "headstart.Personalization": {"pulls": None},
    "headstart.Stage": {"patience": None},
    "headstart.Centralized": {"patience": None},
    "headstart.FedAvg": {"clip": None},
    "headstart.Reptile": {"clip": None},
}


def to_json(value: Any) -> Json:
    """A frozen dataclass as a dictionary with its name under "type"; tuples as lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"type": name_of(type(value)), **fields}
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no such number; an option that may be infinite takes the word
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise UserError(f"{value!r} cannot be saved; use numbers, text, lists and dataclasses in an experiment")


def from_json(document: Json, *, allowed_modules: Collection[str] = (), where: str = "experiment") -> Any:
    """The value of a document from `to_json`.

    allowed_modules: modules beside headstart's own that may be imported.
    where: the path in the document, for messages.

    Raises:
        UserError: for an unknown type, an unknown or missing field, or a value of the wrong type or out of range; and
            for what is nested too deeply, a number beyond 64 bits, and text that no file can hold.
    """
    try:
        check_plain(document)
    except ValueError as error:
        raise UserError(f"{where} cannot be read: {error}") from error
    return _value(document, allowed_modules=allowed_modules, where=where)


def _value(document: Json, *, allowed_modules: Collection[str], where: str) -> Any:
    """The value of a document that is not nested too deeply."""
    if isinstance(document, int) and not -(2**63) <= document < 2**63:
        raise UserError(f"{where} is {reprlib.repr(document)}, but must be a number of at most 64 bits")
    if isinstance(document, list):
        values, problems = _each(dict(enumerate(document)), allowed_modules, where)
        refuse(problems)
        return tuple(values.values())
    if not isinstance(document, dict):
        return document
    if "type" not in document:
        values, problems = _each(document, allowed_modules, where)
        refuse(problems)
        return values
    kind = dataclass_at(document["type"], allowed_modules, where)
    fields = {key: item for key, item in document.items() if key != "type"}
    given, problems = _each(fields, allowed_modules, where)
    refuse([*problems, *_field_problems(kind, fields, given, where)])
    try:
        return kind(**given)
    except FieldError as error:
        refuse([f"{where}.{name} {complaint}" for name, complaint in error.complaints.items()])
    except UserError:
        raise
    except Exception as error:  # whatever a class of the user's own raises
        raise UserError(f"{where}: cannot make a {kind.__name__} ({type(error).__name__}: {error})") from error


def _each(
    documents: Mapping[Any, Json], allowed_modules: Collection[str], where: str
) -> tuple[dict[Any, Any], list[str]]:
    """The values of documents, by key, and what is wrong with the others."""
    values, problems = {}, []
    for key, item in documents.items():
        try:
            values[key] = _value(item, allowed_modules=allowed_modules, where=f"{where}.{str(key)[:80]}")
        except UserError as error:
            problems.append(str(error))
    return values, problems


def name_of(kind: type) -> str:
    """The name a class of values is saved by: a public one, or else, of the user's own classes, its import path."""
    for package in _VALUES:
        if _public(package, kind.__qualname__) is kind:
            return f"{package}.{kind.__qualname__}"
    return f"{kind.__module__}.{kind.__qualname__}"


def _public(package: str, name: str) -> Any:
    """The value of an experiment that a package exports by this name; None without one."""
    if package not in _VALUES:
        return None
    module, names = importlib.import_module(package), _VALUES[package]
    return getattr(module, name) if name in (module.__all__ if names is None else names) else None


def current(document: Json) -> Json:
    """A document with the names that its values and fields have today."""
    if isinstance(document, list):
        return [current(item) for item in document]
    if not isinstance(document, dict):
        return document
    fields = {key: current(item) for key, item in document.items()}
    kind = fields.get("type")
    if not isinstance(kind, str):
        return fields
    kind = fields["type"] = _EARLIER_NAMES.get(kind, kind)
    names = _EARLIER_FIELDS.get(kind, {})
    fields = {names.get(key, key): item for key, item in fields.items()}
    if kind == "headstart.Personalization" and "length" in fields and fields.get("unit") in (None, "epochs", "steps"):
        # The field `unit` named what `length` counted.
        fields |= {"steps": None, fields.pop("unit", None) or "epochs": fields.pop("length")}
    return fields


def earlier(document: Json) -> Json:
    """A document with the names that its values and fields had first, by which the folders of studies are digested."""
    first = {name: path for path, name in _EARLIER_NAMES.items()}
    if isinstance(document, list):
        return [earlier(item) for item in document]
    if not isinstance(document, dict):
        return document
    fields = {key: earlier(item) for key, item in document.items()}
    kind = fields.get("type")
    if not isinstance(kind, str):
        return fields
    later = _LATER_FIELDS.get(kind, {})
    fields = {name: item for name, item in fields.items() if name not in later or item != later[name]}
    names = {now: then for then, now in _EARLIER_FIELDS.get(kind, {}).items()}
    fields = {name: _EARLIER_DEFAULTS.get((kind, name)) if item is None else item for name, item in fields.items()}
    fields = {names.get(key, key): item for key, item in fields.items()} | {"type": first.get(kind, kind)}
    if kind == "headstart.Personalization":
        epochs, steps = fields.pop("epochs"), fields.pop("steps")
        fields |= {"length": epochs, "unit": "epochs"} if steps is None else {"length": steps, "unit": "steps"}
    return fields


def attribute(path: str, allowed_modules: Collection[str], where: str) -> Any:
    """The value that `module.name` or `module:name` names: a public one of headstart, or code of an allowed module.

    Raises:
        UserError: if headstart has no such value, the module is not allowed, or there is no such thing in it.
    """
    module, _, name = path.rpartition(":" if ":" in path else ".")
    if module.split(".")[0] == "headstart":
        found = _public(module, name)
        if found is None:
            raise UserError(f"{where} is {path!r}, which is not the name of a value such as headstart.FedAvg")
        return found
    if module not in allowed_modules:
        raise UserError(
            f"{where} names code in the module {module!r}, which this command does not bring in;"
            f" if you trust it, add --import {module}"
        )
    try:
        return getattr(importlib.import_module(module), name)
    except Exception as error:  # whatever the module's own code raises
        raise UserError(
            f"{where}: cannot import {path!r} ({type(error).__name__}: {error}); give it as module:name, importable"
            " from here"
        ) from error


def dataclass_at(path: Any, allowed_modules: Collection[str], where: str) -> type:
    """The class of a value that a document names.

    Raises:
        UserError: as of `attribute`, or if it is no such class.
    """
    known = isinstance(path, str) and ("." in path or ":" in path)
    kind = attribute(_EARLIER_NAMES.get(path, path), allowed_modules, f"{where}.type") if known else None
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
        raise UserError(f"{where}.type is {path!r}, which is not the name of a value such as headstart.FedAvg")
    return kind


def _field_problems(kind: type, named: Collection[str], given: Mapping[str, Any], where: str) -> list[str]:
    """What is wrong with the fields named in a document, of which those given could be read."""
    fields = {field.name: field for field in dataclasses.fields(kind)}
    problems = [
        f"unknown setting {where}.{name}; {kind.__name__} accepts {', '.join(fields)}"
        for name in named
        if name not in fields
    ]
    needed = (dataclasses.MISSING, dataclasses.MISSING)
    problems += [
        f"missing setting {where}.{name} of {kind.__name__}"
        for name, field in fields.items()
        if name not in named and (field.default, field.default_factory) == needed
    ]
    known = {name: value for name, value in given.items() if name in fields}
    wrong = complaints(kind, known, show=_as_typed)
    return problems + [f"{where}.{name} {complaint}" for name, complaint in wrong.items()]


def _as_typed(value: Any) -> str:
    return json.dumps(value if isinstance(value, float) else to_json(value), ensure_ascii=False)


def override(document: Json, settings: Collection[str]) -> Json:
    """A copy of a document with settings `a.b.0.c=value` applied; a value is JSON, or else text.

    Raises:
        UserError: if a setting has no "=", or names a position that does not exist.
    """
    document = json.loads(json.dumps(document))
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals:
            raise UserError(f"--set {setting!r} has no value; write it as path=value, for instance seed=1")
        *parents, last = path.strip().split(".")
        target = document
        for step in parents:
            key = _key(target, step, path)
            if isinstance(target, dict) and key not in target:
                target[key] = {}  # free options may be nested
            target = target[key]
        target[_key(target, last, path)] = parse(text)
    return document


def _key(target: Json, step: str, path: str) -> Any:
    """The index or the key that a step of a path stands for."""
    if isinstance(target, list):
        if re.fullmatch("[0-9]{1,9}", step) and int(step) < len(target):
            return int(step)
        raise UserError(f"unknown setting {path!r}: {step!r} is not a number from 0 to {len(target) - 1}")
    # A dictionary without a type holds free options; the one who takes them checks them.
    if isinstance(target, dict) and (step in target or ("type" not in target and step)) and step != "type":
        return step
    accepted = ", ".join(key for key in target if key != "type") if isinstance(target, dict) else "nothing"
    raise UserError(f"unknown setting {path!r}: there is no {step!r}; accepted here: {accepted}")


def parse(text: str) -> Json:
    """A value as typed on the command line: JSON, or else text."""
    try:
        return parse_json(text)
    except ValueError:
        # Python's words for numbers that JSON has not: whoever takes the number refuses it, or not.
        return float(text) if text in ("NaN", "Infinity", "-Infinity") else text
