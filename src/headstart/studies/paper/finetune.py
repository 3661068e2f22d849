"""Claim 2 of arXiv:1909.12488: the second stage, its change of update separated from its change of optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from headstart.experiment.experiment import Experiment, Stage
from headstart.learning.optimizers import Optimizer, Schedule
from headstart.methods.paper import FedAvg, FedSGD, Reptile
from headstart.reports.style import FigureSpec
from headstart.statistics.verdicts import Difference, difference, power
from headstart.studies.comparisons import BOTH, Compared, What, accuracies, against, better, claim, over
from headstart.studies.evidence import (
    Claim,
    Evidence,
    Result,
    Table,
    foreseen,
    format_difference,
    lower_accuracy,
    mean_gain,
)
from headstart.studies.figures import forest
from headstart.studies.paper.study import Setting, Study
from headstart.studies.paper.tuning import first_stage, tuned
from headstart.studies.paper.widening import choose_widened
from headstart.studies.runner import Runs

CLAIM = "claim 2; no number is known"
NOTHING, DECAYED = "nothing more", "FedAvg, decayed rate"
# Training for global accuracy alone, from scratch: on as many examples as both stages of FedAvg, or as many rounds.
FEDSGD, FEDAVG1 = "FedSGD from scratch", "FedAvg(1) from scratch"
FEDSGD_ROUNDS, FEDAVG1_ROUNDS = "FedSGD, as many rounds", "FedAvg(1), as many rounds"
_SCRATCH = FEDSGD, FEDAVG1, FEDSGD_ROUNDS, FEDAVG1_ROUNDS


def finetune(setting: Setting, runs: Runs) -> Evidence:
    """After one first stage: nothing, {FedAvg, Reptile} × {momentum, Adam}, a decayed rate; two from scratch."""
    setting, choices = tuned(setting, runs)
    first = setting.experiment("FedAvg", setting.fedavg())
    tuning = replace(first, test=False)
    first_stage(setting, runs)
    candidates = {cell: second_stages(setting, runs, tuning, cell) for cell in _cells(setting)}
    candidates |= {name: scratch(setting, name) for name in _SCRATCH}
    # Training for global accuracy alone is chosen by it.
    chosen = choose_widened(
        runs, candidates, seeds=setting.tuning_seeds, by=dict.fromkeys(_SCRATCH, "initial"), most=setting.most_widened
    )
    pilot = {cell: results[choice.chosen] for cell, (choice, results, _) in chosen.items()}
    best, plain = _best_names(setting)
    clients, seeds = len(runs.prepared(first).groups.test), setting.most_seeds
    estimates = {
        what: power(getattr(pilot[best], what) - getattr(pilot[plain], what), seeds=seeds, clients=clients)
        for what in BOTH
    }

    experiments: dict[str, Experiment] = {NOTHING: first}
    runs.finish(experiments, seeds=seeds)
    experiments |= {cell: replace(chosen[cell].experiment, start=runs.start(first)) for cell in _cells(setting)}
    experiments |= {name: chosen[name].experiment for name in _SCRATCH}
    found = runs.finish(experiments, seeds=seeds)
    effects = _effects(setting, found)
    return Evidence(
        "finetune",
        "Does a second stage give a more accurate model that is easier to personalize, and is it the update or the"
        " optimizer that does it?",
        _claims(setting, found),
        (_table(setting, found), _effect_table(effects)),
        _figures(found, effects),
        (*choices, *(each.choice for each in chosen.values())),
        (
            f"First stage: {setting.rounds} rounds of FedAvg({setting.local_epochs}); second: {setting.more_rounds}"
            f" rounds of it or of Reptile({setting.steps}), {setting.cohort} clients each, {seeds} seeds. From"
            f" scratch: {_scratch_rounds(setting, FEDSGD)} rounds of one epoch, which is as many examples as FedAvg in"
            f" both stages, and {_share_of_examples(found, best)} of what {best} had, or"
            f" {_scratch_rounds(setting, FEDSGD_ROUNDS)}, which is as many rounds.",
            foreseen(estimates),
        ),
        {name: result.command for name, result in found.items()},
    )


def _reptile(setting: Setting) -> str:
    return f"Reptile({setting.steps})"


def _best_names(setting: Setting) -> tuple[str, str]:
    """The names of the paper's second stage, and of more of the first."""
    return f"{_reptile(setting)}, Adam", "FedAvg, momentum"


def _cells(setting: Setting) -> tuple[str, ...]:
    names = [f"{update}, {server}" for update in ("FedAvg", _reptile(setting)) for server in ("momentum", "Adam")]
    return (*names, DECAYED)


def second_stages(setting: Setting, runs: Runs, first: Experiment, cell: str) -> dict[str, Experiment]:
    """The candidates of a cell by their settings, each continuing where `first` ended."""
    start, rounds = runs.start(first), setting.more_rounds
    if cell == DECAYED:
        schedule = Schedule("cosine_decay_schedule", {"decay_steps": rounds})
        servers = {"rate 1, to 0": Optimizer("sgd", 1.0, {"momentum": 0.9}, schedule)}
    elif cell.endswith("momentum"):
        servers = {
            f"rate {learning_rate:g}": Optimizer("sgd", learning_rate, {"momentum": 0.9})
            for learning_rate in setting.momentum_rates
        }
    else:
        servers = {
            f"rate {learning_rate:g}, β₁ {b1:g}": Optimizer("adam", learning_rate, {"b1": b1})
            for learning_rate in setting.adam_rates
            for b1 in setting.candidates((0.0, 0.9))
        }
    if cell.startswith("Reptile"):
        update, weighting = Reptile(setting.steps, setting.client_rate, setting.batch_size), "uniform"
    else:
        update, weighting = FedAvg(setting.local_epochs, setting.client_rate, setting.batch_size), "examples"
    slug = cell.replace(", ", "-").replace("(", "").replace(")", "").replace(" ", "-")
    return {
        label: setting.experiment(
            slug, setting.stage(cell, update, server, rounds=rounds, weighting=weighting), start=start
        )
        for label, server in servers.items()
    }


def scratch(setting: Setting, name: str) -> dict[str, Experiment]:
    """The candidates of training for global accuracy alone."""
    whole = name in (FEDSGD, FEDSGD_ROUNDS)
    update = FedSGD(setting.client_rate) if whole else FedAvg(1, setting.client_rate, setting.batch_size)
    rounds, slug = _scratch_rounds(setting, name), "FedSGD" if whole else "FedAvg1"
    return {
        f"rate {factor:g}": setting.experiment(
            slug, Stage(name, update, Optimizer("sgd", factor, {"momentum": 0.9}), rounds, setting.cohort)
        )
        # One gradient of a client is a small step, so the server's may be a large one.
        for factor in setting.candidates((1.0, 0.3, 3.0, 10.0) if whole else (1.0, 0.3, 3.0))
    }


def _scratch_rounds(setting: Setting, name: str) -> int:
    rounds = setting.rounds + setting.more_rounds
    return rounds if name in (FEDSGD_ROUNDS, FEDAVG1_ROUNDS) else rounds * setting.local_epochs


def _share_of_examples(found: Mapping[str, Result], best: str) -> str:
    both = found[NOTHING].items.mean() + found[best].items.mean()
    return f"{100 * found[FEDSGD].items.mean() / both:.0f} %"


def _claims(setting: Setting, found: Mapping[str, Result]) -> tuple[Claim, ...]:
    best, plain = _best_names(setting)
    others = plain, "FedAvg, Adam", DECAYED
    return (
        claim(
            f"{best} after FedAvg gives a more accurate initial model than stopping",
            CLAIM,
            better(found, best, (NOTHING,), "initial"),
        ),
        claim(
            f"{best} after FedAvg gives a model that personalizes better than stopping",
            CLAIM,
            better(found, best, (NOTHING,), "personalized"),
        ),
        claim(
            f"{best} after FedAvg gives a more accurate initial model than stopping or more of FedAvg in any form",
            CLAIM,
            better(found, best, (NOTHING, *others), "initial"),
        ),
        claim(
            f"{best} after FedAvg gives a model that personalizes better than stopping or more of FedAvg in any form",
            CLAIM,
            better(found, best, (NOTHING, *others), "personalized"),
        ),
        claim(
            "Aiming at global accuracy alone (FedSGD, FedAvg(1)) for as many rounds gives weaker personalization",
            CLAIM,
            better(found, best, (FEDSGD_ROUNDS, FEDAVG1_ROUNDS), "personalized"),
        ),
        claim(
            "Aiming at global accuracy alone (FedSGD, FedAvg(1)) on as many examples gives weaker personalization",
            CLAIM,
            better(found, best, (FEDSGD, FEDAVG1), "personalized"),
        ),
    )


def _effects(setting: Setting, found: Mapping[str, Result]) -> Compared:
    """The effects of the update and of the optimizer, each averaged over the other, and their interaction."""
    effects: list[tuple[str, Difference]] = []
    for what in BOTH:
        fm, fa, rm, ra = (getattr(found[cell], what) for cell in _cells(setting)[:4])
        effects += [
            (f"{what}: Reptile for FedAvg", difference(((rm - fm) + (ra - fa)) / 2)),
            (f"{what}: Adam for momentum", difference(((fa - fm) + (ra - rm)) / 2)),
            (f"{what}: both together, beyond their sum", difference((ra - fa) - (rm - fm))),
        ]
    return effects


def _table(setting: Setting, found: Mapping[str, Result]) -> Table:
    before = float(found[NOTHING].items.mean())
    rows = [
        (
            name,
            *accuracies(result),
            mean_gain(result),
            lower_accuracy(result),
            change_cell(found, name, "initial"),
            change_cell(found, name, "personalized"),
            f"{result.items.mean() + (before if name in _cells(setting) else 0):,.0f}",
        )
        for name, result in found.items()
    ]
    head = (
        "after the first stage", "initial", "personalized", "gain", "lower accuracy / expected from noise",
        "initial, change", "personalized, change", "examples",
    )  # fmt: skip
    return Table(
        "The second stage",
        head,
        tuple(rows),
        "Gain: personalized less initial, in points. Lower accuracy: the clients whose own accuracy falls; expected"
        " from noise: those for whom it would if every client's true gain were the mean one and as many answers"
        " changed; too many where clients differ in that. Changes are against"
        " stopping after the first stage, in points; * decided, by the two-way interval. Examples: of clients, in both"
        " stages, each counted every time it was used.",
    )


def change_cell(found: Mapping[str, Result], name: str, what: What) -> str:
    """The change against the first stage, marked if it is decided."""
    if name == NOTHING:
        return "–"
    change = over(found[name], found[NOTHING], what)
    return f"{100 * change.mean:+.1f}{'*' if change.sign else ''}"


def _effect_table(effects: Compared) -> Table:
    rows = tuple((format_difference(name, each),) for name, each in effects)
    return Table("The update and the optimizer, separated", ("effect",), rows)


def _figures(found: Mapping[str, Result], effects: Compared) -> tuple[FigureSpec, ...]:
    changes = against(found, NOTHING)
    return (
        forest("finetune", "Change of accuracy by each second stage", "What a second stage changes", changes),
        forest("effects", "Effects of update and optimizer", "The update and the optimizer, separated", effects),
    )


FINETUNE = Study("finetune", finetune)
