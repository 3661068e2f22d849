"""Tables and figures of the growth benchmark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from growth_models import EXAMPLES, MODELS, flops, parameters, working_bytes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from headstart.reports.style import LIGHT, FigureSpec, Theme, save, series_color, titled

Row = dict[str, Any]

# What a row holds: its name on an axis, and the factor to the axis's unit.
QUANTITIES = {
    "seconds": ("time per round (s)", 1.0),
    "seconds_per_client": ("time per client (ms)", 1e3),
    "peak_bytes": ("peak memory (MB)", 1e-6),
}


def medians(rows: Sequence[Row]) -> list[Row]:
    """One row per point."""
    found = []
    for name in dict.fromkeys(row["name"] for row in rows):
        same = [row for row in rows if row["name"] == name]
        numbers = {key: median(row[key] for row in same) for key, value in same[0].items() if value != str(value)}
        found.append({**same[0], **numbers})
    return found


def table(rows: Sequence[Row]) -> str:
    """The rows as text."""
    heads = "seconds/round", "ms/client", "CPU s/round", "peak MB", "grown MB", "start s", "first s"
    lines = [f"{'':20}" + "".join(f"{head:>14}" for head in heads)]
    for row in rows:
        numbers = (
            f"{row['seconds']:.4f}",
            f"{1e3 * row['seconds_per_client']:.2f}",
            f"{row['processor_seconds']:.4f}",
            f"{row['peak_bytes'] / 1e6:.0f}",
            f"{row.get('grown_bytes', 0) / 1e6:.0f}",
            f"{row['start_seconds']:.1f}",
            f"{row['first_seconds']:.1f}",
        )
        lines.append(f"{row['name']:20}" + "".join(f"{number:>14}" for number in numbers))
    return "\n".join(lines)


def arithmetic() -> str:
    """Parameters, operations and bytes of every model, as text."""
    heads = "parameters", "FLOPs/example", "bytes down", "bytes up", "1 lane, MB", "2 lanes, MB"
    lines = [f"{'':10}" + "".join(f"{head:>15}" for head in heads)]
    for name in MODELS:
        count = parameters(name)
        numbers = f"{count:,}", f"{flops(name):,}", f"{4 * count:,}", f"{4 * count:,}"
        memory = (f"{working_bytes(name, lanes) / 1e6:.1f}" for lanes in (1, 2))
        lines.append(f"{name:10}" + "".join(f"{number:>15}" for number in (*numbers, *memory)))
    return "\n".join(lines)


def draw(rows: Sequence[Row], folder: Path) -> None:
    """Draw the lines whose points are there."""
    folder.mkdir(parents=True, exist_ok=True)
    for line, figure in FIGURES.items():
        if sum(row["line"] == line for row in rows) > 1:
            save(FigureSpec(f"growth-{line}", "", partial(figure, rows)), folder, themes=(LIGHT,))


def _clients(rows: Sequence[Row], theme: Theme) -> Figure:
    figure, panels = _panels(3)
    for number, (line, label) in enumerate((("clients", "CNN"), ("clients-mlp", "MLP"))):
        mine = [row for row in rows if row["line"] == line]
        at = [row["clients"] for row in mine]
        for panel, key, scale in zip(panels, ("seconds", "peak_bytes", "start_seconds"), (1e3, 1e-6, 1), strict=True):
            _curve(panel, at, [scale * row[key] for row in mine], theme, number, label)
    _axes(panels[0], "clients", "time per round (ms)", log="both")
    _axes(panels[1], "clients", "peak memory (MB)")
    _axes(panels[2], "clients", "start-up (s)")
    panels[1].axhline(1500, color=theme.muted, linewidth=1, linestyle=":")
    panels[1].text(1000, 1480, "1.5 GB", color=theme.muted, va="top")
    panels[1].set_ylim(0, 1650)
    panels[0].legend(loc="center left")
    return _with_title(figure, "A thousand to a million clients, cohorts of 20")


def _along(line: str, x: str, title: str, scales: dict[str, str], rows: Sequence[Row], theme: Theme) -> Figure:
    """One panel for each quantity of `scales`, which maps it to its logarithmic axes."""
    figure, panels = _panels(len(scales))
    mine = [row for row in rows if row["line"] == line]
    at = [row[line] for row in mine]
    for panel, (key, log) in zip(panels, scales.items(), strict=True):
        name, factor = QUANTITIES[key]
        _curve(panel, at, [factor * row[key] for row in mine], theme, 0)
        _axes(panel, x, name, log=log)
    return _with_title(figure, title)


def _model(rows: Sequence[Row], theme: Theme) -> Figure:
    figure, panels = _panels(2)
    for number, row in enumerate(row for row in rows if row["line"] == "model"):
        work, bytes_sent = flops(row["model"]) * EXAMPLES, 4 * parameters(row["model"])
        for panel, x, y in (
            (panels[0], work / 1e6, 1e3 * row["seconds_per_client"]),
            (panels[1], bytes_sent / 1e6, row["peak_bytes"] / 1e6),
        ):
            _curve(panel, [x], [y], theme, number)
            offset = {"xytext": (0, 7 if number % 2 else -14), "textcoords": "offset points", "ha": "center"}
            panel.annotate(row["model"], (x, y), color=theme.text, **offset)
    _axes(panels[0], "arithmetic per client (million operations)", "time per client (ms)", log="both")
    _axes(panels[1], "parameters (MB)", "peak memory (MB)", log="")
    low, high = panels[0].get_xlim()
    panels[0].set_xlim(low / 1.5, high * 1.5)
    panels[1].set_xlim(0, 1.15 * panels[1].get_xlim()[1])
    return _with_title(figure, "Four models, cohorts of 20")


def _panels(count: int) -> tuple[Figure, Any]:
    figure = Figure(figsize=(3.6 * count, 3.3))
    return figure, figure.subplots(1, count)


def _curve(
    panel: Any, x: Sequence[float], y: Sequence[float], theme: Theme, number: int, label: str | None = None
) -> None:
    panel.plot(x, y, marker="o", markersize=5, color=series_color(theme, number), label=label)


def _axes(panel: Any, x: str, y: str, *, log: str = "x") -> None:
    """Names of the axes; y begins at zero unless it is logarithmic."""
    plain = FuncFormatter(lambda value, _: f"{value / 1e6:g} M" if value >= 1e6 else f"{value:,.10g}")
    panel.set(xlabel=x, ylabel=y)
    if log:
        panel.set_xscale("log")
        panel.xaxis.set_major_formatter(plain)
        panel.xaxis.set_minor_locator(NullLocator())
    if log == "both":
        panel.set_yscale("log")
        panel.yaxis.set_minor_locator(NullLocator())
        low, high = panel.get_ylim()
        panel.set_ylim(10 ** math.floor(math.log10(low)), 10 ** math.ceil(math.log10(high)))
    else:
        panel.set_ylim(0, 1.15 * panel.get_ylim()[1])
    panel.yaxis.set_major_formatter(plain)


def _with_title(figure: Figure, title: str) -> Figure:
    titled(figure, title)
    return figure


FIGURES = {
    "clients": _clients,
    "cohort": partial(
        _along,
        "cohort",
        "clients in a cohort",
        "Cohorts of 10 to 1,000 clients, CNN",
        {"seconds": "both", "seconds_per_client": "x", "peak_bytes": "x"},
    ),
    "model": _model,
    "epochs": partial(
        _along,
        "epochs",
        "local epochs",
        "One to ten local epochs, CNN, cohorts of 20",
        {"seconds": "", "peak_bytes": ""},
    ),
}
