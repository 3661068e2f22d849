"""Saved states: safetensors files, whole or absent, each with a checksum of its content."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
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
    arrays = {name: np.asarray(leaf) for name, leaf in named(tree)}
    metadata = {"about": json.dumps(dict(about)), "sha256": _digest(arrays)}
    write_bytes(path, save(arrays, metadata=metadata))


def read(path: Path, like: Tree) -> Saved:
    """The saved tree, in the structure of `like`, its arrays on the host.

    Raises:
        UserError: if the file is missing or damaged, or holds another tree.
    """
    arrays, about = read_arrays(path)
    return Saved(_fitted(path, arrays, like), about)


def _fitted(path: Path, arrays: Mapping[str, np.ndarray], like: Tree) -> Tree:
    expected = dict(named(like))
    if set(arrays) != set(expected) or any(arrays[k].shape != v.shape for k, v in expected.items()):
        raise UserError(f"{path} holds the state of another model or optimizer; choose the folder of this experiment")
    leaves = [np.asarray(arrays[name], leaf.dtype) for name, leaf in expected.items()]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def read_arrays(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays of a file by name, and the document about them.

    Raises:
        UserError: if the file is missing or damaged.
    """
    try:
        with safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is not a dictionary)
        about = json.loads(metadata["about"])
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise UserError(f"{path} is missing or damaged ({error}); remove it to use the one before it") from error
    if metadata.get("sha256") != _digest(arrays):
        raise UserError(f"{path} is damaged: its content does not match its checksum; remove it to use the one before")
    return arrays, about


def read_tree(path: Path) -> Tree:
    """The saved tree as dictionaries by name and tuples by number, whatever wrote it.

    Raises:
        UserError: if the file is missing or damaged.
    """
    arrays, _ = read_arrays(path)
    tree: dict[str, Any] = {}
    for name, array in arrays.items():
        *branches, leaf = [key or number or field for key, number, field in _STEP.findall(name)]
        inner = tree
        for branch in branches:
            inner = inner.setdefault(branch, {})
        inner[leaf] = array
    return _with_tuples(tree)


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


def read_newest(folder: Path, like: Callable[[Mapping[str, Any]], Tree]) -> tuple[Saved | None, list[str]]:
    """The newest undamaged state and what was wrong with newer ones.

    like: maps what a file records about itself to the tree to expect in it.
    """
    complaints = []
    for path in _newest_first(folder):
        try:
            arrays, about = read_arrays(path)
            return Saved(_fitted(path, arrays, like(about)), about), complaints
        except (UserError, KeyError) as error:
            complaints.append(str(error))
    return None, complaints


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("round-*.safetensors"), reverse=True)


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(f"{name}{arrays[name].dtype}{arrays[name].shape}".encode())
        digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    return digest.hexdigest()
