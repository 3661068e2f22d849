"""Personalization of a finished run's initial model on a user's own clients."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from headstart.console import printable
from headstart.data.by_column import ByColumn, values_by_client
from headstart.data.decided import as_decided
from headstart.data.device_data import Gather, on_device
from headstart.data.federation import Client, Federation, Tree
from headstart.data.load import load_as_decided
from headstart.devices import all_devices, device_count
from headstart.errors import UserError
from headstart.experiment.setup import build_model, check_fit
from headstart.files import check_writable, file_names, write_bytes, write_json
from headstart.learning.method import Method
from headstart.learning.parallel import Parallel, map_reduce_clients
from headstart.learning.personalization import Curves, Personalization, adapt_client, personalizer
from headstart.learning.rounds import client_key, personal_key, seed_key
from headstart.learning.tasks import Task
from headstart.models.zoo import Model
from headstart.runs import checkpoint
from headstart.runs.clients import clients_csv
from headstart.runs.pseudonyms import hidden, is_pseudonym, key_of, pseudonym, read_key, write_key
from headstart.runs.reading import open_run
from headstart.runs.run import Run
from headstart.statistics.by_value import by_value
from headstart.statistics.clients import measured_metrics, summarize


def personalize_run(
    run: Run | str | os.PathLike[str],
    source: str | os.PathLike[str] | Federation,
    out: str | os.PathLike[str],
    *,
    options: Mapping[str, Any] | None = None,
    epochs: int | None = None,
    lanes: int = 1,
    devices: int | None = None,
    hide_ids: bool = False,
    by: str | None = None,
    allowed_modules: Collection[str] = (),
    progress: Callable[[int, int], None] = lambda clients, of: None,
) -> tuple[dict[str, Any], Task]:
    """Personalize a run's initial model on every client of `source`; returns the summary, and the task of the run.

    Labels are numbered, features ordered and pictures inverted as in the run's own data, whatever is in the source.

    The summary is of clients that did not train the run. Those that did are summarized apart, as `training_clients`,
    for on their own examples a model looks better than it is on others'; `notes` says so in sentences.

    Writes `parameters/<client>.safetensors`, `clients.csv` (a line per client) and, last, `summary.json`.

    epochs: of personalization (or steps); by default as many as the run chose on its validation clients.
    lanes, devices: as in `run.Options`. hide_ids: whether pseudonyms are written in place of ids, those of the run if
        it has some. by: a column of the source, by whose values the clients that did not train the run are summarized
        too, as `by`.

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
    if method.has_own_predictions:
        raise UserError(
            f"clients of the method of stage {experiment.stages[-1].name!r} predict with examples of their own beside"
            " the model, and have no parameters of their own to be written; personalize in Python, with Run.personalize"
        )
    params = _params(run, model, seed)
    count = run.chosen_epochs(seed) if epochs is None else epochs
    recipe = experiment.personalization.at_most(count)
    by_column = None if by is None else _by_column(source, options or {}, by)
    _prepare_folder(out)
    parallel = Parallel(lanes, all_devices(devices))
    gather, key = on_device(federation, mesh=parallel.mesh), personal_key(root)
    personalize = personalizer(task, model, recipe, method=method, parallel=parallel)
    curves = personalize(params, np.arange(len(federation)), gather, key, lambda done: progress(done, len(federation)))
    groups = _groups(run, federation)
    lines = []
    if by_column is not None:
        lines = _by_value(by_column, federation, curves, task, count, groups)
    written = _as_written(run, federation, out) if hide_ids else federation
    summary = _summary(curves, task, count, written, groups)
    if by_column is not None:
        summary["by"] = {"column": by_column.column, "how": by_column.how, "values": lines}
    adapted = _adapter(model, task, recipe, params, key, parallel, method)
    _write_parameters(out / "parameters", written, gather, adapted)
    write_bytes(out / "clients.csv", _csv(written, curves, task, count, groups))
    write_json(out / "summary.json", summary)
    return summary, task


def _by_column(source: str | os.PathLike[str] | Federation, options: Mapping[str, Any], column: str) -> ByColumn:
    if isinstance(source, Federation):
        raise UserError("a federation in memory has no columns to summarize by; give the path of its table")
    return values_by_client(source, options, column)


def _by_value(
    by: ByColumn, federation: Federation, curves: Curves, task: Task, epochs: int, groups: list[str] | None
) -> list[dict[str, Any]]:
    """The clients that did not train the run by the values of a column."""
    trained = np.array([group == "train" for group in groups or [""] * len(federation)], bool)
    means = np.where(trained[:, None], np.nan, curves.means(task.metrics[0]))
    return by_value([by.values[client] for client in federation.ids], by.order, means[:, 0], means[:, epochs])


def _groups(run: Run, federation: Federation) -> list[str] | None:
    """The group in which each client was in the run, "new" for one that was not in it; None if that is not known."""
    if run.members is None:
        return None
    group_of = {client: group for group, clients in run.members.items() for client in clients}
    key = read_key(run.path)
    if key is None and group_of and all(map(is_pseudonym, group_of)):
        return None
    return [group_of.get(client if key is None else pseudonym(key, client), "new") for client in federation.ids]


def _as_written(run: Run, federation: Federation, out: Path) -> Federation:
    """The federation with pseudonyms, whose key is kept beside the results."""
    key = read_key(run.path) or key_of(federation)
    write_key(out, key)
    return hidden(federation, key)


def _summary(
    curves: Curves, task: Task, epochs: int, federation: Federation, groups: list[str] | None
) -> dict[str, Any]:
    """The summary of the clients that did not train the run, and apart of those that did, with sentences on both."""
    if groups is None:
        text = (
            "who trained the run is not known (it is of an earlier version, or hides ids and its ids.key is not there):"
            " clients that did may be among these"
        )
        return {**summarize(curves, task, epochs=epochs), "notes": [text]}
    trained = np.array([group == "train" for group in groups], bool)
    of_others, of_trained = (
        summarize(jax.tree.map(lambda leaf, mask=mask: leaf[mask], curves), task, epochs=epochs)
        for mask in (~trained, trained)
    )
    if not trained.any():
        return of_others
    names = [printable(federation.ids[int(i)]) for i in np.flatnonzero(trained)[:5]]
    names = ", ".join(names) + (", ..." if trained.sum() > 5 else "")
    text = (
        f"{int(trained.sum())} of {len(federation)} clients trained the run ({names}); they are left out here, and"
        " summarized apart as training_clients, for a model looks better on what it was trained on"
    )
    if trained.all():
        text = f"all {len(federation)} clients trained the run ({names}), so how well it does on others is not measured"
    return {**of_others, "training_clients": of_trained, "notes": [text]}


def _prepare_folder(out: Path) -> None:
    """Make the folder of the results, before the work that they take; what is in it of others' stays.

    Raises:
        UserError: if it cannot be written, or holds files of these names that `personalize_run` did not write.
    """
    ours = (out / "parameters").is_dir()
    others = [out / name for name in ("clients.csv", "summary.json") if not ours and os.path.lexists(out / name)]
    if others:
        raise UserError(f"{others[0]} is there already, and of no earlier personalization; choose another --out")
    check_writable(out / "parameters")


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


def _csv(federation: Federation, curves: Curves, task: Task, epochs: int, groups: list[str] | None) -> bytes:
    means = {metric.name: curves.means(metric) for metric in measured_metrics(curves, task)}
    values = {name: (each[:, 0], each[:, epochs]) for name, each in means.items()}
    return clients_csv(federation.ids, federation.sizes, values, groups)
