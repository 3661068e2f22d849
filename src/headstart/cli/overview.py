"""A federation at a glance: clients, sizes, classes, and a picture."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from headstart.console import echo, printable
from headstart.data.federation import Federation, split_clients
from headstart.data.preprocessing import Preprocessing
from headstart.data.review import warnings
from headstart.files import write_bytes

MOST_CLIENTS = 200
_NOT_LISTED = ("notes", "split", "split_by", "columns", "preprocessing")


def metadata(federation: Federation) -> list[tuple[str, str]]:
    """Names and values: sizes, shapes and the federation's metadata."""
    sizes = federation.sizes.sum(axis=1)
    x, y = federation.example()
    shape = "×".join(map(str, x.shape[1:])) or "one number"
    at_random = federation.metadata.get("split", "at random by headstart, always the same")
    split = "predefined by the source" if federation.has_predefined_split else at_random
    train, test = federation.sizes.sum(axis=0)
    quartiles = " / ".join(f"{value:.0f}" for value in np.percentile(sizes, [0, 25, 50, 75, 100]))
    return [
        ("federation", printable(federation.name)),
        ("clients", f"{len(federation):,}"),
        (
            "examples",
            f"{sizes.sum():,}: {train:,} for local training (support), {test:,} for local tests (query)",
        ),
        ("split of examples", split),
        ("examples per client", f"{quartiles} (least, quartiles, most), mean {sizes.mean():.1f}"),
        ("an input", f"{shape} {x.dtype}"),
        ("a target", f"{'×'.join(map(str, y.shape[1:])) or 'one'} {y.dtype}"),
        *((key, _value(key, value)) for key, value in federation.metadata.items() if key not in _NOT_LISTED),
        *(("note", str(note)) for note in federation.metadata.get("notes", ())),
    ]


def print_overview(console: Console, federation: Federation) -> None:
    """A table of metadata and bars of the sizes on a terminal; plain lines in a pipe."""
    if not console.is_terminal:
        for name, value in metadata(federation):
            echo(console, printable(f"{name}: {value}"))
        return
    table = Table(show_header=False, box=None, padding=(0, 2))
    for name, value in metadata(federation):
        table.add_row(Text(printable(name), style="bold"), Text(printable(value)))
    console.print(table)
    numbers, edges = _histogram(federation, bins=12)
    bars = Table(title="clients by number of examples", box=None, padding=(0, 1), title_justify="left")
    for number, low, high in zip(numbers, edges, edges[1:], strict=False):
        bars.add_row(f"{low:.0f} to {high:.0f}", "█" * round(40 * number / max(numbers.max(), 1)), f"{number:,}")
    console.print(bars)


def print_plan(console: Console, federation: Federation) -> None:
    """What becomes of each column of a raw table, as training clients decide, and what deserves a second look."""
    groups = split_clients(federation)
    preprocessing = Preprocessing.fit(federation, groups.train)
    rows = [(column.name, column.kind, column.plan) for column in preprocessing.columns]
    if preprocessing.target_scale:
        center, scale = preprocessing.target_center[0], preprocessing.target_scale[0]
        target = str(federation.metadata.get("target", "y"))
        rows.append((target, "target", f"standardized (mean {center:.4g}, deviation {scale:.4g})"))
    title = f"{len(preprocessing.columns)} columns become {len(preprocessing.features)} features"
    title += f", as the {len(groups.train)} training clients decide"
    if console.is_terminal:
        table = Table(title=title, box=None, padding=(0, 2), title_justify="left")
        for heading in ("column", "kind", "becomes"):
            table.add_column(heading)
        for row in rows:
            table.add_row(*(Text(printable(cell)) for cell in row))
        console.print(table)
    else:
        echo(console, title)
        for name, kind, plan in rows:
            echo(console, printable(f"column {name} ({kind}): {plan}"))
    for text in warnings(federation):
        echo(console, printable(f"warning: {text}"))


def draw(federation: Federation, path: Path) -> Path:
    """A PNG: how large the clients are, and how often they hold each class or target."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    numbers, edges = _histogram(federation, bins=30)
    left.stairs(numbers, edges, fill=True, color="#0072B2")
    left.set(xlabel="examples of a client", ylabel="clients", title=f"{len(federation):,} clients")
    _draw_targets(right, federation)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    content = io.BytesIO()
    figure.savefig(content, dpi=150, format="png")
    write_bytes(path, content.getvalue())
    return path


def _draw_targets(axes: Any, federation: Federation) -> None:
    """Targets by client: a stripe per class where there are classes, else the distribution of the clients' means."""
    chosen = np.linspace(0, len(federation) - 1, min(MOST_CLIENTS, len(federation))).astype(int)
    classes = federation.metadata.get("classes")
    targets = [np.ravel(federation.fetch(np.array([i]))[1]) for i in chosen]
    if not classes:
        axes.hist([float(np.mean(target)) for target in targets if target.size], bins=30, color="#D55E00")
        axes.set(xlabel="mean target of a client", ylabel="clients", title="targets")
        return
    shares = np.array([np.bincount(t, minlength=classes)[:classes] / max(t.size, 1) for t in targets])
    axes.imshow(shares.T, aspect="auto", cmap="cividis", interpolation="nearest")
    axes.set(xlabel=f"client ({len(chosen)} of them)", ylabel="class", title="share of each class (brighter: more)")


def _histogram(federation: Federation, *, bins: int) -> tuple[np.ndarray, np.ndarray]:
    sizes = federation.sizes.sum(axis=1)
    numbers, edges = np.histogram(sizes, bins=min(bins, max(int(np.ptp(sizes)), 1)))
    return numbers, edges


def _value(key: str, value: Any) -> str:
    """A value of the metadata: names of features as a whole, for one that is left out of sight may be the target."""
    return ", ".join(map(str, value)) if key == "features" else _short(value)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
