"""A run folder: what is in it, who may write it, and how to read it back.

experiment.json      the experiment, complete
federation.json      the data and the user's own code, by fingerprints; the name that the run's states carry
members.json         the ids of the clients that train, validate and test
environment.json     versions and machine
baselines.json       constants, every client alone, pooled examples, on test clients; by default of tables
samples.npz          a few examples of a few test clients, or zeros of their shape
ids.key              the key of the pseudonyms, where ids are hidden
clients.csv          a line per validation and test client, once the run has ended
seed-0/metrics.jsonl a line per round ("round") and per evaluation on validation clients ("evaluation")
seed-0/checkpoints/  the newest states, with what clients keep
seed-0/stage-0.npz   per-client results of validation and test clients at the end of the stage
seed-0/stage-0.json  what to say about them
seed-0/stage-0-by-examples.npz  test clients with fewer local examples, where that was measured
seed-0/stage-0.safetensors  the initial model, or whatever the method shares
"""

from __future__ import annotations

import json
import os
import platform
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import numpy as np

from headstart._version import __version__
from headstart.data.decided import decisions_before
from headstart.data.federation import Federation, Tree
from headstart.errors import UserError
from headstart.experiment.choice import settings_of
from headstart.experiment.experiment import Experiment
from headstart.experiment.loading import document_of, read
from headstart.files import atomic, is_temporary, locked, write_json
from headstart.learning.personalization import Curves
from headstart.runs import checkpoint
from headstart.runs.contents import (
    TRIAL,
    Group,
    federation_document,
    read_group,
    read_json,
    seed_folders,
    trial_document,
)
from headstart.runs.extension import reopen, rounds_before
from headstart.runs.log import Record
from headstart.runs.provenance import at_present_source, provenance, resumed


@contextmanager
def claimed(
    out: Path,
    experiment: Experiment,
    federation: Federation,
    *,
    allowed_modules: Collection[str] = (),
    code: Mapping[str, Any] = MappingProxyType({}),
    on_note: Callable[[str], None] = warnings.warn,
) -> Iterator[str]:
    """Make the folder this experiment's own for the time of the block; yields the name that the run's states carry.

    allowed_modules: modules that the experiment in it may be imported from.
    code: digests of the user's own code, as `provenance` takes them.
    on_note: gets a sentence where the file system cannot lock the folder, and the block is entered without a lock.

    Raises:
        UserError: if it cannot be written, holds another experiment, or one that was begun with other data or other
            code, or another process writes it.
    """
    document, now = document_of(experiment), provenance(federation, code)
    with ExitStack() as stack:
        try:
            _check_same(out, document, allowed_modules, now)
            out.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(out / ".lock", wait=False, on_note=on_note))
            had = _check_same(out, document, allowed_modules, now)  # another may have begun and ended in between
        except TimeoutError as error:
            raise UserError(f"another process is writing {out}; wait for it, or choose another --out") from error
        except OSError as error:
            raise UserError(f"cannot write the folder {out}: {error.strerror}; choose another with --out") from error
        record = resumed(out, _saved_record(out), now, document)
        if had is not None:
            reopen(out, experiment, had)
        _remove_leftovers(out)
        write_json(out / "experiment.json", document)
        write_json(out / "federation.json", record)
        if not (out / "environment.json").exists():
            write_json(out / "environment.json", environment())
        written = (out / "experiment.json").read_bytes()
        yield record["run"]
        _check_still_there(out, written)


def _check_still_there(out: Path, written: bytes) -> None:
    """A folder that somebody has removed or renamed meanwhile is no run, whatever has been written since."""
    with suppress(OSError):
        if (out / "experiment.json").read_bytes() == written:
            return
    raise UserError(f"{out} was removed, renamed or replaced during the run; repeat the command")


def _check_same(out: Path, document: Mapping[str, Any], allowed_modules: Collection[str], now: Record) -> int | None:
    """Refuse another experiment; returns the rounds that the last stage had, if it is to have more."""
    saved = out / "experiment.json"
    _check_free(out)
    if not saved.exists():
        return None
    # What was saved by an earlier headstart is compared as the experiment that it is.
    before, present = document_of(_experiment_in(saved, allowed_modules)), json.loads(json.dumps(document))
    before = at_present_source(before, present, _saved_record(out), now)
    differing, had = _difference(before, present), rounds_before(before, present)
    if differing and had is None:
        raise UserError(f"{out} holds another experiment ({differing}); choose another --out or repeat its settings")
    return had


def _check_free(out: Path) -> None:
    """Refuse a folder with files that are no run's."""
    saved = out / "experiment.json"
    if not (saved.exists() and (out / "federation.json").exists()):
        # No run, or one that was killed as it began, which leaves nothing but these.
        others = [path.name for path in _entries(out) if not (path == saved or is_temporary(path) or _is_lock(path))]
        if others:
            raise UserError(
                f"{out} holds files but no experiment that was run there ({min(others)}); choose an empty or a new"
                " folder with --out"
            )


def _experiment_in(path: Path, allowed_modules: Collection[str]) -> Experiment:
    try:
        return read(read_json(path), allowed_modules=allowed_modules)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _entries(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _is_lock(path: Path) -> bool:
    """Whether this is the lock of a run folder, which is empty."""
    return path.name == ".lock" and path.is_file() and path.stat().st_size == 0


def _remove_leftovers(out: Path) -> None:
    """Remove what a process that was killed while it wrote has left, where runs write."""
    seeds = seed_folders(out)
    for folder in (out, *seeds, *(seed / "checkpoints" for seed in seeds)):
        for path in filter(is_temporary, _entries(folder)):
            with suppress(OSError):
                path.unlink()


def _saved_record(out: Path) -> Record | None:
    """What the folder says of its data and code; None without it."""
    path = out / "federation.json"
    return federation_document(path) if path.exists() else None


def kept_trial(out: Path, experiment: Experiment) -> Record | None:
    """The document of the trial that chose the settings of the run in the folder; None where there is none yet.

    Raises:
        UserError: if it is damaged, was of other settings, or the folder holds what is no run.
    """
    path = out / TRIAL
    if not path.exists():
        _check_free(out)
        return None
    document, now = trial_document(path), json.loads(json.dumps(settings_of(experiment)))
    if differing := _difference(document["settings"], now):
        raise UserError(
            f"{out} holds another experiment, by its trial ({differing}); choose another --out or repeat its settings"
        )
    return document


def write_trial(out: Path, document: Record | None) -> None:
    """Keep the document of a run's trial; a run that resumes has it already."""
    if document is not None and not (out / TRIAL).exists():
        write_json(out / TRIAL, document)


def decided_before(out: Path) -> dict[str, Any]:
    """What a run that was begun in the folder had decided of its data, and would not be decided again."""
    record = _saved_record(out)
    return {} if record is None else decisions_before(record["facts"])


def _difference(old: Any, new: Any, path: str = "") -> str:
    """The first path at which two documents differ, with both values; empty if none does."""
    if isinstance(old, dict) and isinstance(new, dict):
        pairs = [(key, old.get(key), new.get(key)) for key in {**old, **new}]
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = [(str(i), a, b) for i, (a, b) in enumerate(zip(old, new, strict=True))]
    else:
        return "" if old == new else f"{path[1:]} was {json.dumps(old)}, now {json.dumps(new)}"
    return next(filter(None, (_difference(a, b, f"{path}.{key}") for key, a, b in pairs)), "")


def environment() -> dict[str, Any]:
    """What the numbers were made with."""
    packages = ("jax", "jaxlib", "flax", "optax", "numpy")
    versions = {"headstart": __version__, "python": platform.python_version()}
    return {
        "versions": versions | {name: version(name) for name in packages},
        "system": f"{platform.system()} {platform.machine()}",
        "processors": os.cpu_count(),
        "devices": [device.device_kind for device in jax.devices()],
    }


def write_samples(
    out: Path, federation: Federation, clients: np.ndarray, *, readable: bool = True, count: int = 6, examples: int = 16
) -> None:
    """A few examples of a few of these clients, and the federation's metadata, for the report.

    readable: if not, zeros of their shape and type stand for the examples; a model and an artifact need no more.
    """
    chosen = clients[np.linspace(0, len(clients) - 1, min(count if readable else 1, len(clients))).astype(int)]
    arrays: dict[str, Any] = {"ids": np.array([federation.ids[i] for i in chosen if readable], np.str_)}
    for index, client in enumerate(chosen):
        x, y = federation.fetch(np.array([client]))
        if not (isinstance(x, np.ndarray) and isinstance(y, np.ndarray)):
            return
        x, y = x[:examples], y[:examples]
        arrays[f"x{index}"], arrays[f"y{index}"] = (x, y) if readable else (np.zeros_like(x), np.zeros_like(y))
    arrays["facts"] = np.array(json.dumps(dict(federation.metadata), default=str))
    write_arrays(out / "samples.npz", arrays)


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """An .npz file, atomically."""
    with atomic(path) as file:
        np.savez_compressed(file, **arrays)  # pyright: ignore[reportArgumentType]


def write_stage(
    folder: Path,
    number: int,
    params: Tree,
    report: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    origin: Mapping[str, Any],
) -> None:
    """The end of a stage in the folder of a seed; the report comes last, and says that all of it is there.

    origin: the "run" and the "seed" that the parameters are of.
    """
    checkpoint.write(folder / f"stage-{number}.safetensors", params, {"round": report["round"], **origin})
    write_arrays(folder / f"stage-{number}.npz", arrays)
    write_json(folder / f"stage-{number}.json", report)


def curve_arrays(group: str, federation: Federation, curves: Curves) -> dict[str, np.ndarray]:
    """Per-client results as named arrays: `group/ids`, `group/sizes`, `group/gain`, `group/accuracy/sums` and so on."""
    arrays = {
        f"{group}/ids": np.array(list(federation.ids)),
        f"{group}/sizes": np.asarray(federation.sizes),
        f"{group}/gain": curves.gain,
        f"{group}/gain_squared": curves.gain_squared,
    }
    for name, (sums, counts) in curves.metrics.items():
        arrays |= {f"{group}/{name}/sums": sums, f"{group}/{name}/counts": counts}
    return arrays


def read_curves(path: Path, group: Group) -> tuple[list[str], Curves]:
    """The ids and results of a group of clients in a `stage-n.npz`."""
    ids, _, curves = read_group(path, group)
    return ids, curves
