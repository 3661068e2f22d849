"""Tables in memory: of pandas, polars, Arrow, or any library that hands over columns in Arrow's form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from headstart.data.federation import Federation
from headstart.data.load import federation_of, readable
from headstart.data.readers.arrow import columns_of
from headstart.data.readers.tables import Table, rows_of
from headstart.errors import UserError


def from_frame(
    frame: Any, *, client: str | None = None, target: str | None = None, name: str = "frame", **options: Any
) -> Federation:
    """A federation of the rows of a table in memory, as `load` reads those of a file.

    frame: a DataFrame of pandas or polars, an Arrow table, anything with `__arrow_c_stream__` or `__dataframe__`, or a
        mapping of names to columns.
    client, target: the columns with the client of each row, and with what to predict; by default `client` and `y`.
    name: what to call the federation.
    options: as of `load` for tables, for instance `features=`, `exclude=`, `time=`, `group=`, `regression=True`.

    Raises:
        UserError: if it is no table, or holds what a file may not.
    """
    given = {"client": client, "target": target, **options}
    with readable():
        columns, numbering = _columns(frame)
        table = Table("the frame", f"frame {name}", columns, numbering)
        return federation_of(name, rows_of(table, {key: value for key, value in given.items() if value is not None}))


def _columns(frame: Any) -> tuple[Mapping[str, np.ndarray], list[str]]:
    import pyarrow as pa

    arrays: dict[str, np.ndarray] = {}
    if isinstance(frame, Mapping):
        # Arrow has no arrays of several numbers a row, such as pictures.
        given = {str(name): np.asarray(values) for name, values in frame.items()}
        arrays = {name: values for name, values in given.items() if values.ndim > 1}
        frame = {name: values for name, values in given.items() if values.ndim <= 1}
    try:
        columns, numbering = columns_of(_as_arrow(frame), "the frame")
    except UserError:
        raise
    except (pa.ArrowException, TypeError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise UserError(
            f"the frame cannot be read ({reason}); give columns of one type each: numbers, text, dates or flags"
        ) from error
    columns = {**columns, **arrays}
    if len({len(values) for values in columns.values()}) > 1:
        raise UserError("the frame has columns of different lengths; give each a value for every row")
    return columns, numbering


def _as_arrow(frame: Any) -> Any:
    import pyarrow as pa

    if isinstance(frame, pa.Table):
        return frame
    if isinstance(frame, Mapping):
        return pa.table(dict(frame))
    if type(frame).__module__.split(".")[0] == "pandas":
        return pa.Table.from_pandas(frame.rename(columns=str))
    if hasattr(frame, "__arrow_c_stream__"):
        return pa.table(frame)
    if hasattr(frame, "to_arrow"):
        return frame.to_arrow()
    if hasattr(frame, "__dataframe__"):
        from pyarrow.interchange import from_dataframe

        return from_dataframe(frame)
    raise UserError(
        f"from_frame was given a {type(frame).__name__}; give a DataFrame of pandas or polars, an Arrow table or a"
        " dictionary of columns"
    )
