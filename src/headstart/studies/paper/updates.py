"""The updates from scratch: FedSGD, FOMAML(K), exact MAML(K), Reptile(K), FedAvg(E)."""

from __future__ import annotations

from collections.abc import Mapping

from headstart.experiment.experiment import Experiment
from headstart.learning.method import ClientUpdate, Weighting
from headstart.learning.optimizers import Optimizer
from headstart.methods.paper import FOMAML, MAML, FedAvg, FedSGD, Reptile
from headstart.reports.style import FigureSpec
from headstart.studies.comparisons import accuracies, against, better, claim
from headstart.studies.evidence import Claim, Evidence, Result, Table
from headstart.studies.figures import forest
from headstart.studies.paper.study import Setting, Study
from headstart.studies.paper.tuning import tuned
from headstart.studies.paper.widening import choose_widened, server_rate
from headstart.studies.runner import Runs

# A gradient through K steps costs the K gradients, and about as much again twice on the way back.
MAML_COST = 3


def updates(setting: Setting, runs: Runs) -> Evidence:
    """Each update with server Adam, its rate chosen: as many rounds, then as many gradients of examples as FedAvg."""
    setting, choices = tuned(setting, runs)
    kinds = kinds_of(setting)
    candidates = {
        name: {
            f"rate {learning_rate:g}": _experiment(setting, name, learning_rate, setting.rounds)
            for learning_rate in setting.adam_rates
        }
        for name in kinds
    }
    chosen = choose_widened(runs, candidates, seeds=setting.tuning_seeds, most=setting.most_widened)
    learning_rates = {name: server_rate(each.experiment) for name, each in chosen.items()}
    reference = f"FedAvg({setting.local_epochs})"
    pilot = {name: results[choice.chosen] for name, (choice, results, _) in chosen.items()}
    longer = _rounds_at_equal_computation(setting, pilot, reference)
    experiments = {name: _experiment(setting, name, learning_rates[name], setting.rounds) for name in kinds}
    equal = {
        f"{name}, {longer[name]} rounds": _experiment(setting, name, learning_rates[name], longer[name])
        for name in kinds
        if longer[name] != setting.rounds
    }
    found = runs.finish({**experiments, **equal}, seeds=setting.seeds)
    at_rounds = {name: found[name] for name in kinds}
    at_cost = {name: found.get(f"{name}, {longer[name]} rounds", found[name]) for name in kinds}
    return Evidence(
        "updates",
        "Which update gives the better model from scratch, at equal communication and at equal computation?",
        (
            _claim("At equal communication (rounds)", reference, at_rounds),
            _claim("At equal computation (gradients of examples)", reference, at_cost),
        ),
        (_table("At equal communication", at_rounds), _table("At equal computation", at_cost)),
        (
            _figure("updates-communication", "At equal communication", reference, at_rounds),
            _figure("updates-computation", "At equal computation", reference, at_cost),
        ),
        (*choices, *(each.choice for each in chosen.values())),
        (
            f"{setting.rounds} rounds of {setting.cohort} clients, server Adam with β₁ 0.9, {setting.seeds} seeds. At"
            f" equal computation the others have the rounds that cost as many gradients of examples as {reference};"
            f" one of exact MAML is taken to cost {MAML_COST} times as much (`identity` measures it). Rates"
            " are those chosen for equal rounds.",
        ),
        {name: result.command for name, result in found.items()},
    )


def kinds_of(setting: Setting) -> dict[str, tuple[ClientUpdate, Weighting]]:
    """The updates by name, each with the weighting of its replies."""
    k, learning_rate, size = setting.steps, setting.client_rate, setting.batch_size
    return {
        f"FedAvg({setting.local_epochs})": (FedAvg(setting.local_epochs, learning_rate, size), "examples"),
        f"Reptile({k})": (Reptile(k, learning_rate, size), "uniform"),
        f"FOMAML({k})": (FOMAML(k, learning_rate, size), "uniform"),
        f"MAML({k})": (MAML(k, learning_rate, size), "uniform"),
        "FedSGD": (FedSGD(learning_rate), "examples"),
    }


def _experiment(setting: Setting, name: str, learning_rate: float, rounds: int) -> Experiment:
    update, weighting = kinds_of(setting)[name]
    server = Optimizer("adam", learning_rate)
    stage = setting.stage(name, update, server, rounds=rounds, weighting=weighting)
    return setting.experiment(f"updates-{name.replace('(', '').replace(')', '')}", stage)


def _rounds_at_equal_computation(setting: Setting, pilot: Mapping[str, Result], reference: str) -> dict[str, int]:
    """For each update, the rounds that cost as many gradients of examples as the reference's.

    pilot: a run of each, whose number of examples counts.
    """
    costs = {
        name: (MAML_COST if name.startswith("MAML") else 1) * float(result.items.mean())
        for name, result in pilot.items()
    }
    return {name: max(1, round(setting.rounds * costs[reference] / cost)) for name, cost in costs.items()}


def _claim(when: str, reference: str, found: Mapping[str, Result]) -> Claim:
    others = [name for name in found if name != reference]
    text = f"{when}, {reference} personalizes better than every other update"
    return claim(text, "not known", better(found, reference, others, "personalized"))


def _table(title: str, found: Mapping[str, Result]) -> Table:
    rows = tuple(
        (
            name,
            f"{result.ends.mean():.0f}",
            *accuracies(result),
            f"{result.items.mean():,.0f}",
        )
        for name, result in found.items()
    )
    return Table(title, ("update", "rounds", "initial", "personalized", "trained on"), rows)


def _figure(name: str, title: str, reference: str, found: Mapping[str, Result]) -> FigureSpec:
    rows = against(found, reference)
    return forest(name, f"{title}: the updates against {reference}", f"{title}, against {reference}", rows)


UPDATES = Study("updates", updates, ("image",))
