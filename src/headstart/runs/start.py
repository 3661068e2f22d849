"""Parameters to start from: of any safetensors file whose names and shapes are those of the model."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from headstart.data.federation import Tree, named
from headstart.errors import UserError
from headstart.runs import checkpoint


def read_parameters(path: Path, like: Tree) -> Tree:
    """The parameters in a file, in the structure and types of `like`, on the host.

    A name in the file is the path of an array in the tree: as headstart writes it, or its steps with dots or slashes
    between them, with or without the collection "params" in front.

    like: a tree of arrays or their shapes.

    Raises:
        UserError: if the file is missing or damaged, or names or shapes are others.
    """
    arrays, metadata = checkpoint.open_arrays(path)
    if "about" in metadata:
        arrays, _ = checkpoint.read_arrays(path)  # one of headstart's, with a checksum
    expected = {checkpoint.steps(name): leaf for name, leaf in named(like)}
    given = _by_steps(path, arrays, expected)
    problems = [f"no {_name(steps)}" for steps in expected if steps not in given]
    problems += [f"{_name(steps)}, which the model has not" for steps in given if steps not in expected]
    problems += [
        f"{_name(steps)} of shape {array.shape} instead of {expected[steps].shape}"
        for steps, array in given.items()
        if steps in expected and array.shape != expected[steps].shape
    ]
    if problems:
        more = f" and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise UserError(f"{path} holds the parameters of another model: {'; '.join(problems[:4])}{more}")
    leaves = [_as(path, steps, given[steps], leaf.dtype) for steps, leaf in expected.items()]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _by_steps(
    path: Path, arrays: Mapping[str, np.ndarray], expected: Collection[tuple[str, ...]]
) -> dict[tuple[str, ...], np.ndarray]:
    given = {}
    for name, array in arrays.items():
        steps = checkpoint.steps(name)
        if len(steps) == 1 and steps not in expected:
            steps = tuple(re.split(r"[./]", name))
        if steps not in expected and ("params", *steps) in expected:
            steps = ("params", *steps)
        if steps in given:
            raise UserError(f"{path} has two arrays for {_name(steps)}; leave one of them")
        given[steps] = array
    return given


def _as(path: Path, steps: tuple[str, ...], array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """An array in the type of the model: one kind of floating point as another, whole numbers where all are equal."""
    if jnp.issubdtype(array.dtype, jnp.floating) != jnp.issubdtype(dtype, jnp.floating):
        raise UserError(f"{path} holds {_name(steps)} as {array.dtype}, and the model as {dtype}")
    with np.errstate(over="ignore"):
        cast = np.asarray(array, dtype)
    if jnp.issubdtype(dtype, jnp.floating):
        if not np.isfinite(np.asarray(cast, np.float64)).all():
            raise UserError(f"{path} holds numbers in {_name(steps)} that are not finite as {dtype}")
    elif not np.array_equal(cast, array):
        raise UserError(f"{path} holds numbers in {_name(steps)} that are too large for {dtype}")
    return cast


def _name(steps: tuple[str, ...]) -> str:
    return ".".join(steps)
