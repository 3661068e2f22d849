"""The shapes of Table 1, printed and measured, and the paper's regime."""

import numpy as np
import pytest

from headstart.studies.paper.shapes import Cell, regime, shapes
from headstart.studies.paper.table1 import PRINTED


def agreements(measured):
    (table,) = shapes(measured, PRINTED)
    return {row[0]: row[3] for row in table.rows}


def test_the_printed_table_has_its_own_shapes():
    (table,) = shapes(PRINTED, PRINTED)
    assert all(paper == here and agree == "yes" for _, paper, here, agree in table.rows)
    cells = {name: here for name, _, here, _ in table.rows}
    assert cells["gain of personalization, points"] == "+5.5 to +13.5"
    assert cells["standard deviation over seeds, initial / personalized"] == "2.12 to 15.73"
    assert cells["rounds to the target, initial / personalized"] == "1.65 to 4.87"
    assert cells["best E, personalized, M = 20"] == "5" and cells["best E, initial, M = 20"] == "10"


def test_a_table_turned_round_agrees_in_nothing_but_its_best_epochs():
    turned = {
        (25 - m, e): Cell(
            *(cell.personalized, cell.personalized_spread, cell.initial, cell.initial_spread),
            *(cell.personalized_rounds, cell.initial_rounds),
        )
        for (m, e), cell in PRINTED.items()
    }
    found = agreements(turned)
    assert {agree for name, agree in found.items() if not name.startswith("best E")} == {"no"}


def test_rows_that_never_reach_the_target_are_counted():
    measured = {key: cell._replace(initial_rounds=np.nan) for key, cell in PRINTED.items()}
    measured[20, 5] = PRINTED[20, 5]
    (table,) = shapes(measured, PRINTED)
    (row,) = (row for row in table.rows if row[0].startswith("rounds"))
    assert row[2:] == ("2.10 to 2.10; 7 of 8 rows never reach it", "no")


def test_nothing_in_common_makes_no_table():
    assert shapes({(2, 1): PRINTED[5, 2]}, PRINTED) == ()


@pytest.mark.parametrize(
    ("initial", "personalized", "there"), [(0.76, 0.81, True), (0.74, 0.9, False), (0.76, 0.79, False)]
)
def test_the_regime_is_that_of_the_best_row_of_the_largest_cohort(initial, personalized, there):
    cells = {
        (5, 5): PRINTED[5, 5],
        (20, 2): PRINTED[5, 2]._replace(personalized=0.5),
        (20, 5): PRINTED[5, 5]._replace(initial=initial, personalized=personalized),
    }
    sentence = regime(cells, clients=136, examples=150.2)
    assert sentence.startswith("In the paper's regime") == there
    assert "(M = 20, E = 5)" in sentence and ("136 clients of 150 examples train" in sentence) != there
