"""Records: what a study needs of a run, small enough to keep and to publish where the run's folder is not.

One file holds the results of one seed on one group of clients, and what they came from: the digests of data and code.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from headstart.documents import parse_json
from headstart.errors import UserError
from headstart.files import write_json
from headstart.runs.contents import Group, read_arrays, read_json
from headstart.runs.directory import write_arrays
from headstart.runs.log import Record
from headstart.studies.evidence import Result

_ARRAYS = tuple(name for name in Result._fields if name not in ("ids", "command"))
# Of a `federation.json`: what says whether a run came from the present data and code.
_ORIGIN = ("name", "clients", "examples", "sha256", "fingerprint", "code", "model", "start", "run")


def record_file(folder: Path, seed: int, group: Group) -> Path:
    """The file of a seed's results on a group of clients.

    folder: of the experiment's records.
    """
    return folder / f"{seed}-{group}.npz"


def write_record(path: Path, result: Result, origin: Record, seconds: float) -> None:
    """Write the result of one seed.

    origin: the `federation.json` of its run. seconds: that the run took.
    """
    about = {"ids": list(result.ids), "command": result.command, "origin": _came_from(origin), "seconds": seconds}
    arrays = {name: getattr(result, name) for name in _ARRAYS}
    write_arrays(path, {**arrays, "document": np.array(json.dumps(about))})


def write_divergence(path: Path, text: str, origin: Record) -> None:
    """Write that a run diverged, and where; origin: as of `write_record`."""
    write_json(path, {"diverged": text, "origin": _came_from(origin)})


def _came_from(origin: Record) -> Record:
    return {name: origin[name] for name in _ORIGIN if name in origin}


def read_divergence(path: Path) -> tuple[str, Record]:
    """What was said of a run that diverged, and what it came from.

    Raises:
        UserError: if the file is damaged.
    """
    document = read_json(path)
    if not isinstance(document, dict) or not isinstance(document.get("diverged"), str):
        raise UserError(f"{path} does not say how a run diverged; delete it, and the run is done again")
    return document["diverged"], document.get("origin", {})


def read_record(path: Path) -> tuple[Result, Record]:
    """The result of one seed, and what it came from.

    Raises:
        UserError: if the file is damaged.
    """
    with _reading(path) as (arrays, about):
        values: dict[str, Any] = {name: arrays[name] for name in _ARRAYS}
        return Result(tuple(about["ids"]), command=about["command"], **values), about["origin"]


def spent(folder: Path) -> float:
    """The seconds of all runs with a record in a folder.

    Of a run that resumed after a stop only the last part counts: the time of the stop is not recorded.

    Raises:
        UserError: if a record is damaged.
    """
    return sum(map(_seconds, sorted(folder.glob("**/*.npz"))))


def _seconds(path: Path) -> float:
    with _reading(path) as (_, about):
        return float(about["seconds"])


@contextmanager
def _reading(path: Path) -> Iterator[tuple[dict[str, np.ndarray], Any]]:
    """The arrays of a record and its document; what goes wrong in the block says that it is damaged."""
    try:
        arrays = read_arrays(path)
        yield arrays, parse_json(str(arrays["document"]))
    except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile) as error:
        raise UserError(
            f"{path} is no record of a run, or a damaged one ({error}); delete it, and the run is done again"
        ) from error


def stacked(results: list[Result]) -> Result:
    """The results of several seeds as one; evaluations along training are those that all of them have."""
    common = [number for number in results[0].rounds if all(number in each.rounds for each in results)]
    histories = [each.history[:, np.isin(each.rounds, common)] for each in results]
    by_seed = (name for name in _ARRAYS if name not in ("rounds", "history"))
    columns = {name: np.concatenate([getattr(each, name) for each in results]) for name in by_seed}
    return results[0]._replace(rounds=np.array(common), history=np.concatenate(histories), **columns)
