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
from headstart.flower.roster import AGAIN, Fault, of_clients
from headstart.flower.service import Crew, Service, look
from headstart.learning.personalization import Curves, choose_length
from headstart.runs.directory import curve_arrays, write_stage
from headstart.runs.log import evaluation_record
from headstart.statistics.clients import summarize
from headstart.training.seed_run import Place, choosing, watched


def evaluate(service: Service, crew: Crew, place: Place) -> Crew:
    """Log how the state does on some validation clients, as `trial.evaluate` does."""
    prepared = service.prepared
    clients, stage = watched(prepared), prepared.experiment.stages[place.stage]
    if not len(clients):
        return crew
    began = time.monotonic()
    length = prepared.experiment.personalization.length if stage.until is None else 0
    crew, curves = measured(service, crew, place, clients, length)
    service.log(evaluation_record(prepared.task, stage.name, place.round, curves, time.monotonic() - began))
    return crew


def finish(service: Service, crew: Crew, place: Place) -> Crew:
    """Choose the length of personalization on validation clients, measure the test clients; as `run` does."""
    prepared, stage = service.prepared, service.prepared.experiment.stages[place.stage]
    length, arrays = prepared.experiment.personalization.length, {}
    report: dict[str, Any] = {"stage": stage.name, "round": place.round, "seed": service.seed}
    groups = {"validation": choosing(prepared, stage)}
    groups |= {"test": prepared.groups.test} if prepared.experiment.test else {}
    # A message costs the same for one client and for many, so both groups are asked at once.
    crew, everyone = measured(service, crew, place, np.concatenate([*groups.values()]), length)
    for group, clients in groups.items():
        curves = jax.tree.map(lambda leaf, count=len(clients): leaf[:count], everyone)
        everyone = jax.tree.map(lambda leaf, count=len(clients): leaf[count:], everyone)
        if not len(clients):
            continue
        if group == "validation":
            length = choose_length(curves, prepared.task)
        arrays |= curve_arrays(group, prepared.federation.select(clients), curves)
        report[group] = summarize(curves, prepared.task, length=length)
    write_stage(service.folder, place.stage, place.state.params, report, arrays)
    service.listen({"event": "stage", **report})
    return crew


def measured(service: Service, crew: Crew, place: Place, clients: np.ndarray, length: int) -> tuple[Crew, Curves]:
    """The curves of these clients (numbers of the federation); one that could not be reached counts no test items.

    Raises:
        UserError: if nobody could be reached in time.
    """
    ids, began = [service.prepared.federation.ids[int(i)] for i in clients], time.monotonic()
    if not ids:
        return crew, _assembled(service, ids, [], length)
    while True:
        crew = look(service, crew, place)
        pieces = _asked(service, crew, place, ids, length)
        if pieces:
            _report_gone(service, crew, place, ids)
            return crew, _assembled(service, ids, pieces, length)
        if time.monotonic() - began > service.terms.patience:
            raise UserError(
                f"none of {len(ids)} clients could be measured in {service.terms.patience:g} s; the run goes on from"
                f" round {place.round} if repeated"
            )
        time.sleep(AGAIN)


def _report_gone(service: Service, crew: Crew, place: Place, ids: Sequence[str]) -> None:
    gone = tuple(client for client in ids if client not in crew.roster.places())
    if gone:
        service.report(Fault("none", "no node online has these clients, which are not measured", gone), place)


Piece = tuple[tuple[str, ...], Curves]


def _asked(service: Service, crew: Crew, place: Place, ids: Sequence[str], length: int) -> list[Piece]:
    clients = of_clients(crew.roster.places(), ids)
    order = service.order._replace(stage=place.stage, round=place.round, length=length)
    params = place.state.params
    contents = {node: wire.order_record(order._replace(clients=mine), params) for node, mine in clients.items()}
    pieces: list[Piece] = []
    kind, deadline = MessageType.EVALUATE, service.terms.deadline
    for answer in exchange(service.grid, kind, contents, deadline=deadline, group=str(place.round)):
        mine, reason = clients[answer.node], answer.reason
        if answer.content is not None:
            try:
                metrics = service.prepared.task.metrics
                pieces.append((mine, wire.read_curves(answer.content, metrics, clients=len(mine), length=length)))
                continue
            except UserError as error:
                reason = f"the reply is refused: {error}"
        service.report(Fault(crew.roster.name(answer.node), reason, mine), place)
    return pieces


def _assembled(service: Service, ids: Sequence[str], pieces: Sequence[Piece], length: int) -> Curves:
    """The clients' curves in the order of `ids`."""
    places = {client: place for place, client in enumerate(ids)}
    names = [metric.name for metric in service.prepared.task.metrics]
    shape, dtype = (len(ids), length + 1), pieces[0][1].gain.dtype if pieces else np.dtype(np.float32)
    whole = Curves(
        {name: (np.zeros(shape, dtype), np.zeros(len(ids), dtype)) for name in names},
        *(np.zeros(shape, dtype) for _ in range(2)),
    )
    for mine, curves in pieces:
        rows = [places[client] for client in mine]
        for target, source in zip(jax.tree.leaves(whole), jax.tree.leaves(curves), strict=True):
            target[rows] = source
    return whole
