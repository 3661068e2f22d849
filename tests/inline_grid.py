"""A Flower grid without a network: nodes are ClientApps that are called at once, and may be made to misbehave."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple
from uuid import uuid4

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

Spoil = Callable[[Message], Message | None]


class Node(NamedTuple):
    """A node. spoil: what becomes of its replies; None of one means that it is never heard of."""

    app: ClientApp
    config: dict[str, Any]
    name: str = ""
    spoil: Spoil = lambda reply: reply


class InlineGrid(Grid):
    """Nodes by their number; `nodes` may be changed at any time. sent: every message, with its bytes."""

    def __init__(self, nodes: dict[int, Node]) -> None:
        self.nodes, self.sent = nodes, []
        self._replies: dict[str, Message] = {}
        self.before_push: Callable[[InlineGrid, Message], None] = lambda grid, message: None
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1

    def set_run(self, run: Run) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Run:
        return Run.create_empty(1)

    def create_message(self, *args: Any, **options: Any) -> Message:
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        return list(self.nodes)

    def get_nodes(self) -> Iterable[NodeInfo]:
        return [NodeInfo(node_id=number, name=node.name) for number, node in self.nodes.items()]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        return [self._push(message) for message in messages]

    def _push(self, message: Message) -> str:
        self.before_push(self, message)
        message.metadata.__dict__["_message_id"] = name = str(uuid4())
        self.sent.append(message)
        node = self.nodes.get(message.metadata.dst_node_id)
        if node is None:
            self._replies[name] = Message(Error(5), reply_to=message)
            return name
        context = Context(1, message.metadata.dst_node_id, node.config, RecordDict(), {})
        reply = node.spoil(node.app(message, context))
        if reply is not None:
            self._replies[name] = reply
        return name

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self._replies.pop(name) for name in message_ids if name in self._replies]

    def send_and_receive(self, *args: Any, **options: Any) -> Iterable[Message]:
        raise NotImplementedError
