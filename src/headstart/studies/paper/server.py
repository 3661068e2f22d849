"""The server's optimizer under FedAvg: SGD, momentum, Adam, Yogi, Adagrad, with the rates of arXiv:2003.00295."""

from __future__ import annotations

from headstart.experiment.experiment import Experiment
from headstart.learning.optimizers import Optimizer
from headstart.studies.comparisons import BOTH, accuracies, better, claim, over
from headstart.studies.evidence import Evidence, Table
from headstart.studies.figures import forest
from headstart.studies.paper.study import Setting, Study
from headstart.studies.paper.tuning import tuned
from headstart.studies.paper.widening import choose_widened
from headstart.studies.runner import Runs

# log10 of (client rate, server rate, ε) for EMNIST in arXiv:2003.00295.
PUBLISHED = {
    "SGD": (-1.0, 0.0, None),
    "momentum": (-1.5, -0.5, None),
    "Adam": (-1.5, -2.5, -4.0),
    "Yogi": (-1.5, -2.5, -4.0),
    "Adagrad": (-1.5, -1.0, -2.0),
}
_OPTAX = {"SGD": "sgd", "momentum": "sgd", "Adam": "adam", "Yogi": "yogi", "Adagrad": "adagrad"}
_AROUND = (0.0, -0.5, 0.5)


def server(setting: Setting, runs: Runs) -> Evidence:
    """FedAvg under each server optimizer, its rate chosen around the published one, the client's rate as published."""
    setting, choices = tuned(setting, runs)
    candidates = {
        name: {f"10^{PUBLISHED[name][1] + a:g}": _experiment(setting, name, a) for a in setting.candidates(_AROUND)}
        for name in PUBLISHED
    }
    chosen = choose_widened(runs, candidates, seeds=setting.tuning_seeds, most=setting.most_widened)
    experiments = {name: each.experiment for name, each in chosen.items()}
    found = runs.finish(experiments, seeds=setting.seeds)
    best = max(found, key=lambda name: chosen[name].choice.values[chosen[name].choice.chosen])
    others = [name for name in found if name != best]
    rows = tuple(
        (
            name,
            chosen[name].choice.chosen,
            *accuracies(each),
        )
        for name, each in found.items()
    )
    forests = [
        (f"{best} over {name}: {what}", over(found[best], found[name], what)) for name in others for what in BOTH
    ]
    return Evidence(
        "server",
        "Does the server's optimizer matter, for the initial and for the personalized model?",
        (
            claim(
                "The server optimizer that is best on validation clients personalizes better than every other",
                "not known",
                better(found, best, others, "personalized"),
            ),
        ),
        (
            Table(
                "Server optimizers",
                ("server", "rate", "initial", "personalized"),
                rows,
                "Client rates and ε as published for EMNIST (arXiv:2003.00295); the server's rate is the published one"
                " or half a power of ten beside it, and beyond where an end suits best.",
            ),
        ),
        (forest("server", f"{best} less the other server optimizers", f"{best} less the others", forests),),
        (*choices, *(each.choice for each in chosen.values())),
        (
            f"{setting.rounds} rounds of FedAvg({setting.local_epochs}), {setting.cohort} clients; {setting.seeds}"
            " seeds.",
        ),
        {name: each.command for name, each in found.items()},
    )


def _experiment(setting: Setting, name: str, around: float) -> Experiment:
    client, learning_rate, epsilon = PUBLISHED[name]
    options = {"momentum": {"momentum": 0.9}, "SGD": {}}.get(name, {"eps": 10.0 ** (epsilon or 0)})
    # Personalization is the same for all.
    factor = setting.client_rate * setting.personal_factor / 10.0**client
    setting = setting.with_rates(10.0**client, factor)
    return setting.experiment(
        f"server-{name}", setting.fedavg(server=Optimizer(_OPTAX[name], 10.0 ** (learning_rate + around), options))
    )


SERVER = Study("server", server, ("image",))
