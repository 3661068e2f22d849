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
from headstart.flower.registry import Fault, Registry, fix_schema, poll
from headstart.flower.service import Membership, ServerConfig, Service
from headstart.flower.training import train_round
from headstart.flower.wire import Request
from headstart.learning.rounds import initial_key, seed_key
from headstart.runs import checkpoint
from headstart.runs.directory import claimed, read_json
from headstart.runs.log import Log, OnEvent
from headstart.training.seed_run import Position, initial_params, target_reached


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
    config: ServerConfig = ServerConfig(),
    on_event: OnEvent = printed,
    allowed_modules: Collection[str] = (),
) -> ServerApp:
    """A ServerApp that runs an experiment on the devices of a Flower federation; see `serve`."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        serve(grid, experiment, out, config=config, on_event=on_event, allowed_modules=allowed_modules)

    return app


def serve(
    grid: Grid,
    experiment: Experiment,
    out: str | os.PathLike[str],
    *,
    config: ServerConfig = ServerConfig(),
    on_event: OnEvent = printed,
    allowed_modules: Collection[str] = (),
) -> None:
    """Run an experiment on the nodes of a grid into a run folder, or go on with one that was interrupted there.

    The first `config.nodes` nodes' clients are split as the experiment says; clients that come later train.

    config: what to wait for, and how long. on_event: gets every record of the log.
    allowed_modules: modules a model or task may be imported from beside headstart's own.

    Raises:
        UserError: if there are not enough nodes in time, or they do not suit the experiment; what was saved stays.
    """
    _check(experiment)
    x64 = jnp.result_type(float) == np.float64
    request = Request(_public(experiment), bool(x64), seed=experiment.seed)
    registry, faults = _opening(grid, request, config, on_event)
    assert registry.examples is not None
    blank = wire.stand_in(registry.examples)
    experiment = suited(experiment, blank)
    assert experiment.model is not None and experiment.task is not None
    model = build_model(experiment.model, blank, allowed_modules=allowed_modules)
    check_fit(experiment.task, model, blank)
    with claimed(Path(out), experiment, blank, allowed_modules=allowed_modules):
        folder = Path(out) / f"seed-{experiment.seed}"
        membership, prepared = _membership(experiment, model, registry, folder)
        log = Log(folder / "metrics.jsonl", on_event, experiment.seed)
        request = request._replace(experiment=_public(experiment))
        service = Service(grid, config, prepared, request, folder, log, on_event)
        position = _start(service)
        for fault in faults:
            service.report(fault, position)
        _run(service, membership, position)


def _check(experiment: Experiment) -> None:
    check_stages(experiment)
    central = [stage.name for stage in experiment.stages if isinstance(stage, Centralized)]
    if central:
        raise UserError(f"the stage {central[0]!r} is centralized, and devices keep their data; leave it out")
    if experiment.personalization.learning_rates:
        raise UserError(
            "devices personalize at one rate; leave personalization.learning_rates empty, or choose with headstart run"
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


def _opening(grid: Grid, request: Request, config: ServerConfig, on_event: OnEvent) -> tuple[Registry, list[Fault]]:
    """Wait for enough nodes to tell what they hold."""
    began, registry, faults = time.monotonic(), Registry(), []
    on_event({"event": "note", "text": f"waiting for {config.nodes} nodes"})
    while len(registry.nodes) < config.nodes:
        registry, found = poll(grid, registry, request, deadline=config.deadline)
        for fault in found:
            on_event({"event": "note", "text": f"node {fault.node}: {fault.reason}"})
        faults += found
        if time.monotonic() - began > config.patience:
            raise UserError(
                f"{len(registry.nodes)} of {config.nodes} nodes told what they hold in {config.patience:g} s, with"
                f" {len(registry.online)} online; start more nodes, or ask for fewer"
            )
        time.sleep(POLL)
    registry, found = fix_schema(registry)
    return registry, faults + found


def _membership(experiment: Experiment, model: Any, registry: Registry, folder: Path) -> tuple[Membership, Prepared]:
    """Who is in which group: as it was, or split now; and the experiment with that at hand."""
    held = {
        c: s for node in registry.nodes.values() for c, s in zip(node.manifest.ids, node.manifest.sizes, strict=True)
    }
    path = folder / "members.json"
    members = read_json(path) if path.exists() else None
    ids = sorted({c for group in members.values() for c in group} if members else held)
    sizes = np.array([held.get(client, np.zeros(2, np.int64)) for client in ids], np.int64).reshape(-1, 2)
    assert registry.examples is not None and experiment.task is not None
    federation, data = wire.stand_in(registry.examples, ids, sizes), experiment.data
    if members is None:
        groups = split_clients(federation, train=data.train, validation=data.validation, seed=data.seed)
        members = {name: [ids[i] for i in group] for name, group in groups._asdict().items()}
        write_json(path, members)
    places = {client: position for position, client in enumerate(ids)}
    groups = Split(*(np.array([places[c] for c in members[name]], np.int64) for name in Split._fields))
    prepared = Prepared(experiment, experiment.task, model, federation, groups)
    return Membership(registry, {name: tuple(members[name]) for name in Split._fields}), prepared


def _start(service: Service) -> Position:
    """The newest saved position, or the beginning."""
    prepared = service.prepared
    algorithms = [stage.algorithm(prepared.task, prepared.model) for stage in prepared.experiment.stages]
    params = prepared.model.init(initial_key(seed_key(service.seed)))
    expected = {number: jax.eval_shape(algorithm.init, params) for number, algorithm in enumerate(algorithms)}
    saved, complaints = checkpoint.read_newest(service.folder / "checkpoints", lambda about: expected[about["stage"]])
    for complaint in complaints:
        service.on_event({"event": "note", "text": complaint})
    if saved is not None:
        position = Position(saved.about["stage"], saved.about["round"], saved.tree)
        service.log.cut(position.round)
        service.on_event({"event": "note", "text": f"goes on after round {position.round}"})
        return position
    service.log.cut(None)
    return Position(0, 0, algorithms[0].init(initial_params(prepared.experiment, service.seed, params)))


def _run(service: Service, membership: Membership, position: Position) -> None:
    stages = service.prepared.experiment.stages
    for number in range(position.stage, len(stages)):
        if number > position.stage:
            algorithm = stages[number].algorithm(service.prepared.task, service.prepared.model)
            position = Position(number, position.round, algorithm.init(position.state.params))
        membership, position = _train(service, membership, position)
        if not (service.folder / f"stage-{number}.json").exists():
            membership = finish(service, membership, position)


def _train(service: Service, membership: Membership, position: Position) -> tuple[Membership, Position]:
    """The rounds that are left of a stage, each saved."""
    experiment, task = service.prepared.experiment, service.prepared.task
    stage = experiment.stages[position.stage]
    last = sum(earlier.rounds for earlier in experiment.stages[: position.stage + 1])
    every = experiment.evaluate_every or last
    value = service.log.evaluated(task, position.round)
    while True:
        if (position.round % every == 0 or position.round == last) and value is None:
            membership = evaluate(service, membership, position)
            value = service.log.evaluated(task, position.round)
        if position.round >= last or target_reached(task, stage, value):
            return membership, position
        (membership, position), value = train_round(service, membership, position), None
        about = {"round": position.round, "stage": position.stage}
        checkpoint.write_round(service.folder / "checkpoints", position.state, about)
