"""Whose the rows of a table are: by a column of clients' ids, or as a partition makes clients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from headstart.data.partition import OWNERS, client_names
from headstart.data.readers import meaning
from headstart.data.readers.columns import Columns, for_regression, missing, no_column, number, refuse_rows_of_numbers
from headstart.data.readers.meaning import texts
from headstart.errors import UserError

_PARTITIONS: Mapping[str, Mapping[str, type]] = {
    "dirichlet": {"alpha": float},
    "classes": {"classes_per_client": int},
    "random": {},
}


def column_of(path: str, columns: Columns, name: str, option: str) -> np.ndarray:
    """A column without gaps."""
    if name not in columns:
        raise no_column(path, name, columns, f"name the right one with {option}=")
    values = columns[name]
    gaps = missing(values)
    if gaps.any():
        raise UserError(
            f"{path} has no value in column {name!r} of row {int(np.argmax(gaps)) + 1}; fill in or leave out the row"
        )
    if not len(values):
        raise UserError(f"{path} has columns but no rows; write one row per example")
    return values


def clients_of(path: str, columns: Columns, options: Mapping[str, Any], y: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """The number of each row's client, and the clients' ids."""
    client = str(options.get("client", "client"))
    if "partition" in options:
        if "client" in options:
            raise UserError(f"{path}: give either client={client} or partition={options['partition']}, not both")
        owners, count = _partition(options, y)
        return owners, client_names(count)
    if client not in columns:
        advice = "name the right one with client=, or make clients with partition=dirichlet, classes or random"
        raise no_column(path, client, columns, advice)
    values = meaning.client_ids(path, client, column_of(path, columns, client, "client"))
    numbers: dict[str, int] = {}
    codes = np.array([numbers.setdefault(value, len(numbers)) for value in values], np.int64)
    return codes, list(numbers)


def _partition(options: Mapping[str, Any], y: np.ndarray) -> tuple[np.ndarray, int]:
    method = str(options["partition"])
    if method not in _PARTITIONS:
        raise UserError(f"partition={method} is none of {', '.join(_PARTITIONS)}; give one of them")
    if method != "random":
        refuse_rows_of_numbers(y, f"partition={method}")
        if (y.dtype.kind == "f" and "classes" not in options) or for_regression(options):
            raise UserError(f"partition={method} needs classes, and the target holds fractions; give partition=random")
    clients = number(options, "clients", int)
    own = {name: number(options, name, kind) for name, kind in _PARTITIONS[method].items()}
    seed = number({"seed": 0, **options}, "seed", int, least=0)
    return OWNERS[method](np.array(texts(y)) if y.dtype == object else y, clients, seed=seed, **own), clients
