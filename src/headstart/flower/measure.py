"""Federated evaluation: devices personalize, and send back what that did to each client's metrics; nothing else."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flwr.app import MessageType

from headstart.errors import UserError
from headstart.flower import wire
from headstart.flower.exchange import exchange
from headstart.flower.registry import AGAIN, Fault, of_clients
from headstart.flower.service import Membership, Service, look
from headstart.learning.personalization import Curves, choose_epochs
from headstart.runs.directory import curve_arrays, write_stage
from headstart.runs.log import evaluation_record
from headstart.statistics.clients import summarize
from headstart.training.seed_run import Position, monitored_clients, selection_clients


def evaluate(service: Service, membership: Membership, position: Position) -> Membership:
    """Log how the state does on some validation clients, as `trial.evaluate` does."""
    prepared = service.prepared
    clients, stage = monitored_clients(prepared), prepared.experiment.stages[position.stage]
    if not len(clients):
        return membership
    began = time.monotonic()
    epochs = prepared.experiment.personalization.most if stage.stop_at is None else 0
    membership, curves = measured(service, membership, position, clients, epochs)
    service.log(evaluation_record(prepared.task, stage.name, position.round, curves, time.monotonic() - began))
    return membership


def finish(service: Service, membership: Membership, position: Position) -> Membership:
    """Choose the epochs of personalization on validation clients, measure the test clients; as `run` does."""
    prepared, stage = service.prepared, service.prepared.experiment.stages[position.stage]
    epochs, arrays = prepared.experiment.personalization.most, {}
    report: dict[str, Any] = {"stage": stage.name, "round": position.round, "seed": service.seed}
    groups = {"validation": selection_clients(prepared, stage)}
    groups |= {"test": prepared.groups.test} if prepared.experiment.test else {}
    # A message costs the same for one client and for many, so both groups are asked at once.
    membership, everyone = measured(service, membership, position, np.concatenate([*groups.values()]), epochs)
    for group, clients in groups.items():
        curves = jax.tree.map(lambda leaf, count=len(clients): leaf[:count], everyone)
        everyone = jax.tree.map(lambda leaf, count=len(clients): leaf[count:], everyone)
        if not len(clients):
            continue
        if group == "validation":
            epochs = choose_epochs(curves, prepared.task)
        arrays |= curve_arrays(group, prepared.federation.select(clients), curves)
        report[group] = summarize(curves, prepared.task, epochs=epochs)
    write_stage(service.folder, position.stage, position.state.params, report, arrays)
    service.on_event({"event": "stage", **report})
    return membership


def measured(
    service: Service, membership: Membership, position: Position, clients: np.ndarray, epochs: int
) -> tuple[Membership, Curves]:
    """The curves of these clients (numbers of the federation); one that could not be reached counts no test items.

    Raises:
        UserError: if nobody could be reached in time.
    """
    ids, began = [service.prepared.federation.ids[int(i)] for i in clients], time.monotonic()
    if not ids:
        return membership, _assembled(service, ids, [], epochs)
    while True:
        membership = look(service, membership, position)
        pieces = _asked(service, membership, position, ids, epochs)
        if pieces:
            _report_gone(service, membership, position, ids)
            return membership, _assembled(service, ids, pieces, epochs)
        if time.monotonic() - began > service.config.patience:
            raise UserError(
                f"none of {len(ids)} clients could be measured in {service.config.patience:g} s; the run goes on from"
                f" round {position.round} if repeated"
            )
        time.sleep(AGAIN)


def _report_gone(service: Service, membership: Membership, position: Position, ids: Sequence[str]) -> None:
    gone = tuple(client for client in ids if client not in membership.registry.places())
    if gone:
        service.report(Fault("none", "no node online has these clients, which are not measured", gone), position)


Piece = tuple[tuple[str, ...], Curves]


def _asked(
    service: Service, membership: Membership, position: Position, ids: Sequence[str], epochs: int
) -> list[Piece]:
    clients = of_clients(membership.registry.places(), ids)
    request = service.request._replace(stage=position.stage, round=position.round, epochs=epochs)
    params = position.state.params
    contents = {node: wire.request_record(request._replace(clients=mine), params) for node, mine in clients.items()}
    pieces: list[Piece] = []
    kind, deadline = MessageType.EVALUATE, service.config.deadline
    for answer in exchange(service.grid, kind, contents, deadline=deadline, group=str(position.round)):
        mine, reason = clients[answer.node], answer.reason
        if answer.content is not None:
            try:
                metrics = service.prepared.task.metrics
                pieces.append((mine, wire.read_curves(answer.content, metrics, clients=len(mine), epochs=epochs)))
                continue
            except UserError as error:
                reason = f"the reply is refused: {error}"
        service.report(Fault(membership.registry.name(answer.node), reason, mine), position)
    return pieces


def _assembled(service: Service, ids: Sequence[str], pieces: Sequence[Piece], epochs: int) -> Curves:
    """The clients' curves in the order of `ids`."""
    places = {client: position for position, client in enumerate(ids)}
    names = [metric.name for metric in service.prepared.task.metrics]
    shape, dtype = (len(ids), epochs + 1), pieces[0][1].gain.dtype if pieces else np.dtype(np.float32)
    whole = Curves(
        {name: (np.zeros(shape, dtype), np.zeros(len(ids), dtype)) for name in names},
        *(np.zeros(shape, dtype) for _ in range(2)),
    )
    for mine, curves in pieces:
        rows = [places[client] for client in mine]
        for target, source in zip(jax.tree.leaves(whole), jax.tree.leaves(curves), strict=True):
            target[rows] = source
    return whole
