"""Messages to nodes and what comes back: each has a deadline, after which its reply is missing and nobody waits."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

# Seconds between two looks for replies, and after a deadline until the SuperLink has said that nothing came.
POLL, GRACE = 0.25, 10.0

# Flower's codes of errors, where a word of ours says it better.
_REASONS = {3: "no reply within {deadline:g} s", 4: "no reply within {deadline:g} s", 8: "its process has ended"}
_GONE = 5


class Answer(NamedTuple):
    """What came of a message to a node: its content, or the reason why there is none."""

    node: int
    content: RecordDict | None
    reason: str = ""


class Pending(NamedTuple):
    """Messages without an answer so far: the node of each by the message's id; and when to give them up."""

    nodes: Mapping[str, int]
    deadline: float
    until: float


def send(grid: Grid, kind: str, contents: Mapping[int, RecordDict], *, deadline: float, group: str = "") -> Pending:
    """Send every node its content; a node that does not reply within `deadline` seconds never will."""
    messages = [Message(c, node, kind, ttl=deadline, group_id=group) for node, c in contents.items()]
    ids = list(grid.push_messages(messages)) if messages else []
    # A node that is gone by now takes no message: its answer is made up in `collect`.
    names = [name or f"unsent {node}" for name, node in zip(ids, contents, strict=False)]
    names += [f"unsent {node}" for node in list(contents)[len(ids) :]]
    return Pending(dict(zip(names, contents, strict=True)), deadline, time.monotonic() + deadline + GRACE)


def collect(grid: Grid, pending: Pending) -> tuple[list[Answer], Pending]:
    """The answers that are there by now, and what is still pending."""
    sent = [name for name in pending.nodes if not name.startswith("unsent ")]
    found = {m.metadata.reply_to_message_id: m for m in (grid.pull_messages(sent) if sent else [])}
    late = time.monotonic() > pending.until
    answers = []
    for name, node in pending.nodes.items():
        if name in found:
            answers.append(_answer(node, found[name], pending.deadline))
        elif late or name not in sent:
            reason = f"no reply within {pending.deadline:g} s" if name in sent else "the message could not be sent"
            answers.append(Answer(node, None, reason))
    answered = {answer.node for answer in answers}
    return answers, pending._replace(nodes={k: n for k, n in pending.nodes.items() if n not in answered})


def exchange(
    grid: Grid, kind: str, contents: Mapping[int, RecordDict], *, deadline: float, group: str = ""
) -> Iterator[Answer]:
    """Send every node its content; the answers as they come, one for every node."""
    pending = send(grid, kind, contents, deadline=deadline, group=group)
    while pending.nodes:
        answers, pending = collect(grid, pending)
        yield from answers
        if pending.nodes:
            time.sleep(POLL)


def _answer(node: int, message: Message, deadline: float) -> Answer:
    if message.has_content():
        return Answer(node, message.content)
    code, reason = message.error.code, message.error.reason or "an error without a reason"
    if code == _GONE:
        return Answer(node, None, "the node is gone")
    return Answer(node, None, _REASONS.get(code, reason).format(deadline=deadline))


def in_order(answers: Iterable[Answer], order: Mapping[int, object]) -> list[Answer]:
    """Answers in an order of their own: sums must not depend on who was first."""
    places = {node: place for place, node in enumerate(order)}
    return sorted(answers, key=lambda answer: places[answer.node])
