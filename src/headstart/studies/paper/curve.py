"""How many local examples it takes until personalization pays, after FedAvg and after its second stage.

The title of arXiv:1909.12488 as a question with an axis: nothing is trained for it beyond claim 2's experiments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from headstart.learning.tasks import Metric
from headstart.reports.by_examples import edges, figure_spec, format_number, note, sentence, table
from headstart.reports.format import GainFormat, format_value
from headstart.runs.by_examples import ByExamples, curve_of
from headstart.statistics.by_examples import GainByExamples
from headstart.statistics.verdicts import difference
from headstart.studies.evidence import Claim, Evidence, Table, format_difference
from headstart.studies.paper.finetune import second_stages
from headstart.studies.paper.study import Setting, Study
from headstart.studies.paper.tuning import tuned
from headstart.studies.paper.widening import choose_widened
from headstart.studies.runner import Runs

FEDAVG, PERSONALIZED = "FedAvg", "Personalized FedAvg"
# The paper's own question is of clients with few examples: of no more than these.
FEW = 20


def curve(setting: Setting, runs: Runs) -> Evidence:
    """FedAvg, and FedAvg with Reptile and Adam after it; their test clients with nested subsets of their examples."""
    setting, choices = tuned(setting, runs)
    first, cell = setting.experiment(FEDAVG, setting.fedavg()), f"Reptile({setting.steps}), Adam"
    candidates = second_stages(setting, runs, replace(first, test=False), cell)
    chosen = choose_widened(runs, {cell: candidates}, seeds=setting.tuning_seeds, most=setting.most_widened)[cell]
    runs.finish({FEDAVG: first}, seeds=setting.most_seeds)
    second = replace(chosen.experiment, start=runs.start(first))
    experiments = {FEDAVG: first, PERSONALIZED: second}
    found = runs.finish(experiments, seeds=setting.most_seeds)
    metric = runs.prepared(first).task.metrics[0]
    seeds = runs.by_examples(experiments, seeds=setting.most_seeds, draws=setting.draws)
    curves = {name: curve_of(each, metric) for name, each in seeds.items()}
    head, lines = table(curves, metric)
    return Evidence(
        "curve",
        "How many local examples does it take until personalization pays?",
        tuple(_claim(name, each) for name, each in curves.items()),
        (
            Table(
                "Gain against local examples",
                tuple(head),
                tuple(map(tuple, lines)),
                note(curves, metric, setting.draws),
            ),
            _beside(seeds, curves, metric, setting.more_rounds),
        ),
        (figure_spec("curve", {"": curves}, metric, "Gain from personalization by local examples"),),
        (*choices, chosen.choice),
        (
            *(sentence(name, each, metric) for name, each in curves.items()),
            *(text for name, each in seeds.items() for text in edges(name, each)),
        ),
        {name: result.command for name, result in found.items()},
    )


def _beside(
    seeds: Mapping[str, Sequence[ByExamples]], curves: Mapping[str, GainByExamples], metric: Metric, more_rounds: int
) -> Table:
    """How much the second stage is ahead where clients have few examples, and where they have many."""
    first, second = (
        np.stack([each.personalized.mean(axis=1) for each in seeds[name]]) for name in (FEDAVG, PERSONALIZED)
    )
    formats, rows = GainFormat(metric), []
    for index, number in enumerate(curves[FEDAVG].numbers):
        lead = difference(metric.sign * (second - first)[:, index])
        rows.append(
            (
                format_number(curves[FEDAVG], number),
                *(format_value(metric, float(np.nanmean(each[:, index]))) for each in (first, second)),
                f"{formats.change(lead.mean)} {formats.interval(*lead.interval)}",
                {1: "better", -1: "worse", 0: "inconclusive"}[lead.sign],
            )
        )
    return Table(
        f"{PERSONALIZED} less {FEDAVG}, personalized on as many local examples",
        ("local examples, at most", FEDAVG, PERSONALIZED, f"difference, {formats.unit}", "the second is"),
        tuple(rows),
        f"Mean {metric.name} of the same test clients; intervals are two-way, 95 %, none corrected for their number."
        f" The second stage is {more_rounds} rounds more.",
    )


def _claim(name: str, found: GainByExamples) -> Claim:
    """Whether few examples are enough; the sequence of questions that comes to them is that of the page."""
    few = max((number for number in found.numbers if 0 < number <= FEW), default=found.numbers[-1])
    reached = found.positive_from is not None and found.positive_from <= few
    harms = found.gains[found.numbers.index(few)].sign < 0
    evidence = (
        format_difference(f"with at most {number} examples" if number != found.numbers[-1] else "with all", gain)
        for number, gain in zip(found.numbers, found.gains, strict=True)
        if number
    )
    return Claim(
        f"{name}: personalization pays with {few} local examples",
        "",
        "holds" if reached and found.is_two_way else "does not hold" if harms else "inconclusive",
        tuple(evidence),
    )


CURVE = Study("curve", curve)
