"""Folds: of which rows of the validation clients a choice is made, where one is made of more than their split."""

from __future__ import annotations

import numpy as np

from headstart.data.device_data import Gather

# A choice among optima, which cost little, is made on as many folds of the validation clients' examples.
FOLDS = 5


def folds(gather: Gather, clients: np.ndarray) -> list[Gather]:
    """Gathers of these clients, the first as they are, the others with other rows of theirs as local test examples.

    Only the first where their rows were not split at random.
    """
    support, query = np.asarray(gather.federation.sizes)[clients].sum(axis=0)
    if not gather.federation.is_split_at_random or not query:
        return [gather]
    return [gather.turned(turn) for turn in range(int(np.clip(round((support + query) / query), 1, FOLDS)))]
