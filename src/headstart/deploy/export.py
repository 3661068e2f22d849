"""Export of a finished run as an artifact, with which a device adapts, predicts and decides by itself.

parameters.safetensors   the initial model
adapt.jaxexport          the programs of `programs`, for any number of examples
measure.jaxexport
predict.jaxexport
artifact.json            shapes, order of arguments, recipe, keys, versions, checksums
card.json, card.md       the run's data and its results on them, from the run's own reports

A device reads it with JAX and without headstart: `examples/on_device/adapt.py`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from headstart._version import __version__
from headstart.data.decided import decisions
from headstart.data.federation import Tree, named
from headstart.deploy.card import describe_run, markdown
from headstart.deploy.programs import (
    PLATFORMS,
    Like,
    check_platforms,
    export_adapt,
    export_measure,
    export_predict,
)
from headstart.errors import UserError
from headstart.experiment.experiment import Experiment
from headstart.experiment.serialization import to_json
from headstart.experiment.setup import check_fit
from headstart.files import as_json, whole_folder, write_bytes, write_json
from headstart.learning.metrics import evaluated_metrics
from headstart.learning.personalization import EVALUATION_BATCH
from headstart.learning.prediction import CAPACITIES
from headstart.learning.rounds import personal_key, seed_key
from headstart.learning.tasks import Classification, NextCharacter, Task
from headstart.models.zoo import Model
from headstart.runs import checkpoint
from headstart.runs.reading import open_run
from headstart.runs.run import Run

# 2 is of a table, whose columns the artifact says how to make features of; who reads only 1 would not make them.
FORMAT, TABLE_FORMAT = 1, 2
PARAMETERS = "parameters.safetensors"
# In the order in which the programs take them; `parameters` stands for all arrays of the model.
ARGUMENTS = {
    "adapt": ("parameters", "x", "y", "size", "key", "client", "length"),
    "measure": ("parameters", "x", "y", "size"),
    "predict": ("parameters", "x", "size"),
}


class Source(NamedTuple):
    """The parts of a run that an artifact is made from.

    report: the last stage's, of its first seed. metadata: of the run's federation. epochs: of
    personalization, as validation clients chose them.
    """

    experiment: Experiment
    task: Task
    model: Model
    params: Tree
    like: Like
    report: Mapping[str, Any]
    metadata: Mapping[str, Any]
    epochs: int


def export_run(
    run: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    platforms: Collection[str] = PLATFORMS,
    allowed_modules: Collection[str] = (),
) -> dict[str, int]:
    """Write the artifact of a finished run into a new folder, whole or not at all; returns the sizes of its files.

    platforms: those its programs run on, among cpu, cuda, rocm and tpu.
    allowed_modules: modules a saved experiment may import beside headstart's own.

    Raises:
        UserError: if the run is not finished, its model cannot be exported, or the folder holds files.
    """
    run, out, chosen = Path(run), Path(out), check_platforms(platforms)
    with whole_folder(out) as folder:
        source = read_source(open_run(run, allowed_modules=allowed_modules))
        card = describe_run(run, source.experiment, source.report)
        contents = programs(source, chosen)
        for name, content in contents.items():
            write_bytes(folder / f"{name}.jaxexport", content)
        checkpoint.write(folder / PARAMETERS, source.params, {"round": source.report["round"]})
        write_json(folder / "card.json", card)
        write_bytes(folder / "card.md", markdown(card, evaluated_metrics(source.task)).encode())
        files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
        write_json(folder / "artifact.json", signed(description(source, chosen, files)))
        return {path.name: path.stat().st_size for path in sorted(folder.iterdir())}


def read_source(run: Run) -> Source:
    """A finished run's model, task and parameters; its data need not be there, a few kept examples will do.

    Raises:
        UserError: if the run is not finished or its model cannot be built.
    """
    experiment, report = run.personal_experiment(), run.report()
    if not experiment.stages[-1].method.is_single_model:
        raise UserError(
            f"the method of stage {experiment.stages[-1].name!r} does not start every client from one model, which is"
            " all that an artifact holds; export a run of another method"
        )
    if experiment.stages[-1].method.has_own_predictions:
        raise UserError(
            f"clients of the method of stage {experiment.stages[-1].name!r} predict with examples of their own beside"
            " the model, which an artifact does not hold; export a run of another method"
        )
    initial, examples = run.initial_model(), run.example_federation
    check_fit(run.task, run.model, examples)
    shapes = jax.eval_shape(run.model.init, seed_key(report["seed"]))
    like = Like(shapes, *examples.example())
    return Source(experiment, run.task, run.model, initial.params, like, report, run.metadata, run.chosen_epochs())


def programs(source: Source, platforms: Collection[str]) -> dict[str, bytes]:
    """The programs by name, serialized."""
    task, model, like, recipe = source.task, source.model, source.like, source.experiment.personalization
    method = source.experiment.stages[-1].method
    exported = {
        "adapt": export_adapt(task, model, recipe, like, method=method, platforms=platforms),
        "measure": export_measure(task, model, like, platforms=platforms),
        "predict": export_predict(model, like, platforms=platforms),
    }
    return {name: bytes(program.serialize()) for name, program in exported.items()}


def description(source: Source, platforms: Sequence[str], files: Mapping[str, bytes]) -> dict[str, Any]:
    """The content of `artifact.json`: all that a device has to know."""
    metric, report = source.task.metrics[0], source.report
    classes = isinstance(source.task, Classification | NextCharacter)
    return {
        "format": TABLE_FORMAT if "preprocessing" in source.metadata else FORMAT,
        "name": source.experiment.name,
        "made_with": {"headstart": __version__, **{name: version(name) for name in ("jax", "jaxlib")}},
        "platforms": list(platforms),
        "arguments": {name: list(names) for name, names in ARGUMENTS.items()},
        "parameters": [_described(leaf, name=name) for name, leaf in named(source.like.params)],
        "x": _described(source.like.x, rows=True) | _below(source.metadata.get("vocabulary")),
        "y": _described(source.like.y, rows=True) | _below(source.metadata.get("classes") if classes else None),
        "capacities": list(CAPACITIES),
        "evaluation_batch": EVALUATION_BATCH,
        "output": "classes" if classes else "values",
        "metric": {"name": metric.name, "unit": metric.unit, "higher_is_better": metric.higher_is_better},
        "recipe": _recipe(source),
        "key": _key(report["seed"]),
        "facts": _known(source.metadata),
        "files": {name: _checksum(content) | {"bytes": len(content)} for name, content in files.items()},
    }


def _known(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What training decided of its data, for a device to hold its own to: labels, features, polarity of pictures."""
    names = ("kind", "labels", "features", "target", "preprocessing")
    plain = {name: metadata[name] for name in names if name in metadata}
    decided = decisions(metadata)
    return plain | {name: decided[name] for name in ("inverted", "background") if name in decided}


def _described(leaf: Any, *, name: str | None = None, rows: bool = False) -> dict[str, Any]:
    shape = ["capacity", *leaf.shape[1:]] if rows else list(leaf.shape)
    named = {} if name is None else {"name": name}
    return {**named, "shape": shape, "dtype": str(jax.dtypes.canonicalize_dtype(leaf.dtype))}


def _below(bound: int | None) -> dict[str, int]:
    """The bound of values that are whole numbers from 0 on. Unchecked, JAX reads another row in silence."""
    return {} if bound is None else {"below": int(bound)}


def _recipe(source: Source) -> dict[str, Any]:
    """The recipe of adapting. The program contains the optimizer; here it is named for information."""
    recipe = source.experiment.personalization
    optimizer = recipe.optimizer
    return {
        "optimizer": optimizer.name,
        "learning_rate": optimizer.learning_rate,
        "options": dict(optimizer.options),
        "batch_size": recipe.batch_size,
        "length": source.epochs,
        "unit": recipe.unit,
        **({} if recipe.pulls is None else {"pulls": list(recipe.pulls)}),
        "method": to_json(getattr(source.experiment.stages[-1], "update", None)),
    }


def _key(seed: int) -> dict[str, Any]:
    """The key of a seed's personalization, and how a client's key data derive from its id."""
    words = np.asarray(jax.random.key_data(personal_key(seed_key(seed))))
    return {
        "seed": seed,
        "data": [int(word) for word in words],
        "client": "the first 8 bytes of the SHA-256 of the client's id in UTF-8, as two little-endian uint32",
        "generator": "threefry2x32",
    }


def signed(document: Mapping[str, Any]) -> dict[str, Any]:
    """The document with the checksum of its content."""
    document = as_json(document)
    return {**document, **_checksum(json.dumps(document, sort_keys=True, allow_nan=False).encode())}


def _checksum(content: bytes) -> dict[str, str]:
    return {"sha256": hashlib.sha256(content).hexdigest()}
