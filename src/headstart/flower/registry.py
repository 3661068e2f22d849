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
from headstart.flower.wire import Manifest, Request

# Seconds until a node that could not tell what it holds, or a cohort of whom too few replied, is asked again.
AGAIN = 10.0


class Node(NamedTuple):
    """A node that has told what it holds. name: the one it was registered by, or else its number."""

    node: int
    name: str
    manifest: Manifest


class Fault(NamedTuple):
    """What went wrong at which node, and whose replies are missing for it."""

    node: str
    reason: str
    clients: tuple[str, ...] = ()


class Registry(NamedTuple):
    """What is known of the nodes.

    online: the names of all that the SuperLink has heard of lately. nodes: those that have told what they hold, in the
    order in which they came; they stay when a node is gone, and it may return.
    examples: what examples look like on all nodes of the run; None until that is settled.
    asked: when a node was asked last. pending: questions without an answer.
    """

    online: Mapping[int, str] = {}
    nodes: Mapping[int, Node] = {}
    examples: Mapping[str, Any] | None = None
    asked: Mapping[int, float] = {}
    pending: tuple[Pending, ...] = ()

    def name(self, node: int) -> str:
        """What to call a node."""
        return self.nodes[node].name if node in self.nodes else self.online.get(node, str(node))

    def places(self) -> dict[str, Node]:
        """Where each client is, of the nodes online. Who came first has it: nobody takes over another's clients."""
        places: dict[str, Node] = {}
        for node, node in self.nodes.items():
            for client in node.manifest.ids if node in self.online else ():
                places.setdefault(client, node)
        return places


def poll(grid: Grid, registry: Registry, request: Request, *, deadline: float) -> tuple[Registry, list[Fault]]:
    """Look who is there, hear what new nodes hold, and ask those that are newer still. Waits for nobody."""
    online = {info.node_id: info.name or str(info.node_id) for info in grid.get_nodes()}
    registry, faults = registry._replace(online=online), []
    looked = [collect(grid, pending) for pending in registry.pending]
    for answer in (answer for answers, _ in looked for answer in answers):
        registry, found = _hear(registry, answer)
        faults += found
    pending, now = tuple(rest for _, rest in looked if rest.nodes), time.monotonic()
    waiting = {node for each in pending for node in each.nodes.values()}
    fresh = [n for n in online if n not in {*registry.nodes, *waiting} and now - registry.asked.get(n, -AGAIN) >= AGAIN]
    if fresh:
        content = wire.request_record(request)
        pending += (send(grid, MessageType.QUERY, dict.fromkeys(fresh, content), deadline=deadline),)
    return registry._replace(pending=pending, asked={**registry.asked, **dict.fromkeys(fresh, now)}), faults


def fix_schema(registry: Registry, *, examples: Mapping[str, Any] | None = None) -> tuple[Registry, list[Fault]]:
    """Fix what examples look like, by default as most nodes have them; nodes with others are left out."""
    examples = examples or wire.most_common([node.manifest.examples for node in registry.nodes.values()])
    odd = {node: node for node, node in registry.nodes.items() if node.manifest.examples != examples}
    nodes = {node: node for node, node in registry.nodes.items() if node not in odd}
    faults = [Fault(node.name, _difference(node.manifest.examples, examples)) for node in odd.values()]
    return registry._replace(nodes=nodes, examples=examples), faults


def _hear(registry: Registry, answer: Answer) -> tuple[Registry, list[Fault]]:
    name = registry.name(answer.node)
    if answer.content is None:
        return registry, [Fault(name, answer.reason)]
    try:
        manifest = wire.read_manifest(answer.content)
    except UserError as error:
        return registry, [Fault(name, str(error))]
    if registry.examples is not None and manifest.examples != registry.examples:
        return registry, [Fault(name, _difference(manifest.examples, registry.examples))]
    places = registry.places()
    taken = tuple(client for client in manifest.ids if client in places)
    faults = [Fault(name, f"{places[taken[0]].name} has them already and keeps them", taken)] if taken else []
    return registry._replace(nodes={**registry.nodes, answer.node: Node(answer.node, name, manifest)}), faults


def _difference(mine: Mapping[str, Any], others: Mapping[str, Any]) -> str:
    own, given = (_flat(examples) for examples in (mine, others))
    name = next(name for name in {**given, **own} if own.get(name) != given.get(name))
    texts = (json.dumps(flat.get(name), default=str)[:80] for flat in (own, given))
    return "its examples are not like the others': {} is {} here and {} there; give all nodes the same".format(
        name, *texts
    )


def _flat(examples: Mapping[str, Any]) -> dict[str, Any]:
    metadata = examples.get("facts")
    return {name: value for name, value in examples.items() if name != "facts"} | dict(metadata or {})


def of_clients(places: Mapping[str, Node], clients: Sequence[str]) -> dict[int, tuple[str, ...]]:
    """These clients by the number of the node that has them; those that are nowhere are left out."""
    asked: dict[int, tuple[str, ...]] = {}
    for client in sorted(clients):
        if client in places:
            asked[places[client].node] = (*asked.get(places[client].node, ()), client)
    return dict(sorted(asked.items(), key=lambda pair: pair[1]))
