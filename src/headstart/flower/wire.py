"""Messages on the network: trees as named arrays; requests, manifests and totals as JSON. Nothing is pickled.

Whatever arrives is read by one of the `read_` functions, which return it checked or raise a `UserError`.
"""

from __future__ import annotations

import json
import math
import re
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from headstart.data.decided import decisions
from headstart.data.federation import Federation, Tree, named
from headstart.data.preprocessing import from_json
from headstart.documents import LARGEST, parse_json
from headstart.errors import UserError
from headstart.flower.example_schema import checked_schema, schema_of
from headstart.flower.schema import (
    Schema,
    boolean,
    distinct,
    document,
    expect,
    fields,
    listed,
    number,
    text,
    whole,
)
from headstart.learning.personalization import Curves
from headstart.learning.rounds import Totals
from headstart.learning.tasks import Metric

PARAMS, REQUEST, DELTA, REPORT, CURVES = "params", "request", "delta", "report", "curves"

# The most characters of the document with totals, which does not grow with the model or the clients.
LARGEST_TOTALS = 2**20
# The most labels of a column that a node sends.
MOST_LABELS = 1000
# The most items (examples, or tokens of them) that a client may have.
MOST_COUNTED = 2**40


@dataclass(frozen=True)
class ArraySpec:
    """Shape and dtype that an array should have; the dtype None stands for any floating one."""

    shape: tuple[int, ...]
    dtype: Any = None


class Request(NamedTuple):
    """A request of the server to a node.

    experiment: a document of `serialization.to_json`.
    x64: whether the server computes in 64 bits; then the node does.
    stage, round, seed: with the client's id, all that decides a client's keys.
    clients: ids of the node's clients that the request is for.
    epochs: of personalization (or steps), for an evaluation.
    decided: what the run has decided of its data, by which the node reads its own; nothing before that is known.
    """

    experiment: Mapping[str, Any]
    x64: bool = False
    stage: int = 0
    round: int = 0
    seed: int = 0
    clients: tuple[str, ...] = ()
    epochs: int = 0
    decided: Mapping[str, Any] = MappingProxyType({})


class Manifest(NamedTuple):
    """The clients of a node, without their examples.

    ids: one string per client. sizes: int `[clients, 2]`, support and query examples of each.
    schema: of the examples, by `schema_of`; the same on all nodes of a run.
    inverted, background: whether the node inverted pictures of a table, and the level of their background thereafter;
        None without any.
    """

    ids: tuple[str, ...]
    sizes: np.ndarray
    schema: Mapping[str, Any]
    inverted: bool | None = None
    background: int | None = None


def request_record(request: Request, params: Tree = None) -> RecordDict:
    """The message of a request, with the parameters to start from."""
    content = RecordDict({REQUEST: _document({**request._asdict(), "decided": dict(request.decided)})})
    if params is not None:
        content[PARAMS] = to_arrays(params)
    return content


def read_request(content: RecordDict) -> Request:
    """The request of a message, checked; its experiment is still a document.

    Raises:
        UserError: if there is none, or it is not as requests are.
    """
    return Request(**_read(content, REQUEST, _REQUEST))


def manifest_record(federation: Federation) -> RecordDict:
    """The message with the manifest of these clients; it holds no example."""
    sizes = np.asarray(federation.sizes).tolist()
    report = {"ids": list(federation.ids), "sizes": sizes, "schema": schema_of(federation)}
    decided = decisions(federation.metadata)
    report |= {name: decided[name] for name in ("inverted", "background") if "inverted" in decided and name in decided}
    return RecordDict({REPORT: _document(report)})


def read_manifest(content: RecordDict) -> Manifest:
    """The manifest of a message, checked.

    Raises:
        UserError: if there is none, or it contradicts itself.
    """
    report = _read(content, REPORT, _MANIFEST)
    expect(
        len(report["sizes"]) == len(report["ids"]), len(report["sizes"]), "the number of its sizes", "that of its ids"
    )
    sizes = np.array(report["sizes"], np.int64).reshape(-1, 2)
    return Manifest(report["ids"], sizes, report["schema"], report.get("inverted"), report.get("background"))


def report_record(report: Mapping[str, Any]) -> RecordDict:
    """The message with a document."""
    return RecordDict({REPORT: _document(report)})


def read_report(content: RecordDict, schema: Schema) -> dict[str, Any]:
    """The document of a message of `report_record`, checked.

    Raises:
        UserError: if there is none, or it is not as the schema says.
    """
    return _read(content, REPORT, schema)


def totals_record(totals: Totals) -> RecordDict:
    """The message with the totals of a node's clients.

    Raises:
        UserError: if a metric is not finite; the server could not count it.
    """
    metrics = {name: [float(total), float(count)] for name, (total, count) in totals.metrics.items()}
    report = {"weight": float(totals.weight), "clients": int(totals.clients), "dropped": int(totals.dropped)}
    return RecordDict({DELTA: to_arrays(totals.delta), REPORT: _document(report | {"metrics": metrics})})


def read_totals(content: RecordDict, like: Totals, *, max_weight: float, clients: int) -> Totals:
    """The totals of a message, checked so that they cannot spoil a round.

    like: totals of the right structure. max_weight: the largest weight these clients can have together.
    clients: how many of them the request was for.

    Raises:
        UserError: if the totals cannot be those of these clients.
    """
    schema = fields(_TOTALS | {"metrics": fields(dict.fromkeys(like.metrics, _SUM))})
    report = _read(content, REPORT, schema, largest=LARGEST_TOTALS)
    weight, counted, dropped = (report[name] for name in ("weight", "clients", "dropped"))
    if weight > max_weight * (1 + 1e-6):
        raise UserError(f"its weight is {weight:g}, and its clients' is at most {max_weight:g}")
    if counted + dropped > clients or (weight > 0) != (counted > 0):
        raise UserError(
            f"it counts {counted} clients and drops {dropped} of {clients} requested, with weight {weight:g}"
        )
    metrics = {
        name: tuple(_as(report["metrics"][name][i], part, name) for i, part in enumerate(pair))
        for name, pair in like.metrics.items()
    }
    delta = from_arrays(_arrays(content, DELTA), like.delta)
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(delta)):
        raise UserError("its Δ has numbers that are not finite")
    return Totals(delta, _as(weight, like.weight, "weight"), metrics, jnp.int32(counted), jnp.int32(dropped))


def _as(value: float, like: Any, name: str) -> Any:
    """A number in the type of another, which must have room for it."""
    limits = jnp.finfo(like.dtype) if jnp.issubdtype(like.dtype, jnp.floating) else jnp.iinfo(like.dtype)
    return jnp.asarray(number(float(limits.min), float(limits.max))(value, f"its {name}"), like.dtype)


def curves_record(curves: Curves) -> RecordDict:
    """The message with the personalization curves of a node's clients."""
    return RecordDict({CURVES: to_arrays(curves)})


def read_curves(content: RecordDict, metrics: Sequence[Metric], *, clients: int, epochs: int) -> Curves:
    """The personalization curves of a message. A client with a number that is not finite counts nothing, as without.

    Raises:
        UserError: if they are not of this many clients and epochs, lack a metric, or are out of a metric's range.
    """
    whole: Any = ArraySpec((clients, epochs + 1))
    one: Any = ArraySpec((clients,))
    like = Curves({m.name: (whole, one) for m in metrics}, whole, whole)
    curves: Curves = from_arrays(_arrays(content, CURVES), like)
    finite = np.all([np.isfinite(leaf).reshape(clients, -1).all(axis=1) for leaf in jax.tree.leaves(curves)], axis=0)
    if not finite.any():
        raise UserError("none of its clients has metrics that are finite")
    curves = jax.tree.map(lambda leaf: np.where(finite.reshape(-1, *[1] * (leaf.ndim - 1)), leaf, 0), curves)
    for metric in metrics:
        sums, counts = curves.metrics[metric.name]
        if (counts < 0).any() or (counts > MOST_COUNTED).any():
            raise UserError(f"its counts of {metric.name} are not from 0 to {MOST_COUNTED}")
        if metric.zero_one and ((sums < 0) | (sums > counts[:, None] * 1.001)).any():
            raise UserError(f"its sums of {metric.name}, an item of which is 0 or 1, are not from 0 to their counts")
    return curves


def to_arrays(tree: Tree) -> ArrayRecord:
    """A tree of arrays, each named by its path."""
    return ArrayRecord({name: Array(np.asarray(leaf)) for name, leaf in named(tree)})


def from_arrays(record: ArrayRecord, like: Tree) -> Tree:
    """The tree of a record, as numpy arrays in the structure of `like`.

    like: a tree of arrays, or of `ArraySpec`.

    Raises:
        UserError: if names, shapes or dtypes differ.
    """
    expected = dict(named(like))
    if set(record) != set(expected):
        other = sorted(set(record) ^ set(expected))[0]
        raise UserError(f"its arrays are not those of the model: {reprlib.repr(other)} is missing or unexpected")
    leaves = [_array(name, record[name], leaf) for name, leaf in expected.items()]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


# The header of an array in numpy's format, version 1.0, as `np.save` writes it.
_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '([<>|=]?[biufc]\d{1,2})', 'fortran_order': (True|False), "
    rb"'shape': \((|\d{1,15},|\d{1,15}(?:, \d{1,15}){1,31})\), \} *\n",
    re.DOTALL,
)


def _array(name: str, array: Array, like: Any) -> np.ndarray:
    header = _HEADER.match(array.data) if array.stype == "numpy.ndarray" else None
    try:
        descr, in_fortran, sides = header.groups() if header else (b"", b"", b"")
        dtype, shape = np.dtype(descr.decode()), tuple(int(side) for side in sides.split(b",") if side)
    except (TypeError, ValueError):
        header = None
    if header is None or header.end() != 10 + int.from_bytes(array.data[8:10], "little"):
        raise UserError(f"{name} is no array")
    fits = dtype == like.dtype if like.dtype is not None else dtype in (np.float32, np.float64)
    if shape != tuple(like.shape) or not fits:
        wanted = "float" if like.dtype is None else np.dtype(like.dtype)
        raise UserError(f"{name} is {dtype}{reprlib.repr(list(shape))}, and should be {wanted}{list(like.shape)}")
    if len(array.data) != header.end() + math.prod(shape) * dtype.itemsize:
        raise UserError(f"{name} has more or fewer numbers than its shape says")
    flat = np.frombuffer(array.data, dtype, offset=header.end())
    return flat.reshape(shape, order="F" if in_fortran == b"True" else "C").copy(order="C")


def _arrays(content: RecordDict, name: str) -> ArrayRecord:
    record = content.get(name)
    if not isinstance(record, ArrayRecord):
        raise UserError(f"it sends no arrays named {name!r}")
    return record


def _document(fields: Mapping[str, Any]) -> ConfigRecord:
    try:
        return ConfigRecord({"json": json.dumps(dict(fields), allow_nan=False)})
    except ValueError:
        raise UserError("a number of the message is not finite") from None


def _read(content: RecordDict, name: str, schema: Schema, *, largest: int = LARGEST) -> dict[str, Any]:
    record = content.get(name)
    text = record.get("json") if isinstance(record, ConfigRecord) else None
    if not isinstance(text, str):
        raise UserError(f"it has no record {name!r} of this version of headstart; install the same on all nodes")
    try:
        found = parse_json(text, largest=largest)
    except ValueError as error:
        raise UserError(f"its record {name!r} is no JSON document: {error}") from None
    return schema(found, f"its {name}")


def size_of(content: RecordDict) -> int:
    """The bytes of a message's content, without the framing around it."""
    text = sum(len(str(value)) for record in content.config_records.values() for value in record.values())
    return text + sum(record.count_bytes() for record in content.array_records.values())


def _preprocessing(value: Any, where: str) -> Any:
    """What was decided of a table's columns, as `preprocessing.to_json` writes it."""
    from_json(value)
    return value


_DECISIONS: Mapping[str, Schema] = {
    "kind": text(),
    "classes": whole(0, 2**24),
    "labels": listed(text()),
    "features": listed(text()),
    "inverted": boolean,
    "background": whole(0, 255),
    "regression": boolean,
    "preprocessing": _preprocessing,
}
_REQUEST = fields(
    {
        "experiment": document,
        "x64": boolean,
        "stage": whole(0, 1000),
        "round": whole(0, 2**31 - 1),
        "seed": whole(0, 2**32 - 1),
        "clients": distinct(listed(text())),
        "epochs": whole(0, 2**20),
    },
    optional={"decided": fields({}, optional=_DECISIONS)},
)
_MANIFEST = fields(
    {
        "ids": distinct(listed(text())),
        "sizes": listed(listed(whole(0, MOST_COUNTED), least=2, most=2)),
        "schema": checked_schema,
    },
    optional={"inverted": boolean, "background": whole(0, 255)},
)
_COUNT = whole(0, 2**31 - 1)
_TOTALS = {"weight": number(0), "clients": _COUNT, "dropped": _COUNT}
# The sum of a metric over items, and their number.
_SUM = listed(number(), least=2, most=2)
