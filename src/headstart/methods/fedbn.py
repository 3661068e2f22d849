"""FedBN (Li et al., arXiv:2102.07623): batch normalization stays with the client, everything else is averaged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import jax
import optax

from headstart.data.federation import Array, Client, Tree, named
from headstart.errors import UserError
from headstart.fields import MOST_EPOCHS, at_least
from headstart.learning.local_sgd import LocalSGD, batches_per_epoch
from headstart.learning.method import ClientUpdate, Reply
from headstart.learning.tasks import Task
from headstart.methods.paper import SearchSpace, difference, make_reply
from headstart.methods.partial import head_of, is_statistic, names_in, replace_leaves, select_leaves
from headstart.models.zoo import Model


@dataclass(frozen=True)
class FedBN(ClientUpdate):
    """E epochs with the client's own normalization in place of that which is broadcast; FedAvg of everything else.

    layers: names in the paths of the parameters that stay with the client; None takes all layers with batch statistics:
        the statistics, and the parameters beside them.

    A held-out client has no normalization yet. It starts from the mean of those of the clients of past rounds, as the
    server averages it, and fine-tunes everything; for its sake alone they are sent, where the authors' stay.
    """

    epochs: int = at_least(1, 1, most=MOST_EPOCHS)
    learning_rate: float = at_least(0, 0.02)
    batch_size: int = at_least(1, 20)
    layers: tuple[str, ...] | None = None

    search_space: ClassVar[SearchSpace] = {"epochs": (1, 5)}
    differs: ClassVar[str] = (
        "made for clients that take part and keep their normalization; a held-out client starts from the mean of theirs"
    )

    def __call__(
        self, task: Task, model: Model, broadcast: Tree, client: Client, client_state: Tree, key: Array
    ) -> Reply:
        """A client update; see `ClientUpdate`."""
        part = normalization_of(broadcast, self.layers)
        local_sgd = LocalSGD(task, model, optax.sgd(self.learning_rate), self.batch_size)
        steps = self.epochs * batches_per_epoch(client, self.batch_size)
        end = local_sgd.run(local_sgd.init(replace_leaves(part, broadcast, client_state)), client, key, steps=steps)
        return make_reply(
            client, difference(broadcast, end.params), end.metrics, client_state=select_leaves(part, end.params)
        )

    def init_client_state(self, params: Tree) -> Tree:
        """The leaves of the normalization."""
        return select_leaves(normalization_of(params, self.layers), params)

    def with_client_state(self, broadcast: Tree, client_state: Tree) -> Tree:
        """What is broadcast, with the client's own normalization."""
        return replace_leaves(normalization_of(broadcast, self.layers), broadcast, client_state)


def normalization_of(params: Tree, layers: Sequence[str] | None) -> Tree:
    """A tree of booleans that marks the layers with batch statistics, or those that are named as in `head_of`.

    Raises:
        UserError: if there are none.
    """
    if layers is not None:
        return head_of(params, layers)
    paths = [path for path, _ in named(params)]
    # A layer's names, between those of the collection and of the leaf itself.
    modules = [tuple(names_in(path)[1:-1]) for path in paths]
    with_statistics = {module for path, module in zip(paths, modules, strict=True) if is_statistic(path, params)}
    if not with_statistics:
        raise UserError(
            "the model has no layers with batch statistics, such as Flax's BatchNorm, that could stay with the clients;"
            " choose a model with them, or name the layers that are to stay"
        )
    return jax.tree.unflatten(jax.tree.structure(params), [module in with_statistics for module in modules])
