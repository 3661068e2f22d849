"""Any message of a node or a server ends in a value or in a `UserError`; no request ends a device otherwise."""

import json
import time
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("flwr")

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict

import tiny
from arbitrary import changed, documents, examples
from headstart import Data, Experiment, FedSGD, ModelSpec, Optimizer, Stage, UserError
from headstart.experiment.serialization import to_json
from headstart.flower import client_app, wire
from headstart.flower.exchange import _answer
from headstart.learning.personalization import Curves, Personalization
from headstart.learning.rounds import Totals
from headstart.learning.tasks import Classification
from hostile import BROKEN_ARRAYS
from inline_grid import InlineGrid, Node

PLAN = Experiment(
    "arbitrary",
    (Stage("step", FedSGD(0.1), Optimizer(), 3, 4),),
    Data("devices"),
    ModelSpec("logistic"),
    Classification(),
    Personalization(epochs=2),
)
SUMS = {name: (jnp.float32(1), jnp.float32(2)) for name in ("accuracy", "loss")}
TOTALS = Totals({"w": jnp.ones((3, 4))}, jnp.float32(2), SUMS, jnp.int32(2), jnp.int32(0))
PAIR = np.ones((2, 3), np.float32), np.full(2, 4, np.float32)
CURVES = Curves({"accuracy": PAIR, "loss": PAIR}, PAIR[0], PAIR[0])
REQUEST = wire.request_record(wire.Request(json.loads(json.dumps(to_json(PLAN))), clients=("a", "b"), epochs=1))
MANIFEST = wire.manifest_record(tiny.federation())
READERS = [
    (REQUEST, wire.REQUEST, wire.read_request),
    (MANIFEST, wire.REPORT, wire.read_manifest),
    (
        wire.totals_record(TOTALS),
        wire.REPORT,
        lambda content: wire.read_totals(content, TOTALS, max_weight=9.0, clients=3),
    ),
]


def document(record: RecordDict, name: str) -> Any:
    return json.loads(str(record.config_records[name]["json"]))


def ends(attempt, *arguments):
    began = time.monotonic()
    try:
        return attempt(*arguments)
    except UserError as error:
        assert str(error).strip()
        return None
    finally:
        assert time.monotonic() - began < 10


def text_of(value: Any) -> str:
    return json.dumps(value)


MESSAGES = st.sampled_from(READERS).flatmap(
    lambda sound: st.tuples(
        st.just(sound),
        changed(document(*sound[:2])).map(text_of) | documents.map(text_of) | st.text(max_size=30) | st.binary(),
    )
)


@examples(250)
@given(MESSAGES)
def test_any_document_is_read_or_refused(message):
    (sound, name, read), text = message
    assert read(sound) is not None
    try:
        record = ConfigRecord({"json": text})
    except TypeError:
        return
    ends(read, RecordDict({**sound, name: record}))


RECORDS = st.sampled_from(
    [
        ConfigRecord({"json": [1, 2]}),
        ConfigRecord({}),
        MetricRecord({"json": 1}),
        ArrayRecord({}),
        ArrayRecord([np.ones(3), np.array(["a"])]),
    ]
)


@examples(100)
@given(st.sampled_from(READERS), st.dictionaries(st.sampled_from((wire.REQUEST, wire.REPORT, wire.DELTA)), RECORDS))
def test_any_records_are_read_or_refused(reader, records):
    sound, _, read = reader
    ends(read, RecordDict({**sound, **records}))
    ends(read, RecordDict(records))


@st.composite
def arrays(draw: st.DrawFn, data: bytes) -> bytes:
    """The bytes of an array, with some changed, cut out or put in."""
    if draw(st.integers(0, 4)) == 0:
        return draw(st.sampled_from(list(BROKEN_ARRAYS.values())))[0](data)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)) | st.integers(0, 90))
        more = draw(st.binary(max_size=3) | st.sampled_from((b"9" * 20, b"(", b"'", b"|O", b"\n", b"-")))
        data = data[:start] + more + data[start + draw(st.integers(0, 3)) :]
    return data


DATA = Array(np.ones((3, 4), np.float32)).data


@examples(250)
@given(arrays(DATA) | st.binary(max_size=200), st.sampled_from(("numpy.ndarray", "", "pickle")), st.text(max_size=5))
def test_any_array_is_read_or_refused(data, kind, name):
    like = {"w": np.ones((3, 4), np.float32)}
    found = ends(wire.from_arrays, ArrayRecord({"['w']": Array("float32", (3, 4), kind, data)}), like)
    if found is not None:
        assert found["w"].dtype == np.float32 and found["w"].shape == (3, 4)
    ends(wire.from_arrays, ArrayRecord({name: Array("float32", (3, 4), kind, data)}), like)


FLOATS = st.floats(width=32) | st.sampled_from((0.0, 1.0, -1.0, np.nan, np.inf, 1e30))


@examples(100)
@given(st.lists(FLOATS, min_size=6, max_size=6), st.integers(0, 5), st.sampled_from((np.float32, np.float64, np.int32)))
def test_any_curves_are_read_finite_or_refused(values, index, dtype):
    record = wire.curves_record(CURVES)
    name = list(record.array_records[wire.CURVES])[index]
    shape = record.array_records[wire.CURVES][name].shape
    with np.errstate(invalid="ignore", over="ignore"):
        array = np.array(values, np.float64).astype(dtype)[: int(np.prod(shape))].reshape(shape)
    record[wire.CURVES] = ArrayRecord({**record.array_records[wire.CURVES], name: Array(array)})
    found = ends(lambda: wire.read_curves(record, Classification().metrics, clients=2, epochs=2))
    if found is not None:
        assert all(np.isfinite(leaf).all() for leaf in (found.gain, *found.metrics["accuracy"], *found.metrics["loss"]))


@examples(100)
@given(st.none() | st.text(), st.integers(-5, 12))
def test_any_words_of_a_node_are_a_reason(words, code):
    message = type("Failed", (), {"has_content": lambda self: False, "error": type("Error", (), {})()})()
    message.error.code, message.error.reason = code, words
    reason = _answer(1, message, 3.0).reason
    assert reason.isprintable() and len(reason) < 6000


APP = client_app(None, lambda context: tiny.federation())


@examples(30)
@given(changed(document(REQUEST, wire.REQUEST)), st.sampled_from((MessageType.QUERY, MessageType.EVALUATE)))
def test_any_request_is_answered_or_refused_by_a_device(request, kind):
    there = InlineGrid({1: Node(APP, {})})
    message = Message(RecordDict({wire.REQUEST: ConfigRecord({"json": text_of(request)})}), 1, kind)
    there.push_messages([message])
    reply = next(iter(there.pull_messages([message.metadata.message_id])))
    if reply.has_error():
        assert "the node's own log says more" not in str(reply.error.reason)
