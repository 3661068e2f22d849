"""The server's context of a run on devices, and the membership of its clients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from flwr.serverapp import Grid

from headstart.experiment.setup import Prepared
from headstart.fields import at_least, check_fields
from headstart.files import write_json
from headstart.flower.registry import Fault, Registry, poll
from headstart.flower.wire import Request
from headstart.runs.log import Log, OnEvent
from headstart.training.seed_run import Position


@dataclass(frozen=True)
class ServerConfig:
    """What a server waits for, and how long.

    nodes: the run begins when this many have sent their manifest.
    replies: a round in which fewer clients count is repeated.
    deadline: seconds that a node has for a reply; a later one is dropped, and the round finishes without it.
    patience: seconds without enough nodes or replies after which the run ends. What was saved stays.
    """

    nodes: int = at_least(1, 2)
    replies: int = at_least(1, 1)
    deadline: float = at_least(0, 600.0, above=True)
    patience: float = at_least(0, 600.0, endless=True)

    def __post_init__(self) -> None:
        check_fields(self)


class Service(NamedTuple):
    """A run on devices.

    request: the fields that all its requests share. name: of the run, which its states carry.
    """

    grid: Grid
    config: ServerConfig
    prepared: Prepared
    request: Request
    folder: Path
    log: Log
    on_event: OnEvent
    name: str = ""

    @property
    def origin(self) -> dict[str, Any]:
        """What a state says of where it comes from: the run and the seed."""
        return {"run": self.name, "seed": self.seed}

    @property
    def seed(self) -> int:
        """The seed of the run."""
        return self.request.seed

    def report(self, fault: Fault, position: Position) -> None:
        """Log a fault, with the position of the run."""
        stage = self.prepared.experiment.stages[position.stage].name
        fields = {"node": fault.node, "reason": fault.sentence, "clients": list(fault.clients)}
        self.log({"event": "fault", "round": position.round, "stage": stage, **fields})


class Membership(NamedTuple):
    """The nodes of a run, and its clients by group ("train", "validation", "test")."""

    registry: Registry
    members: Mapping[str, tuple[str, ...]]


def refresh(service: Service, membership: Membership, position: Position) -> Membership:
    """Poll the nodes. Clients seen for the first time become training clients; no client changes its group."""
    registry, faults = poll(service.grid, membership.registry, service.request, deadline=service.config.deadline)
    for fault in faults:
        service.report(fault, position)
    known = {client for group in membership.members.values() for client in group}
    new = {client for node in registry.nodes.values() for client in node.manifest.ids} - known
    if not new:
        return membership._replace(registry=registry)
    members = {**membership.members, "train": tuple(sorted({*membership.members["train"], *new}))}
    write_json(service.folder / "members.json", members)
    service.on_event({"event": "note", "text": f"{len(new)} clients have joined: {', '.join(sorted(new)[:5])}"})
    return Membership(registry, members)
