"""What a comparison decides: the primary question by itself, all others corrected for their number (Holm).

The primary question is whether FedAvg + fine-tuning is better than the same model unpersonalized, and than FedAvg's
best global model. Each of the two is asked before anything is measured, and is decided by its own interval. Whether
some other method is better is asked of many at once, and those are corrected for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

from headstart.statistics.two_way import TwoWay
from headstart.statistics.verdicts import LEAST_SEEDS, holm

Reason = Literal["", "seeds", "lost", "correction"]


class Verdict(NamedTuple):
    """The decision on a difference.

    side: 1 better, -1 worse, 0 inconclusive.
    reason: why it is inconclusive although its interval excludes zero: there are too few seeds, clients were "lost"
        (have no finite value) by the side that would be better, or the "correction" for many comparisons. Otherwise
        empty: the interval speaks for itself.
    """

    side: int
    reason: Reason = ""


def side_of(found: TwoWay) -> int:
    """The side of zero on which the 95 % interval lies; 0 if it includes zero."""
    low, high = found.interval()
    return 1 if low > 0 else -1 if high < 0 else 0


def verdict(
    found: TwoWay, *, seeds: int, corrected: bool = True, lost: bool = False, reference_lost: bool = False
) -> Verdict:
    """The decision on a difference that is positive where a method is better than its reference.

    corrected: whether it is decided after a correction for other comparisons; of a question by itself it always is.
    lost, reference_lost: whether clients of the method, and of the reference, have no finite value; those who lost
        clients are not shown to be better by the clients that are left.
    """
    side = side_of(found)
    if not side:
        return Verdict(0)
    if seeds < LEAST_SEEDS:
        return Verdict(0, "seeds")
    if lost if side > 0 else reference_lost:
        return Verdict(0, "lost")
    return Verdict(side) if corrected else Verdict(0, "correction")


def verdicts(
    found: Mapping[str, TwoWay], lost: Mapping[str, bool], *, reference: str, primary: str, seeds: int
) -> dict[str, Verdict]:
    """The decision on every method beside the reference.

    found: the differences to the reference, positive where a method is better. lost: whether a method lost clients.
    primary: the method whose comparison is decided by itself, whatever the number of others.
    """
    others = [name for name in found if name not in (reference, primary)]
    corrected = dict(zip(others, holm([found[name].p for name in others]), strict=True))
    return {
        name: Verdict(0)
        if name == reference
        else verdict(
            each,
            seeds=seeds,
            corrected=corrected.get(name, True),
            lost=lost[name],
            reference_lost=lost[reference],
        )
        for name, each in found.items()
    }


def compared_at_once(methods: int) -> int:
    """The number of comparisons that are corrected for, of a leaderboard with n methods: without the primary two."""
    return max(0, methods - 2)


def why(reason: Reason, *, seeds: int, at_once: int) -> str:
    """The reason in words, for a difference whose interval excludes zero and which is inconclusive all the same."""
    return {
        "": "",
        "seeds": f"{seeds} seed{'' if seeds == 1 else 's'} decide nothing, it takes {LEAST_SEEDS}",
        "lost": "without the clients that have no finite value",
        "correction": f"not after the correction for {at_once} comparisons (Holm)",
    }[reason]
