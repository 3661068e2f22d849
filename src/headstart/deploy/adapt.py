"""Personalization of a finished run's initial model on a user's own clients."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from headstart.console import csv_cell
from headstart.data.decided import as_decided
from headstart.data.device_data import Gather, on_device
from headstart.data.federation import Client, Federation, Tree
from headstart.data.load import load_as_decided
from headstart.devices import all_devices, device_count
from headstart.errors import UserError
from headstart.experiment.setup import build_model, check_fit
from headstart.files import file_names, write_bytes, write_json
from headstart.learning.method import Method
from headstart.learning.parallel import Parallel, map_reduce_clients
from headstart.learning.personalization import Curves, Personalization, adapt_client, personalizer
from headstart.learning.rounds import client_key, personal_key, seed_key
from headstart.learning.tasks import Task
from headstart.models.zoo import Model
from headstart.runs import checkpoint
from headstart.runs.reading import open_run
from headstart.runs.run import Run
from headstart.statistics.clients import summarize


def personalize_run(
    run: Run | str | os.PathLike[str],
    source: str | os.PathLike[str] | Federation,
    out: str | os.PathLike[str],
    *,
    options: Mapping[str, Any] | None = None,
    epochs: int | None = None,
    lanes: int = 1,
    devices: int | None = None,
    allowed_modules: Collection[str] = (),
    progress: Callable[[int, int], None] = lambda clients, of: None,
) -> tuple[dict[str, Any], Task]:
    """Personalize a run's initial model on every client of `source`; returns the summary, and the task of the run.

    Labels are numbered, features ordered and pictures inverted as in the run's own data, whatever is in the source.

    Writes `parameters/<client>.safetensors`, `clients.csv` (a line per client) and, last, `summary.json`.

    epochs: of personalization (or steps); by default as many as the run chose on its validation clients.
    lanes, devices: as in `run.Options`.

    Raises:
        UserError: if the run is not finished, or the data do not suit its model.
    """
    run, out = open_run(run, allowed_modules=allowed_modules), Path(out)
    experiment, seed = run.personal_experiment(), run.report()["seed"]
    if isinstance(source, Federation):
        federation = as_decided(source, run.decided, source.name)
    else:
        federation = load_as_decided(source, options or {}, run.decided)
    assert experiment.model is not None and experiment.task is not None
    model, task = build_model(experiment.model, federation, allowed_modules=allowed_modules), experiment.task
    check_fit(task, model, federation)
    root = seed_key(seed)
    method = experiment.stages[-1].method
    params = _params(run, model, seed)
    count = run.chosen_epochs(seed) if epochs is None else epochs
    recipe = experiment.personalization.at_most(count)
    parallel = Parallel(lanes, all_devices(devices))
    gather, key = on_device(federation, mesh=parallel.mesh), personal_key(root)
    personalize = personalizer(task, model, recipe, method=method, parallel=parallel)
    curves = personalize(params, np.arange(len(federation)), gather, key, lambda done: progress(done, len(federation)))
    summary = summarize(curves, task, epochs=count)
    adapted = _adapter(model, task, recipe, params, key, parallel, method)
    _write_parameters(out / "parameters", federation, gather, adapted)
    write_bytes(out / "clients.csv", _csv(federation, curves, task, count))
    write_json(out / "summary.json", summary)
    return summary, task


def _params(run: Run, model: Model, seed: int) -> Tree:
    try:
        return run.server_params(model, seed)
    except UserError as error:
        raise UserError(f"the data's examples do not suit the run's model: {error}") from error


def _adapter(
    model: Model,
    task: Task,
    recipe: Personalization,
    params: Tree,
    key: jax.Array,
    parallel: Parallel,
    method: Method,
) -> Callable[[Client], Tree]:
    """A compiled `clients -> parameters`, both with a leading axis of clients."""

    def one(shared: tuple[Tree, jax.Array], nothing: Tree, member: tuple[Client, Tree]) -> tuple[Tree, Tree]:
        (params, key), (client, _) = shared, member
        own = client_key(key, client)
        return nothing, adapt_client(task, model, recipe, params, client, own, recipe.most, method)

    one_lane = Parallel(mesh=parallel.mesh)
    return jax.jit(lambda clients: map_reduce_clients(one, (params, key), (), clients, parallel=one_lane)[1])


def _write_parameters(folder: Path, federation: Federation, gather: Gather, adapted: Callable[[Client], Tree]) -> None:
    count, names = device_count(gather.mesh), file_names(federation.ids)
    for start in range(0, len(federation), count):
        chunk = np.arange(start, start + count)
        parameters = jax.device_get(adapted(gather(np.where(chunk < len(federation), chunk, -1))))
        for index, name in enumerate(federation.ids[start : start + count]):
            path = folder / f"{names[start + index]}.safetensors"
            checkpoint.write(path, jax.tree.map(lambda leaf, index=index: leaf[index], parameters), {"client": name})


def _csv(federation: Federation, curves: Curves, task: Task, epochs: int) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [metric.name for metric in task.metrics]
    columns = [f"{when} {name}" for name in names for when in ("initial", "personalized")]
    writer.writerow(["client", "adapt examples", "test examples", *columns])
    values = [curves.means(metric)[:, [0, epochs]] for metric in task.metrics]
    for index, name in enumerate(federation.ids):
        cells = [f"{cell:.6g}" for value in values for cell in value[index]]
        writer.writerow([csv_cell(name), *map(int, federation.sizes[index]), *cells])
    return text.getvalue().encode()
