"""The files of a run folder, read back with their form checked: each is as a run writes it, or a sentence names it."""

from __future__ import annotations

import json
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from headstart.documents import check_plain
from headstart.errors import UserError
from headstart.experiment.experiment import Server
from headstart.files import from_null
from headstart.learning.personalization import Curves
from headstart.runs import checkpoint

# The clients that are measured at the end of a stage.
Group = Literal["validation", "test", "participants"]
GROUPS: tuple[Group, ...] = ("validation", "test", "participants")
# The file of a run's trial.
TRIAL = "trial.json"
# What the arrays of a file may take in memory; those of a run of a million clients have a tenth.
MOST_BYTES = 2**31
_MOST = 2**53
_DAMAGE = (
    *(OSError, EOFError, ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError, OverflowError),
    *(MemoryError, RuntimeError, struct.error, zipfile.BadZipFile, zlib.error),
)


@contextmanager
def reading(path: Path, *, instead: str = "repeat its `headstart run`") -> Iterator[None]:
    """What goes wrong in the block says that this file is missing or damaged.

    instead: what to do about it.

    Raises:
        UserError: if something does.
    """
    try:
        yield
    except UserError:
        raise
    except _DAMAGE as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else f"{error}"
        reason = f"{reason[:200]}" or type(error).__name__
        raise UserError(f"cannot read {path} ({reason}); it is missing or damaged, {instead}") from error


def read_json(path: Path) -> Any:
    """A JSON document of a run folder.

    Raises:
        UserError: if it is missing or damaged.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        check_plain(document)
        return document
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path.parent} is no run folder, or a damaged one: cannot read {path.name} ({error})"
        ) from error


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file of a run folder; within `reading`."""
    with zipfile.ZipFile(path) as file:
        size = sum(entry.file_size for entry in file.infolist())
    if size > MOST_BYTES:
        raise ValueError(f"it would take {size} bytes of memory")
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def read_group(path: Path, group: Group) -> tuple[list[str], np.ndarray, Curves]:
    """The ids, sizes (int `[clients, 2]`) and results of a group of clients in a `stage-n.npz`.

    Raises:
        UserError: if the file is missing or damaged.
    """
    with reading(path):
        arrays = read_arrays(path)
        mine = {name.removeprefix(f"{group}/"): arrays[name] for name in arrays if name.startswith(f"{group}/")}
        names = [name.removesuffix("/sums") for name in mine if name.endswith("/sums")]
        metrics = {name: (mine[f"{name}/sums"], mine[f"{name}/counts"]) for name in names}
        ids, sizes, curves = mine["ids"], mine["sizes"], Curves(metrics, mine["gain"], mine["gain_squared"])
        clients, columns = curves.gain.shape
        _check(f"the {group} clients' ids", ids.shape == (clients,) and (ids.dtype.kind == "U" or not clients))
        _check(f"the {group} clients' sizes", sizes.shape == (clients, 2) and sizes.dtype.kind in "iu")
        numbers = [*(sums for sums, _ in metrics.values()), curves.gain, curves.gain_squared]
        shapes = all(a.shape[:2] == (clients, columns) and a.ndim <= 3 for a in numbers)
        _check(f"the {group} clients' results", shapes and all(map(_is_numeric, numbers)))
        _check(f"the {group} clients' gains", curves.gain_squared.shape == curves.gain.shape)
        counts = [counts for _, counts in metrics.values()]
        _check(f"the {group} clients' counts", all(a.shape == (clients,) and _is_numeric(a) for a in counts))
    return [str(name) for name in ids], sizes, curves


def stage_report(path: Path) -> dict[str, Any]:
    """A `stage-n.json`, with NaN where a number is null.

    Raises:
        UserError: if it is missing or damaged, or of another seed than the folder that it is in.
    """
    report = read_json(path)
    with reading(path):
        _check("the document", isinstance(report, dict))
        _check("the round or seed", all(_is_whole(report[name]) for name in ("round", "seed")))
        if path.parent.name != f"seed-{report['seed']}":
            raise ValueError(f"it is the report of seed {report['seed']}")
        _check("the stage", isinstance(report["stage"], str))
        edges = report.get("edges", [])
        _check("the edges", isinstance(edges, list) and all(isinstance(text, str) for text in edges))
        _check("the learning rate", report.get("personal_rate") is None or _is_number(report["personal_rate"]))
        for group in GROUPS:
            if group in report:
                report[group] = from_null(report[group])
                _check_summary(group, report[group])
    return report


def _check_summary(group: str, summary: Any) -> None:
    """As `statistics.clients.summarize` makes it."""
    _check(f"{group}, its numbers", all(_is_whole(summary[name]) for name in ("clients", "untested", "length")))
    harmed = summary["hurt"]
    if harmed:
        numbers = [harmed[name] for name in ("share", "by_chance")]
        _check(f"{group}, harmed", all(map(_is_number, numbers)) and isinstance(harmed["beyond_chance"], bool))
    for name, metric in summary.items():
        if isinstance(metric, dict) and name != "hurt":
            for when in ("initial", "personalized", "difference"):
                if metric[when]:
                    low, high = metric[when]["interval"]
                    _check(f"{group}, {name}", all(map(_is_number, (metric[when]["mean"], low, high))))


def is_whole(folder: Path, number: int) -> bool:
    """Whether the folder of a seed has the end of a stage, and all of it can be read."""
    end = folder / f"stage-{number}"
    try:
        report = stage_report(end.with_suffix(".json"))
        for group in GROUPS:
            if group in report:
                read_group(end.with_suffix(".npz"), group)
        checkpoint.read_arrays(end.with_suffix(".safetensors"), stage_origin(folder, number))
    except UserError:
        return False
    return True


def stage_origin(folder: Path, number: int) -> dict[str, Any]:
    """The "run", "seed" and "round" of the end of a stage in the folder of a seed, which its parameters must be of.

    Raises:
        UserError: if what says so is missing or damaged.
    """
    report, record = stage_report(folder / f"stage-{number}.json"), folder.parent / "federation.json"
    known = federation_document(record) if record.exists() else {}
    return {name: known[name] for name in ("run",) if name in known} | {
        name: report[name] for name in ("seed", "round")
    }


def federation_document(path: Path) -> dict[str, Any]:
    """A `federation.json`.

    Raises:
        UserError: if it is missing or damaged.
    """
    document = read_json(path)
    with reading(path):
        _check("the document", isinstance(document, dict))
        _check("a name or checksum", all(isinstance(document[name], str) for name in ("name", "sha256")))
        _check("a count", all(_is_whole(document[name]) for name in ("clients", "examples")))
        check_metadata(document["facts"])
        digests = [document.get(name, {}) for name in ("fingerprint", "code", "model", "start")]
        texts = [value for each in digests for value in _items(each)]
        _check("a fingerprint", all(isinstance(text, str) for text in (*texts, document.get("run", ""))))
        _check("the model's fingerprint", set(document.get("model", {})) in (set(), {"jax", "sha256"}))
    return document


def trial_document(path: Path) -> dict[str, Any]:
    """A `trial.json`: the candidates with their values, and the one that was chosen.

    Raises:
        UserError: if it is missing or damaged.
    """
    document = read_json(path)
    with reading(path, instead="remove it, and repeat its `headstart run`"):
        _check("the metric", isinstance(document["metric"], str))
        _check("the settings", isinstance(document["settings"], dict))
        _check("a count", all(_is_whole(document[name]) for name in ("clients", "rounds")))
        _check("the candidates", isinstance(document["candidates"], list))
        for candidate in (*document["candidates"], document["chosen"]):
            _check("a candidate", set(candidate) == {"learning_rate", "server", "value"})
            numbers = candidate["learning_rate"], candidate["value"]
            _check("a candidate's numbers", all(n is None or _is_number(n) for n in numbers))
            _check("a candidate's server", candidate["server"] in get_args(Server))
    return document


def _items(digests: Any) -> list[Any]:
    return list(digests.values()) if isinstance(digests, dict) else [None]


def check_metadata(metadata: Any) -> None:
    """Refuse what is no metadata of a federation; within `reading`."""
    _check("the facts", isinstance(metadata, Mapping))
    _check("the labels or features", all(isinstance(metadata.get(n) or [], list | str) for n in ("labels", "features")))
    _check("the number of classes", metadata.get("classes") is None or _is_whole(metadata["classes"]))


def experiment_document(path: Path) -> dict[str, Any]:
    """An `experiment.json`, with what is needed to read a run's results.

    Raises:
        UserError: if it is missing or damaged, or is no experiment.
    """
    document = read_json(path)
    try:
        _check("the name", isinstance(document["name"], str))
        _check("the stages", isinstance(document["stages"], list) and bool(document["stages"]))
        for stage in document["stages"]:
            _check("a stage", isinstance(stage["name"], str) and _is_whole(stage["rounds"]))
        _check("the task", document["task"] is None or isinstance(document["task"], dict))
        _check("the recipe of personalization", isinstance(document["personalization"], dict))
        _check("the target", document.get("target") is None or _is_number(document["target"]))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is not an experiment ({error}); give a folder that `headstart run` has written"
        ) from error
    return document


def seed_folders(out: Path) -> list[Path]:
    """The folders of the seeds that were begun, in order."""
    found = [path for path in out.glob("seed-*") if re.fullmatch(r"seed-[0-9]+", path.name) and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("seed-")))


def _check(what: str, holds: bool) -> None:
    if not holds:
        raise ValueError(f"{what}: not of the form that a run writes")


def _is_whole(value: Any) -> bool:
    return type(value) is int and 0 <= value < _MOST


def _is_number(value: Any) -> bool:
    return type(value) is float or (type(value) is int and abs(value) < _MOST)


def _is_numeric(array: np.ndarray) -> bool:
    return array.dtype.kind in "fiu"
