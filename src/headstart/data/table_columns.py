"""One column of a table: what becomes of it, and how that is decided from training rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from headstart.data.readers.encoding import Encoded, Kind

# A number farther from its center, in scales, counts as this far: one wild value moves no model. Of heavy tails more
# numbers are far out, and steps that suit the others would diverge on them.
LIMIT, ROBUST_LIMIT = 10.0, 5.0


@dataclass(frozen=True)
class Column:
    """What becomes of one column.

    center, scale: a number becomes (number - center) / scale; a gap becomes 0, the center. By mean and standard
        deviation, or, if `robust`, by median and quartiles.
    indicator: whether a further feature says where there was a gap, as it does where targets differ there.
    categories: of a category, each of which becomes a feature of 0 or 1. other: whether one more stands for all others;
        without it they are 0 in all features.
    dropped: why the column is left out; empty if it is not.
    """

    name: str
    kind: Kind
    center: float = 0.0
    scale: float = 1.0
    robust: bool = False
    indicator: bool = False
    categories: tuple[str, ...] = ()
    other: bool = False
    dropped: str = ""

    @property
    def features(self) -> tuple[str, ...]:
        """The names of the features it becomes."""
        if self.dropped:
            return ()
        if self.kind == "category":
            own = tuple(f"{self.name}={label}" for label in self.categories)
            own += (f"{self.name}: other",) if self.other else ()
        else:
            own = (self.name,)
        return (*own, f"{self.name}: missing") if self.indicator else own

    def transform(self, column: Encoded) -> np.ndarray:
        """float32 `[rows, features]`."""
        gaps = np.isnan(column.values)
        if self.kind == "category":
            numbers = {label: number for number, label in enumerate(self.categories)}
            last = len(self.categories) if self.other else -1
            known = np.array([numbers.get(label, last) for label in column.labels] or [-1])
            codes = np.where(gaps, -1, known[np.where(gaps, 0, column.values).astype(np.int64)])
            width = len(self.categories) + self.other
            features = (codes[:, None] == np.arange(width)).astype(np.float32)
        else:
            scaled = (np.where(gaps, self.center, column.values) - self.center) / self.scale
            limit = ROBUST_LIMIT if self.robust else LIMIT
            features = np.clip(scaled, -limit, limit).astype(np.float32)[:, None]
        return np.concatenate([features, gaps[:, None].astype(np.float32)], axis=1) if self.indicator else features

    @property
    def plan(self) -> str:
        """What becomes of it, in words."""
        if self.dropped:
            return f"left out: {self.dropped}"
        if self.kind == "category":
            more = ", all others together" if self.other else ""
            done = f"{len(self.categories)} features of 0 or 1{more}"
        elif self.kind == "boolean":
            done = "0 or 1, less the mean"
        else:
            by = "median {:.4g}, quartiles" if self.robust else "mean {:.4g}, deviation"
            days = " days since 2000-01-01" if self.kind == "date" else ""
            done = f"standardized ({by.format(self.center)} {self.scale:.4g}{days})"
        return f"{done}; gaps matter, and have a feature of their own" if self.indicator else done


# A category in fewer rows, or of fewer clients, is one of the others, and so are those beyond the most frequent.
LEAST_ROWS, LEAST_CLIENTS, MOST_CATEGORIES = 10, 2, 50
# Tails are heavy where the deviation is HEAVY times what the quartiles of a normal distribution would make it.
HEAVY = 2.0
# Gaps matter if targets differ there by SURE standard errors; with enough clients, of the clients' differences.
SURE, ENOUGH_CLIENTS = 4.0, 5
# Between the quartiles of a normal distribution, in deviations.
QUARTILES = 1.3489795003921634


def fit_column(about: Mapping[str, Any], values: np.ndarray, owners: np.ndarray, targets: np.ndarray) -> Column:
    """What becomes of one column.

    values: `[rows]`, NaN for a gap. owners: int `[rows]`, the clients. targets: `[rows, n]`, quantities, or 0 and 1 for
        each class.
    """
    name, kind, gaps = about["name"], about["kind"], np.isnan(values)
    present, indicator = values[~gaps], gaps_matter(gaps, owners, targets)
    if "different" in about:
        return Column(name, kind, dropped=f"it holds {about['different']:,} different texts, as ids and notes do")
    if not len(present):
        return Column(name, kind, dropped="it is empty")
    if kind == "category":
        return _categories(name, about["labels"], present.astype(np.int64), owners[~gaps], indicator)
    plain = number_column(name, kind, float(present.mean()), float(present.std()), indicator)
    if plain.dropped or kind == "boolean":
        return plain
    low, median, high = (float(each) for each in np.percentile(present, (25, 50, 75)))
    robust = (high - low) / QUARTILES
    if robust > 0 and plain.scale > HEAVY * robust:
        return Column(name, kind, median, robust, robust=True, indicator=indicator)
    return plain


def gaps_matter(gaps: np.ndarray, owners: np.ndarray, targets: np.ndarray) -> bool:
    """Whether targets differ where a column has gaps: then these are a feature, which else would be noise.

    Judged within clients, who differ in how much they leave out, and by how far they agree; of few clients by rows.
    """
    if not gaps.any() or gaps.all():
        return False
    missing, there = (np.bincount(owners, weights=which) for which in (gaps, ~gaps))
    both = (missing > 0) & (there > 0)
    sums = [
        np.stack([np.bincount(owners, weights=which * column) for column in targets.T], axis=1)
        for which in (gaps, ~gaps)
    ]
    with np.errstate(invalid="ignore", divide="ignore"):
        apart = (sums[0] / missing[:, None] - sums[1] / there[:, None])[both]
        weights = (missing * there / (missing + there))[both][:, None]
    if not both.any():
        return False
    mean = (weights * apart).sum(axis=0) / weights.sum()
    if both.sum() >= ENOUGH_CLIENTS:
        error = np.sqrt((weights**2 * (apart - mean) ** 2).sum(axis=0)) / weights.sum()
    else:
        error = targets.std(axis=0) / np.sqrt(weights.sum())
    return bool((np.abs(mean) > SURE * np.maximum(error, 1e-12 * (1 + np.abs(targets).max()))).any())


def number_column(name: str, kind: Kind, mean: float, deviation: float, indicator: bool) -> Column:
    """What becomes of a number, a date or a boolean by its mean and standard deviation."""
    if deviation <= 1e-9 * max(abs(mean), 1e-300):
        return Column(
            name, kind, mean, indicator=indicator, dropped="" if indicator else f"it is {mean:.4g} everywhere"
        )
    if kind == "boolean":
        return Column(name, kind, mean, indicator=indicator)
    return Column(name, kind, mean, deviation, indicator=indicator)


def _categories(name: str, labels: Sequence[str], codes: np.ndarray, owners: np.ndarray, indicator: bool) -> Column:
    rows = np.bincount(codes, minlength=len(labels))
    pairs = np.unique(np.stack([codes, owners]), axis=1)[0]
    clients = np.bincount(pairs, minlength=len(labels))
    return category_column(name, {label: (int(rows[i]), int(clients[i])) for i, label in enumerate(labels)}, indicator)


def category_column(
    name: str,
    counts: Mapping[str, tuple[int, int]],
    indicator: bool,
    *,
    others: bool = False,
    least_clients: int = LEAST_CLIENTS,
) -> Column:
    """What becomes of a category, by the rows and the clients in which each label is.

    others: whether there are other labels, which are not counted.
    """
    seen = {label: number for label, number in counts.items() if number[0]}
    common = [each for each, (rows, clients) in seen.items() if rows >= LEAST_ROWS and clients >= least_clients]
    kept = sorted(sorted(common, key=lambda label: -seen[label][0])[:MOST_CATEGORIES])
    others = others or len(seen) > len(kept)
    if not kept:
        return Column(name, "category", dropped=f"its {len(seen)} values hardly repeat, as those of an id do")
    if len(kept) == 1 and not others and not indicator:
        return Column(name, "category", dropped=f"it is {kept[0]!r} everywhere")
    return Column(name, "category", indicator=indicator, categories=tuple(kept), other=others)
