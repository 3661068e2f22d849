"""Partial batches, computed at less than the price of whole ones.

The last batch of a client's epoch is partial, and with clients of FEMNIST's sizes a twelfth of all rows would be
padding. A compiled program has fixed shapes, so it holds the same function for a few lengths of batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from headstart.data.federation import Examples, Tree

# Of shorter batches little is padding, and of longer ones a client is expected to have several.
_THREE_QUARTERS_OF = range(8, 11)


def lengths(size: int) -> list[int]:
    """The lengths, from short to long, that a batch is cut to where they hold all of its rows.

    A quarter, a half, of batches of about ten three quarters. More would compute less padding, but each is compiled.
    """
    quarters = (1, 2, 3, 4) if size in _THREE_QUARTERS_OF else (1, 2, 4)
    return sorted({-(-size * quarter // 4) for quarter in quarters})


def lengths_to_measure(size: int) -> list[int]:
    """The same for batches that are measured, not trained on: an eighth too, for clients with few test examples."""
    return sorted({-(-size // 8), *lengths(size)})


def with_partial_batches(
    function: Callable[..., Tree], lengths: Callable[[int], list[int]] = lengths
) -> Callable[..., Tree]:
    """The function `(examples, …)`, computed on the shortest of a few prefixes of the batch that holds all of its rows.

    function: its output must have the same shape for every length of batch. Rows that count come first in a batch.
    lengths: those of a batch of some size.

    Under vmap, where every length would be computed, the whole batch is. The result cannot be differentiated again.
    """

    @jax.custom_batching.custom_vmap
    def alone(examples: Examples, *given: Any) -> Tree:
        possible = lengths(examples.mask.shape[0])
        shortest = jnp.sum(examples.mask.sum() > jnp.array(possible[:-1], jnp.int32))
        branches = [lambda whole, *given, n=n: function(prefix(whole, n), *given) for n in possible]
        return jax.lax.switch(shortest, branches, examples, *given)

    @alone.def_vmap
    def beside(axis_size: int, batched: Any, *given: Any) -> tuple[Tree, Tree]:
        axes = jax.tree.map(lambda is_batched: 0 if is_batched else None, tuple(batched))
        output = jax.vmap(function, in_axes=axes, axis_size=axis_size)(*given)
        return output, jax.tree.map(lambda _: True, output)

    return alone


def prefix(examples: Examples, length: int) -> Examples:
    """The first rows of a batch."""
    return jax.tree.map(lambda leaf: leaf[:length], examples)
