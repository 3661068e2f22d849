"""What a model says of examples, batch after batch: of the same rows the same bits, here and on a device."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from headstart.data.federation import Array, Block, Client, Examples, Tree
from headstart.learning.local_sgd import collect_batches
from headstart.learning.partial_batches import with_partial_batches
from headstart.learning.personalization import EVALUATION_BATCH, whole_batch
from headstart.models.zoo import Model

# A device pads its examples to one of these sizes, since a program is compiled for each size that it meets.
CAPACITIES = tuple(64 * 4**power for power in range(11))


def predict_client(model: Model, params: Tree, client: Client) -> Tree:
    """The model's output for a client's examples, `[capacity, ...]`, batch after batch."""

    @with_partial_batches
    def predicted(examples: Examples, params: Tree) -> Tree:
        output, _ = model.apply(params, examples.x)
        return jax.tree.map(whole_batch, output)

    outputs = collect_batches(client, EVALUATION_BATCH, lambda examples: predicted(examples, params))
    return jax.tree.map(lambda leaf: leaf[: client.rows.shape[0]], outputs)


def one_client(block: Block, size: Array | int, key_data: Array | None = None) -> Client:
    """The client of the first `size` rows of a block."""
    capacity = jax.tree.leaves(block.x)[0].shape[0]
    words = jnp.zeros(2, jnp.uint32) if key_data is None else key_data
    return Client(block, jnp.arange(capacity, dtype=jnp.int32), jnp.asarray(size, jnp.int32), words)
