"""Tables and figures of the study `identity`."""

from __future__ import annotations

import os

import jax
import numpy as np

from headstart.reports.format import format_share
from headstart.reports.style import FigureSpec
from headstart.statistics.verdicts import t_interval
from headstart.studies.evidence import Table
from headstart.studies.figures import curves
from headstart.studies.paper.pseudo_gradients import Measured, parts


def identity_table(measured: Measured) -> Table:
    """The distance between both sides of the identity."""
    worst = measured.errors.max(axis=(1, 2))
    return Table(
        "Δ_FedAvg(K) = Δ_FedSGD + Σ Δ_FOMAML(j), j < K: the largest difference, relative to Δ",
        ("rounds", *(f"K = {k}" for k in measured.lengths)),
        tuple(
            (str(rounds), *(f"{updates:.0e} / {gradients:.0e}" for updates, gradients in row))
            for rounds, row in zip(measured.rounds, worst, strict=True)
        ),
        "Every term computed by the public update on a path of its own / by its gradient alone, in float32. The largest"
        f" of {measured.errors.shape[1]} × {measured.errors.shape[2]} clients.",
    )


def shares_table(measured: Measured) -> Table:
    """The parts of Δ(K), for every K and checkpoint."""
    found = parts(measured.products)
    rows = [
        (
            str(rounds),
            str(k + 1),
            share_interval(found.fomaml_share[index, :, k]),
            format_share(k / (k + 1)),
            *(interval(each[index, :, k]) for each in found[2:]),
        )
        for index, rounds in enumerate(measured.rounds)
        for k in range(found.fomaml_share.shape[-1])
    ]
    return Table(
        "FedSGD's part g₁ and the FOMAML terms F = g₂ + … + g_K in FedAvg's Δ(K)",
        (
            "rounds",
            "K",
            "share of F",
            "(K − 1) / K",
            "‖F‖ / ‖Δ‖",
            "cosine of g₁ and Δ",
            "cosine of FOMAML(K) and Δ",
            "cosine of g₁ and FOMAML(K)",
        ),
        tuple(rows),
        "Means over repetitions, with their intervals. Share: ⟨F, Δ⟩ / ⟨Δ, Δ⟩, whose rest is FedSGD's; (K − 1) / K is"
        " what it would be if every step gave as much.",
    )


def maml_table(measured: Measured) -> Table:
    """Exact MAML beside FOMAML along training: direction and length."""
    rows = [
        (str(rounds), str(length), interval(measured.cosines[index, :, k]), interval(measured.norm_ratios[index, :, k]))
        for index, rounds in enumerate(measured.rounds)
        for k, length in enumerate(measured.lengths)
    ]
    return Table(
        "Exact MAML(K) beside FOMAML(K), the cohort's mean of Δ",
        ("rounds", "K", "cosine", "‖MAML‖ / ‖FOMAML‖"),
        tuple(rows),
        "Means over repetitions, with their intervals. Both on the same batches, the query's too.",
    )


def cost_table(measured: Measured) -> Table:
    """The cost of exact MAML beside FOMAML."""
    rows, pairs = [], measured.seconds[:, :, 0, 0].size
    for k, length in enumerate(measured.lengths):
        seconds = measured.seconds[:, :, k].reshape(pairs, 2)
        fomaml, maml = 1e3 * np.median(seconds, axis=0)
        low, ratio, high = np.quantile(seconds[:, 1] / seconds[:, 0], [0.25, 0.5, 0.75])
        rows.append((str(length), f"{fomaml:.3g} ms", f"{maml:.3g} ms", f"{ratio:.2f} [{low:.2f}, {high:.2f}]"))
    machine = f"{jax.devices()[0].device_kind}, {os.cpu_count()} CPU cores"
    return Table(
        "The time of exact MAML(K) and of FOMAML(K)",
        ("K", "FOMAML", "MAML", "times as long"),
        tuple(rows),
        f"Measured on this machine ({machine}), one cohort, its clients one after another. Medians of"
        f" {pairs} pairs of times, taken in turns; in brackets the middle half of the ratios.",
    )


def interval(values: np.ndarray) -> str:
    """The mean of repetitions and its interval."""
    low, high = t_interval(values)
    return f"{values.mean():.3f} [{low:.3f}, {high:.3f}]"


def share_interval(values: np.ndarray) -> str:
    """The mean of shares and its interval, as per cent."""
    low, high = t_interval(values)
    return f"{format_share(float(values.mean()))} [{100 * low:.1f}, {100 * high:.1f}]"


def figures(measured: Measured) -> tuple[FigureSpec, ...]:
    """Shares and cosines against K, and the cosine of MAML and FOMAML."""
    found = parts(measured.products)
    steps = np.arange(1, found.fomaml_share.shape[-1] + 1)

    def lines(values: np.ndarray, x: np.ndarray = steps) -> list[tuple[str, np.ndarray, np.ndarray]]:
        return [(f"after {n} rounds", x, each) for n, each in zip(measured.rounds, values, strict=True)]

    named = {
        "FedSGD's part and Δ": found.fedsgd_cosine,
        "FOMAML(K) and Δ": found.fomaml_cosine,
        "FedSGD's part and FOMAML(K)": found.cosine_between,
    }
    return (
        curves(
            "identity-shares",
            "The share of the FOMAML terms in FedAvg's pseudo-gradient against the number of local steps K",
            "Of FedAvg's pseudo-gradient, the part that FOMAML terms make",
            [("", lines(found.fomaml_share))],
            x_label="local steps K",
            y_label="share of the FOMAML terms",
        ),
        curves(
            "identity-cosines",
            "Cosines between FedAvg's pseudo-gradient, FedSGD's part of it and FOMAML, against the local steps K",
            "Where the parts of the pseudo-gradient point",
            [(name, lines(values)) for name, values in named.items()],
            x_label="local steps K",
            y_label="cosine",
            share=False,
        ),
        curves(
            "identity-maml",
            "The cosine between exact MAML and FOMAML against the inner steps K",
            "Exact MAML beside FOMAML",
            [("", lines(measured.cosines, np.array(measured.lengths)))],
            x_label="inner steps K",
            y_label="cosine",
            share=False,
        ),
    )
