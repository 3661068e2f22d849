"""Preprocessing of tables that lie on many nodes: from sums over each node's rows, of which none leaves its node.

Of the rows that a node's training clients train on it sends their number and, of each column, how many have a value,
the mean, and the sum of squared deviations from it; of a category the number of rows with each label that at least
`LEAST_LABEL` of them have. A node with fewer than `LEAST_ROWS` rows sends nothing. A label that fewer than two nodes
have sent becomes one of the others, and is in no message of the server.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flwr.app import MessageType
from flwr.serverapp import Grid

from headstart.data.federation import Federation
from headstart.data.preprocessing import Preprocessing, raw_columns, training_rows
from headstart.data.table_columns import Column, category_column, number_column
from headstart.errors import UserError
from headstart.flower import wire
from headstart.flower.exchange import exchange, sort_answers
from headstart.flower.registry import Fault, Registry
from headstart.flower.schema import Schema, expect, fields, listed, number, text, whole

LEAST_ROWS, LEAST_LABEL, LEAST_NODES = 10, 5, 2
_MOST_ROWS = 2**53


def summary_of(federation: Federation, clients: np.ndarray) -> dict[str, Any]:
    """What a node sends of its table: sums over the rows that these clients (int array `[n]`) train on.

    Raises:
        UserError: if there are too few, or it holds no table.
    """
    about = raw_columns(federation)
    x, y = federation.fetch(clients)
    rows = training_rows(federation, clients)
    x, y = np.asarray(x[rows], np.float64), y[rows]
    if len(x) < LEAST_ROWS:
        raise UserError(f"it has {len(x)} rows to train on, and sends no sums of fewer than {LEAST_ROWS}")
    columns = [_column(column, x[:, i]) for i, column in enumerate(about)]
    quantities = y.dtype.kind == "f" and not federation.metadata.get("classes")
    targets = y.reshape(len(y), -1).astype(np.float64).T if quantities else []
    return {"rows": len(x), "columns": columns, "targets": [_moments(values) for values in targets]}


def _column(about: Mapping[str, Any], values: np.ndarray) -> dict[str, Any]:
    present = values[~np.isnan(values)]
    if about["kind"] != "category":
        return _moments(present)
    counts = Counter(about["labels"][int(code)] for code in present)
    labels = sorted((label, rows) for label, rows in counts.items() if rows >= LEAST_LABEL)
    return {"present": len(present), "labels": [list(pair) for pair in labels[: wire.MOST_LABELS]]}


def _moments(values: np.ndarray) -> dict[str, Any]:
    mean = float(values.mean()) if len(values) else 0.0
    return {"present": len(values), "mean": mean, "squares": float(((values - mean) ** 2).sum())}


def _pair(value: Any, where: str) -> Any:
    expect(isinstance(value, list) and len(value) == 2, value, where, "a label and its rows")
    return text()(value[0], where), whole(LEAST_LABEL, _MOST_ROWS)(value[1], where)


_NUMBERS = fields({"present": whole(0, _MOST_ROWS), "mean": number(), "squares": number(0)})
_LABELS = fields({"present": whole(0, _MOST_ROWS), "labels": listed(_pair, most=wire.MOST_LABELS)})


def _either(value: Any, where: str) -> Any:
    return (_LABELS if isinstance(value, dict) and "labels" in value else _NUMBERS)(value, where)


SUMMARY: Schema = fields(
    {"rows": whole(LEAST_ROWS, _MOST_ROWS), "columns": listed(_either), "targets": listed(_NUMBERS, most=1000)}
)


def fit(schema: Mapping[str, Any], summaries: Sequence[Mapping[str, Any]]) -> Preprocessing:
    """What becomes of the columns, from the summaries of nodes with this schema.

    Raises:
        UserError: if there are none, or no column is left.
    """
    if not summaries:
        raise UserError("no node sent the sums of its columns, so that nothing is known of them; see the notes above")
    names, kinds = schema["metadata"]["features"], schema["metadata"]["columns"]
    rows = sum(summary["rows"] for summary in summaries)
    columns = tuple(
        _merged(name, kind, rows, [summary["columns"][i] for summary in summaries])
        for i, (name, kind) in enumerate(zip(names, kinds, strict=True))
    )
    if all(column.dropped for column in columns):
        raise UserError("no column of the nodes' tables has different values; there is nothing to learn from")
    targets = [_together(parts) for parts in zip(*(summary["targets"] for summary in summaries), strict=False)]
    scales = tuple(deviation if deviation > 0 else 1.0 for _, _, deviation in targets)
    return Preprocessing(columns, tuple(mean for _, mean, _ in targets), scales)


def _merged(name: str, kind: Any, rows: int, parts: Sequence[Mapping[str, Any]]) -> Column:
    present = sum(part["present"] for part in parts)
    if not present:
        return Column(name, kind, dropped="it is empty")
    if kind == "category":
        counted, nodes = Counter[str](), Counter[str]()
        for part in parts:
            counted.update(dict(part["labels"]))
            nodes.update(label for label, _ in part["labels"])
        counts = {label: (counted[label], nodes[label]) for label in counted}
        rest = present - sum(counted.values())
        return category_column(name, counts, present < rows, others=rest > 0, least_clients=LEAST_NODES)
    _, mean, deviation = _together(parts)
    return number_column(name, kind, mean, deviation, present < rows)


def _together(parts: Sequence[Mapping[str, Any]]) -> tuple[int, float, float]:
    """How many values there are in all parts, their mean and their deviation."""
    count, mean, squares = 0, 0.0, 0.0
    for part in parts:
        if part["present"]:
            total, apart = count + part["present"], part["mean"] - mean
            squares += part["squares"] + apart**2 * count * part["present"] / total
            mean += apart * part["present"] / total
            count = total
    return count, mean, float(np.sqrt(squares / max(count, 1)))


def ask(
    grid: Grid, registry: Registry, request: wire.Request, clients: Sequence[str], *, deadline: float
) -> tuple[Preprocessing, list[Fault]]:
    """What becomes of the columns of the nodes' tables, from what they send of these clients' rows.

    Raises:
        UserError: as of `fit`.
    """
    assert registry.schema is not None
    owners: dict[int, list[str]] = {}
    for client, node in registry.nodes_by_client().items():
        if client in set(clients):
            owners.setdefault(node.node_id, []).append(client)
    contents = {
        node: wire.request_record(request._replace(clients=tuple(sorted(own)))) for node, own in sorted(owners.items())
    }
    found = sort_answers(exchange(grid, MessageType.QUERY, contents, deadline=deadline), contents)
    summaries, faults = [], []
    for answer in found:
        name = registry.name(answer.node)
        try:
            if answer.content is None:
                raise UserError(answer.reason)
            summaries.append(read_summary(answer.content, registry.schema))
        except UserError as error:
            faults.append(Fault(name, str(error), tuple(owners[answer.node])))
    return fit(registry.schema, summaries), faults


def read_summary(content: Any, schema: Mapping[str, Any]) -> dict[str, Any]:
    """The summary in a node's reply, checked.

    Raises:
        UserError: if it is none, or of other columns.
    """
    summary = wire.read_report(content, SUMMARY)
    kinds = schema["metadata"]["columns"]
    expect(len(summary["columns"]) == len(kinds), len(summary["columns"]), "the number of its columns", "as announced")
    for kind, part in zip(kinds, summary["columns"], strict=True):
        expect(("labels" in part) == (kind == "category"), part, "a column of its summary", f"that of a {kind}")
        expect(part["present"] <= summary["rows"], part["present"], "the values of a column", "at most its rows")
    return summary
