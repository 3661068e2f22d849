"""Saved states: safetensors files, whole or absent, each with a checksum of all that it says."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from headstart.data.federation import Tree, named
from headstart.errors import UserError
from headstart.files import write_bytes


class Saved(NamedTuple):
    """What a file holds: a tree, and a JSON document about it."""

    tree: Tree
    about: dict[str, Any]


def write(path: Path, tree: Tree, about: Mapping[str, Any]) -> None:
    """Save a tree of arrays, atomically; each array is named by its path in the tree."""
    arrays, text = {name: np.asarray(leaf) for name, leaf in named(tree)}, json.dumps(dict(about))
    write_bytes(path, save(arrays, metadata={"about": text, "checksum": _digest(arrays, text)}))


def read(path: Path, like: Tree, origin: Mapping[str, Any] = MappingProxyType({})) -> Saved:
    """The saved tree, in the structure of `like`, its arrays on the host.

    Raises:
        UserError: as of `read_arrays`, or if it holds another tree.
    """
    arrays, about = read_arrays(path, origin)
    return Saved(_fitted(path, arrays, like), about)


def _fitted(path: Path, arrays: Mapping[str, np.ndarray], like: Tree) -> Tree:
    expected = dict(named(like))
    if set(arrays) != set(expected) or any(arrays[k].shape != v.shape for k, v in expected.items()):
        raise UserError(f"{path} holds the state of another model or optimizer; choose the folder of this experiment")
    leaves = [np.asarray(arrays[name], leaf.dtype) for name, leaf in expected.items()]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def read_arrays(
    path: Path, origin: Mapping[str, Any] = MappingProxyType({})
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays of a file by name, and the document about them.

    origin: the "run", "seed" and "round" that they must be of, as far as the file records them.

    Raises:
        UserError: if the file is missing or damaged, or of another origin.
    """
    arrays, metadata = open_arrays(path)
    try:
        text = metadata["about"]
        about = json.loads(text)
        # The files of headstart 0.1.0 have a checksum of their arrays alone.
        expected = metadata["checksum"] if "checksum" in metadata else metadata["sha256"]
    except (ValueError, KeyError, RecursionError) as error:
        raise _damaged(path, error) from error
    if expected != _digest(arrays, text if "checksum" in metadata else "") or not isinstance(about, dict):
        raise UserError(f"{path} is damaged: its content does not match its checksum; remove it to use the one before")
    if other := _other(about, origin):
        raise UserError(f"{path} holds the state of another {other}; bring back its own, or repeat the `headstart run`")
    return arrays, about


def _other(about: Mapping[str, Any], origin: Mapping[str, Any]) -> str:
    """The first name by which a document about a state says another origin than this; empty if none does."""
    return next((name for name, value in origin.items() if about.get(name, value) != value), "")


def open_arrays(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays of any safetensors file by name, and its metadata, unchecked.

    Raises:
        UserError: if the file is missing, or is no whole safetensors file.
    """
    try:
        with safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118 (no dictionary)
    except (OSError, SafetensorError, ValueError, TypeError, KeyError, AttributeError, MemoryError) as error:
        raise _damaged(path, error) from error


def digest_of(path: Path) -> str:
    """The digest of the arrays in any safetensors file, by name.

    Raises:
        UserError: as of `open_arrays`.
    """
    return _digest(open_arrays(path)[0], "")


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(f"{path} is missing or damaged ({error}); remove it to use the one before it")


def read_tree(path: Path, origin: Mapping[str, Any] = MappingProxyType({})) -> Tree:
    """The saved tree as dictionaries by name and tuples by number, whatever wrote it.

    Raises:
        UserError: as of `read_arrays`.
    """
    arrays, _ = read_arrays(path, origin)
    tree: dict[str, Any] = {}
    try:
        for name, array in arrays.items():
            *branches, leaf = steps(name)
            inner = tree
            for branch in branches:
                inner = inner.setdefault(branch, {})
            inner[leaf] = array
    except (AttributeError, TypeError) as error:  # an array where others have a branch
        raise _damaged(path, error) from error
    return _with_tuples(tree)


def steps(name: str) -> tuple[str, ...]:
    """The steps of a path in a tree, by the name that `named` gives it; any other name is a single step."""
    found = list(_STEP.finditer(name))
    if not found or "".join(step.group() for step in found) != name:
        return (name,)
    return tuple(next(part for part in step.groups() if part is not None) for step in found)


# A step of the paths that `named` writes: ['key'], [number] or .field.
_STEP = re.compile(r"\['([^']*)'\]|\[(\d+)\]|\.(\w+)")


def _with_tuples(tree: Any) -> Any:
    if not isinstance(tree, dict):
        return tree
    inner = {name: _with_tuples(branch) for name, branch in tree.items()}
    numbered = set(inner) == set(map(str, range(len(inner))))
    return tuple(inner[str(number)] for number in range(len(inner))) if numbered else inner


def write_round(folder: Path, tree: Tree, about: Mapping[str, Any], *, keep: int = 2) -> None:
    """Save the state after round `about["round"]`, then drop all but the newest `keep`."""
    write(folder / f"round-{about['round']:07d}.safetensors", tree, about)
    for old in _newest_first(folder)[keep:]:
        old.unlink(missing_ok=True)


def read_newest(
    folder: Path, like: Callable[[Mapping[str, Any]], Tree], origin: Mapping[str, Any] = MappingProxyType({})
) -> tuple[Saved | None, list[str]]:
    """The newest undamaged state and what was wrong with newer ones.

    like: maps what a file records about itself to the tree to expect in it.
    origin: the "run" and the "seed" that it must be of, if it records them.
    """
    complaints = []
    for path in _newest_first(folder):
        try:
            arrays, about = read_arrays(path)
            if about.get("round") != _round_of(path):
                raise UserError(f"{path} is damaged: it says that it is of round {about.get('round')}")
            if other := _other(about, origin):
                raise UserError(f"{path} holds the state of another {other}; it is passed over")
            return Saved(_fitted(path, arrays, like(about)), about), complaints
        except UserError as error:
            complaints.append(str(error))
        except (KeyError, IndexError, TypeError, ValueError) as error:
            complaints.append(f"{path} is of another experiment ({error!r} in its description)")
    return None, complaints


def newest(folder: Path) -> dict[str, Any] | None:
    """The document about the newest state, if it is undamaged."""
    try:
        return read_arrays(_newest_first(folder)[0])[1]
    except (UserError, IndexError):
        return None


def _newest_first(folder: Path) -> list[Path]:
    return sorted((path for path in folder.glob("round-*.safetensors") if _round_of(path) >= 0), key=_round_of)[::-1]


def _round_of(path: Path) -> int:
    """The round in the name of a state's file; -1 for a file that is none."""
    match = re.fullmatch(r"round-([0-9]{7,18})\.safetensors", path.name)
    return int(match[1]) if match else -1


def _digest(arrays: Mapping[str, np.ndarray], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        digest.update(f"{name}{arrays[name].dtype}{arrays[name].shape}".encode())
        digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    return digest.hexdigest()
