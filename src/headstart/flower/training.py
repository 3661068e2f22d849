"""A round on devices: the cohort trains, every reply is checked before it counts, the server's optimizer steps."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from flwr.app import MessageType

from headstart.errors import UserError
from headstart.experiment.experiment import Stage
from headstart.flower import wire
from headstart.flower.exchange import POLL_SECONDS, Answer, exchange, sort_answers
from headstart.flower.registry import RETRY_SECONDS, Fault, Node, group_by_node
from headstart.flower.service import Membership, Service, refresh
from headstart.learning.divergence import beyond_use, judged_metrics
from headstart.learning.rounds import Info, Totals, no_totals, server_step
from headstart.learning.tasks import add
from headstart.runs.log import means, round_record
from headstart.training.divergence import DivergedError, RoundMonitor, diverged_in
from headstart.training.sampling import sample
from headstart.training.seed_run import Position


class CohortTotals(NamedTuple):
    """The totals of a cohort's replies.

    totals: of the replies that count. refused, missing: the clients whose reply does not count, and those without one.
    sent, received: bytes of the messages' content.
    """

    totals: Totals
    refused: int = 0
    missing: int = 0
    sent: int = 0
    received: int = 0


def train_round(service: Service, membership: Membership, position: Position) -> tuple[Membership, Position]:
    """Train the next round, and repeat it until enough replies count.

    Raises:
        UserError: if they do not in time.
        DivergedError: if all replies came and none is finite, or the new parameters are not.
    """
    began, number = time.monotonic(), position.round + 1
    current = position._replace(round=number)
    stage = service.prepared.experiment.stages[position.stage]
    assert isinstance(stage, Stage)
    while True:
        membership = refresh(service, membership, current)
        cohort = _cohort(service, membership, stage, number)
        if len(cohort) >= service.config.replies:
            outcome = train_cohort(service, membership, current, cohort)
            if outcome.totals.clients >= service.config.replies:
                break
            if outcome.refused == len(cohort):
                where = f"stage {stage.name!r}, round {number}"
                raise DivergedError(diverged_in(where, "no reply is finite and of use"))
        if time.monotonic() - began > service.config.patience:
            raise UserError(
                f"round {number} had no {service.config.replies} usable replies in {service.config.patience:g} s, with"
                f" {len(cohort)} training clients online; repeated, the run resumes after round {position.round}"
            )
        time.sleep(POLL_SECONDS if len(cohort) < service.config.replies else RETRY_SECONDS)
    step = jax.jit(partial(server_step, stage.server.build()))
    state, info = step(position.state, outcome.totals)
    info = jax.device_get(info)
    monitor = RoundMonitor(service.prepared.task, partial(_metrics_at_start, service))
    monitor.check(f"stage {stage.name!r}, round {number}", number, info)
    _record(service, stage, number, outcome, info, time.monotonic() - began)
    return membership, Position(position.stage, number, state)


def _cohort(service: Service, membership: Membership, stage: Stage, number: int) -> list[str]:
    """The clients of a round: drawn by (seed, round) from the training clients online, ordered by id."""
    nodes_by_client = membership.registry.nodes_by_client()
    online = [client for client in sorted(membership.members["train"]) if client in nodes_by_client]
    chosen = sample(service.seed, number, min(stage.cohort, len(online)), len(online)) if online else []
    return [online[i] for i in chosen]


def train_cohort(service: Service, membership: Membership, position: Position, cohort: list[str]) -> CohortTotals:
    """Train the cohort of this round from the state's parameters, and add up the replies that count."""
    params, number = position.state.params, position.round
    clients = group_by_node(membership.registry.nodes_by_client(), cohort)
    request = service.request._replace(stage=position.stage, round=number)
    contents = {node: wire.request_record(request._replace(clients=ids), params) for node, ids in clients.items()}
    kind, deadline = MessageType.TRAIN, service.config.deadline
    answers = sort_answers(exchange(service.grid, kind, contents, deadline=deadline, group=str(number)), clients)
    outcome = CohortTotals(no_totals(params, service.prepared.task), sent=sum(map(wire.size_of, contents.values())))
    for answer in answers:
        node = membership.registry.nodes[answer.node]
        outcome = _add_answer(service, node, position, outcome, answer, clients[answer.node])
    return outcome


def _add_answer(
    service: Service, node: Node, position: Position, outcome: CohortTotals, answer: Answer, ids: tuple[str, ...]
) -> CohortTotals:
    """The totals with one more answer, which counts or is reported as a fault."""
    if answer.content is None:
        service.report(Fault(node.name, answer.reason, ids), position)
        return outcome._replace(missing=outcome.missing + len(ids))
    outcome = outcome._replace(received=outcome.received + wire.size_of(answer.content))
    stage = service.prepared.experiment.stages[position.stage]
    assert isinstance(stage, Stage)
    max_weight = float(len(ids)) if stage.weighting == "uniform" else _examples(node, ids)
    try:
        totals = wire.read_totals(answer.content, like=outcome.totals, max_weight=max_weight, clients=len(ids))
        _check_metrics(service, totals, position.round)
    except UserError as error:
        service.report(Fault(node.name, f"the reply is refused: {error}", ids), position)
        return outcome._replace(refused=outcome.refused + len(ids))
    if totals.dropped:
        service.report(Fault(node.name, f"{totals.dropped} of its clients have a Δ that is not finite", ids), position)
    return outcome._replace(totals=add(outcome.totals, totals), refused=outcome.refused + int(totals.dropped))


def _check_metrics(service: Service, totals: Totals, number: int) -> None:
    """Refuse a reply whose metrics say that its clients' training has come to nothing: it shall not end that of all.

    Raises:
        UserError: if one is far worse than before training.
    """
    task = service.prepared.task
    found = means(task, jax.device_get(totals.metrics))
    for metric in judged_metrics(task):
        value = found[metric.name]
        if value is not None and beyond_use(metric, value, 1.0):
            start = _metrics_at_start(service, number)[metric.name]
            if beyond_use(metric, value, start):
                raise UserError(f"its {metric.name} is {value:.3g}, and that of all was {start:.3g} before training")


def _examples(node: Node, ids: tuple[str, ...]) -> float:
    """The number of examples these clients train on, by their node's manifest."""
    sizes_by_client = dict(zip(node.manifest.ids, node.manifest.sizes, strict=True))
    sizes = np.array([sizes_by_client[client] for client in ids])
    return float(sizes[:, 0].sum() if node.manifest.schema["has_predefined_split"] else sizes.sum())


def _record(service: Service, stage: Stage, number: int, outcome: CohortTotals, info: Info, seconds: float) -> None:
    record = round_record(service.prepared.task, stage.name, number, info, seconds)
    lost = {"dropped": outcome.refused, "missing": outcome.missing}
    service.log({**record, **lost, "sent_bytes": outcome.sent, "received_bytes": outcome.received})


def _metrics_at_start(service: Service, number: int) -> Mapping[str, float]:
    """What a round's metrics are judged beside: what the log begins with, an evaluation or else the first round."""
    records = [record for record in service.log.records() if record["event"] in ("evaluation", "round")]
    values = (records[0].get("validation") or records[0]["training"]) if records else {}
    firsts = {name: value[0] if isinstance(value, list) else value for name, value in values.items()}
    return {m.name: np.nan if firsts.get(m.name) is None else firsts[m.name] for m in service.prepared.task.metrics}
