"""What a comparison decides and says: no word contradicts an interval that stands beside it."""

import re
from itertools import product

import numpy as np
import pytest

from headstart.learning.tasks import Classification, Regression
from headstart.reports.format import GainFormat
from headstart.statistics.two_way import TwoWay
from headstart.statistics.verdicts import Difference
from headstart.studies.compare.decisions import verdicts
from headstart.studies.compare.leaderboard import Row
from headstart.studies.compare.methods import BASELINE, FEDAVG
from headstart.studies.compare.report import values_table
from headstart.studies.compare.words import claims, conclusion

ACCURACY, ERROR = Classification().metrics[0], Regression().metrics[0]
# Of 30 degrees of freedom: far beyond zero, beyond it by a little (p = 0.036), and around it; in standard errors.
STATES = {"--": -8.0, "-": -2.2, "0": 0.4, "+": 2.2, "++": 8.0}
ERROR_OF_MEAN = 0.004


def found(state: str) -> TwoWay:
    return TwoWay(STATES[state] * ERROR_OF_MEAN, ERROR_OF_MEAN, 30.0)


def turned(value: TwoWay) -> TwoWay:
    return value._replace(mean=-value.mean)


NOTHING = TwoWay(0.0, 0.0, 1.0)
NULLS = ("A", "B", "C", "D")


def board(primary: str, other: str, *, seeds: int = 8, lost: str = "") -> list[Row]:
    """FedAvg + fine-tuning over FedAvg in one state, X over fine-tuning in another, and four others that are level."""
    versus = {BASELINE: NOTHING, FEDAVG: turned(found(primary)), "X": found(other)} | dict.fromkeys(NULLS, found("0"))
    over = {BASELINE: found(primary), FEDAVG: NOTHING, "X": found(other)} | dict.fromkeys(NULLS, found("0"))
    gone = {name: name == lost for name in versus}
    beside = verdicts(versus, gone, reference=BASELINE, primary=FEDAVG, seeds=seeds)
    beyond = verdicts(over, gone, reference=FEDAVG, primary=BASELINE, seeds=seeds)
    level = TwoWay(0.5, 0.01, 30.0)
    return [
        Row(
            name,
            level,
            level,
            found(primary) if name == BASELINE else NOTHING,
            versus[name],
            beside[name].side,
            over[name],
            beyond[name].side,
            Difference(versus[name].mean, versus[name].interval(), (-1.0, 1.0), (-1.0, 1.0), seeds, 40),
            float(gone[name]) / 10,
            *(0.1, 0.1, False, 0.1, 0.2, 10, 100.0, 1e6, 1.0, 1.0, (0.1, 0.1)),
            doubt=beside[name].reason,
            over_fedavg_doubt=beyond[name].reason,
        )
        for name in versus
    ]


@pytest.mark.parametrize(("primary", "other"), list(product(STATES, STATES)))
@pytest.mark.parametrize(("seeds", "lost"), [(8, ""), (4, ""), (8, "X"), (8, BASELINE)])
def test_what_is_decided_follows_from_the_interval_and_of_many_from_holm_too(primary, other, seeds, lost):
    rows = {row.name: row for row in board(primary, other, seeds=seeds, lost=lost)}
    side = {"--": -1, "-": -1, "0": 0, "+": 1, "++": 1}
    # The primary question is decided by its interval, however little it excludes zero and however many are compared.
    wanted = side[primary] if seeds >= 5 and not (lost == BASELINE and side[primary] > 0) else 0
    assert (rows[BASELINE].over_fedavg_decided, rows[FEDAVG].decided) == (wanted, -wanted)
    # A little is not enough for one of five.
    clear = side[other] if len(other) == 2 and seeds >= 5 else 0
    assert rows["X"].decided == (0 if lost == ("X" if clear > 0 else BASELINE) else clear)
    for row in rows.values():
        for value, verdict in ((row.versus, row.verdict), (row.over_fedavg, row.over_fedavg_verdict)):
            low, high = value.interval()
            apart = (low > 0) - (high < 0)
            assert verdict.side in (0, apart)
            assert bool(verdict.reason) == (apart != 0 and verdict.side == 0)


DOUBT = "not after the correction for 5 comparisons (Holm)", "decide nothing, it takes 5", "clients that have no finite"
HELPS = {1: "fine-tuning helps", -1: "fine-tuning does harm", 0: "inconclusive whether fine-tuning helps"}

INTERVAL = re.compile(r"\[([-+][\d.]+), ([-+][\d.]+)\]")


@pytest.mark.parametrize(("primary", "other"), list(product(STATES, STATES)))
@pytest.mark.parametrize(("seeds", "lost"), [(8, ""), (4, ""), (8, "X"), (8, BASELINE)])
@pytest.mark.parametrize("metric", [ACCURACY, ERROR], ids=["accuracy", "error"])
def test_no_sentence_contradicts_an_interval(primary, other, seeds, lost, metric):
    rows = board(primary, other, seeds=seeds, lost=lost)
    by_name = {row.name: row for row in rows}
    sentences = conclusion(rows, metric)
    doubted = [any(doubt in sentence for doubt in DOUBT) for sentence in sentences]

    decided = {"--": -1, "-": -1, "0": 0, "+": 1, "++": 1}[primary] * (seeds >= 5 and lost != BASELINE)
    assert HELPS[decided] in sentences[0]
    assert doubted[0] == (primary != "0" and not decided)

    (listed,) = (
        index for index, each in enumerate(sentences) if each.startswith(_list_of(by_name["X"])) and "X" in each
    )
    assert doubted[listed] == bool(by_name["X"].doubt)
    assert ("although the interval by itself excludes zero" in sentences[listed]) == bool(by_name["X"].doubt)

    (answer,) = (each for each in sentences if each.startswith("How much of personalization"))
    beaten = -by_name[FEDAVG].decided
    assert ("Nothing: FedAvg" in answer) == (beaten < 0)
    assert ("Inconclusive: what" in answer) == (beaten == 0)
    assert ("may be nothing" in answer) == (primary == "0")
    if beaten > 0 and by_name["X"].doubt and by_name["X"].versus.mean > 0:
        assert "X may gain more: ahead by the interval, though" in answer

    (beside,) = (each for each in sentences if each.startswith("Against FedAvg"))
    assert bool(by_name["X"].over_fedavg_doubt) == bool(re.search(r"inconclusive although[^;]*: [^;]*X [-+]", beside))

    table = values_table(rows, GainFormat(metric))
    cells = [cell for row in table.rows for cell in row[3:5]]
    evidence = [(claim.decision, claim.evidence) for claim in claims(rows, metric)]
    for cell in cells:
        _check(cell, metric, better=cell.endswith("better"), worse=cell.endswith("worse"), doubt=cell.endswith(")"))
    for decision, texts in evidence[:2]:
        doubtful = any(each in texts[0] for each in DOUBT)
        _check(texts[0], metric, better=decision == "holds", worse=decision == "does not hold", doubt=doubtful)


def _list_of(row: Row) -> str:
    return {1: "Better than well-tuned", -1: "Worse", 0: "Inconclusive"}[row.decided]


def _check(text: str, metric, *, better: bool, worse: bool, doubt: bool) -> None:
    """Whether what is said of the first interval in a text is what that interval says."""
    if text == "–":
        return
    low, high = (float(end) * metric.sign for end in INTERVAL.search(text).groups())
    low, high = sorted((low, high))
    apart = (low > 0) - (high < 0)
    assert (better, worse, doubt) in {
        1: [(True, False, False), (False, False, True)],
        -1: [(False, True, False), (False, False, True)],
        0: [(False, False, False)],
    }[apart], text


def test_the_end_of_an_interval_that_is_not_zero_does_not_look_like_it():
    formats = GainFormat(ACCURACY)
    assert formats.interval(0.0003, 0.004) == "[+0.03, +0.40]"
    assert formats.interval(0.00004, 0.004) == "[+0.004, +0.400]"
    assert formats.interval(-0.0003, 0.004) == "[+0.0, +0.4]"
    assert formats.interval(-np.inf, np.inf) == "[-∞, +∞]"
