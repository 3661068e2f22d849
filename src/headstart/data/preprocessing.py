"""Preprocessing of a table: from columns as they are written to features that a model can learn from.

A raw table is a federation whose inputs are numbers `[rows, columns]`, NaN where there is a gap, with what each column
stands for in `metadata["columns"]`. `Preprocessing.fit` decides from the rows of training clients alone; what it has
decided is a value, which is part of a run and applied to all other data.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from headstart.data.federation import Federation, derived
from headstart.data.readers.columns import nearest, with_parts
from headstart.data.readers.encoding import KINDS, Encoded, encode
from headstart.data.readers.rows import listed
from headstart.data.table_columns import Column, fit_column
from headstart.errors import UserError


@dataclass(frozen=True)
class Preprocessing:
    """What becomes of the columns of a table, and of its targets where these are quantities.

    target_center, target_scale: one for each number of a target; empty where targets are left as they are.
    """

    columns: tuple[Column, ...]
    target_center: tuple[float, ...] = ()
    target_scale: tuple[float, ...] = ()

    @classmethod
    def fit(cls, federation: Federation, clients: np.ndarray, *, targets: bool = True) -> Preprocessing:
        """What becomes of the columns of a raw table, decided from the rows that these clients train on.

        clients: int array `[n]`. targets: whether targets that are quantities are standardized, too.

        Raises:
            UserError: if it is no raw table, or no column is left.
        """
        about, rows = raw_columns(federation), training_rows(federation, clients)
        x, y = federation.fetch(clients)
        x, y = x[rows], y[rows]
        owners = np.repeat(np.arange(len(clients)), federation.training_sizes[clients])
        targets_of_rows = _as_quantities(y, federation.metadata.get("classes"))
        columns = tuple(
            fit_column(each, np.asarray(x[:, i], np.float64), owners, targets_of_rows) for i, each in enumerate(about)
        )
        if all(column.dropped for column in columns):
            why = "; ".join(f"{column.name}: {column.dropped}" for column in columns[:8])
            raise UserError(f"{federation.name} has no column to learn from ({why}); add others")
        if not targets or federation.metadata.get("classes") or y.dtype.kind != "f":
            return cls(columns)
        scale = tuple(float(each) if each > 0 else 1.0 for each in targets_of_rows.std(axis=0))
        return cls(columns, tuple(map(float, targets_of_rows.mean(axis=0))), scale)

    @property
    def features(self) -> tuple[str, ...]:
        """The names of the features."""
        return tuple(name for column in self.columns for name in column.features)

    @property
    def used(self) -> tuple[Column, ...]:
        """The columns that are not left out: those that other data must have."""
        return tuple(column for column in self.columns if not column.dropped)

    def names_of(self, width: int) -> tuple[str, ...]:
        """The names of as many columns, in the order of training: of those that are used, or of all; or none."""
        return next((each for each in map(_names, (self.used, self.columns)) if len(each) == width), ())

    def transform(self, table: Mapping[str, Any], what: str = "the table") -> np.ndarray:
        """float32 `[rows, features]` of columns by name, as a file or frame has them.

        Raises:
            UserError: if a column is missing, or holds what it did not in training.
        """
        encoded = {}
        table = with_parts(table, (column.name for column in self.used))
        for column in self.used:
            if column.name not in table:
                names = ", ".join(each.name for each in self.used)
                hint = nearest(column.name, map(str, table))
                raise UserError(f"{what} has no column {column.name!r}{hint}; training had {names}")
            encoded[column.name] = encode(what, column.name, np.asarray(table[column.name]), column.kind)
        return self._transform(encoded)

    def _transform(self, columns: Mapping[str, Encoded]) -> np.ndarray:
        return np.concatenate([column.transform(columns[column.name]) for column in self.used], axis=1)

    def transform_targets(self, y: np.ndarray) -> np.ndarray:
        """The targets as the model learns them; float32 if they are quantities."""
        if not self.target_scale:
            return y
        each = np.asarray(y, np.float32).reshape(len(y), -1)
        scaled = (each - np.array(self.target_center)) / np.array(self.target_scale)
        return scaled.astype(np.float32).reshape(np.shape(y))

    def unknown_values(self, federation: Federation) -> list[str]:
        """Sentences on the categories of a raw table of which training knew no value at all."""
        labels = {column["name"]: column.get("labels", ()) for column in raw_columns(federation)}
        return [
            f"no value of {column.name!r} ({listed(map(repr, found))}) is one that training had"
            f" ({listed(map(repr, column.categories))}), so all count as others"
            for column in self.used
            if (found := labels.get(column.name)) and not set(found) & set(column.categories)
        ]

    def apply(self, federation: Federation) -> Federation:
        """The federation of features, from a raw table.

        Raises:
            UserError: if it is none, or has not the columns that these decisions are about.
        """
        found = {column["name"]: (number, column) for number, column in enumerate(raw_columns(federation))}
        for column in self.used:
            kind = found[column.name][1]["kind"] if column.name in found else "missing"
            if kind != column.kind:
                problem = f"has no column {column.name!r}" if kind == "missing" else f"has a {kind} in {column.name!r}"
                raise UserError(f"{federation.name} {problem}, where training had a {column.kind}; give the same")
        inner = federation.fetch

        def fetch(clients: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            x, y = inner(clients)
            encoded = {
                column.name: Encoded(column.kind, np.asarray(x[:, number], np.float64), about.get("labels", ()))
                for column in self.used
                for number, about in [found[column.name]]
            }
            return self._transform(encoded), self.transform_targets(y)

        metadata = dict(federation.metadata) | {
            "features": [column.name for column in self.used],
            "columns": [{"name": column.name, "kind": column.kind} for column in self.used],
            "preprocessing": to_json(self),
        }
        left_out = "; ".join(f"{column.name} ({column.dropped})" for column in self.columns if column.dropped)
        notes = [*([f"columns left out: {left_out}"] if left_out else []), *self.unknown_values(federation)]
        if notes:
            metadata["notes"] = [*metadata.get("notes", ()), *notes]
        how = f", preprocessed by {self}"
        return replace(federation, fetch=derived(fetch, inner, how), metadata=metadata)


def _names(columns: Sequence[Column]) -> tuple[str, ...]:
    return tuple(column.name for column in columns)


def _as_quantities(y: np.ndarray, classes: Any) -> np.ndarray:
    """float64 `[rows, n]`: targets as quantities; of classes, 0 and 1 for each that there is."""
    if not classes or y.ndim != 1:
        return y.reshape(len(y), -1).astype(np.float64)
    return (y[:, None] == np.unique(y)).astype(np.float64)


def training_rows(federation: Federation, clients: np.ndarray) -> np.ndarray:
    """Bool `[rows]`: which of the clients' rows they train on."""
    used, totals = federation.training_sizes[clients], federation.sizes[clients].sum(axis=1)
    return np.concatenate([np.zeros(0, bool), *(np.arange(n) < most for n, most in zip(totals, used, strict=True))])


def raw_columns(federation: Federation) -> Sequence[Mapping[str, Any]]:
    """What the columns of a raw table stand for.

    Raises:
        UserError: if the federation is none.
    """
    if not is_raw(federation):
        raise UserError(f"{federation.name} is no raw table; give one as `headstart.load` or `from_frame` reads it")
    return federation.metadata["columns"]


def is_table(metadata: Mapping[str, Any]) -> bool:
    """Whether a federation comes of a table, by its metadata."""
    return "columns" in metadata


def is_raw(federation: Federation) -> bool:
    """Whether a federation's inputs are the columns of a table as they are written."""
    return is_table(federation.metadata) and "preprocessing" not in federation.metadata


def needs_preprocessing(federation: Federation) -> bool:
    """Whether a federation is a raw table with gaps, categories or the like, which no model can learn from."""
    return is_raw(federation) and federation.example()[0].dtype == np.float64


def of_metadata(metadata: Mapping[str, Any]) -> Preprocessing | None:
    """What was decided, by a federation's metadata or the decisions of a run; None if nothing was."""
    document = metadata.get("preprocessing")
    return None if document is None else from_json(document)


def to_json(preprocessing: Preprocessing) -> dict[str, Any]:
    """The value as JSON; what a column has by default is left out."""
    defaults = {field.name: field.default for field in dataclasses.fields(Column)}
    columns = [
        {key: _listed(value) for key, value in vars(column).items() if value != defaults[key]}
        for column in preprocessing.columns
    ]
    targets = {"center": list(preprocessing.target_center), "scale": list(preprocessing.target_scale)}
    return {"columns": columns, **({"target": targets} if preprocessing.target_scale else {})}


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def from_json(document: Any) -> Preprocessing:
    """The value of a document of `to_json`, which may come from a stranger.

    Raises:
        UserError: if it is none.
    """
    try:
        columns = tuple(_column(**each) for each in document["columns"])
        target = document.get("target") or {"center": (), "scale": ()}
        center, scale = (tuple(map(_finite, target[name])) for name in ("center", "scale"))
        if len(center) != len(scale) or not all(each > 0 for each in scale):
            raise ValueError("scales that are not above 0")
        if len({column.name for column in columns}) < len(columns) or not any(not each.dropped for each in columns):
            raise ValueError("no columns, or two of one name")
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise UserError(f"the preprocessing of a table cannot be read ({error}); take it from a run") from error
    return Preprocessing(columns, center, scale)


def _column(name: Any, kind: Any, categories: Any = (), **fields: Any) -> Column:
    numbers = {key: _finite(fields.pop(key)) for key in ("center", "scale") if key in fields}
    texts = [name, *categories, fields.get("dropped", "")]
    flags = [fields.get(key, False) for key in ("robust", "indicator", "other")]
    if kind not in KINDS or not all(type(text) is str for text in texts) or not all(type(f) is bool for f in flags):
        raise ValueError("a column of no known kind")
    if numbers.get("scale", 1.0) <= 0:
        raise ValueError("scales that are not above 0")
    return Column(name, kind, categories=tuple(categories), **numbers, **fields)


def _finite(number: Any) -> float:
    if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
        raise ValueError("numbers that are not finite")
    return float(number)
