"""What a server has at hand while it runs an experiment on devices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from flwr.serverapp import Grid

from headstart.experiment.setup import Prepared
from headstart.files import write_json
from headstart.flower.roster import Fault, Roster, meet
from headstart.flower.wire import Order
from headstart.runs.log import Listener, Log
from headstart.training.seed_run import Place


@dataclass(frozen=True)
class Terms:
    """What a server waits for, and how long.

    nodes: it begins when so many have told what they hold.
    replies: a round in which fewer clients count is done again.
    deadline: seconds that a node has for a reply; what comes later is dropped, and the round goes on without it.
    patience: seconds without enough nodes or replies after which the run ends. What was saved stays.
    """

    nodes: int = 2
    replies: int = 1
    deadline: float = 600.0
    patience: float = 600.0


class Service(NamedTuple):
    """A run on devices. order: what all messages have in common."""

    grid: Grid
    terms: Terms
    prepared: Prepared
    order: Order
    folder: Path
    log: Log
    listen: Listener

    @property
    def seed(self) -> int:
        """Of the run."""
        return self.order.seed

    def report(self, fault: Fault, place: Place) -> None:
        """Log what went wrong, and where the run was then."""
        stage = self.prepared.experiment.stages[place.stage].name
        told = {"node": fault.node, "reason": fault.reason, "clients": list(fault.clients)}
        self.log({"event": "fault", "round": place.round, "stage": stage, **told})


class Crew(NamedTuple):
    """Who is there, and the group ("train", "validation", "test") of every client."""

    roster: Roster
    members: Mapping[str, tuple[str, ...]]


def look(service: Service, crew: Crew, place: Place) -> Crew:
    """Look who is there now. Clients seen for the first time train: nobody may train who has been a test."""
    roster, faults = meet(service.grid, crew.roster, service.order, deadline=service.terms.deadline)
    for fault in faults:
        service.report(fault, place)
    known = {client for group in crew.members.values() for client in group}
    new = {client for site in roster.sites.values() for client in site.holding.ids} - known
    if not new:
        return crew._replace(roster=roster)
    members = {**crew.members, "train": tuple(sorted({*crew.members["train"], *new}))}
    write_json(service.folder / "members.json", members)
    service.listen({"event": "note", "text": f"{len(new)} clients have come: {', '.join(sorted(new)[:5])}"})
    return Crew(roster, members)
