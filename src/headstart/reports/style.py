"""Themes of figures, light and dark; drawing in them, lines with their bands, and how axes name a metric."""

from __future__ import annotations

import io
import textwrap
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from headstart.files import write_bytes
from headstart.learning.tasks import Metric

DPI = 150
# Pillow does not hold Python's lock meanwhile, so that the next figure is drawn.
_encoder = ThreadPoolExecutor(1, thread_name_prefix="png")


class Theme(NamedTuple):
    """Colours. `series` are Okabe and Ito's, which colour-blind people tell apart, fit to the background.

    Their vermilion is `worse` alone, so that no curve looks like harm.
    """

    suffix: str
    background: str
    text: str
    muted: str
    grid: str
    worse: str
    series: tuple[str, ...]


LIGHT = Theme(
    "",
    "#ffffff",
    "#1c2128",
    "#57606a",
    "#e4e8ec",
    "#d55e00",
    ("#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#1c2128"),
)
DARK = Theme(
    "-dark",
    "#12161c",
    "#e6eaef",
    "#9aa4af",
    "#2a313a",
    "#ff8a3d",
    ("#56b4e9", "#2fc296", "#e29bc4", "#f0e442", "#8fb8ff", "#e6eaef"),
)


class FigureSpec(NamedTuple):
    """A figure yet to be drawn.

    name: of its file. text: what it shows, for those who do not see it. draw: makes it in a theme.
    """

    name: str
    text: str
    draw: Callable[[Theme], Figure]


def save(figure_spec: FigureSpec, folder: Path, *, themes: Iterable[Theme] = (LIGHT, DARK)) -> list[tuple[bytes, int]]:
    """Draw in every theme into `folder`; returns each PNG and its width in CSS pixels."""
    made, drawn = [], None
    for theme in themes:
        pixels, drawn = _draw(figure_spec, theme, drawn)
        made.append(
            (_encoder.submit(_encoded, pixels), folder / f"{figure_spec.name}{theme.suffix}.png", _width(drawn))
        )
    for encoded, path, _ in made:
        write_bytes(path, encoded.result())
    return [(encoded.result(), width) for encoded, _, width in made]


def render(figure_spec: FigureSpec, theme: Theme) -> tuple[bytes, int]:
    """A figure as PNG, and the width in CSS pixels it is meant to be seen at."""
    pixels, figure = _draw(figure_spec, theme)
    return _encoded(pixels), _width(figure)


def _draw(figure_spec: FigureSpec, theme: Theme, alike: Figure | None = None) -> tuple[np.ndarray, Figure]:
    """The pixels of a figure, and itself.

    alike: the figure in another theme, drawn, whose layout it takes: half of the time of drawing goes into one.
    """
    with matplotlib.rc_context(style(theme)), warnings.catch_warnings():
        # A name may hold characters that the font lacks; a box stands for them.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = figure_spec.draw(theme)
        if alike is not None:
            _take_layout(figure, alike)
        canvas = FigureCanvasAgg(figure)
        figure.set_dpi(DPI)
        canvas.draw()
    return np.asarray(canvas.buffer_rgba()), figure


def _take_layout(figure: Figure, alike: Figure) -> None:
    figure.set_layout_engine("none")
    for axes, other in zip(figure.axes, alike.axes, strict=True):
        axes.set_position(other.get_position(original=True))
    if figure._suptitle is not None and alike._suptitle is not None:  # pyright: ignore[reportAttributeAccessIssue]
        figure._suptitle.set_position(alike._suptitle.get_position())  # pyright: ignore[reportAttributeAccessIssue]


def _encoded(pixels: np.ndarray) -> bytes:
    """As PNG; a palette makes the file a third as large, and figures have few colours."""
    file = io.BytesIO()
    Image.fromarray(pixels).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(file, "png")
    return file.getvalue()


def _width(figure: Figure) -> int:
    return round(figure.get_figwidth() * 110)


def style(theme: Theme) -> dict[Any, Any]:
    """The settings of matplotlib that make a theme."""
    plain = {"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True}
    text = {"font.family": ["DejaVu Sans"], "font.size": 10, "text.parse_math": False, "legend.frameon": False}
    titles = {"axes.titlelocation": "left", "axes.titlesize": 10, "figure.titleweight": "bold", "figure.titlesize": 12}
    background = dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), theme.background)
    colors = dict.fromkeys(("text.color", "axes.labelcolor"), theme.text)
    muted = dict.fromkeys(("xtick.color", "ytick.color"), theme.muted)
    lines = dict.fromkeys(("axes.edgecolor", "grid.color"), theme.grid)
    pads = {"figure.constrained_layout.w_pad": 0.12, "figure.constrained_layout.h_pad": 0.1}
    return plain | text | titles | background | colors | muted | lines | pads | {"figure.constrained_layout.use": True}


def titled(figure: Figure, title: str) -> None:
    """Give a figure its title, at the left edge, in as many lines as its width asks for."""
    figure.suptitle(textwrap.fill(title, int(9.5 * figure.get_figwidth())), x=0.012, ha="left")


def series_color(theme: Theme, number: int) -> str:
    """The colour of this series; they repeat after six."""
    return theme.series[number % len(theme.series)]


def mixed(background: str, color: str, share: float) -> tuple[float, ...]:
    """A colour with this share of `color` over the background."""
    return tuple((1 - share) * b + share * c for b, c in zip(to_rgb(background), to_rgb(color), strict=True))


def plot_seeds(
    axes: Axes,
    x: np.ndarray,
    values: np.ndarray,
    color: str | None = None,
    style: str = "-",
    *,
    label: str | None = None,
) -> None:
    """Plot the mean of curves `[seeds, x]`, and from the lowest to the highest of them a band.

    NaN: the mean is of those seeds that have a value. color: by default the next of the axes' own.
    """
    known = np.ma.masked_invalid(np.atleast_2d(values).astype(float))
    mean, low, high = (np.ma.filled(of, np.nan) for of in (known.mean(axis=0), known.min(axis=0), known.max(axis=0)))
    plot_band(axes, x, mean, (low, high) if len(known) > 1 else None, color=color, style=style, label=label)


def plot_band(
    axes: Axes,
    x: np.ndarray,
    mean: np.ndarray,
    band: tuple[np.ndarray, np.ndarray] | None,
    *,
    color: str | None = None,
    style: str = "-",
    alpha: float = 0.18,
    label: str | None = None,
) -> None:
    """Plot a line, and around it a band from its lower to its upper ends; fewer than three points are marked.

    color: by default the next of the axes' own.
    """
    marker = "o" if len(x) < 3 else None
    (line,) = axes.plot(x, mean, style, color=color, linewidth=2, marker=marker, label=label)
    if band is not None:
        axes.fill_between(x, *band, color=line.get_color(), alpha=alpha, linewidth=0)


def factor(metric: Metric) -> float:
    """Scale of values on an axis: a share is set as per cent."""
    return 100.0 if metric.unit == "share" else 1.0


def axis_name(metric: Metric) -> str:
    """A metric with its unit, for an axis; long ones in two lines."""
    gap = " " if len(metric.name + metric.unit) < 34 else "\n"
    return f"{metric.name}{gap}({'%' if metric.unit == 'share' else metric.unit})"


def gain_name(metric: Metric) -> str:
    """A gain with its unit, for an axis."""
    unit = "points" if metric.unit == "share" else metric.unit
    return f"gain in {metric.name} ({unit})" if metric.higher_is_better else f"gain: decrease of {metric.name} ({unit})"
