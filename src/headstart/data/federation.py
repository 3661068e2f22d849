"""Federations: many clients, each with its own examples; and the padded views that programs need.

Three shapes of the same examples:

* `Federation`: ragged and lazy, on the host. Knows every client's id and sizes; reads rows when asked.
* `Block`: the rows of some clients, flat, on the device. Nothing is padded.
* `Client`: which rows of a block are one client's own. The only padded thing is a vector of row numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import pairwise
from typing import Any, Literal, NamedTuple, overload

import jax
import jax.numpy as jnp
import numpy as np

from headstart.data import mapped
from headstart.data.checks import check_rows, checked_ids, checked_sizes, real, whole
from headstart.errors import UserError

Array = jax.Array
Tree = Any
Part = Literal["adapt", "test", "all"]


class Examples(NamedTuple):
    """A batch.

    x: inputs, a tree of arrays `[batch, ...]`; images that are stored as uint8 arrive as float32 in [0, 1].
    y: targets, a tree of arrays `[batch, ...]`.
    mask: bool `[batch]`; False marks a row of padding, which no loss, gradient or metric counts.
    """

    x: Tree
    y: Tree
    mask: Array


class Block(NamedTuple):
    """The examples of some clients as flat rows.

    x, y: trees of arrays `[rows, ...]`.
    """

    x: Tree
    y: Tree


class Client(NamedTuple):
    """One client's examples, as row numbers of a block.

    A cohort is the same tuple with a leading axis of clients on every field but `block`.

    block: the rows this client's are among.
    rows: int32 `[capacity]`; entries from `size` on are padding.
    size: int32, the number of the client's examples.
    key_data: uint32 `[2]`, 64 bits of a hash of the client's id. Randomness derives from it, not from a position
        in a cohort.
    """

    block: Block
    rows: Array
    size: Array
    key_data: Array

    def at(self, index: Array | int) -> Client:
        """One client of a cohort, or one cohort of several."""
        rows, size, key_data = (leaf[index] for leaf in (self.rows, self.size, self.key_data))
        return Client(self.block, rows, size, key_data)

    def examples(self, positions: Array, mask: Array) -> Examples:
        """The batch at `positions` (int32 `[batch]`, counted within this client); masked entries are padding."""
        # A padding row reads the client's own first row: the mask hides its loss, but the gradient of another client's
        # broken row (NaN) times zero would still be NaN.
        rows = jnp.where(mask, self.rows[jnp.clip(positions, 0, self.rows.shape[0] - 1)], self.rows[0])
        x = jax.tree.map(lambda leaf: as_input(leaf[rows]), self.block.x)
        y = jax.tree.map(lambda leaf: leaf[rows], self.block.y)
        return Examples(x, y, mask)


def named(tree: Tree) -> list[tuple[str, Any]]:
    """The leaves of a tree in their order, each with its path as a name."""
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]]


def as_input(x: Array) -> Array:
    """A uint8 array is an image: float32 in [0, 1]. Everything else passes."""
    return x.astype(jnp.float32) / 255 if x.dtype == jnp.uint8 else x


def input_shapes(x: Tree) -> Tree:
    """The shapes and types of host arrays `[rows, ...]` as a model gets them; nothing is computed or compiled."""
    return jax.tree.map(partial(jax.eval_shape, as_input), shapes(x))


def shapes(tree: Tree) -> Tree:
    """The shapes of host arrays, with the types that they have on a device."""

    def shape(leaf: np.ndarray) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(np.shape(leaf), jax.dtypes.canonicalize_dtype(leaf.dtype))

    return jax.tree.map(shape, tree)


@dataclass(frozen=True)
class Ids(Sequence[str]):
    """The ids `name(0)` to `name(length - 1)`, made when asked for: of a million, few ever are."""

    length: int
    name: Callable[[int], str]

    def __len__(self) -> int:
        return self.length

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self.name(i) for i in range(self.length)[index]]
        return self.name(range(self.length)[index])

    def __iter__(self) -> Iterator[str]:
        return map(self.name, range(self.length))


Fetch = Callable[[np.ndarray], tuple[Tree, Tree]]


@dataclass(frozen=True)
class Generated:
    """A `Federation.fetch` of rows that a function makes from a few values, which `made_from` names.

    With the same `made_from` the rows of clients of the same ids and sizes are the same.
    """

    function: Fetch
    made_from: str

    def __call__(self, clients: np.ndarray) -> tuple[Tree, Tree]:
        """The rows of these clients."""
        return self.function(clients)


def derived(fetch: Fetch, source: Fetch, how: str) -> Fetch:
    """A fetch that changes the rows of another one; of generated rows it says how."""
    return Generated(fetch, source.made_from + how) if isinstance(source, Generated) else fetch


@dataclass(frozen=True)
class Federation:
    """Clients that hold different examples.

    name: what to call it in a report.
    ids: one string per client, unique.
    sizes: int `[clients, 2]`: the numbers of local training (support) and local test (query) examples of each client.
    fetch: maps client numbers (int array `[n]`) to `(x, y)`, trees of numpy arrays: all rows of the first
        client, then of the next one; a client's local training rows come before its local test rows.
    has_predefined_split: whether the source itself separates the two parts. If not, `split_examples` made them,
        and a training client may use all of its rows.
    metadata: what is known of the examples: `kind` ("image", "text" or "features"), `classes` (their number),
        `labels` (a string or list with the name of each class), `source` (where they come from).
    holds_out: whether training clients keep their local test rows out of training where there is no predefined split.
    """

    name: str
    ids: Sequence[str]
    sizes: np.ndarray
    fetch: Fetch
    has_predefined_split: bool = True
    metadata: Mapping[str, Any] = field(default_factory=dict)
    holds_out: bool = False

    def __len__(self) -> int:
        return len(self.sizes)

    def capacity(self, part: Part = "all") -> int:
        """The number of examples in this part of the client that has most of them, and at least 1."""
        return self._capacities[part]

    @cached_property
    def _capacities(self) -> Mapping[Part, int]:
        # Every gather asks, and a million clients are many to look through.
        adapt, test = self.sizes.T
        parts: Mapping[Part, np.ndarray] = {"adapt": adapt, "test": test, "all": adapt + test}
        return {part: int(sizes.max(initial=1)) for part, sizes in parts.items()}

    @property
    def training_part(self) -> Part:
        """The part that clients train on: "adapt" (local training) if its test rows are kept apart, else "all"."""
        return "adapt" if self.has_predefined_split or self.holds_out else "all"

    @property
    def training_sizes(self) -> np.ndarray:
        """Int `[clients]`: how many examples each client trains on."""
        return self.sizes[:, 0] if self.training_part == "adapt" else self.sizes.sum(axis=1)

    @property
    def nbytes(self) -> int:
        """The size of all examples, estimated from one client's."""
        example = jax.tree.leaves(self.example())
        return sum(leaf.nbytes * int(self.sizes.sum()) // max(len(leaf), 1) for leaf in example)

    @property
    def is_split_at_random(self) -> bool:
        """Whether any of a client's rows might as well have been its local test rows."""
        return not (self.has_predefined_split or self.metadata.get("split"))

    def select(self, clients: np.ndarray) -> Federation:
        """The federation of these clients (int array `[n]`), in this order."""
        clients = np.asarray(clients, np.int64)
        return replace(
            self,
            ids=Ids(len(clients), lambda index: self.ids[int(clients[index])]),
            sizes=self.sizes[clients],
            fetch=derived(lambda inner: self.fetch(clients[np.asarray(inner, np.int64)]), self.fetch, ""),
        )

    def example(self) -> tuple[Tree, Tree]:
        """`(x, y)` of one client's rows: enough to see shapes and dtypes."""
        clients = np.flatnonzero(self.sizes.sum(axis=1))[:1]
        return self.fetch(clients)


def from_arrays(
    name: str,
    ids: Sequence[str],
    sizes: np.ndarray,
    x: Tree,
    y: Tree,
    *,
    has_predefined_split: bool = True,
    metadata: Mapping[str, Any] | None = None,
) -> Federation:
    """A federation over flat arrays, in memory or memory-mapped.

    ids: text, every one once. sizes: int `[clients, 2]`, whose sum is the number of rows.
    x, y: trees of finite arrays `[rows, ...]`: client after client, and of each the local training rows first. uint8
        arrays are images, which arrive at a model as numbers from 0 to 1.

    Raises:
        UserError: for ids, sizes or arrays that are otherwise.
    """
    ids = ids if isinstance(ids, Ids) else checked_ids(name, ids)
    sizes = checked_sizes(name, sizes, len(ids))
    leaves = [(f"{part}{path}", leaf) for part, tree in (("x", x), ("y", y)) for path, leaf in named(tree)]
    check_rows(name, ids, sizes, leaves)
    return of_rows(name, ids, sizes, x, y, has_predefined_split=has_predefined_split, metadata=metadata)


def of_rows(
    name: str,
    ids: Sequence[str],
    sizes: np.ndarray,
    x: Tree,
    y: Tree,
    *,
    has_predefined_split: bool = True,
    metadata: Mapping[str, Any] | None = None,
) -> Federation:
    """As `from_arrays`, of what is known to be sound."""
    ends = np.cumsum(sizes.sum(axis=1))
    starts = ends - sizes.sum(axis=1)

    def fetch(clients: np.ndarray) -> tuple[Tree, Tree]:
        pieces = [slice(starts[i], ends[i]) for i in clients]
        contiguous = all(a.stop == b.start for a, b in pairwise(pieces))
        rows = sum(piece.stop - piece.start for piece in pieces)

        def take(leaf: np.ndarray) -> np.ndarray:
            if not pieces:
                return leaf[:0]
            is_large = leaf.nbytes >= mapped.LARGE and mapped.is_mapped(leaf)
            # A view of a part of a large file would keep in memory whatever was read of it.
            if contiguous and (rows == len(leaf) or not is_large):
                return leaf[pieces[0].start : pieces[-1].stop]
            return mapped.stretches(leaf, pieces) if is_large else np.concatenate([leaf[piece] for piece in pieces])

        return jax.tree.map(take, x), jax.tree.map(take, y)

    return Federation(name, ids, sizes, fetch, has_predefined_split, dict(metadata or {}))


def split_examples(federation: Federation, *, test_fraction: float = 0.2, seed: int = 0) -> Federation:
    """Give every client local training and local test examples: its rows, permuted by (seed, its id).

    For sources without a predefined split. A client of two or more examples tests on at least one.

    Raises:
        UserError: if test_fraction is no share of at least 0 and below 1, or the seed is negative.
    """
    whole("seed", seed, 0)
    if not 0 <= real("test_fraction", test_fraction) < 1:
        raise UserError(f"test_fraction is {test_fraction}; give a share of at least 0 and below 1, such as 0.2")
    totals = federation.sizes.sum(axis=1)
    test = np.clip(np.round(totals * test_fraction).astype(np.int64), np.minimum(1, totals // 2), None)

    def fetch(clients: np.ndarray) -> tuple[Tree, Tree]:
        order, start = [], 0
        for i in np.asarray(clients, np.int64):
            order.append(start + split_order(federation.ids[int(i)], int(totals[i]), seed))
            start += int(totals[i])
        rows = np.concatenate([*order, np.zeros(0, np.int64)]).astype(np.int64)
        return jax.tree.map(lambda leaf: leaf[rows], federation.fetch(clients))

    sizes, fetch_split = (
        np.stack([totals - test, test], axis=1),
        derived(fetch, federation.fetch, f", split by {seed}"),
    )
    return replace(federation, sizes=sizes, fetch=fetch_split, has_predefined_split=False)


def split_order(client: str, rows: int, seed: int = 0) -> np.ndarray:
    """The order in which `split_examples` puts a client's rows: int `[rows]`, where each was in the source."""
    return np.random.default_rng([seed, *map(int, key_data(client))]).permutation(rows)


def limited(federation: Federation, adapt_examples: float, *, seed: int = 0) -> Federation:
    """The federation with fewer local training (support) examples of each client, sampled by (seed, its id).

    adapt_examples: at most n of them for a number n of at least 1, or this share of them, at least one, for a number
        below. Local test examples stay; where the source has no predefined split, training clients use them too.

    Raises:
        UserError: if it is not above 0, or the seed is negative.
    """
    whole("seed", seed, 0)
    adapt_examples = min(real("adapt_examples", adapt_examples), 2.0**53)
    if not adapt_examples > 0:
        raise UserError(f"adapt_examples is {adapt_examples}; give a number from 1 on, or a share above 0")
    all_of_it = federation.sizes[:, 0]
    share = np.maximum(np.round(adapt_examples * all_of_it), 1)
    kept = np.minimum(all_of_it, adapt_examples if adapt_examples >= 1 else share).astype(np.int64)

    def fetch(clients: np.ndarray) -> tuple[Tree, Tree]:
        rows, start = [np.zeros(0, np.int64)], 0
        for i in np.asarray(clients, np.int64):
            adapt, test = map(int, federation.sizes[i])
            generator = np.random.default_rng([seed, 1, *map(int, key_data(federation.ids[int(i)]))])
            chosen = generator.choice(adapt, int(kept[i]), replace=False)
            rows.append(start + np.concatenate([np.sort(chosen), adapt + np.arange(test)]))
            start += adapt + test
        taken = np.concatenate(rows)
        return jax.tree.map(lambda leaf: leaf[taken], federation.fetch(clients))

    sizes = np.stack([kept, federation.sizes[:, 1]], axis=1)
    how = f", limited by {seed} from {hashlib.sha256(all_of_it.tobytes()).hexdigest()}"
    return replace(federation, sizes=sizes, fetch=derived(fetch, federation.fetch, how))


class Split(NamedTuple):
    """Three disjoint groups of a federation's clients, as client numbers (int64 `[n]`, ascending)."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def split_clients(federation: Federation, *, train: float = 0.7, validation: float = 0.1, seed: int = 0) -> Split:
    """Separate the clients into training, validation and test clients; `federation.select` makes federations of them.

    Ordered by a hash of (seed, id), so the split does not depend on the order of the file, and a client that comes or
    goes moves at most one other across each border where numbers are given. `train` and `validation` are numbers of
    clients if at least 1, shares if below; the rest test.

    Raises:
        UserError: if nobody is left to train or to test on.
    """
    count = len(federation)
    for name, value in (("train", train), ("validation", validation)):
        if not np.isfinite(real(name, value)):
            raise UserError(f"{name} is {value}; give a number of clients, or a share of them below 1")
    numbers = [int(n) if n >= 1 else round(n * count) for n in (train, validation)]
    if min(numbers) < 0 or numbers[0] < 1 or sum(numbers) >= count:
        raise UserError(
            f"{numbers[0]} training and {numbers[1]} validation clients leave no test client among the {count} of"
            f" {federation.name}; choose fewer"
        )
    order = _order(f"{seed}:{client_id}" for client_id in federation.ids)
    return Split(*map(np.sort, np.split(order, np.cumsum(numbers))))


def _order(texts: Iterable[str]) -> np.ndarray:
    """int64 `[n]`: the indices of the texts in the order of their digests."""
    # A digest as four numbers: the first decides, but for a chance that is hardly ever met.
    words = np.frombuffer(b"".join(map(_digest, texts)), ">u8").astype(np.uint64).reshape(-1, 4)
    order = np.argsort(words[:, 0], kind="stable")
    tied = not np.diff(words[order, 0]).all()
    return np.lexsort(words.T[::-1]) if tied else order


def key_data(client_id: str) -> np.ndarray:
    """uint32 `[2]`: 64 bits of the SHA-256 of a client's id."""
    return np.frombuffer(_digest(client_id)[:8], np.uint32)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
