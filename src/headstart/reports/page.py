"""The report: one self-contained page and its figures, from run folders alone."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Collection, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from headstart.errors import UserError
from headstart.files import write_bytes
from headstart.reports.figures import caption, figure_specs, left_out
from headstart.reports.html import collapsed, number, page, paragraph, picture, section, table, tiles, two_lines
from headstart.reports.samples import Samples, images_figure, label, passages, read_samples
from headstart.reports.style import FigureSpec, save
from headstart.reports.tables import (
    Distribution,
    Row,
    rows_of,
    shown,
    shown_change,
    shown_epochs,
    shown_interval,
    shown_share,
)
from headstart.runs.reading import open_runs
from headstart.runs.results import Estimate, before_and_after, estimate
from headstart.runs.run import Run


def write(
    runs: Sequence[Run | str | os.PathLike[str]],
    out: str | os.PathLike[str] | None = None,
    *,
    allowed_modules: Collection[str] = (),
) -> Path:
    """Write the page and, in `figures/` beside it, its figures, light and dark; returns the page's path.

    runs: run folders, finished or not, to be compared. out: the page; by default `report.html` in the first folder.
    allowed_modules: modules beside headstart's own that a saved task may be imported from.

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
    figures, rows = target.parent / "figures", rows_of(read)
    # All that may be damaged is read before the first figure is written.
    samples = _distinct_samples(read)
    imports = [word for module in sorted(allowed_modules) for word in ("--import", module)]
    command = ["headstart", "report", *(str(run.path) for run in read), *(["--out", str(out)] if out else []), *imports]
    content = (
        _head(read),
        *(paragraph(text, "notice") for text in map(_state, read) if text),
        _tiles(rows[-1]) if len(read) == 1 and rows else "",
        section("Results", _results(read, rows), *map(_note, left_out(read)), _pictures(read, figures)),
        section("How clients differ", _clients(rows)),
        section("All metrics", _all_metrics(read)),
        section("Examples", *(_samples(*each, figures) for each in samples)),
        section("The experiment", _settings(read, [_flat(run.document) for run in read]), *map(_exact, read)),
        section("The environment", _settings(read, [_flat(run.environment) for run in read])),
        section("Make this page again", f"<pre>{escape(shlex.join(command))}</pre>"),
    )
    write_bytes(target, page(f"headstart: {', '.join(run.label for run in read)}", "\n".join(filter(None, content))))
    return target


def _head(runs: Sequence[Run]) -> str:
    seeds = sorted({len(run.reached) for run in runs})
    count = f"{' to '.join(map(str, seeds[:: max(len(seeds) - 1, 1)]))} {'seed' if seeds == [1] else 'seeds'}"
    if len(runs) == 1:
        title, text = runs[0].label, f"Stages: {' → '.join(runs[0].stage_names)}. {count}."
    else:
        title, text = f"{len(runs)} runs compared", f"{', '.join(run.label for run in runs)}. {count} per run."
    return f"<h1>{escape(title)}</h1>" + paragraph(text, "lead")


def _state(run: Run) -> str:
    """What is missing of a run; empty if it is finished."""
    if not run.reached:
        return f"{run.label} has not begun: there is no round to report."
    finished = run.stage_results[-1].seeds if run.stage_results and run.stage_results[-1].final else ()
    missing = [f"seed {seed} is at round {round}" for seed, round in run.reached.items() if seed not in finished]
    if not missing:
        return ""
    stages = "" if run.stage_results else " No stage is finished yet, so nothing is known of its test clients."
    return f"{run.label} is unfinished: {', '.join(missing)} of {run.ends[-1]}.{stages}"


def _tiles(row: Row) -> str:
    metric = row.metric
    chance = f"{shown_share(row.harmed_by_chance)} expected by chance"
    return tiles(
        [
            (f"initial {metric.name}", shown(metric, row.initial.mean), shown_interval(metric, row.initial)),
            (
                f"personalized {metric.name}",
                shown(metric, row.personalized.mean),
                shown_interval(metric, row.personalized),
            ),
            (
                "difference",
                shown_change(metric, row.difference.mean),
                shown_interval(metric, row.difference, change=True),
            ),
            ("clients hurt", shown_share(row.harmed), chance),
        ]
    )


def _results(runs: Sequence[Run], rows: Sequence[Row]) -> str:
    """The table of all stages of all runs, those that are not finished too."""
    metric, targets = runs[0].metric, any(row.target is not None for row in rows)
    head = ["run, stage", "test clients", f"initial {metric.name}", f"personalized {metric.name}", "difference"]
    more = ["rounds to target"] if targets else []
    head += ["clients hurt", f"length ({runs[0].unit})", *more, "spread over clients", "worst decile"]
    cells, marks = [], []
    for run in runs:
        mine = {row.stage_number: row for row in rows if row.run == run.label}
        for stage, name in enumerate(run.stage_names):
            row = mine.get(stage)
            title = _title(run.label, f"{name}, {f'to round {row.round}' if row else 'not finished'}")
            cells.append([title, *(_cells(row, targets) if row else [number("-")] * (len(head) - 1))])
            marks.append("final" if row and row.final else "")
    better = "higher is better" if metric.higher_is_better else "lower is better"
    unit = "" if metric.unit == "share" else f" in {metric.unit}"
    small = "in small what they compare with: chance, or the initial model"
    text = (
        f"{metric.name.capitalize()}{unit}, {better}. In brackets 95 % intervals over clients; after ± the spread over"
    )
    text += f" seeds. Hurt, rounds, spread and worst decile are those of personalized models, {small}."
    return table(head, cells, marks=marks) + paragraph(text, "note")


def _title(run: str, stage: str) -> str:
    return f"{escape(run)}<small>{escape(stage)}</small>"


def _cells(row: Row, targets: bool) -> list[str]:
    metric, before, after = row.metric, row.initial_clients, row.personalized_clients
    beyond = f"beyond in {row.beyond_chance} of {row.seeds} seeds" if row.seeds > 1 else "beyond chance"
    hurt = two_lines(shown_share(row.harmed), f"by chance {shown_share(row.harmed_by_chance)}")
    hurt += f'<small class="worse">{beyond}</small>' if row.beyond_chance else ""
    reached = [_reached(row)] if targets else []
    return [
        two_lines(str(row.clients), f"{row.seeds} seeds" if row.seeds > 1 else ""),
        _mean(row, row.initial, before),
        _mean(row, row.personalized, after),
        two_lines(shown_change(metric, row.difference.mean), shown_interval(metric, row.difference, change=True)),
        hurt,
        number(shown_epochs(row.epochs, row.unit).rpartition(" ")[0]),
        *reached,
        two_lines(shown(metric, after.spread), f"initial {shown(metric, before.spread)}"),
        two_lines(shown(metric, after.worst_decile), f"initial {shown(metric, before.worst_decile)}"),
    ]


def _mean(row: Row, mean: Estimate, clients: Distribution) -> str:
    cell = two_lines(shown(row.metric, mean.mean), shown_interval(row.metric, mean))
    if clients.seed_spread is None:
        return cell
    return f"{cell}<small>{number(f'± {shown(row.metric, clients.seed_spread)}')}</small>"


def _reached(row: Row) -> str:
    if row.target is None:
        return number("-")
    cell = two_lines(str(row.personalized_reached), f"initial {row.initial_reached}")
    return f"{cell}<small>{number(f'to {shown(row.metric, row.target)}')}</small>"


def _clients(rows: Sequence[Row]) -> str:
    """Percentiles over clients of every row, before and after."""
    head = ["run, stage", "", "mean", "spread", *(f"{p} %" for p in (5, 10, 25, 50, 75, 90, 95))]
    cells, marks = [], []
    for row in rows:
        groups = ((row.initial, row.initial_clients), (row.personalized, row.personalized_clients))
        for when, (mean, clients) in zip(("initial", "personalized"), groups, strict=True):
            values = (mean.mean, clients.spread, *clients.percentiles)
            title = _title(row.run, row.stage) if when == "initial" else ""
            cells.append([title, when, *(number(shown(row.metric, value)) for value in values)])
            marks.append("final" if row.final else "")
    note = "Percentiles of the test clients' own values; spread: their standard deviation."
    return table(head, cells, marks=marks) + paragraph(note, "note") if rows else ""


@np.errstate(invalid="ignore")
def _all_metrics(runs: Sequence[Run]) -> str:
    """Every metric of every finished stage."""
    cells = []
    for run in runs:
        for stage_result in run.stage_results:
            for metric in run.metrics:
                before, after = before_and_after(stage_result, metric)
                values = [estimate(before), estimate(after)]
                change = estimate(after - before)
                cells.append(
                    [
                        _title(run.label, stage_result.name) if metric is run.metrics[0] else "",
                        escape(metric.name)
                        + (f"<small>{escape(metric.unit)}</small>" if metric.unit != "share" else ""),
                        *(two_lines(shown(metric, v.mean), shown_interval(metric, v)) for v in values),
                        two_lines(shown_change(metric, change.mean), shown_interval(metric, change, change=True)),
                    ]
                )
    return table(["run, stage", "metric", "initial", "personalized", "difference"], cells) if cells else ""


def _note(text: str) -> str:
    return paragraph(text, "note")


def _pictures(runs: Sequence[Run], folder: Path) -> str:
    return "\n".join(
        _picture(figure_spec, folder, caption(figure_spec.name, runs)) for figure_spec in figure_specs(runs)
    )


def _picture(figure_spec: FigureSpec, folder: Path, words: str) -> str:
    (light, width), (dark, _) = save(figure_spec, folder)
    return picture(light, dark, width=width, text=figure_spec.text, caption=words)


def _distinct_samples(runs: Sequence[Run]) -> list[tuple[str, Samples]]:
    """The samples of the runs, those of the same data once."""
    found: dict[str, Samples] = {}
    for run in runs:
        samples = read_samples(run.path)
        if samples is not None and samples.kind:
            found.setdefault(json.dumps(run.document.get("data")), samples)
    return [(f"samples-{place}" if place else "samples", samples) for place, samples in enumerate(found.values())]


def _samples(name: str, samples: Samples, folder: Path) -> str:
    if samples.kind == "image":
        text = f"Pictures of {len(samples.ids)} test clients with their labels"
        figure_spec = FigureSpec(name, text, lambda theme: images_figure(samples, theme))
        return _picture(figure_spec, folder, caption(name, ()))
    if samples.kind == "text":
        clients = zip(samples.ids, samples.x, strict=True)
        return "".join(
            f"<h3>{escape(client)}</h3>" + "".join(f"<pre>{escape(text)}</pre>" for text in passages(samples, x))
            for client, x in clients
        )
    return _features(samples)


def _features(samples: Samples, *, most: int = 8) -> str:
    width = min(samples.x[0].shape[1], most)
    hidden = samples.x[0].shape[1] - width
    cells = [
        [escape(client) if place == 0 else "", *(number(f"{v:.4g}") for v in x[:width]), _target(samples, y)]
        for client, rows, targets in zip(samples.ids, samples.x, samples.y, strict=True)
        for place, (x, y) in enumerate(zip(rows[:3], targets, strict=False))
    ]
    names = samples.metadata.get("features") or ()
    if len(names) != samples.x[0].shape[1]:
        names = [f"feature {i + 1}" for i in range(width)]
    note = _note(f"{hidden} more features are not shown.") if hidden else ""
    return table(["client", *map(str, names[:width]), "target"], cells) + note


def _target(samples: Samples, y: Any) -> str:
    text = label(samples, y)
    return escape(text) if samples.metadata.get("labels") else number(text)


def _settings(runs: Sequence[Run], each: Sequence[dict[str, str]]) -> str:
    """Settings as rows, runs as columns; rows in which runs differ are marked."""
    keys = list(dict.fromkeys(key for settings in each for key in settings))
    values = [[settings.get(key, "–") for settings in each] for key in keys]
    marks = ["differs" if len(set(row)) > 1 else "" for row in values]
    cells = [[escape(key), *map(escape, row)] for key, row in zip(keys, values, strict=True)]
    note = paragraph("≠ marks what differs between the runs.", "note") if any(marks) else ""
    return table(["", *(run.label for run in runs)], cells, marks=marks, kind="words") + note


def _flat(document: dict[str, Any], place: str = "") -> dict[str, str]:
    """The settings of a document by their path; an inner value with a type is one phrase."""
    flat: dict[str, str] = {}
    for key, value in document.items():
        path = f"{place} · {key.replace('_', ' ')}" if place else key.replace("_", " ")
        if key == "stages":
            for count, stage in enumerate(value, 1):
                flat |= _flat(stage, f"stage {count}")
        elif key in ("data", "personalization", "versions"):
            flat |= _flat(value, path)
        elif key not in ("type", "format"):
            flat[path] = phrase(value)
        elif place.startswith("stage") and not value.endswith(".Stage"):
            flat[f"{place} · kind"] = value.rpartition(".")[2]
    return flat


def phrase(value: Any) -> str:
    """A value of a JSON document in a few words: `sgd(learning_rate=1.0, momentum=0.9)`."""
    if isinstance(value, dict):
        inner = {k: v for k, v in value.items() if k not in ("type", "options") and v not in (None, {}, [])}
        inner |= value.get("options") or {}
        name = inner.pop("name", None) or inner.pop("path", None) or value.get("type", "").rpartition(".")[2]
        fields = ", ".join(f"{k}={phrase(v)}" for k, v in inner.items())
        return f"{name}({fields})" if fields and name else str(name or fields or "–")
    if isinstance(value, list):
        return ", ".join(map(phrase, value)) or "–"
    return "–" if value is None else str(value)


def _exact(run: Run) -> str:
    return collapsed(f"{run.label}: experiment.json", json.dumps(run.document, indent=2, ensure_ascii=False))
