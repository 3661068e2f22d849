"""Gradient transforms that methods share, and masks of the parameters that a method treats apart."""

from __future__ import annotations

import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from headstart.data.federation import Tree, named
from headstart.errors import UserError
from headstart.learning.method import GradientTransform, LinearTransform
from headstart.learning.tasks import at_least_float32

_DENSE = re.compile(r"Dense_(\d+)")


def proximal(strength: float, anchor: Tree) -> GradientTransform:
    """The transform that adds the gradient of the proximal term `strength / 2 ‖params − anchor‖²`."""
    anchor = at_least_float32(anchor)

    def transform(gradient: Tree, params: Tree) -> Tree:
        return jax.tree.map(lambda g, p, a: g + strength * (p - a), gradient, params, anchor)

    return transform


def masked_to(part: Tree) -> GradientTransform:
    """The transform that leaves the gradient of a part (a tree of booleans) and zeros elsewhere."""

    def transform(gradient: Tree, params: Tree) -> Tree:
        return jax.tree.map(lambda g, moves: g if moves else jnp.zeros_like(g), gradient, part)

    return LinearTransform(transform)


def head_of(params: Tree, head: Sequence[str] | None) -> Tree:
    """A tree of booleans that marks the parameters of the head.

    head: names in the paths of the head's parameters, such as "Dense_1" or "decoder"; an empty one leaves no head, None
        takes the last of the dense layers that are not inside another module, as Flax numbers them.

    Raises:
        UserError: if there are no such parameters, or the layer taken is all of the model.
    """
    paths = [_names(path) for path, _ in named(params)]
    chosen = _last_dense(paths) if head is None else head
    for name in chosen:
        if not any(name in path for path in paths):
            known = sorted({name for path in paths for name in path})
            raise UserError(f"no parameter's path has the name {name!r}; name the head by one of {', '.join(known)}")
    flags = [any(name in path for name in chosen) for path in paths]
    if head is None and all(flags):
        raise UserError(
            f"the head {chosen[0]} is all of the model, which leaves no body to share; choose another model"
        )
    return jax.tree.unflatten(jax.tree.structure(params), flags)


def _last_dense(paths: Sequence[Sequence[str]]) -> list[str]:
    numbers = [int(match[1]) for path in paths if (match := _DENSE.fullmatch(path[0]))]
    if not numbers:
        raise UserError("the model has no dense layer of its own that could be its head; name the head's parameters")
    return [f"Dense_{max(numbers)}"]


def is_statistic(path: str, params: Tree) -> bool:
    """Whether the leaf at a path (`data.named`) is in another collection of a Flax module than its parameters."""
    return isinstance(params, dict) and "params" in params and not path.startswith("['params']")


def names_in(path: str) -> list[str]:
    """The names in the path of a leaf, as `data.named` gives it."""
    return re.findall(r"\w+", path)


def _names(path: str) -> list[str]:
    """The names in a path, without that of the collection `params`."""
    names = names_in(path)
    return names[1:] if names[:1] == ["params"] else names


def complement(part: Tree) -> Tree:
    """The tree of booleans that marks everything but this part."""
    return jax.tree.map(lambda inside: not inside, part)


def select_leaves(part: Tree, params: Tree) -> list[jax.Array]:
    """The leaves of the part, in order."""
    pairs = zip(jax.tree.leaves(part), jax.tree.leaves(params), strict=True)
    return [leaf for inside, leaf in pairs if inside]


def replace_leaves(part: Tree, params: Tree, leaves: Sequence[jax.Array]) -> Tree:
    """The parameters with these leaves, from `select_leaves`, in place of those of the part."""
    new = iter(leaves)
    return jax.tree.map(lambda inside, leaf: next(new) if inside else leaf, part, params)
