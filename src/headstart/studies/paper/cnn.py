"""One row of Table 1 and of the second stage (arXiv:1909.12488), with the network of Google's example."""

from __future__ import annotations

from dataclasses import replace

from headstart.experiment.experiment import ModelSpec
from headstart.statistics.verdicts import difference
from headstart.studies.comparisons import accuracies, against, better, claim
from headstart.studies.evidence import Evidence, Table, lower_accuracy, mean_gain
from headstart.studies.figures import forest
from headstart.studies.paper.finetune import DECAYED, NOTHING, second_stages
from headstart.studies.paper.study import Setting, Study
from headstart.studies.runner import Runs

# Choosing would cost too much here: the rates are those of the protocol of arXiv:1909.12488.
CLIENT_RATE, ADAM_RATE = 0.02, 1e-3


def cnn(setting: Setting, runs: Runs) -> Evidence:
    """FedAvg with the fewest clients per round, then the paper's second stage or more of the first."""
    m, e = min(setting.cohorts), setting.local_epochs
    setting = replace(
        setting,
        model=ModelSpec("cnn"),
        cohort=m,
        client_rate=CLIENT_RATE,
        adam_rates=(ADAM_RATE,),
        momentum_rates=(1.0,),
    )
    first = setting.experiment("cnn-FedAvg", setting.fedavg())
    found = runs.finish({NOTHING: first}, seeds=setting.seeds)
    paper, more = f"Reptile({setting.steps}), Adam", "FedAvg, momentum"
    others = NOTHING, more, DECAYED
    experiments = {}
    for cell in (paper, more, DECAYED):
        candidates = second_stages(setting, runs, first, cell)
        experiments[cell] = candidates[list(candidates)[-1]]  # β₁ 0.9, or rate 1
    found |= runs.finish(experiments, seeds=setting.seeds)

    gain = difference(found[NOTHING].personalized - found[NOTHING].initial)
    changes = against(found, NOTHING)
    rows = tuple(
        (
            name,
            *accuracies(r),
            mean_gain(r),
            lower_accuracy(r),
            f"{r.items.mean():,.0f}",
        )
        for name, r in found.items()
    )
    return Evidence(
        "cnn",
        f"Do the row M = {m}, E = {e} of Table 1 and the second stage look the same with the full network?",
        (
            claim(
                f"Personalization improves the network that FedAvg({e}) trained with {m} clients per round",
                "+6.8 points (M = 5, E = 5)" if (m, e) == (5, 5) else "not known",
                [("personalized over initial", gain)],
            ),
            claim(
                f"{paper} after FedAvg gives the network a more accurate initial model",
                "not known",
                better(found, paper, others, "initial"),
            ),
            claim(
                f"{paper} after FedAvg gives a network that personalizes better",
                "not known",
                better(found, paper, others, "personalized"),
            ),
        ),
        (
            Table(
                "The convolutional network (1,206,590 parameters)",
                (
                    "after the first stage",
                    "initial",
                    "personalized",
                    "gain",
                    "lower accuracy / expected from noise",
                    "examples of its stage",
                ),
                rows,
            ),
        ),
        (forest("cnn", "Change of accuracy by each second stage", "What a second stage changes, CNN", changes),),
        (),
        (
            f"{setting.rounds} rounds, then {setting.more_rounds}; {setting.seeds} seeds. Client rate {CLIENT_RATE},"
            f" server Adam {ADAM_RATE:g} with the last β₁ of the candidates elsewhere: nothing was chosen here.",
        ),
        {name: result.command for name, result in found.items()},
    )


CNN = Study("cnn", cnn, ("image",))
