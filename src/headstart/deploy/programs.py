"""The programs that a device runs: adapt, measure, predict, as portable StableHLO.

Adapting is `personalization.adapt_client`, as for `headstart personalize`: a client's key derives from its id alone,
and neither its order of examples nor its batches change with the padding around them, so both come to the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import export

from headstart.data.federation import Array, Block, Tree
from headstart.errors import UserError
from headstart.learning.method import PLAIN, Method
from headstart.learning.personalization import (
    Personalization,
    adapt_client,
    evaluate,
)
from headstart.learning.prediction import CAPACITIES, one_client, predict_client
from headstart.learning.rounds import client_key
from headstart.learning.tasks import Task, mean
from headstart.models.zoo import Model

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


class Like(NamedTuple):
    """The arguments of the programs: trees of arrays or `jax.ShapeDtypeStruct`, of which only shapes and dtypes count.

    params: the model's. x, y: of some examples, `[rows, ...]`.
    """

    params: Tree
    x: Tree
    y: Tree


def check_platforms(platforms: Collection[str]) -> tuple[str, ...]:
    """The platforms, in the usual order.

    Raises:
        UserError: if one is unknown, which JAX itself does not check, or there is none.
    """
    unknown = sorted(set(platforms) - set(PLATFORMS))
    if unknown or not platforms:
        problem = f"there is no platform {unknown[0]!r}" if unknown else "there is no platform to export for"
        raise UserError(f"{problem}; choose among {','.join(PLATFORMS)}")
    return tuple(name for name in PLATFORMS if name in platforms)


def export_adapt(
    task: Task,
    model: Model,
    recipe: Personalization,
    like: Like,
    *,
    method: Method = PLAIN,
    platforms: Collection[str] = PLATFORMS,
) -> export.Exported:
    """`(leaves, x, y, size, key, client, length) -> leaves`: the client's own parameters.

    leaves: the arrays of the model's parameters. x, y: `[capacity, ...]`; only the first `size` rows are valid.
    key: uint32 `[2]`, the data of the key of personalization. client: uint32 `[2]`, the client's `key_data`.
    length: int32, the epochs (or steps) of personalization. method: the one the run's last stage trained with.
    """
    structure = jax.tree.structure(like.params)

    def adapt(leaves: list[Array], x: Tree, y: Tree, size: Array, key: Array, client: Array, length: Array) -> Tree:
        params, mine = jax.tree.unflatten(structure, leaves), one_client(Block(x, y), size, client)
        own_key = client_key(jax.random.wrap_key_data(key, impl="threefry2x32"), mine)
        return jax.tree.leaves(adapt_client(task, model, recipe, params, mine, own_key, length, method))

    words, number = jax.ShapeDtypeStruct((2,), np.uint32), jax.ShapeDtypeStruct((), np.int32)
    return _export(adapt, platforms, like, like.x, like.y, more=(number, words, words, number))


def export_measure(task: Task, model: Model, like: Like, *, platforms: Collection[str] = PLATFORMS) -> export.Exported:
    """`(leaves, x, y, size) -> (value, count)`: the task's first metric, and the number of items it is a mean of."""
    structure, metric = jax.tree.structure(like.params), task.metrics[0]

    def measure(leaves: list[Array], x: Tree, y: Tree, size: Array) -> tuple[Array, Array]:
        sums, _ = evaluate(task.metrics, model, jax.tree.unflatten(structure, leaves), one_client(Block(x, y), size))
        total, count = sums[metric.name]
        return metric.finish(mean(total, count)), count

    return _export(measure, platforms, like, like.x, like.y, more=(jax.ShapeDtypeStruct((), np.int32),))


def export_predict(model: Model, like: Like, *, platforms: Collection[str] = PLATFORMS) -> export.Exported:
    """`(leaves, x, size) -> output [capacity, ...]`: the model's output; only its first `size` rows are valid."""
    structure = jax.tree.structure(like.params)

    def predict(leaves: list[Array], x: Tree, size: Array) -> Tree:
        return predict_client(model, jax.tree.unflatten(structure, leaves), one_client(Block(x, ()), size))

    return _export(predict, platforms, like, like.x, more=(jax.ShapeDtypeStruct((), np.int32),))


@contextmanager
def _without_folders() -> Iterator[None]:
    """Keep folders of this machine out of the names of source files that a program records."""
    name = "jax_hlo_source_file_canonicalization_regex"
    before = getattr(jax.config, name)
    jax.config.update(name, r".*[/\\]")
    try:
        yield
    finally:
        jax.config.update(name, before)


def _export(
    function: Callable[..., Tree], platforms: Collection[str], like: Like, *rows: Tree, more: tuple[Tree, ...]
) -> export.Exported:
    """The function of (leaves, rows, more), for any capacity of the rows.

    Raises:
        UserError: if JAX cannot export it.
    """
    # Without a bound JAX cannot decide that one key suffices for the random numbers.
    (capacity,) = export.symbolic_shape("capacity", constraints=[f"capacity <= {CAPACITIES[-1]}"])

    def described(leaf: Array | np.ndarray, *shape: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape or leaf.shape, jax.dtypes.canonicalize_dtype(leaf.dtype))

    given = jax.tree.map(lambda leaf: described(leaf, capacity, *leaf.shape[1:]), rows)
    leaves = [described(leaf) for leaf in jax.tree.leaves(like.params)]
    try:
        with _without_folders():
            return export.export(jax.jit(function), platforms=check_platforms(platforms))(leaves, *given, *more)
    except UserError:
        raise
    except Exception as error:  # whatever the user's own model or task raises
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"the program {function.__name__!r} of this model and task cannot be exported: {reason}; write them with"
            " jax.numpy alone, for any number of examples"
        ) from error
