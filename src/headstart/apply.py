"""A finished run on a user's own clients: the initial model in, per-client results and adapted parameters out."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jax
import numpy as np

from headstart import checkpoint
from headstart.data import Client, Draw, Federation, Tree, on_device
from headstart.datasets import load as load_data
from headstart.errors import UserError
from headstart.experiment import Experiment, build_model, read
from headstart.files import write_bytes, write_json
from headstart.folder import read_json, seed_folders
from headstart.models import Model
from headstart.personalize import Curves, adapt_client, personalizer
from headstart.rounds import client_key
from headstart.samples import read_samples
from headstart.statistics import summarize
from headstart.tasks import Task


def personalize_run(
    run: Path,
    source: str,
    out: Path,
    *,
    options: Mapping[str, Any] | None = None,
    length: int | None = None,
    lanes: int = 1,
    trusted: Collection[str] = (),
    progress: Callable[[int, int], None] = lambda clients, of: None,
) -> dict[str, Any]:
    """Personalize a run's initial model on every client of `source`; returns the summary.

    Writes `clients.csv` (a line per client), `summary.json` and `parameters/<client>.safetensors`.

    length: epochs of personalization; by default the number the run chose on its validation clients.

    Raises:
        UserError: if the run is not finished, or the data do not suit its model.
    """
    experiment, params_path, report = finished(run, trusted=trusted)
    federation = _same_classes(run, source, dict(options or {}))
    if experiment.model is None or experiment.task is None:
        raise UserError(f"{run} names no model and task; it was not written by headstart run")
    model, task = build_model(experiment.model, federation, trusted=trusted), experiment.task
    key = jax.random.key(report["seed"], impl="threefry2x32")
    params = _params(model, params_path, key)
    units: int = report["test"]["length"] if length is None else length
    draw, key = on_device(federation), jax.random.fold_in(key, 2)
    watch = personalizer(task, model, experiment.personalization, lanes=lanes)
    curves = watch(params, np.arange(len(federation)), draw, key, lambda done: progress(done, len(federation)))
    summary = summarize(curves, task, length=units)
    write_bytes(out / "clients.csv", _csv(federation, curves, task, units))
    _write_parameters(out / "parameters", federation, draw, _adapter(experiment, model, task, params, key, units))
    write_json(out / "summary.json", summary)
    return summary


def finished(run: Path, *, trusted: Collection[str] = ()) -> tuple[Experiment, Path, dict[str, Any]]:
    """The experiment of a run, and of its first seed the last stage's initial model and report.

    Raises:
        UserError: if the folder is no run folder, or the run did not come to its end.
    """
    experiment = read(read_json(run / "experiment.json"), trusted=trusted)
    last = f"stage-{len(experiment.stages) - 1}"
    for folder in seed_folders(run):
        if (folder / f"{last}.json").exists():
            return experiment, folder / f"{last}.safetensors", read_json(folder / f"{last}.json")
    raise UserError(f"{run} is not finished; repeat its `headstart run` command to go on with it")


def _same_classes(run: Path, source: str, options: dict[str, Any]) -> Federation:
    """The user's clients, their classes numbered as those the run was trained on; a table may lack some of them.

    Raises:
        UserError: if the source numbers other classes itself.
    """
    federation, samples = load_data(source, **options), read_samples(run)
    trained = samples.facts.get("labels") if samples else None
    own = federation.facts.get("labels")
    if trained is None or own is None or list(own) == list(trained):
        return federation
    try:
        return load_data(source, **options, labels=list(trained))
    except (UserError, TypeError) as error:
        raise UserError(f"{source} has other classes than the {len(trained)} the run was trained on: {error}") from error


def _params(model: Model, path: Path, key: jax.Array) -> Tree:
    like = jax.eval_shape(model.init, key)
    try:
        return checkpoint.read(path, like).tree
    except UserError as error:
        raise UserError(f"the data's examples do not suit the run's model: {error}") from error


def _adapter(
    experiment: Experiment, model: Model, task: Task, params: Tree, key: jax.Array, length: int
) -> Callable[[Client], Tree]:
    recipe = experiment.personalization

    @jax.jit
    def adapted(clients: Client) -> Tree:
        client: Any = jax.tree.map(lambda leaf: leaf[0], clients._replace(block=None))
        client = client._replace(block=clients.block)
        return adapt_client(task, model, recipe, params, client, client_key(key, client), length)

    return adapted


def _write_parameters(folder: Path, federation: Federation, draw: Draw, adapted: Callable[[Client], Tree]) -> None:
    for number, name in enumerate(federation.ids):
        # An id may hold any character; quoted it is a file name.
        path = folder / f"{quote(name, safe='')}.safetensors"
        checkpoint.write(path, adapted(draw(np.array([number]))), {"client": name})


def _csv(federation: Federation, curves: Curves, task: Task, length: int) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [metric.name for metric in task.metrics]
    columns = [f"{when} {name}" for name in names for when in ("initial", "personalized")]
    writer.writerow(["client", "adapt examples", "test examples", *columns])
    values = [curves.means(metric)[:, [0, length]] for metric in task.metrics]
    for number, name in enumerate(federation.ids):
        cells = [f"{cell:.6g}" for value in values for cell in value[number]]
        writer.writerow([name, *map(int, federation.sizes[number]), *cells])
    return text.getvalue().encode()
