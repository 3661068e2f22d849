"""Federated evaluation: devices personalize, and send back the curves of each client's metrics and nothing else."""

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
from headstart.flower.registry import RETRY_SECONDS, Fault, Node, group_by_node
from headstart.flower.service import Membership, Service, refresh
from headstart.learning.personalization import Curves, choose_recipe, deciding_metric
from headstart.runs.directory import curve_arrays, write_stage
from headstart.runs.log import evaluation_record, left_out
from headstart.statistics.clients import summarize
from headstart.training.seed_run import Position, monitored_clients, selection_clients


def evaluate(service: Service, membership: Membership, position: Position) -> Membership:
    """Evaluate the state on some validation clients and log it, as `seed_run.evaluate` does."""
    prepared = service.prepared
    clients, stage = monitored_clients(prepared), prepared.experiment.stages[position.stage]
    if not len(clients):
        return membership
    began = time.monotonic()
    epochs = prepared.experiment.personalization.most if stage.stop_at is None else 0
    membership, curves = personalization_curves(service, membership, position, clients, epochs)
    service.log(evaluation_record(prepared.task, stage.name, position.round, curves, time.monotonic() - began))
    return membership


def finish(service: Service, membership: Membership, position: Position) -> Membership:
    """Choose the epochs of personalization on validation clients and evaluate the test clients, as `run` does."""
    prepared, stage = service.prepared, service.prepared.experiment.stages[position.stage]
    recipe, arrays = prepared.experiment.personalization, {}
    epochs = recipe.most
    report: dict[str, Any] = {"stage": stage.name, "round": position.round, "seed": service.seed}
    groups = {"validation": selection_clients(prepared, stage)}
    groups |= {"test": prepared.groups.test} if prepared.experiment.test else {}
    # A message costs the same for one client and for many, so both groups are evaluated at once.
    everybody = np.concatenate([*groups.values()])
    membership, rest = personalization_curves(service, membership, position, everybody, epochs)
    for group, clients in groups.items():
        curves = jax.tree.map(lambda leaf, count=len(clients): leaf[:count], rest)
        rest = jax.tree.map(lambda leaf, count=len(clients): leaf[count:], rest)
        if not len(clients):
            continue
        if group == "validation":
            metric = deciding_metric(prepared.task, recipe)
            _, epochs = choose_recipe([curves], prepared.task, by=metric, otherwise=recipe.unchosen)
        arrays |= curve_arrays(group, prepared.federation.select(clients), curves)
        report[group] = summarize(curves, prepared.task, epochs=epochs)
    before = sum(earlier.rounds for earlier in prepared.experiment.stages[: position.stage])
    report |= left_out(service.log.records(), range(before + 1, position.round + 1))
    write_stage(service.folder, position.stage, position.state.params, report, arrays, service.origin)
    service.on_event({"event": "stage", **report})
    return membership


def personalization_curves(
    service: Service, membership: Membership, position: Position, clients: np.ndarray, epochs: int
) -> tuple[Membership, Curves]:
    """The curves of these clients (indices in the federation); one that cannot be reached counts no query items.

    Raises:
        UserError: if none could be reached in time.
    """
    ids, began = [service.prepared.federation.ids[int(i)] for i in clients], time.monotonic()
    if not ids:
        return membership, _merge(service, ids, [], epochs)
    while True:
        membership = refresh(service, membership, position)
        pieces = _evaluate_nodes(service, membership, position, ids, epochs)
        if pieces:
            _report_gone(service, membership, position, ids)
            return membership, _merge(service, ids, pieces, epochs)
        if time.monotonic() - began > service.config.patience:
            raise UserError(
                f"none of {len(ids)} clients could be evaluated in {service.config.patience:g} s; repeated, the run"
                f" resumes after round {position.round}"
            )
        time.sleep(RETRY_SECONDS)


def _report_gone(service: Service, membership: Membership, position: Position, ids: Sequence[str]) -> None:
    nodes_by_client = membership.registry.nodes_by_client()
    gone = tuple(client for client in ids if client not in nodes_by_client)
    if gone:
        service.report(Fault("none", "no node online has these clients, which are not evaluated", gone), position)


# The ids of a node's clients, and their curves.
NodeCurves = tuple[tuple[str, ...], Curves]


def _evaluate_nodes(
    service: Service, membership: Membership, position: Position, ids: Sequence[str], epochs: int
) -> list[NodeCurves]:
    """Have the nodes of these clients personalize them; the curves of those that reply."""
    clients = group_by_node(membership.registry.nodes_by_client(), ids)
    request = service.request._replace(stage=position.stage, round=position.round, epochs=epochs)
    params = position.state.params
    contents = {node: wire.request_record(request._replace(clients=mine), params) for node, mine in clients.items()}
    pieces: list[NodeCurves] = []
    kind, deadline = MessageType.EVALUATE, service.config.deadline
    for answer in exchange(service.grid, kind, contents, deadline=deadline, group=str(position.round)):
        mine, reason = clients[answer.node], answer.reason
        if answer.content is not None:
            try:
                metrics = service.prepared.task.metrics
                curves = wire.read_curves(answer.content, metrics, clients=len(mine), epochs=epochs)
                pieces.append((mine, curves))
                mine, reason = _without_result(membership.registry.nodes[answer.node], mine, curves)
            except UserError as error:
                reason = f"the reply is refused: {error}"
        if mine:
            service.report(Fault(membership.registry.name(answer.node), reason, mine), position)
    return pieces


def _without_result(node: Node, ids: Sequence[str], curves: Curves) -> tuple[tuple[str, ...], str]:
    """The clients that have query examples and no metrics of them, and the reason to report."""
    sizes_by_client = dict(zip(node.manifest.ids, node.manifest.sizes, strict=True))
    counts = next(counts for _, counts in curves.metrics.values())
    lost = tuple(client for client, n in zip(ids, counts, strict=True) if not n and sizes_by_client[client][1])
    return lost, "these clients have no metrics that are finite, and are not evaluated"


def _merge(service: Service, ids: Sequence[str], pieces: Sequence[NodeCurves], epochs: int) -> Curves:
    """The clients' curves in the order of `ids`; zeros for clients that are in no piece."""
    indices = {client: index for index, client in enumerate(ids)}
    names = [metric.name for metric in service.prepared.task.metrics]
    leaves = [leaf for _, curves in pieces for leaf in jax.tree.leaves(curves)]
    shape, dtype = (len(ids), epochs + 1), np.result_type(np.float32, *leaves)
    whole = Curves(
        {name: (np.zeros(shape, dtype), np.zeros(len(ids), dtype)) for name in names},
        *(np.zeros(shape, dtype) for _ in range(2)),
    )
    for mine, curves in pieces:
        rows = [indices[client] for client in mine]
        for target, source in zip(jax.tree.leaves(whole), jax.tree.leaves(curves), strict=True):
            target[rows] = source
    return whole
