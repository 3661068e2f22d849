"""Make a federation of examples that belong to nobody yet. Every example goes to exactly one client."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from headstart.data.checks import real, whole
from headstart.data.federation import Federation, Tree, from_arrays, split_examples
from headstart.errors import UserError


def by_dirichlet(x: Tree, y: np.ndarray, *, clients: int, alpha: float, seed: int = 0) -> Federation:
    """Clients of one size with different mixtures of classes (Hsu et al. 2019, arXiv:1909.06335).

    Each client draws its mixture from Dirichlet(alpha · the data's mixture): a small `alpha` leaves it few
    classes, a large one all, and an infinite one gives all clients the data's own.
    When a class is used up, the clients that come later do without.

    x: tree of arrays `[rows, ...]`. y: classes `[rows]`.
    """
    alpha, y = real("alpha", alpha), _classes("by_dirichlet", y)
    owners = dirichlet_owners(y, clients, alpha=alpha, seed=seed)
    return _federation(f"dirichlet({alpha:g})", x, y, owners, seed)


def by_classes(x: Tree, y: np.ndarray, *, clients: int, classes_per_client: int, seed: int = 0) -> Federation:
    """Clients that each hold examples of n classes; the examples of a class are divided evenly among its holders."""
    y = _classes("by_classes", y)
    owners = classes_owners(y, clients, classes_per_client=classes_per_client, seed=seed)
    return _federation(f"classes({classes_per_client})", x, y, owners, seed)


def at_random(x: Tree, y: np.ndarray, *, clients: int, seed: int = 0) -> Federation:
    """Clients of one size whose examples are drawn alike; y may be anything `[rows, ...]`."""
    y = _classes("at_random", y) if np.asarray(y).dtype.kind == "b" else y
    return _federation("random", x, y, random_owners(y, clients, seed=seed), seed)


def dirichlet_owners(y: np.ndarray, clients: int, *, alpha: float, seed: int = 0) -> np.ndarray:
    """The client of each example, int `[rows]`; see `by_dirichlet`."""
    _check_clients(y, clients, seed)
    alpha = real("alpha", alpha)
    if not alpha > 0:
        raise UserError(f"alpha is {alpha:g}; give a number above 0, such as 0.5")
    generator = np.random.default_rng(seed)
    pools = _pools(y, generator)
    left = np.array([len(pool) for pool in pools])
    prior = left / left.sum()
    owners = np.empty(len(y), np.int64)
    for client, size in enumerate(_even_sizes(len(y), clients)):
        mixture = _dirichlet(generator, alpha, prior)
        for pool, stop, count in zip(pools, left.copy(), _take(generator, left, mixture, size), strict=True):
            owners[pool[stop - count : stop]] = client
    return owners


def classes_owners(y: np.ndarray, clients: int, *, classes_per_client: int, seed: int = 0) -> np.ndarray:
    """The client of each example, int `[rows]`; see `by_classes`."""
    _check_clients(y, clients, seed)
    generator = np.random.default_rng(seed)
    pools = _pools(y, generator)
    whole("classes_per_client", classes_per_client, 1, len(pools))
    if clients * classes_per_client < len(pools):
        raise UserError(
            f"{clients} clients of {classes_per_client} classes each cannot hold all {len(pools)} classes; raise one"
        )
    owners = np.empty(len(y), np.int64)
    held = _assign_classes(generator, len(pools), clients, classes_per_client)
    for label, pool in enumerate(pools):
        holders = np.flatnonzero((held == label).any(axis=1))
        if len(pool) < len(holders):
            raise UserError(
                f"class number {label} has {len(pool)} examples for {len(holders)} clients; make fewer clients"
            )
        for client, part in zip(holders, np.array_split(pool, len(holders)), strict=True):
            owners[part] = client
    return owners


def random_owners(y: np.ndarray, clients: int, *, seed: int = 0) -> np.ndarray:
    """The client of each example, int `[rows]`; see `at_random`."""
    _check_clients(y, clients, seed)
    owners = np.repeat(np.arange(clients), _even_sizes(len(y), clients))
    return np.random.default_rng(seed).permutation(owners)


OWNERS: Mapping[str, Callable[..., np.ndarray]] = {
    "dirichlet": dirichlet_owners,
    "classes": classes_owners,
    "random": random_owners,
}


def client_names(clients: int) -> list[str]:
    """Ids that sort as numbers do."""
    return [f"client_{i:0{len(str(clients - 1))}d}" for i in range(clients)]


def _federation(name: str, x: Tree, y: np.ndarray, owners: np.ndarray, seed: int) -> Federation:
    order = np.argsort(owners, kind="stable")
    counts = np.bincount(owners)
    sizes = np.stack([counts, np.zeros_like(counts)], axis=1)
    metadata: dict[str, Any] = {"source": f"partition by {name}"}
    first = np.asarray(jax.tree.leaves(x)[0])
    metadata["kind"] = "image" if first.dtype == np.uint8 and first.ndim > 2 else "features"
    if np.issubdtype(np.asarray(y).dtype, np.integer):
        metadata["classes"] = int(np.max(y)) + 1
    x, y = jax.tree.map(lambda leaf: np.asarray(leaf)[order], (x, y))
    federation = from_arrays(
        name, client_names(len(counts)), sizes, x, y, has_predefined_split=False, metadata=metadata
    )
    return split_examples(federation, seed=seed)


def _classes(method: str, y: np.ndarray) -> np.ndarray:
    """The classes `[rows]` as whole numbers, also where they are written as 1.0 or as true and false.

    Raises:
        UserError: if they are no numbers of classes.
    """
    y = np.asarray(y)
    if y.dtype.kind == "b" or (y.dtype.kind == "f" and ((y == np.trunc(y)) & (np.abs(y) < 2**31)).all()):
        return y.astype(np.int32)
    if y.dtype.kind not in "iu":
        raise UserError(f"{method} needs the numbers of classes, and y is {y.dtype}; give whole numbers, or at_random")
    return y


def _check_clients(y: np.ndarray, clients: int, seed: int) -> None:
    whole("seed", seed, 0)
    if not 1 <= whole("clients", clients) <= len(y):
        raise UserError(f"{clients} clients cannot share {len(y)} examples; give a number from 1 to {len(y)}")


def _pools(y: np.ndarray, generator: np.random.Generator) -> list[np.ndarray]:
    """The rows of each class, shuffled."""
    _, codes, counts = np.unique(y, return_inverse=True, return_counts=True)
    order = generator.permutation(len(codes))
    by_class = order[np.argsort(codes[order], kind="stable")]
    return np.split(by_class, np.cumsum(counts)[:-1])


def _even_sizes(rows: int, clients: int) -> np.ndarray:
    return np.array([rows // clients + (client < rows % clients) for client in range(clients)])


def _dirichlet(generator: np.random.Generator, alpha: float, prior: np.ndarray) -> np.ndarray:
    if np.isinf(alpha):
        return prior
    concentration = np.maximum(alpha * prior, np.finfo(np.float64).tiny)
    # Tiny concentrations underflow to 0/0, and huge ones overflow.
    with np.errstate(invalid="ignore", over="ignore"):
        mixture = generator.dirichlet(concentration)
    if np.isfinite(mixture).all() and mixture.sum() > 0:
        return mixture
    # The limit is the data's mixture for everybody, or all weight on one class.
    if alpha > 1:
        return prior
    return np.eye(len(prior))[generator.choice(len(prior), p=concentration / concentration.sum())]


def _take(generator: np.random.Generator, left: np.ndarray, mixture: np.ndarray, size: int) -> np.ndarray:
    """How many of each class a client takes, `[classes]`; lowers `left` by them."""
    taken = np.zeros_like(left)
    while missing := size - taken.sum():
        weights = np.where(left > 0, mixture, 0)
        # Nothing is left of what this client wants: it takes what there is.
        weights = weights if weights.sum() > 0 else left
        counts = np.minimum(generator.multinomial(missing, weights / weights.sum()), left)
        taken += counts
        left -= counts
    return taken


def _assign_classes(generator: np.random.Generator, classes: int, clients: int, each: int) -> np.ndarray:
    """Different classes for every client, int `[clients, each]`; each class equally often, give or take one."""
    assigned = []
    deck = np.zeros(0, np.int64)
    for _ in range(clients):
        own, deck = deck[:each], deck[each:]
        if len(own) < each:
            fresh = generator.permutation(classes)
            # What the client holds already goes to the bottom of the new deck.
            fresh = fresh[np.argsort(np.isin(fresh, own), kind="stable")]
            missing = each - len(own)
            own, deck = np.concatenate([own, fresh[:missing]]), fresh[missing:]
        assigned.append(own)
    return np.stack(assigned)
