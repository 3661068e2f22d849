"""Replies that a hostile node may send, as changes of honest ones, each with what its fault says."""

import io
import json
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MessageType, MetricRecord, RecordDict

from headstart.flower import wire


def with_arrays(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Message], Message]:
    def spoil(reply: Message) -> Message:
        delta = reply.content.array_records[wire.DELTA]
        reply.content[wire.DELTA] = ArrayRecord({name: Array(change(a.numpy())) for name, a in delta.items()})
        return reply

    return spoil


def with_report(**fields: Any) -> Callable[[Message], Message]:
    def spoil(reply: Message) -> Message:
        record = reply.content.config_records[wire.REPORT]
        record["json"] = json.dumps(json.loads(str(record["json"])) | fields)
        return reply

    return spoil


def failed(reply: Message, reason: str | None = "RuntimeError") -> Message:
    reply.__dict__.update(_content=None, _error=Error(2, reason))
    return reply


def with_text(text: str) -> Callable[[Message], Message]:
    def spoil(reply: Message) -> Message:
        reply.content.config_records[wire.REPORT]["json"] = text
        return reply

    return spoil


def with_records(records: RecordDict) -> Callable[[Message], Message]:
    def spoil(reply: Message) -> Message:
        reply.__dict__["_content"] = records
        return reply

    return spoil


def with_arrays_in(change: Callable[[ArrayRecord], ArrayRecord]) -> Callable[[Message], Message]:
    def spoil(reply: Message) -> Message:
        reply.content[wire.DELTA] = change(reply.content.array_records[wire.DELTA])
        return reply

    return spoil


def with_data(change: Callable[[bytes], bytes]) -> Callable[[Message], Message]:
    """The bytes of every array changed, and not what the message says of them beside."""
    return with_arrays_in(
        lambda arrays: ArrayRecord({k: Array(a.dtype, a.shape, a.stype, change(a.data)) for k, a in arrays.items()})
    )


def saved(array: np.ndarray, version: tuple[int, int] = (1, 0), **options: Any) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version, **options)
    return file.getvalue()


def with_header(text: str) -> Callable[[bytes], bytes]:
    """The data of an array under another header."""
    return lambda data: b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + data[128:]


HEADER = "{{'descr': {}, 'fortran_order': False, 'shape': {}, }}\n"
BROKEN_ARRAYS = {
    "of nothing": (lambda data: b"", "is no array"),
    "cut short": (lambda data: data[:-1], "more or fewer numbers"),
    "with more behind": (lambda data: data + b"x", "more or fewer numbers"),
    "of objects": (lambda data: saved(np.array([{}], object), allow_pickle=True), "is no array"),
    "of text": (lambda data: saved(np.array(["a"])), "is no array"),
    "of records": (lambda data: saved(np.zeros(3, "f4,i4")), "is no array"),
    "in format 2": (lambda data: saved(np.zeros(3), (2, 0)), "is no array"),
    "in format 3": (lambda data: saved(np.zeros(3), (3, 0)), "is no array"),
    "in another byte order": (lambda data: saved(np.zeros((3, 4), ">f4")), "should be float32"),
    "of a huge shape": (with_header(HEADER.format("'<f4'", "(1000000000000000,)")), "is no array|should be float32"),
    "of a negative shape": (with_header(HEADER.format("'<f4'", "(-3,)")), "is no array"),
    "of an absurd shape": (with_header(HEADER.format("'<f4'", "(" + "9" * 5000 + ",)")), "is no array"),
    "of code": (with_header(HEADER.format("'<f4'", "(print(1),)")), "is no array"),
    "of brackets": (with_header("(" * 60_000), "is no array"),
    "of a broken header": (with_header("{'descr': '\u00e9', "), "is no array"),
}


REPLIES: dict[str, tuple[Callable[[Message], Message | None], str]] = {
    "not finite": (with_arrays(lambda array: np.full_like(array, np.nan)), "not finite"),
    "of another shape": (with_arrays(lambda array: array[..., :1]), "should be float32"),
    "of another type": (with_arrays(lambda array: array.astype(np.float64)), "float64"),
    "too heavy": (with_report(weight=1e9), "weight"),
    "of negative weight": (with_report(weight=-1.0), "weight"),
    "of no weight": (with_report(weight=0.0), "counts"),
    "no numbers": (with_report(weight=float("nan")), "no number"),
    "of other metrics": (with_report(metrics={"accuracy": [1, 2]}), "metrics"),
    "of too many clients": (with_report(clients=5), "counts"),
    "an error": (failed, "RuntimeError"),
    **{
        f"an error with the words {words[:12]!r}": (partial(failed, reason=words), escaped)
        for words, escaped in [
            ("{", "{"),
            ("{0}{x}", "{0}{x}"),
            ("{deadline.__class__.__mro__}", "{deadline.__class__"),
            ("{deadline:100000000}", "{deadline:1"),
            ("\x1b]0;owned\x07\n\u202e", r"\x1b]0;owned\x07\n\u202e"),
            ("x" * 2_000_000, "(2000000 characters)"),
        ]
    },
    "an error without a reason": (partial(failed, reason=None), "an error without a reason"),
    "deeply nested": (with_text("[" * 100_000), "nested more than 64 deep"),
    "a number of 5000 digits": (with_text('{"weight": ' + "1" * 5000 + "}"), "5000 digits"),
    "a number beyond floats": (with_report(weight=10**400), "must be a number"),
    "not JSON": (with_text("\x00"), "no JSON document"),
    "twice": (with_text('{"weight": 1, "weight": 2}'), "has 'weight' twice"),
    "another document": (with_report(more=1), "other fields"),
    "a list": (with_text("[]"), "must be a dictionary"),
    "of absurd counts": (with_report(clients=2**40), "must be a whole number from 0 to 2147483647"),
    "of a fractional count": (with_report(clients=1.5), "must be a whole number"),
    "of a count that is true": (with_report(dropped=True), "must be a whole number"),
    "of infinite metrics": (with_report(metrics={"accuracy": [1e999, 1], "loss": [1, 1]}), "no number"),
    "of huge metrics": (with_report(metrics={"accuracy": [1e300, 1], "loss": [1, 1]}), "its accuracy is 1e"),
    "of a loss that is of no use": (with_report(metrics={"accuracy": [1, 4], "loss": [1e30, 4]}), "before training"),
    "of metrics that are text": (with_report(metrics={"accuracy": ["1", 1], "loss": [1, 1]}), "must be a number"),
    "of metrics without counts": (with_report(metrics={"accuracy": [1], "loss": [1, 1]}), "a list of 2 to 2 items"),
    "without records": (with_records(RecordDict()), "has no record 'report'"),
    "of other records": (
        with_records(RecordDict({wire.REPORT: MetricRecord({"json": 1}), wire.DELTA: ConfigRecord({"a": b"b"})})),
        "has no record 'report'",
    ),
    "of bytes for text": (with_records(RecordDict({wire.REPORT: ConfigRecord({"json": b"{}"})})), "has no record"),
    "without arrays": (with_arrays_in(lambda arrays: ArrayRecord()), "missing or unexpected"),
    "of one more array": (
        with_arrays_in(lambda arrays: ArrayRecord({**arrays, "\x1b" * 10**6: Array(np.zeros(1))})),
        "missing or unexpected",
    ),
    "of broken arrays": (with_data(lambda data: data[:-1]), "more or fewer numbers"),
}


def with_curves(change: Callable[[str, np.ndarray], np.ndarray]) -> Callable[[Message], Message]:
    """Arrays of an evaluation changed, by their names."""

    def spoil(reply: Message) -> Message:
        if reply.metadata.message_type == MessageType.EVALUATE:
            arrays = reply.content.array_records[wire.CURVES]
            reply.content[wire.CURVES] = ArrayRecord({k: Array(change(k, a.numpy())) for k, a in arrays.items()})
        return reply

    return spoil


# Those that a real deployment gets, one of each kind: every round of it takes seconds.
DEPLOYED = (
    *("not finite", "of another shape", "of negative weight", "no numbers", "of too many clients", "an error"),
    *("an error with the words '{0}{x}'", "an error without a reason", "deeply nested", "a number beyond floats"),
    *("a list", "of absurd counts", "of huge metrics", "of other records", "without arrays", "of broken arrays"),
)
# Manifests, in the order in which a hostile node sends them.
MANIFESTS: list[tuple[Callable[[Message], Message], str]] = [
    (with_report(ids=[["a"], {}]), "must be text"),
    (with_report(schema="{0.__class__}"), "what its examples look like"),
    (with_text("[" * 100_000), "nested more than 64 deep"),
]
