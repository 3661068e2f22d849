"""Who is there: the nodes of a federation, and the clients that each of them holds."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from flwr.app import MessageType
from flwr.serverapp import Grid

from headstart.errors import UserError
from headstart.flower import wire
from headstart.flower.exchange import Answer, Pending, collect, send
from headstart.flower.wire import Holding, Order

# Seconds until a node that could not tell what it holds, or a cohort of whom too few replied, is asked again.
AGAIN = 10.0


class Site(NamedTuple):
    """A node that has told what it holds. name: the one it was registered by, or else its number."""

    node: int
    name: str
    holding: Holding


class Fault(NamedTuple):
    """What went wrong at which node, and whose replies are missing for it."""

    node: str
    reason: str
    clients: tuple[str, ...] = ()


class Roster(NamedTuple):
    """What is known of the nodes.

    online: the names of all that the SuperLink has heard of lately. sites: of those that have told what they hold, in
    the order in which they came; they stay when a node is gone, and it may return.
    examples: what examples look like on all nodes of the run; None until that is settled.
    asked: when a node was asked last. pending: questions without an answer.
    """

    online: Mapping[int, str] = {}
    sites: Mapping[int, Site] = {}
    examples: Mapping[str, Any] | None = None
    asked: Mapping[int, float] = {}
    pending: tuple[Pending, ...] = ()

    def name(self, node: int) -> str:
        """What to call a node."""
        return self.sites[node].name if node in self.sites else self.online.get(node, str(node))

    def places(self) -> dict[str, Site]:
        """Where each client is, of the nodes online. Who came first has it: nobody takes over another's clients."""
        places: dict[str, Site] = {}
        for node, site in self.sites.items():
            for client in site.holding.ids if node in self.online else ():
                places.setdefault(client, site)
        return places


def meet(grid: Grid, roster: Roster, order: Order, *, deadline: float) -> tuple[Roster, list[Fault]]:
    """Look who is there, hear what new nodes hold, and ask those that are newer still. Waits for nobody."""
    online = {info.node_id: info.name or str(info.node_id) for info in grid.get_nodes()}
    roster, faults = roster._replace(online=online), []
    looked = [collect(grid, pending) for pending in roster.pending]
    for answer in (answer for answers, _ in looked for answer in answers):
        roster, found = _hear(roster, answer)
        faults += found
    pending, now = tuple(rest for _, rest in looked if rest.nodes), time.monotonic()
    waiting = {node for each in pending for node in each.nodes.values()}
    fresh = [n for n in online if n not in {*roster.sites, *waiting} and now - roster.asked.get(n, -AGAIN) >= AGAIN]
    if fresh:
        content = wire.order_record(order)
        pending += (send(grid, MessageType.QUERY, dict.fromkeys(fresh, content), deadline=deadline),)
    return roster._replace(pending=pending, asked={**roster.asked, **dict.fromkeys(fresh, now)}), faults


def settle(roster: Roster, *, examples: Mapping[str, Any] | None = None) -> tuple[Roster, list[Fault]]:
    """Fix what examples look like, by default as most nodes have them; nodes with others are left out."""
    examples = examples or wire.most_common([site.holding.examples for site in roster.sites.values()])
    odd = {node: site for node, site in roster.sites.items() if site.holding.examples != examples}
    sites = {node: site for node, site in roster.sites.items() if node not in odd}
    faults = [Fault(site.name, _difference(site.holding.examples, examples)) for site in odd.values()]
    return roster._replace(sites=sites, examples=examples), faults


def _hear(roster: Roster, answer: Answer) -> tuple[Roster, list[Fault]]:
    name = roster.name(answer.node)
    if answer.content is None:
        return roster, [Fault(name, answer.reason)]
    try:
        holding = wire.read_holding(answer.content)
    except UserError as error:
        return roster, [Fault(name, str(error))]
    if roster.examples is not None and holding.examples != roster.examples:
        return roster, [Fault(name, _difference(holding.examples, roster.examples))]
    places = roster.places()
    taken = tuple(client for client in holding.ids if client in places)
    faults = [Fault(name, f"{places[taken[0]].name} has them already and keeps them", taken)] if taken else []
    return roster._replace(sites={**roster.sites, answer.node: Site(answer.node, name, holding)}), faults


def _difference(mine: Mapping[str, Any], others: Mapping[str, Any]) -> str:
    own, given = (_flat(examples) for examples in (mine, others))
    name = next(name for name in {**given, **own} if own.get(name) != given.get(name))
    texts = (json.dumps(flat.get(name), default=str)[:80] for flat in (own, given))
    return "its examples are not like the others': {} is {} here and {} there; give all nodes the same".format(
        name, *texts
    )


def _flat(examples: Mapping[str, Any]) -> dict[str, Any]:
    facts = examples.get("facts")
    return {name: value for name, value in examples.items() if name != "facts"} | dict(facts or {})


def of_clients(places: Mapping[str, Site], clients: Sequence[str]) -> dict[int, tuple[str, ...]]:
    """These clients by the number of the node that has them; those that are nowhere are left out."""
    asked: dict[int, tuple[str, ...]] = {}
    for client in sorted(clients):
        if client in places:
            asked[places[client].node] = (*asked.get(places[client].node, ()), client)
    return dict(sorted(asked.items(), key=lambda pair: pair[1]))
