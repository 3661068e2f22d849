"""The server: a Flower ServerApp whose rounds are headstart's own, with the clients' half of each on the devices."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from headstart.data.federation import Split, split_clients
from headstart.errors import UserError
from headstart.experiment.experiment import Centralized, Data, Experiment
from headstart.experiment.serialization import to_json
from headstart.experiment.setup import Prepared, build_model, check_fit, check_stages, suited
from headstart.files import write_json
from headstart.flower import wire
from headstart.flower.exchange import POLL
from headstart.flower.measure import evaluate, finish
from headstart.flower.roster import Fault, Roster, meet, settle
from headstart.flower.service import Crew, Service, Terms
from headstart.flower.training import train_round
from headstart.flower.wire import Order
from headstart.learning.rounds import initial_key, seed_key
from headstart.runs import checkpoint
from headstart.runs.directory import claimed, read_json
from headstart.runs.log import Listener, Log
from headstart.training.seed_run import Place, reached, started


def printed(record: Mapping[str, Any]) -> None:
    """Print a record of the log as a line."""
    line = told(record)
    if line:
        print(line, flush=True)


def told(record: Mapping[str, Any]) -> str:
    """A record of the log as one line; empty for those not worth one."""
    match record["event"]:
        case "round":
            values = ", ".join(f"{name} {value:.4f}" for name, value in record["training"].items() if value is not None)
            lost = "".join(f", {record[name]} {name}" for name in ("dropped", "missing") if record.get(name))
            where = f"round {record['round']} ({record['stage']})"
            return f"{where}: {values}; {record['clients']} clients{lost}, {record['seconds']:.1f} s"
        case "evaluation":
            name, values = next(iter(record["validation"].items()))
            personalized = f", personalized {values[-1]:.4f}" if len(values) > 1 else ""
            return f"round {record['round']}: validation {name} initial {values[0]:.4f}{personalized}"
        case "fault":
            who = f" (clients {', '.join(record['clients'][:5])})" if record["clients"] else ""
            return f"round {record['round']}: node {record['node']}: {record['reason']}{who}"
        case "stage":
            return f"stage {record['stage']} finished after round {record['round']}"
        case _:
            return str(record.get("text", ""))


def server_app(
    experiment: Experiment,
    out: str | os.PathLike[str],
    *,
    terms: Terms = Terms(),
    listen: Listener = printed,
    trusted: Collection[str] = (),
) -> ServerApp:
    """A ServerApp that runs an experiment on the devices of a Flower federation; see `serve`."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        serve(grid, experiment, out, terms=terms, listen=listen, trusted=trusted)

    return app


def serve(
    grid: Grid,
    experiment: Experiment,
    out: str | os.PathLike[str],
    *,
    terms: Terms = Terms(),
    listen: Listener = printed,
    trusted: Collection[str] = (),
) -> None:
    """Run an experiment on the nodes of a grid into a run folder, or go on with one that was interrupted there.

    The first `terms.nodes` nodes' clients are split as the experiment says; clients that come later train.

    terms: what to wait for, and how long. listen: gets every record of the log.
    trusted: modules a model or task may be imported from beside headstart's own.

    Raises:
        UserError: if there are not enough nodes in time, or they do not suit the experiment; what was saved stays.
    """
    _check(experiment)
    x64 = jnp.result_type(float) == np.float64
    order = Order(_public(experiment), bool(x64), seed=experiment.seed)
    roster, faults = _opening(grid, order, terms, listen)
    assert roster.examples is not None
    blank = wire.stand_in(roster.examples)
    experiment = suited(experiment, blank)
    assert experiment.model is not None and experiment.task is not None
    model = build_model(experiment.model, blank, trusted=trusted)
    check_fit(experiment.task, model, blank)
    with claimed(Path(out), experiment, blank, trusted=trusted):
        folder = Path(out) / f"seed-{experiment.seed}"
        crew, prepared = _crew(experiment, model, roster, folder)
        log = Log(folder / "metrics.jsonl", listen, experiment.seed)
        order = order._replace(experiment=_public(experiment))
        service = Service(grid, terms, prepared, order, folder, log, listen)
        place = _start(service)
        for fault in faults:
            service.report(fault, place)
        _run(service, crew, place)


def _check(experiment: Experiment) -> None:
    check_stages(experiment)
    central = [stage.name for stage in experiment.stages if isinstance(stage, Centralized)]
    if central:
        raise UserError(f"the stage {central[0]!r} is centralized, and devices keep their data; leave it out")
    if experiment.personalization.rates:
        raise UserError(
            "devices personalize at one rate; leave personalization.rates empty, or choose with headstart run"
        )
    more = [stage.name for stage in experiment.stages if not stage.method.is_plain]
    if more:
        raise UserError(
            f"the method of stage {more[0]!r} shares more than a model, keeps something with clients or personalizes"
            " in its own way, which devices do not offer yet; simulate it with headstart run"
        )


def _public(experiment: Experiment) -> dict[str, Any]:
    """What devices are told of an experiment: not where the server keeps its files."""
    own = experiment.data
    data = Data("devices", own.options, own.train, own.validation, own.seed, own.adapt_examples)
    return to_json(replace(experiment, data=data, start=None))


def _opening(grid: Grid, order: Order, terms: Terms, listen: Listener) -> tuple[Roster, list[Fault]]:
    """Wait for enough nodes to tell what they hold."""
    began, roster, faults = time.monotonic(), Roster(), []
    listen({"event": "note", "text": f"waiting for {terms.nodes} nodes"})
    while len(roster.sites) < terms.nodes:
        roster, found = meet(grid, roster, order, deadline=terms.deadline)
        for fault in found:
            listen({"event": "note", "text": f"node {fault.node}: {fault.reason}"})
        faults += found
        if time.monotonic() - began > terms.patience:
            raise UserError(
                f"{len(roster.sites)} of {terms.nodes} nodes told what they hold in {terms.patience:g} s, with"
                f" {len(roster.online)} online; start more nodes, or ask for fewer"
            )
        time.sleep(POLL)
    roster, found = settle(roster)
    return roster, faults + found


def _crew(experiment: Experiment, model: Any, roster: Roster, folder: Path) -> tuple[Crew, Prepared]:
    """Who is in which group: as it was, or split now; and the experiment with that at hand."""
    held = {c: s for site in roster.sites.values() for c, s in zip(site.holding.ids, site.holding.sizes, strict=True)}
    path = folder / "members.json"
    members = read_json(path) if path.exists() else None
    ids = sorted({c for group in members.values() for c in group} if members else held)
    sizes = np.array([held.get(client, np.zeros(2, np.int64)) for client in ids], np.int64).reshape(-1, 2)
    assert roster.examples is not None and experiment.task is not None
    federation, data = wire.stand_in(roster.examples, ids, sizes), experiment.data
    if members is None:
        groups = split_clients(federation, train=data.train, validation=data.validation, seed=data.seed)
        members = {name: [ids[i] for i in group] for name, group in groups._asdict().items()}
        write_json(path, members)
    places = {client: place for place, client in enumerate(ids)}
    groups = Split(*(np.array([places[c] for c in members[name]], np.int64) for name in Split._fields))
    prepared = Prepared(experiment, experiment.task, model, federation, groups)
    return Crew(roster, {name: tuple(members[name]) for name in Split._fields}), prepared


def _start(service: Service) -> Place:
    """The newest saved place, or the beginning."""
    prepared = service.prepared
    algorithms = [stage.algorithm(prepared.task, prepared.model) for stage in prepared.experiment.stages]
    params = prepared.model.init(initial_key(seed_key(service.seed)))
    expected = {number: jax.eval_shape(algorithm.init, params) for number, algorithm in enumerate(algorithms)}
    saved, complaints = checkpoint.read_newest(service.folder / "checkpoints", lambda about: expected[about["stage"]])
    for complaint in complaints:
        service.listen({"event": "note", "text": complaint})
    if saved is not None:
        place = Place(saved.about["stage"], saved.about["round"], saved.tree)
        service.log.cut(place.round)
        service.listen({"event": "note", "text": f"goes on after round {place.round}"})
        return place
    service.log.cut(None)
    return Place(0, 0, algorithms[0].init(started(prepared.experiment, service.seed, params)))


def _run(service: Service, crew: Crew, place: Place) -> None:
    stages = service.prepared.experiment.stages
    for number in range(place.stage, len(stages)):
        if number > place.stage:
            algorithm = stages[number].algorithm(service.prepared.task, service.prepared.model)
            place = Place(number, place.round, algorithm.init(place.state.params))
        crew, place = _train(service, crew, place)
        if not (service.folder / f"stage-{number}.json").exists():
            crew = finish(service, crew, place)


def _train(service: Service, crew: Crew, place: Place) -> tuple[Crew, Place]:
    """The rounds that are left of a stage, each saved."""
    experiment, task = service.prepared.experiment, service.prepared.task
    stage = experiment.stages[place.stage]
    last = sum(earlier.rounds for earlier in experiment.stages[: place.stage + 1])
    every = experiment.evaluate_every or last
    value = service.log.evaluated(task, place.round)
    while True:
        if (place.round % every == 0 or place.round == last) and value is None:
            crew = evaluate(service, crew, place)
            value = service.log.evaluated(task, place.round)
        if place.round >= last or reached(task, stage, value):
            return crew, place
        (crew, place), value = train_round(service, crew, place), None
        about = {"round": place.round, "stage": place.stage}
        checkpoint.write_round(service.folder / "checkpoints", place.state, about)
