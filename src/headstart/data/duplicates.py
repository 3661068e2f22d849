"""Rows for local tests that are nearly rows for local training: equal, overlapping, or neighbours in a recording.

A client's accuracy on such rows says little of how it does on new ones. Four shares of the query rows are measured, on
some clients and rows drawn by a fixed seed, and each is a warning beyond a threshold:

* *equal*: a support row has the same values. More than in 5 %, beyond those that equal rows of another client, or do
  with the values of each column permuted.
* *overlapping*: a quarter or more of the row's stretches of 8 values are in support rows, at any place, as of windows
  that were cut from one signal. More than in 5 %. Only of rows of 24 numbers or more that are not pixels.
* *near*: the nearest support row of the same class is within a fifth of the median distance to these, beyond what the
  data's dimension explains. More than in 15 %.
* *neighbours*: rows that lie next to each other in the file are nearer than others of the same client and class, in 70
  percent of comparisons (50 would be chance), where rows were split at random; the share is of query rows that have
  such a neighbour.

Distances are Euclidean in standardized features, cut off at 5 standard deviations. Columns in whose order the file is
sorted do not count for neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import jax
import numpy as np

from headstart.data.federation import Federation, Generated, split_order

# How the warning begins.
NEAR_DUPLICATES = "near-duplicates"
EQUAL, OVERLAPPING, NEAR, NEIGHBOURS = 0.05, 0.05, 0.15, 0.7
_CLIENTS, _ROWS, _NUMBERS = 25, 400, 1 << 21
_STRETCH, _SHORTEST, _QUARTER = 8, 24, 0.25
_FIFTH, _LEAST_ROWS, _LEAST_PAIRS, _FAR = 0.2, 8, 60, 4


class Sample(NamedTuple):
    """Some rows of a client: support rows first.

    x: float64 `[rows, features]`, as they are. y: `[rows]`, classes, or zeros where there are none.
    position: int `[rows]`, where each lies in the file; empty if that is not known, or the file is sorted by quantities
        to predict, so that neighbours are alike for this reason.
    """

    x: np.ndarray
    y: np.ndarray
    support: int
    position: np.ndarray


class Duplicates(NamedTuple):
    """Shares of query rows; `neighbours` is 0 where rows next to each other are no nearer than others."""

    equal: float
    overlapping: float
    near: float
    neighbours: float


def data_notes(federation: Federation) -> list[str]:
    """What is to be said of a federation: how rows were split, where not at random, and the notes of its reader."""
    split = federation.metadata.get("split")
    return [*([f"rows of each client were split {split}"] if split else []), *federation.metadata.get("notes", ())]


def with_duplicate_notes(federation: Federation) -> Federation:
    """The federation, with a warning among its notes if rows for local tests nearly are rows for local training."""
    notes = list(federation.metadata.get("notes", ()))
    if any(str(note).startswith(NEAR_DUPLICATES) for note in notes) or not (found := duplicate_notes(federation)):
        return federation
    return replace(federation, metadata={**federation.metadata, "notes": [*notes, *found]})


def duplicate_notes(federation: Federation) -> list[str]:
    """A sentence on what is beyond a threshold; none if nothing is."""
    found = near_duplicates(federation)
    if found is None:
        return []
    said = [
        (found.equal > EQUAL, found.equal, "equal a row of the same client's local training (support)"),
        (found.overlapping > OVERLAPPING, found.overlapping, "share stretches of values with such rows, as windows do"),
        (found.near > NEAR, found.near, "lie far nearer to such a row than independent rows would"),
        (found.neighbours > 0, found.neighbours, "have a neighbour in the file among these that is much like them"),
    ]
    parts = [f"{share:.0%} {what}" for beyond, share, what in said if beyond]
    if not parts:
        return []
    return [
        f"{NEAR_DUPLICATES}: of the rows for local tests (query) {', '.join(parts)}, so that results look better than"
        " they are on new rows; keep recordings together with --group COLUMN, or test on the last rows with --time"
        " COLUMN"
    ]


def near_duplicates(federation: Federation) -> Duplicates | None:
    """What is measured; None where no client has rows of both parts, or rows are made by a generator."""
    if isinstance(federation.fetch, Generated):
        return None
    samples = list(_samples(federation))
    if len(samples) == 0:
        return None
    queries = sum(len(sample.x) - sample.support for sample in samples)
    spread, drawn = _scales(samples), federation.metadata.get("kind") == "image"
    tokens = federation.metadata.get("kind") == "text"
    scaled = [sample._replace(x=_scaled(sample.x, *spread)) for sample in samples]
    equal = max(sum(int(_equal(each).sum()) for each in samples) - _equal_by_chance(samples), 0) / queries
    if tokens:
        return Duplicates(equal, 0.0, 0.0, 0.0)
    overlapping = 0 if drawn else sum(map(_overlapping, samples))
    return Duplicates(equal, overlapping / queries, _near(scaled), _neighbours(scaled))


def _samples(federation: Federation) -> Iterator[Sample]:
    generator = np.random.default_rng(0)
    able = np.flatnonzero((federation.sizes > 0).all(axis=1))
    at_random = not federation.has_predefined_split and "split" not in federation.metadata
    for client in np.sort(generator.permutation(able)[:_CLIENTS]):
        x, y = federation.fetch(np.array([client]))
        support, total = int(federation.sizes[client, 0]), int(federation.sizes[client].sum())
        flat = np.concatenate([np.reshape(leaf, (total, -1)) for leaf in jax.tree.leaves(x)], axis=1)
        position = split_order(federation.ids[int(client)], total) if at_random else np.zeros(0, np.int64)
        kept = _kept(position, support, total, min(_ROWS, max(_NUMBERS // max(flat.shape[1], 1), 10)), generator)
        targets = np.asarray(jax.tree.leaves(y)[0])
        is_class = targets.ndim == 1 and bool(federation.metadata.get("classes"))
        if not 0 < kept[:support].sum() < kept.sum():
            continue
        position = position[kept] if at_random else position
        if at_random and not is_class and _is_sorted(targets[kept][np.argsort(position)]):
            position = position[:0]
        classes = targets[kept] if is_class else np.zeros(int(kept.sum()))
        yield Sample(np.asarray(flat[kept], np.float64), classes, int(kept[:support].sum()), position)


def _kept(position: np.ndarray, support: int, total: int, most: int, generator: np.random.Generator) -> np.ndarray:
    """Which of a client's rows are looked at: bool `[rows]`, `most` of them at most."""
    if len(position):
        # A stretch of the file, in which neighbours stay.
        return position < most
    kept = np.ones(total, bool)
    if total > most:
        kept[generator.permutation(support)[most * 4 // 5 :]] = False
        kept[support + generator.permutation(total - support)[most // 5 :]] = False
    return kept


def _is_sorted(values: np.ndarray) -> bool:
    """Whether the rows `[rows, ...]` of quantities rise or fall all along."""
    steps = np.diff(values.astype(np.float64), axis=0)
    return bool(steps.any() and ((steps >= 0).all() or (steps <= 0).all()))


def _scales(samples: list[Sample]) -> tuple[np.ndarray, np.ndarray]:
    rows = np.concatenate([sample.x for sample in samples])
    known = np.isfinite(rows)
    count = np.maximum(known.sum(axis=0), 1)
    mean = np.where(known, rows, 0).sum(axis=0) / count
    return mean, np.sqrt((np.where(known, rows - mean, 0) ** 2).sum(axis=0) / count)


def _scaled(x: np.ndarray, mean: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """Standardized features, those that vary alone; a gap is the mean."""
    varies = deviation > 0
    scaled = (x[:, varies] - mean[varies]) / deviation[varies]
    return np.clip(np.where(np.isfinite(scaled), scaled, 0), -5, 5)


def _equal(sample: Sample, support: np.ndarray | None = None) -> np.ndarray:
    """Which query rows equal a support row, of another client if given: bool `[rows]`; gaps are equal."""
    support = sample.x[: sample.support] if support is None else support
    known = {row.tobytes() for row in np.nan_to_num(support, nan=np.inf) + 0.0}
    query = np.nan_to_num(sample.x[sample.support :], nan=np.inf) + 0.0
    return np.array([row.tobytes() in known for row in query])


def _equal_by_chance(samples: list[Sample]) -> int:
    """How many would be equal if the client did not matter, or if a client's columns were drawn by themselves."""
    generator = np.random.default_rng(1)
    others = [*samples[1:], *samples[:1]]
    elsewhere = [_equal(a, b.x[: b.support]) for a, b in zip(samples, others, strict=True) if a is not b]
    shuffled = [_equal(each._replace(x=generator.permuted(each.x, axis=0))) for each in samples]
    return max(sum(int(found.sum()) for found in every) for every in (elsewhere, shuffled))


def _overlapping(sample: Sample) -> int:
    """How many query rows share a quarter of their stretches with support rows."""
    if sample.x.shape[1] < _SHORTEST:
        return 0
    hashes, telling = _stretches(sample.x)
    known = np.sort(hashes[: sample.support][telling[: sample.support]])
    # Of a query row stretches that follow one another; of support rows those at any place.
    own, tells = hashes[sample.support :, ::_STRETCH], telling[sample.support :, ::_STRETCH]
    found = tells & (np.searchsorted(known, own, "left") < np.searchsorted(known, own, "right"))
    shares = found.sum(axis=1) / np.maximum(tells.sum(axis=1), 1)
    return int(((shares >= _QUARTER) & ~_equal(sample)).sum())


def _stretches(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A hash of every stretch of 8 values, uint64 `[rows, stretches]`, and which have 5 different values or more."""
    bits = np.ascontiguousarray(x + 0.0).view(np.uint64)
    width = x.shape[1] - _STRETCH + 1
    hashes = np.zeros((len(x), width), np.uint64)
    changes = np.zeros((len(x), width), np.int64)
    for offset in range(_STRETCH):
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + (
            bits[:, offset : offset + width] ^ (bits[:, offset : offset + width] >> np.uint64(29))
        )
        if offset:
            changes += x[:, offset : offset + width] != x[:, offset - 1 : offset - 1 + width]
    return hashes, changes >= 4


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    squares = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2 * a @ b.T
    return np.sqrt(np.maximum(squares, 0))


def _near(samples: list[Sample]) -> float:
    """The share of query rows that lie far nearer to a support row of their class than the others, beyond chance."""
    near, expected, queries = 0, 0.0, 0
    for sample in samples:
        distances = _distances(sample.x[sample.support :], sample.x[: sample.support])
        for row, target in zip(distances, sample.y[sample.support :], strict=True):
            same = np.sort(row[sample.y[: sample.support] == target])
            if len(same) < _LEAST_ROWS or same[len(same) // 2] <= 0:
                continue
            median, quarter = same[len(same) // 2], max(same[len(same) // 4], 1e-9)
            dimension = np.log(2) / max(np.log(median / quarter), 1e-3)
            expected += 1 - (1 - 0.5 * _FIFTH**dimension) ** len(same)
            # An equal row is counted as such.
            near += bool(0 < same[0] < _FIFTH * median)
            queries += 1
    return float(max(near - expected, 0)) / queries if queries else 0.0


def _neighbours(samples: list[Sample]) -> float:
    """The share of query rows with a support row next to them in the file; 0 if such rows are no more alike."""
    nearer, pairs, beside, queries = 0.0, 0, 0, 0
    unsorted = _unsorted(samples)
    for sample in samples:
        order = np.argsort(sample.position)
        if not len(order):
            continue
        x, y, query = sample.x[order][:, unsorted], sample.y[order], order >= sample.support
        rows = np.arange(len(x))
        far = (np.abs(rows[:, None] - rows) >= _FAR) & (y[:, None] == y)
        distances = _distances(x, x)[:-1]
        own, far = np.diagonal(distances, 1)[:, None], far[:-1]
        scores = (far & (distances > own)).sum(axis=1) + (far & (distances == own)).sum(axis=1) / 2
        paired = (y[:-1] == y[1:]) & far.any(axis=1)
        nearer += float((scores[paired] / far[paired].sum(axis=1)).sum())
        pairs += int(paired.sum())
        alone = np.concatenate([[True], query, [True]])
        beside += int((query & ~(alone[:-2] & alone[2:])).sum())
        queries += int(query.sum())
    return beside / queries if pairs >= _LEAST_PAIRS and nearer / pairs > NEIGHBOURS else 0.0


def _unsorted(samples: list[Sample]) -> np.ndarray:
    """Bool `[features]`: those by which most clients' rows are not sorted in the file."""
    sorted_ = np.zeros(samples[0].x.shape[1])
    for sample in samples:
        if len(sample.position):
            steps = np.diff(sample.x[np.argsort(sample.position)], axis=0)
            sorted_ += (steps >= 0).all(axis=0) | (steps <= 0).all(axis=0)
    return sorted_ <= len(samples) / 2
