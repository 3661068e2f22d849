"""Table 1 of arXiv:1909.12488: FedAvg with E local epochs and M clients per round, and the claims read from it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from headstart.learning.tasks import Classification
from headstart.reports.format import format_share
from headstart.statistics.two_way import square_and_add
from headstart.statistics.verdicts import Difference, decide, decide_most, difference, spread, t_interval
from headstart.studies.evidence import Claim, Evidence, Result, Table, format_difference, format_spread
from headstart.studies.figures import by_epochs
from headstart.studies.paper.shapes import Cell, regime, shapes
from headstart.studies.paper.study import Setting, Study
from headstart.studies.paper.tuning import first_stage, tuned
from headstart.studies.runner import Runs

# arXiv:1909.12488, Table 1: EMNIST-62, by (M, E).
PRINTED = {
    (5, 2): Cell(0.7473, 0.0260, 0.8292, 0.0061, 310.0, 63.6),
    (5, 5): Cell(0.8028, 0.0512, 0.8712, 0.0049, 111.1, 33.9),
    (5, 10): Cell(0.7879, 0.0316, 0.8820, 0.0023, 137.5, 30.0),
    (5, 20): Cell(0.7430, 0.0309, 0.8782, 0.0021, 152.5, 32.2),
    (20, 2): Cell(0.8403, 0.0173, 0.8957, 0.0011, 82.5, 50.0),
    (20, 5): Cell(0.8471, 0.0084, 0.9057, 0.0017, 65.6, 31.25),
    (20, 10): Cell(0.8480, 0.0036, 0.9032, 0.0017, 68.7, 25.0),
    (20, 20): Cell(0.8391, 0.0081, 0.8953, 0.0022, 82.1, 46.4),
}

# The share of FedAvg's accuracy, when its rates were chosen, that is the target.
TARGET = 0.9

Rows = Mapping[tuple[int, int], Result]


def table1(setting: Setting, runs: Runs) -> Evidence:
    """FedAvg for every E and M, with the client rate of the setting, personalized and measured."""
    setting, choices = tuned(setting, runs)
    target = setting.target or TARGET * float(first_stage(setting, runs).initial.mean())
    experiments = {
        f"M={m}, E={e}": setting.experiment(f"table1-M{m}-E{e}", setting.fedavg(epochs=e, cohort=m), evaluate=True)
        for m in sorted(setting.cohorts, reverse=True)
        for e in sorted(setting.epochs, reverse=True)
    }
    found = runs.finish(experiments, seeds=setting.spread_seeds)
    rows = {(m, e): found[f"M={m}, E={e}"] for m in setting.cohorts for e in setting.epochs}
    prepared = runs.prepared(experiments[next(iter(experiments))])
    training = prepared.groups.train
    sizes = prepared.federation.training_sizes[training]
    return Evidence(
        "table1",
        "How do the local epochs E and the clients per round M change the initial and the personalized model?",
        claims(setting, rows, target),
        (measured_table(rows, target), *shapes(cells(rows, target), PRINTED)),
        (_figure(setting, rows),),
        choices,
        (
            f"{setting.rounds} rounds, {setting.spread_seeds} seeds; the target is {format_share(target)}.",
            regime(cells(rows, target), clients=len(training), examples=float(sizes.mean())),
        ),
        {name: result.command for name, result in found.items()},
    )


def cells(rows: Rows, target: float) -> dict[tuple[int, int], Cell]:
    """The measured rows, as the printed ones are; rounds are NaN where a seed never reaches the target."""
    return {key: _cell(result, target) for key, result in rows.items()}


def _cell(result: Result, target: float) -> Cell:
    initial, personalized = result.initial.mean(axis=1), result.personalized.mean(axis=1)
    initial_rounds, personalized_rounds = (
        float(each.mean()) if (each <= result.rounds[-1]).all() else np.nan for each in rounds_to(result, target)
    )
    return Cell(
        *(float(initial.mean()), _spread(initial)),
        *(float(personalized.mean()), _spread(personalized)),
        *(initial_rounds, personalized_rounds),
    )


def _spread(means: np.ndarray) -> float:
    return float(means.std(ddof=1)) if len(means) > 1 else np.nan


def claims(setting: Setting, rows: Rows, target: float) -> tuple[Claim, ...]:
    """The claims of the printed table, decided on the measured one."""
    found = []
    for m in setting.cohorts:
        for what in ("initial", "personalized"):
            found.append(_best_epochs(setting, rows, m, what))
    if len(setting.cohorts) > 1:
        found.append(_more_clients(setting, rows))
    return (*found, _sooner(rows, target), _steadier(rows))


def _best_epochs(setting: Setting, rows: Rows, m: int, what: str) -> Claim:
    """Whether the E that is best in the paper is better than the least and the greatest E."""
    printed = {e: getattr(PRINTED[m, e], what) for e in setting.epochs if (m, e) in PRINTED}
    best = max(printed, key=printed.__getitem__) if printed else setting.epochs[len(setting.epochs) // 2]
    ends = [e for e in (min(setting.epochs), max(setting.epochs)) if e != best]
    values = {e: getattr(rows[m, e], what) for e in setting.epochs}
    found = [difference(values[best] - values[e]) for e in ends]
    measured = max(values, key=lambda e: float(np.nanmean(values[e])))
    return Claim(
        f"With {m} clients per round, E = {best} gives a better {what} model than few epochs and than many",
        f"best E = {best}: {format_share(printed[best])}" if printed else "not known",
        decide([each.sign for each in found]),
        (
            f"best here on test clients: E = {measured}, {format_share(float(np.nanmean(values[measured])))}",
            *(format_difference(f"E = {best} over E = {e}", each) for e, each in zip(ends, found, strict=True)),
        ),
    )


def _more_clients(setting: Setting, rows: Rows) -> Claim:
    """Whether more clients per round help the initial model more than the personalized one."""
    few, many = min(setting.cohorts), max(setting.cohorts)
    gains = {
        what: np.mean([getattr(rows[many, e], what) - getattr(rows[few, e], what) for e in setting.epochs], axis=0)
        for what in ("initial", "personalized")
    }
    found = difference(gains["initial"] - gains["personalized"])
    help_ = {what: difference(values) for what, values in gains.items()}
    return Claim(
        f"{many} clients per round in place of {few} help the initial model most",
        _printed_help(few, many),
        decide([found.sign, help_["initial"].sign]),
        (
            *(format_difference(f"{what}, mean over E", each) for what, each in help_.items()),
            format_difference("help for the initial model less help for the personalized one", found),
        ),
    )


def _printed_help(few: int, many: int) -> str:
    common = [e for m, e in PRINTED if m == few and (many, e) in PRINTED]
    if not common:
        return "not known"
    gains = [
        100 * np.mean([getattr(PRINTED[many, e], what) - getattr(PRINTED[few, e], what) for e in common])
        for what in ("initial", "personalized")
    ]
    return f"mean over E: initial {gains[0]:+.1f} points, personalized {gains[1]:+.1f}"


def rounds_to(result: Result, target: float) -> np.ndarray:
    """`[2, seeds]`: the first evaluated round at which the clients' mean reaches the target, initial and personalized.

    A curve that never does counts as one evaluation after the last.
    """
    means = result.history.mean(axis=2)
    return _first(_both(result, means), result.rounds, target)


def _both(result: Result, values: np.ndarray) -> np.ndarray:
    """`[2, seeds, evaluations]` of `[seeds, evaluations, epochs + 1]`: initial, and at the chosen number of epochs."""
    return np.stack([values[:, :, 0], np.take_along_axis(values, result.epochs[:, None, None], axis=2)[:, :, 0]])


def _first(curves: np.ndarray, rounds: np.ndarray, target: float) -> np.ndarray:
    later = np.append(rounds, 2 * rounds[-1] - rounds[-2])
    reached = np.concatenate(
        [Classification().metrics[0].reached(curves, target), np.ones((*curves.shape[:-1], 1), bool)], axis=-1
    )
    return later[reached.argmax(axis=-1)]


def sooner(result: Result, target: float, *, resamples: int = 1000) -> Difference:
    """The rounds by which the personalized model is earlier at the target; the bootstrap is over clients' curves.

    A round at which a mean reaches a target is nobody's own, so that the two-way interval is that of `square_and_add`.
    """
    rounds = rounds_to(result, target).astype(float)
    saved = rounds[0] - rounds[1]
    clients = result.history.shape[2]
    generator, resampled = np.random.default_rng(0), []
    for _ in range(resamples):
        means = result.history[:, :, generator.integers(0, clients, clients)].mean(axis=2)
        each = _first(_both(result, means), result.rounds, target)
        resampled.append((each[0] - each[1]).mean())
    low, high = np.quantile(resampled, [0.025, 0.975])
    mean, over_seeds, over_clients = float(saved.mean()), t_interval(saved), (float(low), float(high))
    both = square_and_add(mean, over_seeds, over_clients)
    return Difference(mean, both, over_seeds, over_clients, len(saved), clients)


def _sooner(rows: Rows, target: float) -> Claim:
    found = {key: sooner(result, target) for key, result in rows.items()}
    return Claim(
        f"Personalized accuracy reaches the target ({format_share(target)}) in fewer rounds than initial accuracy",
        "0.8 in 1.7 to 4.9 times fewer rounds",
        decide([each.sign for each in found.values()]),
        tuple(_format_rounds(*key, rows[key], target, each) for key, each in found.items()),
    )


def _format_rounds(m: int, e: int, result: Result, target: float, found: Difference) -> str:
    initial, personalized = rounds_to(result, target).mean(axis=1)
    intervals = found.interval, found.over_seeds, found.over_clients
    both, seeds, clients = (f"[{low:.0f}, {high:.0f}]" for low, high in intervals)
    missing = " or never" if (rounds_to(result, target) > result.rounds[-1]).any() else ""
    return (
        f"M = {m}, E = {e}: {initial:.0f}{missing} and {personalized:.0f} rounds, {found.mean:.0f} fewer"
        f" ({both} two-way, {seeds} over seeds, {clients} over clients){'' if found.sign else ' (inconclusive)'}"
    )


def _steadier(rows: Rows) -> Claim:
    found = {key: spread(result.initial, result.personalized) for key, result in rows.items()}
    return Claim(
        "Personalized accuracy varies less over seeds than initial accuracy",
        "2 to 16 times less",
        decide_most([each.sign for each in found.values()]),
        tuple(format_spread(f"M = {m}, E = {e}, initial", each) for (m, e), each in found.items()),
    )


def measured_table(rows: Rows, target: float) -> Table:
    """The paper's table beside the measured one."""
    head = (
        "M", "E", "initial", "paper", "personalized", "paper",
        f"rounds to {format_share(target)}", "paper, to 80 %", "epochs chosen",
    )  # fmt: skip
    return Table(
        "Table 1, measured and as printed for EMNIST-62",
        head,
        tuple(_row(m, e, result, target) for (m, e), result in rows.items()),
        "In brackets the standard deviation over seeds. Rounds: initial / personalized, means over seeds.",
    )


def _row(m: int, e: int, result: Result, target: float) -> tuple[str, ...]:
    printed = PRINTED.get((m, e))
    initial, personalized = result.initial.mean(axis=1), result.personalized.mean(axis=1)
    by_model = rounds_to(result, target)
    rounds = " / ".join(_mean_rounds(each, result.rounds[-1]) for each in by_model)
    cells = [str(m), str(e), _measured(initial), "–", _measured(personalized), "–", rounds, "–", _epochs(result)]
    if printed:
        cells[3] = f"{format_share(printed.initial)} ({100 * printed.initial_spread:.1f})"
        cells[5] = f"{format_share(printed.personalized)} ({100 * printed.personalized_spread:.1f})"
        cells[7] = f"{printed.initial_rounds:g} / {printed.personalized_rounds:g}"
    return tuple(cells)


def _mean_rounds(rounds: np.ndarray, last: int) -> str:
    never = int((rounds > last).sum())
    return f"{rounds.mean():.0f}" if not never else f"never in {never} of {len(rounds)} seeds"


def _measured(values: np.ndarray) -> str:
    return f"{format_share(float(values.mean()))} ({100 * values.std(ddof=1):.1f})"


def _epochs(result: Result) -> str:
    low, high = result.epochs.min(), result.epochs.max()
    return f"{low}" if low == high else f"{low} to {high}"


def _figure(setting: Setting, rows: Rows):
    def means(m: int, what: str) -> np.ndarray:
        return np.stack([getattr(rows[m, e], what).mean(axis=1) for e in setting.epochs], axis=1)

    lines = {f"M = {m}, {what}": means(m, what) for m in setting.cohorts for what in ("initial", "personalized")}
    printed = {
        f"M = {m}, {what}": [getattr(PRINTED[m, e], what) if (m, e) in PRINTED else np.nan for e in setting.epochs]
        for m in setting.cohorts
        for what in ("initial", "personalized")
    }
    return by_epochs(
        "table1",
        "Initial and personalized accuracy of test clients against the local epochs E of a round, for each number of"
        " clients per round M; bars are standard deviations over seeds, empty marks the paper's numbers for EMNIST-62.",
        "Accuracy against the local epochs of a round",
        setting.epochs,
        lines,
        paper={name: values for name, values in printed.items() if np.isfinite(values).any()},
    )


TABLE1 = Study("table1", table1, ("image",))
