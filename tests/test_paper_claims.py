"""What the studies make of results: made ones, whose verdicts are known."""

from dataclasses import replace

import numpy as np
import pytest

from headstart.statistics.verdicts import difference
from headstart.studies.evidence import Result, format_difference
from headstart.studies.paper import datacenter, finetune, table1
from headstart.studies.paper.settings import setting_of

CLIENTS, EPOCHS, SEEDS = 60, 3, 10
SETTING = replace(setting_of("small", "glyphs", {}), spread_seeds=SEEDS, target=0.5)


def result(initial, personalized, *, wobble=0.0, generator=None, rounds=(0, 10, 20, 30), reach=(30, 30)):
    """A run whose clients have these accuracies, seeds that differ by `wobble` before, and a tenth of it after."""
    generator = generator or np.random.default_rng(0)
    shifts = generator.normal(0, 1, (SEEDS, 1, 1)) * wobble
    curves = np.full((SEEDS, CLIENTS, EPOCHS + 1), float(initial)) + shifts
    curves[:, :, 1:] = personalized + shifts / 10
    curves += generator.normal(0, 0.01, curves.shape)
    history = np.zeros((SEEDS, len(rounds), 12, EPOCHS + 1))
    for index, number in enumerate(rounds):
        history[:, index, :, 0] = 0.6 if number >= reach[0] else 0.1
        history[:, index, :, 1:] = 0.6 if number >= reach[1] else 0.1
    fields = np.full(SEEDS, EPOCHS), np.array(rounds), history, np.full(SEEDS, 1000.0), np.full(SEEDS, 30)
    ids = tuple(map(str, range(CLIENTS)))
    return Result(ids, curves, *fields, np.full(SEEDS, 0.1), "headstart run made")


def decisions(claims):
    return {claim.text.split(",")[0]: claim.decision for claim in claims}


def paper_like(seed=0):
    """Every row as the paper prints it, spreads and rounds too."""
    generator = np.random.default_rng(seed)
    return {
        key: result(row.initial, row.personalized, wobble=0.03, generator=generator, reach=(30, 10))
        for key, row in table1.PRINTED.items()
    }


def test_the_papers_own_table_holds():
    found = table1.claims(SETTING, paper_like(), 0.5)
    assert {claim.decision for claim in found if "few epochs" not in claim.text} == {"holds"}
    # Means that differ by less than seeds do are inconclusive; none is refuted.
    assert "does not hold" not in {claim.decision for claim in found}


def test_the_reverse_of_the_papers_table_does_not_hold():
    rows = {
        key: result(row.personalized, row.initial, wobble=0.0, reach=(10, 30)) for key, row in table1.PRINTED.items()
    }
    swapped = {(25 - m, e): each for (m, e), each in rows.items()}
    by_text = {claim.text: claim.decision for claim in table1.claims(SETTING, swapped, 0.5)}
    assert by_text["20 clients per round in place of 5 help the initial model most"] == "does not hold"
    assert by_text["Personalized accuracy reaches the target (50.0 %) in fewer rounds than initial accuracy"] == (
        "does not hold"
    )


def test_rounds_to_the_target_count_one_evaluation_more_where_it_is_never_reached():
    never = result(0.5, 0.6, reach=(99, 10))
    rounds = table1.rounds_to(never, 0.5)
    assert (rounds[0] == 40).all()
    assert (rounds[1] == 10).all()
    saved = table1.sooner(never, 0.5, resamples=50)
    assert saved.mean == 30
    assert saved.clients == 12


def test_spread_needs_ten_seeds():
    rows = paper_like()
    few = {key: each._replace(curves=each.curves[:9], epochs=each.epochs[:9]) for key, each in rows.items()}
    assert table1._steadier(rows).decision == "holds"
    assert table1._steadier(few).decision == "inconclusive"


def test_update_and_optimizer_are_separated():
    update, optimizer, both = 0.02, 0.05, 0.03
    cells = finetune._cells(SETTING)[:4]
    gains = dict(zip(cells, (0.0, optimizer, update, update + optimizer + both), strict=True))
    found = {cell: result(0.4 + gain, 0.6 + gain) for cell, gain in gains.items()}
    effects = dict(finetune._effects(SETTING, found))
    assert effects["initial: Reptile for FedAvg"].mean == pytest.approx(update + both / 2, abs=0.004)
    assert effects["initial: Adam for momentum"].mean == pytest.approx(optimizer + both / 2, abs=0.004)
    assert effects["personalized: both together, beyond their sum"].mean == pytest.approx(both, abs=0.006)


def test_a_datacenter_that_personalizes_better_refutes_the_claim():
    federated = result(0.5, 0.7)
    compared = {
        name: datacenter._compare(federated, result(0.5, after))
        for name, after in (("SGD", 0.6), ("momentum", 0.8), ("Adam", 0.7))
    }
    missed = dict.fromkeys(compared, 0)
    assert datacenter._claim(compared, missed).decision == "does not hold"
    only = {"SGD": compared["SGD"]}
    assert datacenter._claim(only, missed).decision == "holds"
    assert datacenter._claim(only, {"SGD": 1}).decision == "inconclusive"
    unlike = {"SGD": datacenter._compare(federated, result(0.4, 0.6))}
    assert datacenter._claim(unlike, missed).decision == "inconclusive"


def test_a_difference_is_reported_with_its_two_way_interval_and_the_other_two():
    text = format_difference("after over before", difference(np.random.default_rng(0).normal(0.1, 0.01, (5, 40))))
    assert text.startswith("after over before: +10.")
    assert "] two-way, [" in text
    assert "over 5 seeds" in text
    assert "over 40 clients" in text
    assert "inconclusive" not in text


def test_small_settings_fit_each_kind_of_data():
    assert SETTING.data.seed == 1
    assert setting_of("full", "glyphs", {}).model.path == "cnn"
    assert setting_of("smoke", "glyphs", {"writers": 9}).data.options["writers"] == 9
