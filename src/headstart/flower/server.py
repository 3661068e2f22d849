"""The server: a Flower ServerApp that runs an experiment, with the clients' half of every round on the devices."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from headstart.console import printable
from headstart.data.decided import decisions
from headstart.data.federation import Split, split_clients
from headstart.data.preprocessing import Preprocessing, of_metadata
from headstart.errors import UserError
from headstart.experiment.code import code_digests
from headstart.experiment.experiment import Centralized, Data, Experiment
from headstart.experiment.measured import measurement_notes, measurement_problems
from headstart.experiment.serialization import to_json
from headstart.experiment.setup import (
    Prepared,
    batch_problems,
    build_model,
    check_fit,
    check_parameters,
    check_stages,
    target_problems,
    with_cohorts,
)
from headstart.experiment.suited import suited
from headstart.fields import refuse
from headstart.files import write_json
from headstart.flower.columns import ask
from headstart.flower.example_schema import feature_schema, is_table_schema, placeholder
from headstart.flower.exchange import POLL_SECONDS
from headstart.flower.measure import evaluate, finish
from headstart.flower.registry import Fault, Registry, decided_among, fix_schema, poll
from headstart.flower.service import Membership, ServerConfig, Service
from headstart.flower.training import train_round
from headstart.flower.wire import Request
from headstart.learning.rounds import initial_key, seed_key
from headstart.learning.tasks import Regression
from headstart.runs import checkpoint
from headstart.runs.contents import federation_document
from headstart.runs.directory import claimed
from headstart.runs.log import Log, OnEvent
from headstart.runs.provenance import read_members
from headstart.training.display import describe
from headstart.training.loop import is_evaluated
from headstart.training.seed_run import Position, initial_params, target_reached


def print_record(record: Mapping[str, Any]) -> None:
    """Print a record of the log as a line, unless it is not worth one."""
    line = describe(dict(record))
    if line:
        print(printable(line, most=2000), flush=True)


def server_app(
    experiment: Experiment,
    out: str | os.PathLike[str],
    *,
    config: ServerConfig = ServerConfig(),
    on_event: OnEvent = print_record,
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
    on_event: OnEvent = print_record,
    allowed_modules: Collection[str] = (),
) -> None:
    """Run an experiment on the nodes of a grid into a run folder, or resume one that was interrupted there.

    The clients of the first `config.nodes` nodes are split as the experiment says; clients that join later train.

    config: what to wait for, and how long. on_event: gets every record of the log.
    allowed_modules: modules a model or task may be imported from beside headstart's own.

    Raises:
        UserError: if there are not enough nodes in time, or they do not suit the experiment; what was saved stays.
    """
    _check(experiment)
    if experiment.trial is not None:
        experiment = replace(experiment, trial=None)
        on_event({"event": "note", "text": "devices make no trial: settings are taken as the experiment has them"})
    x64 = jnp.result_type(float) == np.float64
    request = Request(_public(experiment), bool(x64), seed=experiment.seed, decided=_decided_before(Path(out)))
    registry, faults = _wait_for_nodes(grid, request, config, on_event)
    assert registry.schema is not None
    folder = Path(out) / f"seed-{experiment.seed}"
    preprocessing, found = _preprocessing(grid, registry, request, experiment, folder, config)
    faults += found
    assert registry.schema is not None
    blank = placeholder(registry.schema, preprocessing=preprocessing)
    blank = replace(blank, metadata=_decided(registry, preprocessing))
    experiment = with_cohorts(suited(experiment, blank))
    # Several learning rates that suit the data are for one machine: devices have one.
    one_rate = replace(experiment.personalization, learning_rates=())
    experiment = replace(experiment, personalization=one_rate)
    assert experiment.model is not None and experiment.task is not None
    model = build_model(experiment.model, blank, allowed_modules=allowed_modules)
    check_fit(experiment.task, model, blank)
    check_parameters(experiment, model)
    member = partial(_membership, experiment, model, registry, preprocessing, folder)
    _check_groups(member()[1], begun=(folder / "members.json").exists())
    if not folder.exists():
        initial_params(experiment, experiment.seed, jax.eval_shape(model.init, jax.random.key(0)))
    code = {"code": code_digests(experiment)}
    with claimed(Path(out), experiment, blank, allowed_modules=allowed_modules, code=code) as name:
        membership, prepared = member()
        if not (folder / "members.json").exists():
            write_json(folder / "members.json", membership.members)
        for text in measurement_notes(experiment, prepared.federation, prepared.groups):
            on_event({"event": "note", "text": text})
        log = Log(folder / "metrics.jsonl", on_event, experiment.seed)
        regression = isinstance(experiment.task, Regression)
        decided = {**decisions(blank.metadata, regression=regression), **request.decided}
        request = request._replace(experiment=_public(experiment), decided=decided)
        service = Service(grid, config, prepared, request, folder, log, on_event, name)
        position = _start(service)
        for fault in faults:
            service.report(fault, position)
        _run(service, membership, position)


def _decided_before(out: Path) -> dict[str, Any]:
    """What the run in a folder has decided of its data; nothing before it was begun."""
    path = out / "federation.json"
    return decisions(federation_document(path)["facts"]) if path.exists() else {}


def _preprocessing(
    grid: Grid, registry: Registry, request: Request, experiment: Experiment, folder: Path, config: ServerConfig
) -> tuple[Preprocessing | None, list[Fault]]:
    """What becomes of the columns of the nodes' tables: as decided before, or from sums of those that train."""
    assert registry.schema is not None
    if not is_table_schema(registry.schema):
        return None, []
    before = of_metadata(request.decided)
    if before is not None:
        return before, []
    _, _, members = _members(experiment.data, registry, folder)
    return ask(grid, registry, request, members["train"], deadline=config.deadline)


def _decided(registry: Registry, preprocessing: Preprocessing | None) -> dict[str, Any]:
    """What is known of the nodes' examples, as metadata."""
    metadata = decided_among(registry)
    if preprocessing is None:
        return metadata
    assert registry.schema is not None
    return metadata | feature_schema(registry.schema, preprocessing)["metadata"]


def _check(experiment: Experiment) -> None:
    check_stages(experiment)
    central = [stage.name for stage in experiment.stages if isinstance(stage, Centralized)]
    if central:
        raise UserError(f"the stage {central[0]!r} is centralized, and devices keep their data; leave it out")
    patient = [stage.name for stage in experiment.stages if stage.patience is not None]
    if patient:
        raise UserError(
            f"the stage {patient[0]!r} has `patience`, which devices do not offer yet; give stop_at instead"
        )
    if experiment.personalization.learning_rates:
        raise UserError(
            "devices personalize at one learning rate; leave personalization.learning_rates empty, or choose among"
            " several with headstart run"
        )
    if experiment.data.hold_out:
        raise UserError(
            "devices do not hold rows out of training (data.hold_out), unless their source itself has a split; leave"
            " data.hold_out, or simulate with headstart run"
        )
    unsupported = [stage.name for stage in experiment.stages if not stage.method.is_plain]
    if unsupported:
        raise UserError(
            f"the method of stage {unsupported[0]!r} shares more than a model, has client state or personalizes in its"
            " own way, which devices do not offer yet; simulate it with headstart run"
        )


def _public(experiment: Experiment) -> dict[str, Any]:
    """The experiment as it is sent to devices: without the paths of the server's files."""
    own = experiment.data
    data = Data("devices", own.options, own.train, own.validation, own.seed, own.adapt_examples)
    return to_json(replace(experiment, data=data, start=None))


def _wait_for_nodes(
    grid: Grid, request: Request, config: ServerConfig, on_event: OnEvent
) -> tuple[Registry, list[Fault]]:
    """Wait until enough nodes have sent their manifest, and fix the schema of their examples."""
    began, registry, faults = time.monotonic(), Registry(), []
    on_event({"event": "note", "text": f"waiting for {config.nodes} nodes"})
    while len(registry.nodes) < config.nodes:
        registry, found = poll(grid, registry, request, deadline=config.deadline)
        for fault in found:
            on_event({"event": "note", "text": f"node {fault.node}: {fault.sentence}"})
        faults += found
        if time.monotonic() - began > config.patience:
            raise UserError(
                f"{len(registry.nodes)} of {config.nodes} nodes reported their clients in {config.patience:g} s, with"
                f" {len(registry.online)} online; start more nodes, or ask for fewer"
            )
        time.sleep(POLL_SECONDS)
    registry, found = fix_schema(registry)
    return registry, faults + found


def _check_groups(prepared: Prepared, *, begun: bool) -> None:
    """Refuse settings that the clients do not suit; in a run that has begun, only if none can be measured.

    A cohort may be larger than the training clients: others join later.
    """
    experiment, _, _, federation, groups = prepared
    problems = measurement_problems(experiment, federation, groups)
    if not begun:
        problems += [*batch_problems(experiment, federation, groups), *target_problems(experiment, federation, groups)]
    refuse(problems)


def _members(data: Data, registry: Registry, folder: Path) -> tuple[list[str], np.ndarray, Mapping[str, Sequence[str]]]:
    """The clients' ids, their sizes `[clients, 2]`, and their groups, as saved or else split now."""
    manifests = [node.manifest for node in registry.nodes.values()]
    sizes_by_client = {c: s for each in manifests for c, s in zip(each.ids, each.sizes, strict=True)}
    path = folder / "members.json"
    members = read_members(path) if path.exists() else None
    ids = sorted({c for group in members.values() for c in group} if members else sizes_by_client)
    sizes = np.array([sizes_by_client.get(client, np.zeros(2)) for client in ids], np.int64).reshape(-1, 2)
    if members is None:
        assert registry.schema is not None
        federation = placeholder(registry.schema, ids, sizes)
        groups = split_clients(federation, train=data.train, validation=data.validation, seed=data.seed)
        members = {name: [ids[i] for i in group] for name, group in groups._asdict().items()}
    return ids, sizes, members


def _membership(
    experiment: Experiment, model: Any, registry: Registry, preprocessing: Preprocessing | None, folder: Path
) -> tuple[Membership, Prepared]:
    """The clients' groups, and the experiment prepared for them."""
    ids, sizes, members = _members(experiment.data, registry, folder)
    assert experiment.task is not None and registry.schema is not None
    indices = {client: index for index, client in enumerate(ids)}
    groups = Split(*(np.array([indices[c] for c in members[name]], np.int64) for name in Split._fields))
    federation = placeholder(registry.schema, ids, sizes, preprocessing=preprocessing)
    prepared = Prepared(experiment, experiment.task, model, federation, groups)
    return Membership(registry, {name: tuple(members[name]) for name in Split._fields}), prepared


def _start(service: Service) -> Position:
    """The newest saved position, or the beginning."""
    prepared = service.prepared
    algorithms = [stage.algorithm(prepared.task, prepared.model) for stage in prepared.experiment.stages]
    params = prepared.model.init(initial_key(seed_key(service.seed)))
    expected = {number: jax.eval_shape(algorithm.init, params) for number, algorithm in enumerate(algorithms)}
    saved, complaints = checkpoint.read_newest(
        service.folder / "checkpoints", lambda about: expected[about["stage"]], service.origin
    )
    for complaint in complaints:
        service.on_event({"event": "note", "text": complaint})
    if saved is not None:
        position = Position(saved.about["stage"], saved.about["round"], saved.tree)
        service.log.cut(position.round, is_evaluated(prepared.experiment))
        service.on_event({"event": "note", "text": f"resumes after round {position.round}"})
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
    """Train the rounds that are left of a stage, and save after each."""
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
        about = {"round": position.round, "stage": position.stage, **service.origin}
        checkpoint.write_round(service.folder / "checkpoints", position.state, about)
