"""The report: one self-contained page and its figures, from run folders alone."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from headstart.data.duplicates import NEAR_DUPLICATES
from headstart.errors import UserError
from headstart.experiment.choice import Candidate, described
from headstart.files import write_bytes
from headstart.learning.metrics import balanced_accuracy, confusion
from headstart.reports.baselines import beside_baselines, conclusions
from headstart.reports.by_column import ResultsByColumn, cells
from headstart.reports.by_examples import CAPTION as BY_EXAMPLES
from headstart.reports.by_examples import TITLE as BY_EXAMPLES_TITLE
from headstart.reports.by_examples import figure_spec, section
from headstart.reports.comparability import comparable_groups, incomparable_notice
from headstart.reports.figures import caption, figure_specs, left_out
from headstart.reports.format import (
    format_change,
    format_count,
    format_interval,
    format_numbers,
    format_share,
    format_value,
    format_worse,
)
from headstart.reports.html import Cell, Picture, render
from headstart.reports.paired import beside_first, sentences, table
from headstart.reports.samples import Samples, images_figure, label, passages, read_samples
from headstart.reports.style import FigureSpec, save
from headstart.reports.tables import Distribution, Row, rows_of
from headstart.runs.comparable import data_record
from headstart.runs.reading import open_runs
from headstart.runs.results import Estimate, before_and_after, estimate, pooled_statistics
from headstart.runs.run import Run

# The head of a table, and its rows: the class of each, and its cells.
Table = tuple[list[str], list[tuple[str, list[str | Cell]]]]


def write(
    runs: Sequence[Run | str | os.PathLike[str]],
    out: str | os.PathLike[str] | None = None,
    *,
    allowed_modules: Collection[str] = (),
    by: Sequence[ResultsByColumn] = (),
) -> Path:
    """Write the page and, in `figures/` beside it, its figures, light and dark; returns the page's path.

    runs: run folders, finished or not, to be compared. out: the page; by default `report.html` in the first folder.
    allowed_modules: modules beside headstart's own that a saved task may be imported from. by: results by a column to
        add.

    Raises:
        UserError: if a folder is no run folder, or the runs do not measure the same thing.
    """
    read = open_runs(runs, allowed_modules=allowed_modules)
    names = {run.metric.name for run in read}
    if len(names) != 1:
        raise UserError(
            f"the runs measure different things ({', '.join(sorted(names)) or 'no run given'}); report them apart"
        )
    target = Path(out) if out else read[0].path / "report.html"
    # All that may be damaged is read before the first figure is written.
    samples = _distinct_samples(read)
    imports = [word for module in sorted(allowed_modules) for word in ("--import", module)]
    command = ["headstart", "report", *(str(run.path) for run in read), *(["--out", str(out)] if out else []), *imports]
    write_bytes(target, _page(read, samples, target.parent / "figures", shlex.join(command), by))
    return target


def _page(
    runs: Sequence[Run],
    samples: Sequence[tuple[str, Samples]],
    figures: Path,
    command: str,
    by: Sequence[ResultsByColumn] = (),
) -> bytes:
    rows, metric, groups = rows_of(runs), runs[0].metric, comparable_groups(runs)
    incomparable = incomparable_notice(groups)
    heading, lead = _heading(runs)
    return render(
        "report.html",
        title=f"headstart: {', '.join(run.label for run in runs)}",
        heading=heading,
        lead=lead,
        notices=[
            *([incomparable] if incomparable else []),
            *dict.fromkeys(text for run in runs for text in _data_notices(run)),
            *(text for run in runs for text in (_missing(run), *(f"{note}." for note in run.notes)) if text),
            *(f"{note}." for row in rows for note in row.notes),
        ],
        tiles=_tiles(rows[-1]) if len(runs) == 1 and rows else [],
        metric=metric,
        worse=format_worse(metric),
        groups=[_group(number, group, figures, apart=len(groups) > 1) for number, group in enumerate(groups)],
        trials=_trials(runs),
        by=[(each.title, _by_column(each)) for each in by],
        samples=[_examples(*each, figures) for each in samples],
        experiment=_settings(runs, [_flat(run.document) for run in runs]),
        documents=[(run.label, json.dumps(run.document, indent=2, ensure_ascii=False)) for run in runs],
        environment=_settings(runs, [_flat(run.environment) for run in runs]),
        command=command,
    )


def _data_notices(run: Run) -> list[str]:
    """How the rows of each client were split, where not at random, and a warning of near-duplicates."""
    metadata = data_record(run).get("facts", {})
    split, notes = metadata.get("split"), metadata.get("notes")
    found = [f"Rows of each client were split {split}."] if isinstance(split, str) else []
    notes = [note for note in notes if str(note).startswith(NEAR_DUPLICATES)] if isinstance(notes, list) else []
    return [*found, *(f"{note[:1].upper()}{note[1:]}." for note in notes)]


def _group(number: int, runs: Sequence[Run], figures: Path, *, apart: bool) -> dict[str, Any]:
    """The tables and figures of runs that can be compared; of several groups each has a title and names of its own."""
    rows, end = rows_of(runs), f"-{number + 1}" if number else ""
    specs = [spec._replace(name=f"{spec.name}{end}") for spec in figure_specs(runs)]
    curves, by_examples = section(runs)
    pictures = [_picture(spec, figures, caption(spec.name, runs)) for spec in specs]
    if curves:
        spec = figure_spec(f"by-examples{end}", {"": curves}, runs[0].task.metrics[0], BY_EXAMPLES_TITLE)
        pictures.append(_picture(spec, figures, BY_EXAMPLES))
    return {
        "title": f": {', '.join(run.label for run in runs)}" if apart else "",
        "results": _results(runs, rows),
        "beside": _beside(runs),
        "baselines": _baselines(runs),
        "conclusions": [f"{run.label}: {text}" if len(runs) > 1 else text for run in runs for text in conclusions(run)],
        "left_out": left_out(runs),
        "pictures": pictures,
        "by_examples": by_examples,
        "clients": _clients(rows) if rows else None,
        "metrics": _all_metrics(runs) if rows else None,
        "confusions": list(_confusions(runs)),
    }


def _heading(runs: Sequence[Run]) -> tuple[str, str]:
    seeds = sorted({len(run.reached) for run in runs})
    count = f"{' to '.join(map(str, seeds[:: max(len(seeds) - 1, 1)]))} {'seed' if seeds == [1] else 'seeds'}"
    if len(runs) == 1:
        return runs[0].label, f"Stages: {' → '.join(runs[0].stage_names)}. {count}."
    compared = "compared" if len(comparable_groups(runs)) == 1 else "of different data"
    return f"{len(runs)} runs {compared}", f"{', '.join(run.label for run in runs)}. {count} per run."


def _missing(run: Run) -> str:
    """What is missing of a run, as a sentence; empty if it is finished."""
    if not run.reached:
        return f"{run.label} has not begun: there is no round to report."
    finished = run.stage_results[-1].seeds if run.stage_results and run.stage_results[-1].final else ()
    missing = [f"seed {seed} is at round {round}" for seed, round in run.reached.items() if seed not in finished]
    if not missing:
        return ""
    stages = "" if run.stage_results else " No stage is finished yet, so nothing is known of its test clients."
    return f"{run.label} is unfinished: {', '.join(missing)} of {run.ends[-1]}.{stages}"


def _tiles(row: Row) -> list[tuple[str, str, str]]:
    """The large numbers: what each is, the number, and what to add in small."""
    metric, initial, personalized, difference = row.metric, row.initial, row.personalized, row.difference
    return [
        (f"initial {metric.name}", format_value(metric, initial.mean), format_interval(metric, initial)),
        (f"personalized {metric.name}", format_value(metric, personalized.mean), format_interval(metric, personalized)),
        ("difference", format_change(metric, difference.mean), format_interval(metric, difference, change=True)),
        (
            f"clients with {format_worse(metric)}",
            format_share(row.harmed),
            f"up to {format_share(row.harmed_by_chance)} expected from test noise",
        ),
    ]


def _results(runs: Sequence[Run], rows: Sequence[Row]) -> Table:
    """The table of all stages of all runs, those that are not finished too."""
    metric, targets = runs[0].metric, any(row.target is not None for row in rows)
    head = ["run, stage", "test clients", f"initial {metric.name}", f"personalized {metric.name}", "difference"]
    head += [f"clients with {format_worse(metric)}", " or ".join(sorted({run.unit for run in runs}))]
    head += ["rounds to target"] if targets else []
    head += ["spread over clients", "worst decile"]
    lines: list[tuple[str, list[str | Cell]]] = []
    for run in runs:
        finished = {row.stage_number: row for row in rows if row.run == run.label}
        for stage, name in enumerate(run.stage_names):
            row = finished.get(stage)
            title = Cell(run.label, (f"{name}, {f'to round {row.round}' if row else 'not finished'}",))
            cells = _cells(row, targets) if row else ["-"] * (len(head) - 1)
            lines.append(("final" if row and row.final else "", [title, *cells]))
    return head, lines


def _beside(runs: Sequence[Run]) -> dict[str, Any] | None:
    """The runs less the first of them, in sentences and as a table; None without two that have finished a stage."""
    lines, metric = beside_first(runs), runs[0].metric
    return {"sentences": sentences(lines, metric), "table": table(lines, metric)} if lines else None


def _baselines(runs: Sequence[Run]) -> Table | None:
    """The personalized models beside baselines, for the runs that have some; None if none has."""
    lines: list[tuple[str, list[str | Cell]]] = []
    for run in runs:
        for each in beside_baselines(run):
            difference = format_change(each.metric, each.difference.mean)
            cells: list[str | Cell] = [
                Cell(each.title, tuple(filter(None, (run.label if len(runs) > 1 else "", each.how)))),
                Cell(format_value(each.metric, each.other.mean), (format_interval(each.metric, each.other),)),
                Cell(difference, (format_interval(each.metric, each.difference, change=True),)),
                f"{each.better} of {each.clients}",
                f"{each.worse} of {each.clients}",
            ]
            lines.append(("", cells))
    head = ["baseline", runs[0].metric.name, "personalized less this", "better for", "worse for"]
    return (head, lines) if lines else None


def _cells(row: Row, targets: bool) -> list[str | Cell]:
    metric, before, after = row.metric, row.initial_clients, row.personalized_clients
    beyond = f"beyond in {row.beyond_chance} of {row.seeds} seeds" if row.seeds > 1 else "beyond test noise"
    expected = f"test noise: up to {format_share(row.harmed_by_chance)}"
    return [
        Cell(str(row.clients), (format_count(row.seeds, "seed"),) if row.seeds > 1 else ()),
        _mean(row, row.initial, before),
        _mean(row, row.personalized, after),
        Cell(format_change(metric, row.difference.mean), (format_interval(metric, row.difference, change=True),)),
        Cell(format_share(row.harmed), (expected,), beyond if row.beyond_chance else ""),
        format_numbers(row.epochs, row.pulls),
        *([_reached(row)] if targets else []),
        Cell(format_value(metric, after.spread), (f"initial {format_value(metric, before.spread)}",)),
        Cell(format_value(metric, after.worst_decile), (f"initial {format_value(metric, before.worst_decile)}",)),
    ]


def _mean(row: Row, mean: Estimate, clients: Distribution) -> Cell:
    spread = "" if clients.seed_spread is None else f"± {format_value(row.metric, clients.seed_spread)}"
    return Cell(format_value(row.metric, mean.mean), (format_interval(row.metric, mean), spread))


def _reached(row: Row) -> str | Cell:
    if row.target is None:
        return "-"
    more = f"initial {row.initial_reached}", f"to {format_value(row.metric, row.target)}"
    return Cell(str(row.personalized_reached), more)


def _clients(rows: Sequence[Row]) -> Table:
    """Percentiles over clients of every row, before and after."""
    head = ["run, stage", "", "mean", "spread", *(f"{p} %" for p in (5, 10, 25, 50, 75, 90, 95))]
    lines: list[tuple[str, list[str | Cell]]] = []
    for row in rows:
        groups = ((row.initial, row.initial_clients), (row.personalized, row.personalized_clients))
        titles = (Cell(row.run, (row.stage,)), "initial"), ("", "personalized")
        for title, (mean, clients) in zip(titles, groups, strict=True):
            values = (mean.mean, clients.spread, *clients.percentiles)
            cells = [*title, *(format_value(row.metric, value) for value in values)]
            lines.append(("final" if row.final else "", cells))
    return head, lines


@np.errstate(invalid="ignore")
def _all_metrics(runs: Sequence[Run]) -> Table:
    """Every metric of every finished stage."""
    lines: list[tuple[str, list[str | Cell]]] = []
    for run in runs:
        for stage_result in run.stage_results:
            for index, metric in enumerate(run.metrics):
                before, after = before_and_after(stage_result, metric)
                change = estimate(after - before)
                cells: list[str | Cell] = [
                    Cell(run.label, (stage_result.name,)) if index == 0 else "",
                    Cell(metric.name, (metric.unit,) if metric.unit != "share" else ()),
                    *(
                        Cell(format_value(metric, each.mean), (format_interval(metric, each),))
                        for each in (estimate(before), estimate(after))
                    ),
                    Cell(format_change(metric, change.mean), (format_interval(metric, change, change=True),)),
                ]
                lines.append(("", cells))
    return ["run, stage", "metric", "initial", "personalized", "difference"], lines


def _trials(runs: Sequence[Run]) -> Table | None:
    """What was tried before training, by the runs that had a trial; None without any."""
    lines: list[tuple[str, list[str | Cell]]] = []
    for run, trial in ((run, run.trial) for run in runs if run.trial is not None):
        clients = f"{format_count(trial['clients'], 'validation client')}, {format_count(trial['rounds'], 'round')}"
        for index, each in enumerate(trial["candidates"] or [trial["chosen"]]):
            value = "diverged" if each["value"] is None else f"{trial['metric']} {each['value']:.4g}"
            chosen = all(each[name] == trial["chosen"][name] for name in ("learning_rate", "server"))
            lines.append(
                (
                    "final" if chosen else "",
                    [
                        Cell(run.label, (clients,)) if index == 0 else "",
                        described(Candidate(**each)),
                        value if trial["candidates"] else "not tried",
                        "chosen" if chosen else "",
                    ],
                )
            )
    return (["run", "settings", "validation clients", ""], lines) if lines else None


def _by_column(results: ResultsByColumn) -> Table:
    name = results.metric.name
    head = ["value", "test clients", f"initial {name}", f"personalized {name}", "difference"]
    lines: list[tuple[str, list[str | Cell]]] = [("", list(line)) for line in cells(results)]
    return head, lines


def _confusions(runs: Sequence[Run]) -> Iterator[tuple[str, Table]]:
    """Of runs that measure it, the confusion matrix of the last finished stage: of each class, the shares predicted."""
    for run in runs:
        metric = next((each for each in run.metrics if each.name == balanced_accuracy().name), None)
        if metric is None or not run.stage_results:
            continue
        result, names = run.stage_results[-1], [str(label) for label in run.labels]
        before, after = (_of_each_class(confusion(mean)) for mean in pooled_statistics(result, metric))
        names += [str(number) for number in range(len(names), len(after))]
        lines: list[tuple[str, list[str | Cell]]] = [
            ("", [names[target], *(_shares_cell(*pair) for pair in zip(before[target], after[target], strict=True))])
            for target in range(len(after))
            if not np.isnan(after[target]).any()
        ]
        yield f"{run.label}, {result.name}", (["class", *(f"predicted {name}" for name in names)], lines)


@np.errstate(invalid="ignore")
def _of_each_class(cells: np.ndarray) -> np.ndarray:
    """`[class, prediction]`: shares of each class's examples; NaN of one that has none."""
    return cells / cells.sum(axis=1, keepdims=True)


def _shares_cell(before: float, after: float) -> Cell:
    return Cell(format_share(after), (f"initial {format_share(before)}",))


def _picture(figure_spec: FigureSpec, folder: Path, words: str) -> Picture:
    (light, width), (dark, _) = save(figure_spec, folder)
    return Picture(light, dark, width, figure_spec.text, words)


def _distinct_samples(runs: Sequence[Run]) -> list[tuple[str, Samples]]:
    """The samples of the runs, those of the same data once."""
    found: dict[str, Samples] = {}
    for run in runs:
        samples = read_samples(run.path)
        if samples is not None and samples.kind:
            record = data_record(run)
            known = record.get("fingerprint") or record.get("sha256")
            found.setdefault(json.dumps([run.document.get("data"), known], sort_keys=True), samples)
    return [(f"samples-{index}" if index else "samples", samples) for index, samples in enumerate(found.values())]


def _examples(name: str, samples: Samples, folder: Path) -> dict[str, Any]:
    """The examples of one federation as its kind can be shown: a picture, passages of text, or rows of features."""
    if samples.kind == "image":
        text = f"Pictures of {len(samples.ids)} test clients with their labels"
        figure_spec = FigureSpec(name, text, lambda theme: images_figure(samples, theme))
        return {"picture": _picture(figure_spec, folder, caption(name, ()))}
    if samples.kind == "text":
        texts = [(client, passages(samples, x)) for client, x in zip(samples.ids, samples.x, strict=True)]
        return {"picture": None, "passages": texts}
    return {"picture": None, "passages": None, **_features(samples)}


def _features(samples: Samples, *, most: int = 8) -> dict[str, Any]:
    columns = samples.x[0].shape[1]
    width = min(columns, most)
    rows = [
        ("", [client if index == 0 else "", *(f"{value:.4g}" for value in x[:width]), label(samples, y)])
        for client, examples, targets in zip(samples.ids, samples.x, samples.y, strict=True)
        for index, (x, y) in enumerate(zip(examples[:3], targets, strict=False))
    ]
    names = samples.metadata.get("features") or ()
    if len(names) != columns:
        names = [f"feature {i + 1}" for i in range(width)]
    return {"features": (["client", *map(str, names[:width]), "target"], rows), "hidden": columns - width}


def _settings(runs: Sequence[Run], each: Sequence[dict[str, str]]) -> dict[str, Any]:
    """Settings as rows, runs as columns; rows in which runs differ are marked."""
    keys = list(dict.fromkeys(key for settings in each for key in settings))
    values = [[settings.get(key, "–") for settings in each] for key in keys]
    marks = ["differs" if len(set(row)) > 1 else "" for row in values]
    rows = list(zip(marks, keys, values, strict=True))
    return {"head": ["", *(run.label for run in runs)], "rows": rows, "differs": any(marks)}


def _flat(document: dict[str, Any], path: str = "") -> dict[str, str]:
    """The settings of a document by their path; an inner value with a type is one phrase."""
    flat: dict[str, str] = {}
    for key, value in document.items():
        name = f"{path} · {key.replace('_', ' ')}" if path else key.replace("_", " ")
        if key == "stages":
            for count, stage in enumerate(value, 1):
                flat |= _flat(stage, f"stage {count}")
        elif key in ("data", "personalization", "versions") and isinstance(value, dict):
            flat |= _flat(value, name)
        elif key not in ("type", "format"):
            flat[name] = phrase(value)
        elif path.startswith("stage") and not str(value).endswith(".Stage"):
            flat[f"{path} · kind"] = str(value).rpartition(".")[2]
    return flat


def phrase(value: Any) -> str:
    """A value of a JSON document in a few words: `sgd(learning_rate=1.0, momentum=0.9)`."""
    if isinstance(value, dict):
        inner = {k: v for k, v in value.items() if k not in ("type", "options") and v not in (None, {}, [])}
        inner |= dict(value["options"]) if isinstance(value.get("options"), dict) else {}
        name = inner.pop("name", None) or inner.pop("path", None) or str(value.get("type", "")).rpartition(".")[2]
        fields = ", ".join(f"{k}={phrase(v)}" for k, v in inner.items())
        return f"{name}({fields})" if fields and name else str(name or fields or "–")
    if isinstance(value, list):
        return ", ".join(map(phrase, value)) or "–"
    return "–" if value is None else str(value)
