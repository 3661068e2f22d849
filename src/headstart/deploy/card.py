"""A model's card: on what data it was made and how well it did there, read from the run's own report files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from headstart.experiment.experiment import Experiment
from headstart.experiment.serialization import to_json
from headstart.learning.tasks import Metric
from headstart.reports.format import format_mean, format_share, format_worse
from headstart.runs.contents import federation_document, read_json
from headstart.runs.results import Estimate, format_diverged

WHEN = ("initial", "personalized", "difference")
Card = dict[str, Any]


def describe_run(run: Path, experiment: Experiment, report: Mapping[str, Any]) -> Card:
    """The card of a run's last stage as a JSON document.

    report: that stage's `stage-n.json`.
    """
    data, environment = federation_document(run / "federation.json"), read_json(run / "environment.json")
    metadata = {name: data["facts"][name] for name in ("kind", "classes", "source") if name in data["facts"]}
    return {
        "name": experiment.name,
        "data": {"name": data["name"], "clients": data["clients"], "examples": data["examples"], **metadata},
        "stages": [{"name": stage.name, "rounds": stage.rounds} for stage in experiment.stages],
        "personalization": to_json(experiment.personalization),
        "seed": report["seed"],
        "round": report["round"],
        "environment": environment["versions"],
        **{group: report[group] for group in ("validation", "test") if group in report},
    }


def markdown(card: Card, metrics: Sequence[Metric]) -> str:
    """The card as a page.

    metrics: of the task, in its order.
    """
    data = card["data"]
    known = ", ".join(str(part) for part in (data.get("kind"), _classes(data), data.get("source")) if part)
    trained = ", then ".join(f"{stage['name']} for up to {stage['rounds']} rounds" for stage in card["stages"])
    lines = [
        f"# {card['name']}",
        "",
        "An initial model that each device personalizes in a few local steps.",
        "",
        f"- **Data**: {data['name']}{f' ({known})' if known else ''}; {data['clients']} clients, "
        f"{data['examples']} examples.",
        f"- **Training**: {trained}; seed {card['seed']}, {card['round']} rounds in all.",
        f"- **Personalization**: {_recipe(card)}.",
        f"- **Made with**: {', '.join(f'{name} {number}' for name, number in card['environment'].items())}.",
        "",
        *_results(card, metrics),
    ]
    return "\n".join(lines) + "\n"


def _classes(data: Mapping[str, Any]) -> str:
    return f"{data['classes']} classes" if data.get("classes") else ""


def _recipe(card: Card) -> str:
    recipe, chosen = card["personalization"], card.get("validation")
    if recipe.get("pulls") is not None:
        return _pull(recipe["pulls"], chosen)
    optimizer, unit = recipe["optimizer"], "epochs" if recipe["steps"] is None else "steps"
    how = f"{optimizer['name']} at {optimizer['learning_rate']:g}, batches of {recipe['batch_size']}"
    if chosen is None or not chosen["clients"]:
        return f"{how}, {recipe[unit]} {unit}; there were no validation clients to choose that number"
    return f"{how}, {chosen['length']} {unit}, chosen on {chosen['clients']} validation clients"


def _pull(pulls: Sequence[float], chosen: Mapping[str, Any] | None) -> str:
    if chosen is None or not chosen["clients"]:
        return "to the optimum of the client's losses; there were no validation clients to choose the pull"
    if not chosen["length"]:
        return f"none; so {chosen['clients']} validation clients chose"
    pull = pulls[chosen["length"] - 1]
    return (
        f"to the optimum of the client's losses, with a pull of {pull:g} to the initial model, chosen on"
        f" {chosen['clients']} validation clients"
    )


def _results(card: Card, metrics: Sequence[Metric]) -> list[str]:
    test = card.get("test")
    if not test or not test["clients"]:
        return ["No test clients were measured in this run, so how well it does on new clients is not known."]
    return [
        f"On {test['clients']} test clients, which training did not see; the mean over clients and its 95 % interval, "
        "by a bootstrap over clients:",
        "",
        "| metric | initial | personalized | difference |",
        "|---|---|---|---|",
        *(_row(metric, test[metric.name]) for metric in metrics if test.get(metric.name, {}).get("difference")),
        "",
        *_harm(metrics[0], test["hurt"]),
        *([f"\nBeware: {format_diverged(test['diverged'], test['clients'])}."] if test.get("diverged") else []),
    ]


def _row(metric: Metric, group: Mapping[str, Any]) -> str:
    cells = [
        format_mean(metric, Estimate(group[when]["mean"], *group[when]["interval"]), change=when == "difference")
        for when in WHEN
    ]
    unit = "" if metric.unit == "share" else f" ({metric.unit})"
    return f"| {metric.name}{unit} | {' | '.join(cells)} |"


def _harm(metric: Metric, harmed: Mapping[str, Any]) -> list[str]:
    if not harmed:
        return []
    return [
        f"{format_share(harmed['share'])} of them have {format_worse(metric)} after personalization; test noise alone "
        f"would give up to {format_share(harmed['by_chance'])}. A device can see for itself, with examples held back."
    ]
