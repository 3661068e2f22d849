"""What the examples of a node look like: shapes, types and what models need to know of them, as JSON."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from headstart.data.federation import Federation, Tree
from headstart.data.preprocessing import Preprocessing, is_raw, raw_columns, to_json
from headstart.data.readers.encoding import KINDS
from headstart.errors import UserError
from headstart.flower.schema import Schema, boolean, document, expect, fields, listed, scalar, text, whole

# The most numbers in one example, so that the shape a node reports cannot take all of the server's memory.
LARGEST_EXAMPLE = 2**27


def schema_of(federation: Federation) -> dict[str, Any]:
    """The shape and dtype of an example, whether its source has a test split, and the metadata that models need."""
    known = {
        name: federation.metadata[name]
        for name in ("kind", "classes", "labels", "features")
        if name in federation.metadata
    }
    known |= columns_of(federation)
    known = {name: list(value) if isinstance(value, list | tuple) else value for name, value in known.items()}
    x, y = map(_shape, federation.example())
    # Whether a node's own rows have gaps is no difference between nodes.
    x = x.replace("float32", "float64") if "columns" in known else x
    schema = {"x": x, "y": y, "has_predefined_split": federation.has_predefined_split, "metadata": known}
    return json.loads(json.dumps(schema, default=_plain))


def columns_of(federation: Federation) -> dict[str, Any]:
    """What a node says of a raw table's columns, as metadata: the kind of each, in the order of its features."""
    return {"columns": [column["kind"] for column in raw_columns(federation)]} if is_raw(federation) else {}


def is_table_schema(schema: Mapping[str, Any]) -> bool:
    """Whether nodes with this schema of their examples hold raw tables."""
    return "columns" in schema["metadata"]


def feature_schema(schema: Mapping[str, Any], preprocessing: Preprocessing) -> dict[str, Any]:
    """The schema of the features that become of raw tables with this one."""
    metadata = dict(schema["metadata"]) | {
        "features": [column.name for column in preprocessing.used],
        "columns": [{"name": column.name, "kind": column.kind} for column in preprocessing.used],
        "preprocessing": to_json(preprocessing),
    }
    return {**schema, "x": f"float32[{len(preprocessing.features)}]", "metadata": metadata}


def _plain(value: Any) -> Any:
    """A value of numpy as one of JSON; of anything else, its text."""
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else str(value)


def _shape(tree: Tree) -> Any:
    """The shapes of a tree of rows as JSON; a leaf is text, such as uint8[28,28,1]."""
    if isinstance(tree, Mapping):
        return {str(name): _shape(leaf) for name, leaf in tree.items()}
    if isinstance(tree, list | tuple):
        return [_shape(leaf) for leaf in tree]
    return f"{tree.dtype}[{','.join(map(str, tree.shape[1:]))}]"


def placeholder(
    schema: Mapping[str, Any],
    ids: Sequence[str] = (),
    sizes: np.ndarray | None = None,
    *,
    preprocessing: Preprocessing | None = None,
) -> Federation:
    """A federation of blank rows with the schema of the nodes' examples, to build a model for.

    preprocessing: what makes features of raw tables.

    Raises:
        UserError: if the schema is not valid.
    """
    checked_schema(schema, "the schema")
    schema = schema if preprocessing is None else feature_schema(schema, preprocessing)

    def fetch(clients: np.ndarray) -> tuple[Tree, Tree]:
        return _blank(schema["x"]), _blank(schema["y"])

    sizes = np.zeros((len(ids), 2), np.int64) if sizes is None else sizes
    return Federation("devices", ids, sizes, fetch, schema["has_predefined_split"], dict(schema["metadata"]))


def _blank(shape: Any) -> Tree:
    """Two rows of zeros for every leaf, which take no memory."""
    if isinstance(shape, Mapping):
        return {name: _blank(leaf) for name, leaf in shape.items()}
    if isinstance(shape, list):
        return tuple(map(_blank, shape))
    dtype, row = _parsed(shape)
    return np.broadcast_to(np.zeros((), dtype), (2, *row))


_LEAF = re.compile(
    r"(bool|bfloat16|(?:u?int|float)(?:8|16|32|64)|complex(?:64|128))\[((?:\d{1,9}(?:,\d{1,9}){0,31})?)\]"
)


def _parsed(leaf: str) -> tuple[np.dtype, tuple[int, ...]]:
    """The type and the shape in a text such as uint8[28,28,1]."""
    found = _LEAF.fullmatch(leaf)
    if found is None:
        raise ValueError(leaf)
    return np.dtype(found[1]), tuple(int(side) for side in found[2].split(",") if side)


def _numbers(shape: Any) -> int:
    """The numbers in an example of a shape; a tree of nothing has one, so that no tree is too large for none.

    Raises:
        TypeError, ValueError: if it is no shape.
    """
    if isinstance(shape, str):
        return math.prod(_parsed(shape)[1])
    if not isinstance(shape, dict | list):
        raise TypeError(shape)
    return 1 + sum(map(_numbers, shape.values() if isinstance(shape, dict) else shape))


def _example(value: Any, where: str) -> Any:
    try:
        fits = _numbers(value) <= LARGEST_EXAMPLE
    except (TypeError, ValueError):
        fits = False
    return expect(fits, value, where, f"the shape of at most {LARGEST_EXAMPLE} numbers, such as uint8[28,28,1]")


def _metadata(value: Any, where: str) -> Any:
    """What is known of examples: names with texts, numbers or lists of them; of what a model depends on, no other."""
    document(value, where)
    for name, item in value.items():
        text()(name, f"a name in {where}")
        schema = _KNOWN.get(name, listed(scalar) if isinstance(item, list) else scalar)
        schema(item, f"{where}.{name}")
    return value


def checked_kinds(value: Any, where: str) -> Any:
    """The kinds of a table's columns, as a node announces them."""
    for each in listed(text())(value, where):
        expect(each in KINDS, each, where, f"one of {', '.join(KINDS)}")
    return value


_KNOWN: Mapping[str, Schema] = {"kind": text(), "classes": whole(0, 2**24), "columns": checked_kinds}


def checked_schema(value: Any, where: str) -> Any:
    """What `schema_of` makes, unchanged.

    Raises:
        UserError: for anything else.
    """
    parts = {"x": _example, "y": _example, "has_predefined_split": boolean, "metadata": _metadata}
    try:
        fields(parts)(value, where)
    except UserError as error:
        raise UserError(
            f"a node does not say what its examples look like ({error}); install the same headstart on all nodes"
        ) from error
    return value


def most_common(schemas: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The schema that most nodes share; of several, the first."""
    texts = Counter(json.dumps(schema, sort_keys=True) for schema in schemas)
    return json.loads(texts.most_common(1)[0][0])
