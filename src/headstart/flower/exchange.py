"""Messages to nodes and their replies. Each message has a deadline, after which nobody waits for its reply."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from headstart.console import printable

# Seconds between two polls, and after a deadline until the SuperLink has said that no reply came.
POLL_SECONDS, GRACE_SECONDS = 0.25, 10.0

# Reasons for those of Flower's error codes that come without one, or with one that says less.
_REASONS = {3: "no reply within {deadline:g} s", 4: "no reply within {deadline:g} s", 8: "its process has ended"}
_GONE = 5
# The most characters of a reason that a node gives.
LONGEST_REASON = 500
# What Flower raises for a reply that is not in its format.
_UNREADABLE = (ArithmeticError, AssertionError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


class Answer(NamedTuple):
    """The outcome of a message to a node: the content of its reply, or the reason why there is none."""

    node: int
    content: RecordDict | None
    reason: str = ""


class Pending(NamedTuple):
    """Messages without an answer so far: the node of each by the message's id, and when to stop waiting for it."""

    nodes: Mapping[str, int]
    deadline: float
    gives_up_at: float


def send(grid: Grid, kind: str, contents: Mapping[int, RecordDict], *, deadline: float, group: str = "") -> Pending:
    """Send every node its content; a reply after `deadline` seconds is not delivered."""
    messages = [Message(c, node, kind, ttl=deadline, group_id=group) for node, c in contents.items()]
    ids = list(grid.push_messages(messages)) if messages else []
    # A node that has left takes no message; `collect` answers for it.
    names = [name or f"unsent {node}" for name, node in zip(ids, contents, strict=False)]
    names += [f"unsent {node}" for node in list(contents)[len(ids) :]]
    return Pending(dict(zip(names, contents, strict=True)), deadline, time.monotonic() + deadline + GRACE_SECONDS)


def collect(grid: Grid, pending: Pending) -> tuple[list[Answer], Pending]:
    """The answers that have arrived, and the messages that are still pending."""
    sent = [name for name in pending.nodes if not name.startswith("unsent ")]
    found = {name: answer for name in sent if (answer := _pull(grid, name, pending)) is not None}
    late = time.monotonic() > pending.gives_up_at
    answers = []
    for name, node in pending.nodes.items():
        if name in found:
            answers.append(found[name])
        elif late or name not in sent:
            reason = f"no reply within {pending.deadline:g} s" if name in sent else "the message could not be sent"
            answers.append(Answer(node, None, reason))
    answered = {answer.node for answer in answers}
    return answers, pending._replace(nodes={k: n for k, n in pending.nodes.items() if n not in answered})


def exchange(
    grid: Grid, kind: str, contents: Mapping[int, RecordDict], *, deadline: float, group: str = ""
) -> Iterator[Answer]:
    """Send every node its content, and yield the answers as they arrive, one for every node."""
    pending = send(grid, kind, contents, deadline=deadline, group=group)
    while pending.nodes:
        answers, pending = collect(grid, pending)
        yield from answers
        if pending.nodes:
            time.sleep(POLL_SECONDS)


def _pull(grid: Grid, name: str, pending: Pending) -> Answer | None:
    """The answer to one message; None if there is none so far.

    Each is pulled by itself: of several that Flower cannot read one of, it would return none.
    """
    node = pending.nodes[name]
    try:
        for message in grid.pull_messages([name]):
            return _answer(node, message, pending.deadline)
    except _UNREADABLE as error:
        return Answer(node, None, f"Flower cannot read the reply ({type(error).__name__})")
    return None


def _answer(node: int, message: Message, deadline: float) -> Answer:
    if message.has_content():
        return Answer(node, message.content)
    code, reason = message.error.code, message.error.reason
    if code == _GONE:
        return Answer(node, None, "the node is gone")
    if code in _REASONS:
        return Answer(node, None, _REASONS[code].format(deadline=deadline))
    return Answer(node, None, printable(reason or "an error without a reason", most=LONGEST_REASON))


def sort_answers(answers: Iterable[Answer], nodes: Iterable[int]) -> list[Answer]:
    """Sort answers into the order of these nodes: sums must not depend on who replied first."""
    rank = {node: index for index, node in enumerate(nodes)}
    return sorted(answers, key=lambda answer: rank[answer.node])
