"""Predictions of a finished run for the rows of a file, with a client's own parameters where there are any."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from safetensors import SafetensorError, safe_open

from headstart.console import csv_cell
from headstart.data.decided import class_labels
from headstart.data.federation import Tree
from headstart.data.load import Inputs, load_inputs
from headstart.errors import UserError
from headstart.files import write_bytes
from headstart.learning.rounds import seed_key
from headstart.learning.tasks import Classification, NextCharacter, Regression
from headstart.models.zoo import Model
from headstart.runs import checkpoint
from headstart.runs.personal import outputs_of
from headstart.runs.pseudonyms import pseudonym, read_key
from headstart.runs.reading import open_run
from headstart.runs.run import Run

_EITHER = "the initial model", "its own parameters"


class Predicted(NamedTuple):
    """How many rows were predicted, and how many of them by parameters of their client's own; what may be amiss."""

    rows: int
    personalized: int
    notes: Sequence[str] = ()


def predict_run(
    run: Run | str | os.PathLike[str],
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    options: Mapping[str, Any] | None = None,
    personalized: str | os.PathLike[str] | None = None,
    allowed_modules: Collection[str] = (),
) -> Predicted:
    """Write a CSV file of predictions, a line for each row of the source in its order.

    A line has the number of the row, its client where the source says it, and the prediction: the label of a class with
    the probability of every class, or quantities in their own units. Targets need not be in the source.

    personalized: a folder of `personalize_run`, whose clients are predicted with their own parameters.

    Raises:
        UserError: if the run is not finished, the data do not suit it, or the file is there already.
    """
    run, out = open_run(run, allowed_modules=allowed_modules), Path(out)
    if out.exists():
        raise UserError(f"{out} is there already, and is not overwritten; choose another --out")
    if isinstance(run.task, NextCharacter):
        raise UserError("predictions are of classes and quantities, and this run predicts the next character")
    inputs = load_inputs(source, options or {}, run.decided)
    owners, key = ({}, None) if personalized is None else _owners(Path(personalized))
    if personalized is not None and inputs.clients is None:
        raise UserError(f"{source} does not say whose its rows are; name the column with --client")
    names = inputs.clients if key is None else [pseudonym(key, client) for client in inputs.clients or ()]
    outputs, own = _outputs(run, inputs._replace(clients=names), owners)
    write_bytes(out, _csv(run, inputs, outputs, own if personalized is not None else None))
    return Predicted(len(outputs), int(own.sum()), inputs.notes)


def _owners(folder: Path) -> tuple[dict[str, Path], bytes | None]:
    """The files of personalized parameters, and the key of the pseudonyms by which they are named, if they are."""
    return parameter_files(folder), read_key(folder)


def parameter_files(folder: Path) -> dict[str, Path]:
    """The files of personalized parameters in a folder of `personalize_run`, by client.

    Raises:
        UserError: if there are none, or one is damaged.
    """
    found = {}
    for path in sorted((folder / "parameters").glob("*.safetensors")):
        try:
            with safe_open(path, "numpy") as file:
                found[json.loads(file.metadata()["about"])["client"]] = path
        except (OSError, SafetensorError, ValueError, TypeError, KeyError) as error:
            raise UserError(f"{path} is damaged ({error}); repeat the `headstart personalize`") from error
    if not found:
        raise UserError(f"{folder} has no personalized parameters; give the folder that `headstart personalize` wrote")
    return found


def _outputs(run: Run, inputs: Inputs, owners: Mapping[str, Path]) -> tuple[np.ndarray, np.ndarray]:
    """The model's outputs `[rows, ...]`, and bool `[rows]`: which are of a client's own parameters."""
    model, x = run.model, inputs.x
    outputs_by = outputs_of(model)
    clients = np.array(inputs.clients if inputs.clients is not None else [""] * len(x), object)
    own = np.array([client in owners for client in clients.tolist()], bool)
    pieces: list[tuple[np.ndarray, np.ndarray]] = []
    for rows, params in _parameters(run, model, clients, own, owners):
        pieces.append((rows, outputs_by(params, x[rows])))
    outputs = np.empty((len(x), *pieces[0][1].shape[1:]), pieces[0][1].dtype)
    for rows, each in pieces:
        outputs[rows] = each
    return outputs, own


def _parameters(
    run: Run, model: Model, clients: np.ndarray, own: np.ndarray, owners: Mapping[str, Path]
) -> Iterator[tuple[np.ndarray, Tree]]:
    """Numbers of rows, and the parameters that predict them."""
    if not own.all() or not len(own):
        yield np.flatnonzero(~own), run.initial_model().params
    like = jax.eval_shape(model.init, seed_key(run.report()["seed"]))
    for client in sorted(set(clients[own].tolist())):
        yield np.flatnonzero(clients == client), checkpoint.read(owners[client], like).tree


def _csv(run: Run, inputs: Inputs, outputs: np.ndarray, own: np.ndarray | None) -> bytes:
    head, columns = ["row"], [[str(i + 1) for i in range(len(outputs))]]
    if inputs.clients is not None:
        head, columns = [*head, "client"], [*columns, [csv_cell(client) for client in inputs.clients]]
    if own is not None:
        head, columns = [*head, "predicted by"], [*columns, [_EITHER[int(each)] for each in own]]
    names, values = _predictions(run, outputs)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*head, *map(csv_cell, names)])
    writer.writerows(zip(*columns, *values, strict=True))
    return text.getvalue().encode()


def _predictions(run: Run, outputs: np.ndarray) -> tuple[list[str], list[Sequence[str]]]:
    """The names and the texts of the columns that say what is predicted."""
    if isinstance(run.task, Classification):
        labels = class_labels(run.decided) or [str(i) for i in range(outputs.shape[-1])]
        shifted = np.exp(outputs.astype(np.float64) - outputs.max(axis=-1, keepdims=True, initial=-np.inf))
        shares = shifted / shifted.sum(axis=-1, keepdims=True)
        predicted = [csv_cell(labels[i]) if i < len(labels) else str(i) for i in outputs.argmax(axis=-1).tolist()]
        names = [labels[i] if i < len(labels) else str(i) for i in range(outputs.shape[-1])]
        return ["prediction", *(f"probability of {name}" for name in names)], [predicted, *map(_texts, shares.T)]
    values = run.task.in_own_units(outputs) if isinstance(run.task, Regression) else outputs
    flat = values.reshape(len(values), -1)
    names = ["prediction"] if flat.shape[1] == 1 else [f"prediction {i + 1}" for i in range(flat.shape[1])]
    return names, list(map(_texts, flat.T))


def _texts(values: np.ndarray) -> list[str]:
    return [f"{value:.6g}" for value in values.tolist()]
