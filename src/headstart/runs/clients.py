"""The clients of a run as a table: NumPy columns, and a frame where one is asked for."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from headstart.console import csv_cell
from headstart.errors import UserError
from headstart.learning.tasks import Metric
from headstart.runs.results import StageResult, client_values

if TYPE_CHECKING:
    import pandas


class Clients(Mapping[str, np.ndarray]):
    """Columns by name, each `[clients]`; in the order in which the run's federation has them.

    id: of the client. n_train, n_test: its support examples (local training) and its query examples (local test).
    initial, personalized: its own value of the first metric, with the initial model and with its personalized one.
    gain: personalized less initial, with the sign that makes more better. Then `initial_…` and `personalized_…` of
    every other metric. With several seeds values are means over them; a client without query examples has NaN.
    """

    def __init__(self, columns: Mapping[str, np.ndarray]) -> None:
        self._columns = dict(columns)

    def __getitem__(self, name: str) -> np.ndarray:
        return self._columns[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)

    def __repr__(self) -> str:
        return f"Clients({len(self['id'])} clients: {', '.join(self)})"

    def to_pandas(self) -> pandas.DataFrame:
        """The columns as a frame.

        Raises:
            UserError: if pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise UserError("to_pandas() needs pandas, which is not installed; pip install pandas") from error
        return pandas.DataFrame(self._columns)


def clients_of(result: StageResult, metrics: tuple[Metric, ...]) -> Clients:
    """The clients of a stage's result, with every metric of its task."""
    first, *others = metrics
    initial, personalized = client_values(result, first)
    columns = {
        "id": np.array(result.ids),
        "n_train": result.sizes[:, 0],
        "n_test": result.sizes[:, 1],
        "initial": initial,
        "personalized": personalized,
        "gain": (personalized - initial) * first.sign,
    }
    for metric in others:
        name = metric.name.replace(" ", "_")
        columns[f"initial_{name}"], columns[f"personalized_{name}"] = client_values(result, metric)
    return Clients(columns)


def clients_csv(
    ids: Sequence[str],
    sizes: np.ndarray,
    values: Mapping[str, tuple[np.ndarray, np.ndarray]],
    groups: Sequence[str] | None,
) -> bytes:
    """A line per client, as CSV.

    sizes: int `[clients, 2]`, support and query examples. values: by metric, initial and personalized, `[clients]`.
    groups: in which each client was in the run, where that is known.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = [f"{when} {name}" for name in values for when in ("initial", "personalized")]
    # Last, so that the columns of runs that did not keep who trained are where they were.
    writer.writerow(["client", "adapt examples", "test examples", *columns, *(["group in the run"] if groups else [])])
    pairs = [column for pair in values.values() for column in pair]
    for index, name in enumerate(ids):
        cells = [f"{column[index]:.6g}" for column in pairs]
        group = [groups[index]] if groups else []
        writer.writerow([csv_cell(name), *map(int, sizes[index]), *cells, *group])
    return text.getvalue().encode()


def clients_csv_of(results: Mapping[str, StageResult], metrics: tuple[Metric, ...]) -> bytes:
    """The clients of a stage's results, by group, as `clients_csv`; values are means over the seeds."""
    ids = [name for result in results.values() for name in result.ids]
    groups = [group for group, result in results.items() for _ in result.ids]
    sizes = np.concatenate([np.zeros((0, 2), int), *(result.sizes for result in results.values())])
    each = {metric.name: [client_values(result, metric) for result in results.values()] for metric in metrics}
    values = {
        name: (np.concatenate([pair[0] for pair in pairs]), np.concatenate([pair[1] for pair in pairs]))
        for name, pairs in each.items()
        if pairs
    }
    return clients_csv(ids, sizes, values, groups)
