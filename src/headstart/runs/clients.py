"""The clients of a run as a table: NumPy columns, and a frame where one is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

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
