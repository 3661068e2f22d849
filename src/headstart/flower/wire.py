"""Messages on the network: trees as named arrays; requests, manifests and totals as JSON. Nothing is pickled."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from headstart.data.federation import Federation, Tree, named
from headstart.errors import UserError
from headstart.learning.personalization import Curves
from headstart.learning.rounds import Totals
from headstart.learning.tasks import Metric

PARAMS, REQUEST, DELTA, REPORT, CURVES = "params", "request", "delta", "report", "curves"

# The most numbers in one example, so that the shape a node reports cannot take all of the server's memory.
LARGEST_EXAMPLE = 2**27


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
    """

    experiment: Mapping[str, Any]
    x64: bool = False
    stage: int = 0
    round: int = 0
    seed: int = 0
    clients: tuple[str, ...] = ()
    epochs: int = 0


class Manifest(NamedTuple):
    """The clients of a node, without their examples.

    ids: one string per client. sizes: int `[clients, 2]`, support and query examples of each.
    schema: of the examples, by `schema_of`; the same on all nodes of a run.
    """

    ids: tuple[str, ...]
    sizes: np.ndarray
    schema: Mapping[str, Any]


def request_record(request: Request, params: Tree = None) -> RecordDict:
    """The message of a request, with the parameters to start from."""
    content = RecordDict({REQUEST: _document(request._asdict())})
    if params is not None:
        content[PARAMS] = to_arrays(params)
    return content


def read_request(content: RecordDict) -> Request:
    """The request of a message."""
    fields = _read(content, REQUEST, Request._fields)
    return Request(**{**fields, "clients": tuple(fields["clients"])})


def manifest_record(federation: Federation) -> RecordDict:
    """The message with the manifest of these clients; it holds no example."""
    sizes = np.asarray(federation.sizes).tolist()
    report = {"ids": list(federation.ids), "sizes": sizes, "schema": schema_of(federation)}
    return RecordDict({REPORT: _document(report)})


def read_manifest(content: RecordDict) -> Manifest:
    """The manifest of a message, checked.

    Raises:
        UserError: if there is none, or it contradicts itself.
    """
    report = _read(content, REPORT, Manifest._fields)
    ids = report["ids"]
    try:
        sizes = np.array(report["sizes"], np.int64).reshape(len(ids), 2)
    except (TypeError, ValueError, OverflowError):
        raise UserError("its sizes are not two whole numbers per client") from None
    if (sizes < 0).any() or len(set(ids)) != len(ids) or not all(isinstance(name, str) for name in ids):
        raise UserError("its clients have negative sizes or ids that are not unique strings")
    placeholder(report["schema"])
    return Manifest(tuple(ids), sizes, report["schema"])


def totals_record(totals: Totals) -> RecordDict:
    """The message with the totals of a node's clients."""
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
    report = _read(content, REPORT, ("weight", "clients", "dropped", "metrics"))
    weight, counted, dropped = (_number(report[name], name) for name in ("weight", "clients", "dropped"))
    if not 0 <= weight <= max_weight * (1 + 1e-6):
        raise UserError(f"its weight is {weight:g}, and its clients' is at most {max_weight:g}")
    if not (counted >= 0 and dropped >= 0 and counted + dropped <= clients) or (weight > 0) != (counted > 0):
        raise UserError(
            f"it counts {counted:g} clients and drops {dropped:g} of {clients} requested, with weight {weight:g}"
        )
    delta = from_arrays(_arrays(content, DELTA), like.delta)
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(delta)):
        raise UserError("its Δ has numbers that are not finite")
    whole = {"clients": jnp.int32(counted), "dropped": jnp.int32(dropped)}
    return Totals(delta, jnp.asarray(weight, like.weight.dtype), _metrics(report["metrics"], like), **whole)


def _metrics(report: Any, like: Totals) -> Any:
    if not isinstance(report, dict) or set(report) != set(like.metrics):
        raise UserError(f"its metrics are not {', '.join(like.metrics)}")
    try:
        pairs = {name: np.array(report[name], np.float64).reshape(2) for name in like.metrics}
    except (TypeError, ValueError):
        raise UserError("its metrics are not a sum and a count each") from None
    return {
        name: tuple(jnp.asarray(pairs[name][i], total.dtype) for i in (0, 1))
        for name, (total, _) in like.metrics.items()
    }


def curves_record(curves: Curves) -> RecordDict:
    """The message with the personalization curves of a node's clients."""
    return RecordDict({CURVES: to_arrays(curves)})


def read_curves(content: RecordDict, metrics: Sequence[Metric], *, clients: int, epochs: int) -> Curves:
    """The personalization curves of a message.

    Raises:
        UserError: if they are not of this many clients and epochs, or lack a metric.
    """
    whole: Any = ArraySpec((clients, epochs + 1))
    one: Any = ArraySpec((clients,))
    return from_arrays(_arrays(content, CURVES), Curves({m.name: (whole, one) for m in metrics}, whole, whole))


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
        raise UserError(f"its arrays are not those of the model: {other} is missing or unexpected")
    leaves = [_array(name, record[name], leaf) for name, leaf in expected.items()]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _array(name: str, array: Array, like: Any) -> np.ndarray:
    try:
        # The header first: it says how much memory the rest would take.
        file = io.BytesIO(array.data)
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError(name)
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    except (ValueError, TypeError) as error:
        raise UserError(f"{name} is no array") from error
    fits = dtype == like.dtype if like.dtype is not None else np.issubdtype(dtype, np.floating)
    if shape != tuple(like.shape) or not fits:
        wanted = "float" if like.dtype is None else np.dtype(like.dtype)
        raise UserError(f"{name} is {dtype}{list(shape)}, and should be {wanted}{list(like.shape)}")
    try:
        return array.numpy()
    except (ValueError, TypeError, EOFError) as error:
        raise UserError(f"{name} is no array") from error


def _arrays(content: RecordDict, name: str) -> ArrayRecord:
    record = content.get(name)
    if not isinstance(record, ArrayRecord):
        raise UserError(f"it sends no arrays named {name!r}")
    return record


def _document(fields: Mapping[str, Any]) -> ConfigRecord:
    return ConfigRecord({"json": json.dumps(dict(fields))})


def _read(content: RecordDict, name: str, fields: Sequence[str]) -> dict[str, Any]:
    record = content.get(name)
    text = record.get("json") if isinstance(record, ConfigRecord) else None
    try:
        report = json.loads(text) if isinstance(text, str) else None
    except ValueError:
        report = None
    if not isinstance(report, dict) or set(report) != set(fields):
        raise UserError(f"its record {name!r} is not one of this version of headstart; install the same on all nodes")
    return report


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
        raise UserError(f"its {name} is {value!r}, which is no number")
    return float(value)


def size_of(content: RecordDict) -> int:
    """The bytes of a message's content, without the framing around it."""
    text = sum(len(str(value)) for record in content.config_records.values() for value in record.values())
    return text + sum(record.count_bytes() for record in content.array_records.values())


def schema_of(federation: Federation) -> dict[str, Any]:
    """The shape and dtype of an example, whether its source has a test split, and the metadata that models need."""
    known = {
        name: federation.metadata[name]
        for name in ("kind", "classes", "labels", "features")
        if name in federation.metadata
    }
    known = {name: list(value) if isinstance(value, list | tuple) else value for name, value in known.items()}
    x, y = map(_shape, federation.example())
    schema = {"x": x, "y": y, "has_predefined_split": federation.has_predefined_split, "metadata": known}
    return json.loads(json.dumps(schema, default=str))


def _shape(tree: Tree) -> Any:
    """The shapes of a tree of rows as JSON; a leaf is text, such as uint8[28,28,1]."""
    if isinstance(tree, Mapping):
        return {str(name): _shape(leaf) for name, leaf in tree.items()}
    if isinstance(tree, list | tuple):
        return [_shape(leaf) for leaf in tree]
    return f"{tree.dtype}[{','.join(map(str, tree.shape[1:]))}]"


def placeholder(schema: Mapping[str, Any], ids: Sequence[str] = (), sizes: np.ndarray | None = None) -> Federation:
    """A federation of blank rows with the schema of the nodes' examples, to build a model for.

    Raises:
        UserError: if the schema is not valid.
    """

    def fetch(clients: np.ndarray) -> tuple[Tree, Tree]:
        return _blank(schema["x"]), _blank(schema["y"])

    sizes = np.zeros((len(ids), 2), np.int64) if sizes is None else sizes
    try:
        fetch(np.zeros(0))
        metadata = dict(schema["metadata"])
        return Federation("devices", ids, sizes, fetch, bool(schema["has_predefined_split"]), metadata)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            "a node does not say what its examples look like; install the same headstart on all nodes"
        ) from error


def _blank(shape: Any) -> Tree:
    if isinstance(shape, Mapping):
        return {name: _blank(leaf) for name, leaf in shape.items()}
    if isinstance(shape, list):
        return tuple(map(_blank, shape))
    dtype, _, sides = shape.removesuffix("]").partition("[")
    row = [int(side) for side in sides.split(",") if side]
    if not all(side >= 0 for side in row) or np.prod(row, dtype=float) > LARGEST_EXAMPLE:
        raise ValueError(shape)
    return np.zeros((2, *row), np.dtype(dtype))


def most_common(schemas: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The schema that most nodes share; of several, the first."""
    texts = Counter(json.dumps(schema, sort_keys=True) for schema in schemas)
    return json.loads(texts.most_common(1)[0][0])
