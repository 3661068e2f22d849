"""Bends: what methods do to a gradient on the way down, and the parameters that a method treats apart."""

from __future__ import annotations

import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from headstart.checkpoint import named
from headstart.data import Tree
from headstart.errors import UserError
from headstart.hooks import Bend

_DENSE = re.compile(r"Dense_(\d+)'")


def pull(strength: float, anchor: Tree) -> Bend:
    """The gradient of `strength / 2 ‖params − anchor‖²` on top."""

    def bend(gradient: Tree, params: Tree) -> Tree:
        return jax.tree.map(lambda g, p, a: g + strength * (p - a), gradient, params, anchor)

    return bend


def only(part: Tree) -> Bend:
    """Nothing but a part (a tree of booleans) moves."""

    def bend(gradient: Tree, params: Tree) -> Tree:
        return jax.tree.map(lambda g, moves: g if moves else jnp.zeros_like(g), gradient, part)

    return bend


def head_of(params: Tree, head: Sequence[str] | None) -> Tree:
    """Which parameters are the head: a tree of booleans.

    head: the paths of the head's parameters, or pieces of them such as "Dense_1" or "decoder"; an empty one leaves no
        head, None takes the last dense layer, as Flax numbers them.

    Raises:
        UserError: if there are no such parameters.
    """
    paths = [path for path, _ in named(params)]
    if head is None:
        numbers = {int(number) for path in paths for number in _DENSE.findall(path)}
        head = [f"Dense_{max(numbers)}'"] if numbers else ["a dense layer"]
    for piece in head:
        if not any(piece in path for path in paths):
            raise UserError(f"no parameter's path has {piece!r} in it; name the head by pieces of {', '.join(paths)}")
    return jax.tree.unflatten(jax.tree.structure(params), [any(piece in path for piece in head) for path in paths])


def rest_of(part: Tree) -> Tree:
    """The parameters that are not of this part."""
    return jax.tree.map(lambda inside: not inside, part)


def taken(part: Tree, params: Tree) -> list[jax.Array]:
    """The parameters of the part, in order."""
    pairs = zip(jax.tree.leaves(part), jax.tree.leaves(params), strict=True)
    return [leaf for inside, leaf in pairs if inside]


def given(part: Tree, params: Tree, own: Sequence[jax.Array]) -> Tree:
    """The parameters with one's own in place of those of the part."""
    mine = iter(own)
    return jax.tree.map(lambda inside, leaf: next(mine) if inside else leaf, part, params)
