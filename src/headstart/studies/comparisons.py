"""Comparisons of two results: differences, claims about them, and the cells that every table begins with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from headstart.reports.format import format_share
from headstart.statistics.verdicts import Difference, decide, difference, t_interval
from headstart.studies.evidence import Claim, Result, format_difference

What = Literal["initial", "personalized"]
BOTH: tuple[What, What] = ("initial", "personalized")
Compared = Sequence[tuple[str, Difference]]


def over(first: Result, second: Result, what: What) -> Difference:
    """The difference of the first and the second, client by client."""
    return difference(getattr(first, what) - getattr(second, what))


def against(found: Mapping[str, Result], reference: str) -> Compared:
    """The difference of every result to the reference, for the initial and for the personalized model."""
    return [
        (f"{name}: {what}", over(result, found[reference], what))
        for name, result in found.items()
        for what in BOTH
        if name != reference
    ]


def better(found: Mapping[str, Result], best: str, others: Sequence[str], what: What) -> Compared:
    """The difference of one result to each of the others, named for a sentence."""
    return [(f"{what}: {best} over {other}", over(found[best], found[other], what)) for other in others]


def claim(text: str, paper: str, compared: Compared) -> Claim:
    """A claim that holds if all of these differences are positive."""
    sentences = tuple(format_difference(name, each) for name, each in compared)
    return Claim(text, paper, decide([each.sign for _, each in compared]), sentences)


def accuracies(result: Result) -> tuple[str, str]:
    """Initial and personalized accuracy, means with t-intervals over seeds: `71.3 % [70.1, 72.5]`."""
    return _with_interval(result.initial), _with_interval(result.personalized)


def _with_interval(values: np.ndarray) -> str:
    low, high = (format_share(end).removesuffix(" %") for end in t_interval(values.mean(axis=1)))
    return f"{format_share(float(values.mean()))} [{low}, {high}]"
