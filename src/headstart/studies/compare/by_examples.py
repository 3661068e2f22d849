"""The best methods of a comparison with fewer local examples: where a gain begins, and where it is half of its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from headstart.learning.tasks import Metric
from headstart.reports.by_examples import edges, figure_spec, note, sentence, table
from headstart.runs.by_examples import ByExamples, curve_of
from headstart.statistics.by_examples import GainByExamples
from headstart.studies.compare.methods import BASELINE, FEDAVG
from headstart.studies.compare.protocol import Compared
from headstart.studies.evidence import Evidence, Table
from headstart.studies.runner import Runs
from headstart.training.by_examples import DRAWS

# Over the model that each method starts from, and over the best global model.
OWN, GLOBAL = "Gain over the model that it starts from", f"Gain over {FEDAVG}"


class MethodsByExamples(NamedTuple):
    """The measured methods, by name. own, over_fedavg: their curves. seeds: what these are made of."""

    own: Mapping[str, GainByExamples]
    over_fedavg: Mapping[str, GainByExamples]
    seeds: Mapping[str, Sequence[ByExamples]]


def best_methods(compared: Compared, metric: Metric, count: int) -> list[str]:
    """The methods that personalized best on validation clients when their settings were chosen, and fine-tuning.

    Test clients choose none of them.
    """
    values = {choice.what: choice.values[choice.chosen] for choice in compared.choices}
    personal = [name for name, entry in compared.entries.items() if entry.method.personalizes]
    best = sorted(personal, key=lambda name: -metric.sign * values[name])[:count]
    return best if BASELINE in best else [*best, BASELINE]


def measure_methods(compared: Compared, runs: Runs, metric: Metric, *, count: int, seeds: int) -> MethodsByExamples:
    """The best `count` methods, and fine-tuning, with fewer local examples.

    Raises:
        UserError: if a measurement fails.
    """
    names = best_methods(compared, metric, count)
    runs.log(f"with fewer local examples: {', '.join(names)}")
    found = runs.by_examples({name: compared.experiments[name] for name in names}, seeds=seeds)
    fedavg = compared.entries[FEDAVG].result
    column = {client: index for index, client in enumerate(fedavg.ids)}
    order = [column[client] for client in found[names[0]][0].ids]
    return MethodsByExamples(
        {name: curve_of(each, metric) for name, each in found.items()},
        {name: curve_of(each, metric, over=list(fedavg.initial[:, order])) for name, each in found.items()},
        found,
    )


def with_by_examples(evidence: Evidence, found: MethodsByExamples, metric: Metric) -> Evidence:
    """The evidence with their figure, which comes first, and their tables."""
    specs = (figure_spec("by-examples", {OWN: found.own, GLOBAL: found.over_fedavg}, metric, _TITLE),)
    text = note(found.own, metric, DRAWS)
    notes = (
        f"{text} The methods are those that personalized best on validation clients when their settings were chosen,"
        f" and {BASELINE}.",
        f"As above, with {FEDAVG} in place of the model that a method starts from: with no examples it is what that"
        " model has over it.",
    )
    tables = (_table(title, curves, metric, each) for (title, curves), each in zip(_panels(found), notes, strict=True))
    at_edges = (text for name, each in found.seeds.items() for text in edges(name, each))
    return evidence._replace(
        tables=(*evidence.tables, *tables),
        figure_specs=(*specs, *evidence.figure_specs),
        notes=(*evidence.notes, *at_edges),
    )


_TITLE = "How many local examples it takes until personalization pays, on test clients"


def _panels(found: MethodsByExamples) -> tuple[tuple[str, Mapping[str, GainByExamples]], ...]:
    return (OWN, found.own), (GLOBAL, found.over_fedavg)


def _table(title: str, curves: Mapping[str, GainByExamples], metric: Metric, text: str) -> Table:
    head, lines = table(curves, metric)
    return Table(f"{title}, by local examples", tuple(head), tuple(map(tuple, lines)), text)


def conclusion_by_examples(found: MethodsByExamples, metric: Metric) -> list[str]:
    """Sentences on how many local examples it takes."""
    own = [sentence(name, curve, metric) for name, curve in found.own.items()]
    over = sentence(BASELINE, found.over_fedavg[BASELINE], metric)
    question = "How many local examples does it take until personalization pays?"
    return [
        f"{question} Over the model that each starts from: {' '.join(own)}",
        f"Over {FEDAVG}, by local examples: {over}",
    ]


def as_numbers(found: MethodsByExamples) -> dict[str, Any]:
    """The curves, and what was chosen for each number of examples, seed by seed."""
    return {
        name: {
            "over_initial": found.own[name],
            "over_fedavg": found.over_fedavg[name],
            "personalized": np.array([each.personalized.mean(axis=(1, 2)) for each in seeds]),
            "learning_rates": np.array([each.learning_rates for each in seeds]),
            "epochs": np.array([each.epochs for each in seeds]),
        }
        for name, seeds in found.seeds.items()
    }
