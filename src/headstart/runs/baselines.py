"""What a run is measured beside: predictions that need no federation, or no privacy, on the same test clients."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from headstart.files import from_null, write_json
from headstart.runs.contents import read_json, reading

BASELINES = "baselines.json"
# In the order in which they are shown; by name, in words.
TITLES = {
    "federation constant": "the federation's constant",
    "own constant": "every client's own constant",
    "centralized": "one model of all training clients' examples, pooled",
    "alone": "every client trained alone",
}


class Baseline(NamedTuple):
    """A baseline on the test clients.

    title: what it is, in words. how: what was chosen for it on validation clients, in words; empty if nothing.
    values: by metric, float64 `[clients]`, in the order of `Run.clients()`; NaN without query examples.
    """

    title: str
    how: str
    values: Mapping[str, np.ndarray]


def write_baselines(path: Path, of: Mapping[str, Any], ids: list[str], found: Mapping[str, Baseline]) -> None:
    """Write the baselines of a run. of: what they depend on, by which a run that resumes knows them again."""
    baselines = {
        name: {"how": each.how, "values": {metric: list(map(float, values)) for metric, values in each.values.items()}}
        for name, each in found.items()
    }
    write_json(path, {"of": of, "ids": ids, "baselines": baselines})


def read_baselines(path: Path) -> dict[str, Baseline]:
    """The baselines of a run by name, those of `TITLES`; none without a file of them.

    Raises:
        UserError: if the file is damaged.
    """
    if not path.exists():
        return {}
    document = read_json(path)
    with reading(path):
        found = {}
        for name in TITLES:
            if name in document["baselines"]:
                each, count = document["baselines"][name], len(document["ids"])
                values = {m: np.array(from_null(v), np.float64) for m, v in each["values"].items()}
                if any(column.shape != (count,) for column in values.values()):
                    raise ValueError(f"{name} is not of {count} clients")
                found[name] = Baseline(TITLES[name], str(each["how"]), values)
    return found


def baselines_depend_on(path: Path) -> Any:
    """What the baselines in a file depend on; None without a file that can be read."""
    try:
        return read_json(path).get("of") if path.exists() else None
    except Exception:  # a damaged file is written anew
        return None
