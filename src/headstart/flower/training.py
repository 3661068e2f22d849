"""A round on devices: a cohort is asked, every reply is checked before it counts, the server's optimizer steps."""

from __future__ import annotations

import time
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from flwr.app import MessageType

from headstart.errors import UserError
from headstart.experiment.experiment import Stage
from headstart.flower import wire
from headstart.flower.exchange import POLL, Answer, exchange, in_order
from headstart.flower.registry import AGAIN, Fault, Node, of_clients
from headstart.flower.service import Membership, Service, look
from headstart.learning.rounds import Info, Totals, no_totals, server_step
from headstart.learning.tasks import add
from headstart.runs.log import round_record
from headstart.training.sampling import sample
from headstart.training.seed_run import DivergedError, Position


class Asked(NamedTuple):
    """What came of asking a cohort.

    totals: of the replies that count. refused, missing: of how many clients a reply came that may not count, and of
    how many none. sent, received: bytes of the messages' content.
    """

    totals: Totals
    refused: int = 0
    missing: int = 0
    sent: int = 0
    received: int = 0


def train_round(service: Service, membership: Membership, position: Position) -> tuple[Membership, Position]:
    """The next round, asked again until enough replies count.

    Raises:
        UserError: if they do not in time.
        DivergedError: if all replies came and none is finite, or the new parameters are not.
    """
    began, number = time.monotonic(), position.round + 1
    here = position._replace(round=number)
    stage = service.prepared.experiment.stages[position.stage]
    assert isinstance(stage, Stage)
    while True:
        membership = look(service, membership, here)
        cohort = _cohort(service, membership, stage, number)
        if len(cohort) >= service.config.replies:
            asked = ask(service, membership, here, cohort)
            if asked.totals.clients >= service.config.replies:
                break
            if asked.refused == len(cohort):
                raise DivergedError(_diverged(stage, number))
        if time.monotonic() - began > service.config.patience:
            raise UserError(
                f"round {number} had no {service.config.replies} usable replies in {service.config.patience:g} s, with"
                f" {len(cohort)} training clients online; the run goes on after round {position.round} if repeated"
            )
        time.sleep(POLL if len(cohort) < service.config.replies else AGAIN)
    step = jax.jit(partial(server_step, stage.server.build()))
    state, info = step(position.state, asked.totals)
    if not info.finite:
        raise DivergedError(_diverged(stage, number))
    _record(service, stage, number, asked, jax.device_get(info), time.monotonic() - began)
    return membership, Position(position.stage, number, state)


def _cohort(service: Service, membership: Membership, stage: Stage, number: int) -> list[str]:
    """The clients of a round: drawn by (seed, round) from the training clients online, ordered by id."""
    places = membership.registry.places()
    online = [client for client in sorted(membership.members["train"]) if client in places]
    chosen = sample(service.seed, number, min(stage.clients_per_round, len(online)), len(online)) if online else []
    return [online[i] for i in chosen]


def ask(service: Service, membership: Membership, position: Position, cohort: list[str]) -> Asked:
    """Have the cohort of this round train from the state's parameters; what the replies that count add up to."""
    params, number = position.state.params, position.round
    clients = of_clients(membership.registry.places(), cohort)
    request = service.request._replace(stage=position.stage, round=number)
    contents = {node: wire.request_record(request._replace(clients=ids), params) for node, ids in clients.items()}
    kind, deadline = MessageType.TRAIN, service.config.deadline
    answers = in_order(exchange(service.grid, kind, contents, deadline=deadline, group=str(number)), clients)
    asked = Asked(no_totals(params, service.prepared.task), sent=sum(map(wire.size_of, contents.values())))
    for answer in answers:
        asked = _counted(service, membership.registry.nodes[answer.node], position, asked, answer, clients[answer.node])
    return asked


def _counted(
    service: Service, node: Node, position: Position, asked: Asked, answer: Answer, ids: tuple[str, ...]
) -> Asked:
    """What is asked with one more answer, counted or reported."""
    if answer.content is None:
        service.report(Fault(node.name, answer.reason, ids), position)
        return asked._replace(missing=asked.missing + len(ids))
    asked = asked._replace(received=asked.received + wire.size_of(answer.content))
    stage = service.prepared.experiment.stages[position.stage]
    assert isinstance(stage, Stage)
    most = float(len(ids)) if stage.weighting == "uniform" else _examples(node, ids)
    try:
        totals = wire.read_totals(answer.content, like=asked.totals, most=most, clients=len(ids))
    except UserError as error:
        service.report(Fault(node.name, f"the reply is refused: {error}", ids), position)
        return asked._replace(refused=asked.refused + len(ids))
    if totals.dropped:
        service.report(Fault(node.name, f"{totals.dropped} of its clients have a Δ that is not finite", ids), position)
    return asked._replace(totals=add(asked.totals, totals), refused=asked.refused + int(totals.dropped))


def _examples(node: Node, ids: tuple[str, ...]) -> float:
    """How many examples these clients train on, as their node has said."""
    held = dict(zip(node.manifest.ids, node.manifest.sizes, strict=True))
    sizes = np.array([held[client] for client in ids])
    return float(sizes[:, 0].sum() if node.manifest.examples["own_split"] else sizes.sum())


def _record(service: Service, stage: Stage, number: int, asked: Asked, info: Info, seconds: float) -> None:
    record = round_record(service.prepared.task, stage.name, number, info, seconds)
    lost = {"dropped": asked.refused, "missing": asked.missing}
    service.log({**record, **lost, "sent_bytes": asked.sent, "received_bytes": asked.received})


def _diverged(stage: Stage, number: int) -> str:
    return (
        f"training diverged in stage {stage.name!r}, round {number}: no reply, or no longer the parameters, are finite;"
        " lower the learning rates of the stage (client or server)"
    )
