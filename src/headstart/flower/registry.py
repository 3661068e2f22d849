"""The registry of a run: the nodes of a federation, and the clients that each of them holds."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from flwr.app import MessageType
from flwr.serverapp import Grid

from headstart.console import printable
from headstart.errors import UserError
from headstart.flower import wire
from headstart.flower.example_schema import most_common
from headstart.flower.exchange import Answer, Pending, collect, send
from headstart.flower.wire import Manifest, Request

# Seconds until a node that sent no manifest, or a cohort of which too few replied, is asked again.
RETRY_SECONDS = 10.0


class Node(NamedTuple):
    """A node that has sent its manifest. name: the one it was registered by, or else its id as text."""

    node_id: int
    name: str
    manifest: Manifest


class Fault(NamedTuple):
    """A failure at a node, and the clients whose replies are missing for it.

    reason: may hold words of the node; `sentence` is what may be shown of it.
    """

    node: str
    reason: str
    clients: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """The reason as text that controls no terminal and fills no log."""
        return printable(self.reason)


class Registry(NamedTuple):
    """The nodes of a run, by id.

    online: the names of all that the SuperLink has heard of lately.
    nodes: those that have sent their manifest, in the order in which they joined; a node that leaves stays in it, since
    it may return.
    schema: of the examples on all nodes of the run; None until it is fixed.
    asked: when a node was last asked for its manifest. pending: those requests that have no answer.
    """

    online: Mapping[int, str] = {}
    nodes: Mapping[int, Node] = {}
    schema: Mapping[str, Any] | None = None
    asked: Mapping[int, float] = {}
    pending: tuple[Pending, ...] = ()

    def name(self, node_id: int) -> str:
        """The name of a node."""
        return self.nodes[node_id].name if node_id in self.nodes else self.online.get(node_id, str(node_id))

    def nodes_by_client(self) -> dict[str, Node]:
        """The node of each client, of the nodes online; a client that several hold belongs to the first that joined."""
        found: dict[str, Node] = {}
        for node_id, node in self.nodes.items():
            for client in node.manifest.ids if node_id in self.online else ():
                found.setdefault(client, node)
        return found


def poll(grid: Grid, registry: Registry, request: Request, *, deadline: float) -> tuple[Registry, list[Fault]]:
    """Collect the manifests that have arrived, and ask nodes that are new for theirs; does not wait for any."""
    online = {info.node_id: printable(info.name or str(info.node_id), most=200) for info in grid.get_nodes()}
    registry, faults = registry._replace(online=online), []
    collected = [collect(grid, pending) for pending in registry.pending]
    for answer in (answer for answers, _ in collected for answer in answers):
        registry, found = _add_answer(registry, answer)
        faults += found
    pending, now = tuple(rest for _, rest in collected if rest.nodes), time.monotonic()
    waiting = {node_id for each in pending for node_id in each.nodes.values()}
    fresh = [
        node_id
        for node_id in online
        if node_id not in {*registry.nodes, *waiting}
        and now - registry.asked.get(node_id, -RETRY_SECONDS) >= RETRY_SECONDS
    ]
    if fresh:
        content = wire.request_record(_as_they_are(request))
        pending += (send(grid, MessageType.QUERY, dict.fromkeys(fresh, content), deadline=deadline),)
    return registry._replace(pending=pending, asked={**registry.asked, **dict.fromkeys(fresh, now)}), faults


def _as_they_are(request: Request) -> Request:
    """The request for a manifest of the columns that a table has, whatever was decided of them."""
    if "preprocessing" not in request.decided:
        return request
    decided = {name: value for name, value in request.decided.items() if name not in ("preprocessing", "features")}
    return request._replace(decided=decided)


def fix_schema(registry: Registry, *, schema: Mapping[str, Any] | None = None) -> tuple[Registry, list[Fault]]:
    """Fix the schema of the run's examples, by default the one most nodes have; nodes with another are left out."""
    schema = schema or most_common([node.manifest.schema for node in registry.nodes.values()])
    nodes = {node_id: node for node_id, node in registry.nodes.items() if node.manifest.schema == schema}
    others = [node for node_id, node in registry.nodes.items() if node_id not in nodes]
    faults = [Fault(node.name, _difference(node.manifest.schema, schema)) for node in others]
    return registry._replace(nodes=nodes, schema=schema), faults


def decided_among(registry: Registry) -> dict[str, Any]:
    """What the nodes of a run have decided of their data, as metadata: their schema's, and the polarity most have."""
    assert registry.schema is not None
    manifests = [node.manifest for node in registry.nodes.values() if node.manifest.inverted is not None]
    if not manifests:
        return dict(registry.schema["metadata"])
    inverted = 2 * sum(bool(each.inverted) for each in manifests) > len(manifests)
    levels = sorted(m.background for m in manifests if m.background is not None and m.inverted == inverted)
    background = {"background": levels[len(levels) // 2]} if levels else {}
    return {**registry.schema["metadata"], "inverted": inverted, "source": "devices", **background}


def _add_answer(registry: Registry, answer: Answer) -> tuple[Registry, list[Fault]]:
    """The registry with a node's manifest, or with a fault in place of it."""
    name = registry.name(answer.node)
    if answer.content is None:
        return registry, [Fault(name, answer.reason)]
    try:
        manifest = wire.read_manifest(answer.content)
    except UserError as error:
        return registry, [Fault(name, str(error))]
    if registry.schema is not None and manifest.schema != registry.schema:
        return registry, [Fault(name, _difference(manifest.schema, registry.schema))]
    owners = registry.nodes_by_client()
    taken = tuple(client for client in manifest.ids if client in owners)
    faults = [Fault(name, f"{owners[taken[0]].name} has them already and keeps them", taken)] if taken else []
    return registry._replace(nodes={**registry.nodes, answer.node: Node(answer.node, name, manifest)}), faults


def _difference(mine: Mapping[str, Any], others: Mapping[str, Any]) -> str:
    own, given = (_flat(schema) for schema in (mine, others))
    name = next((name for name in {**given, **own} if own.get(name) != given.get(name)), "metadata")
    texts = (json.dumps(flat.get(name), default=str)[:80] for flat in (own, given))
    return "its examples are not like the others': {} is {} here and {} there; give all nodes the same".format(
        name, *texts
    )


def _flat(schema: Mapping[str, Any]) -> dict[str, Any]:
    metadata = schema.get("metadata")
    return dict(metadata or {}) | {name: value for name, value in schema.items() if name != "metadata"}


def group_by_node(nodes_by_client: Mapping[str, Node], clients: Sequence[str]) -> dict[int, tuple[str, ...]]:
    """Group clients by the id of their node; clients without a node are left out."""
    groups: dict[int, tuple[str, ...]] = {}
    for client in sorted(clients):
        if client in nodes_by_client:
            node_id = nodes_by_client[client].node_id
            groups[node_id] = (*groups.get(node_id, ()), client)
    return dict(sorted(groups.items(), key=lambda pair: pair[1]))
