"""What deserves a second look before a table is trained on: columns that give the target away, classes and clients."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from headstart.data.federation import Federation
from headstart.data.preprocessing import raw_columns
from headstart.data.readers.rows import listed

# From this share of right guesses, or of variance explained, on, a column says what the target is.
LEAK = 0.99
# Of more values than this, parts of five rows are looked at, in the order of the values; fewer of a value say nothing.
_MOST_VALUES, _LEAST_ROWS = 50, 5
FEW = 10


def warnings(federation: Federation) -> list[str]:
    """Sentences on a raw table, none if nothing is odd."""
    x, y = federation.fetch(np.arange(len(federation)))
    owners = np.repeat(np.arange(len(federation)), federation.sizes.sum(axis=1))
    return [*_leaks(federation, x, y), *_classes(federation, y, owners), *_clients(federation)]


def _leaks(federation: Federation, x: np.ndarray, y: np.ndarray) -> Iterator[str]:
    if y.ndim != 1 or len(np.unique(y)) < 2:
        return
    for number, column in enumerate(raw_columns(federation)):
        values = np.asarray(x[:, number], np.float64)
        known, classes = ~np.isnan(values), bool(federation.metadata.get("classes"))
        tells, share = "", 0.0
        if known.sum() >= 0.5 * len(values) and len(np.unique(y[known])) > 1:
            share = _explained(values[known], y[known], classes)
        if share < LEAK and known.any() and not known.all():
            tells, share = ", by where it is missing,", _explained(known.astype(float), y, classes)
        if share >= LEAK:
            yield (
                f"column {column['name']!r} alone{tells} says what the target is ({100 * share:.1f} %); if it is known"
                f" only afterwards, leave it out: --exclude {column['name']}"
            )


def _explained(values: np.ndarray, y: np.ndarray, classes: bool) -> float:
    """The share of rows whose class the column's values give away, or of the variance of y that they explain.

    Of classes it is beyond always guessing the most frequent one.
    """
    if not classes and np.ptp(values) > 0 and abs(np.corrcoef(values, y)[0, 1]) ** 2 >= LEAK:
        return float(abs(np.corrcoef(values, y)[0, 1]) ** 2)
    found, codes = np.unique(values, return_inverse=True)
    if len(found) > _MOST_VALUES:
        codes = np.argsort(np.argsort(values, kind="stable")) // _LEAST_ROWS
    groups = np.bincount(codes)
    if np.median(groups[groups > 0]) < _LEAST_ROWS:
        return 0.0
    if not classes:
        means = np.bincount(codes, weights=y) / np.maximum(groups, 1)
        return float(1 - ((y - means[codes]) ** 2).mean() / max(float(y.var()), 1e-300))
    counts = np.zeros((len(groups), int(y.max()) + 1))
    np.add.at(counts, (codes, y.astype(np.int64)), 1)
    right, always = counts.max(axis=1).sum() / len(y), counts.sum(axis=0).max() / len(y)
    return float((right - always) / (1 - always))


def _classes(federation: Federation, y: np.ndarray, owners: np.ndarray) -> Iterator[str]:
    labels = federation.metadata.get("labels")
    if labels and len(labels) == 1:
        yield f"every target is {str(labels[0])!r}, so there is nothing to learn"
    if not labels or y.ndim != 1:
        return
    pairs = np.unique(np.stack([y.astype(np.int64), owners]), axis=1)[0]
    holders = np.bincount(pairs, minlength=len(labels))
    alone = [str(labels[i]) for i in np.flatnonzero(holders == 1)]
    if alone and len(federation) > 1:
        yield f"{len(alone)} of {len(labels)} classes are held by one client alone ({listed(alone)})"


def _clients(federation: Federation) -> Iterator[str]:
    few = int((federation.sizes.sum(axis=1) < FEW).sum())
    if few:
        yield f"{few} of {len(federation)} clients have fewer than {FEW} rows, of which little can be measured"
