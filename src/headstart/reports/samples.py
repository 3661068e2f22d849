"""The sample examples of a run folder: pictures as a figure, text and feature rows as they can be read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from headstart.reports.style import Theme, titled
from headstart.runs.contents import check_metadata, read_arrays, reading

PER_CLIENT = 16
LETTERS = 36


class Samples(NamedTuple):
    """A few examples of a few test clients.

    x, y: per client, numpy arrays `[examples, ...]`. metadata: as in `Federation.metadata`.
    """

    ids: list[str]
    x: list[np.ndarray]
    y: list[np.ndarray]
    metadata: Mapping[str, Any]

    @property
    def kind(self) -> str:
        """The form they are shown in: "image", "text", "features", or "" for anything else."""
        if not self.x:
            return ""
        shape, kind = self.x[0].shape[1:], self.metadata.get("kind")
        if kind == "text" and len(shape) == 1 and self.metadata.get("labels"):
            return "text"
        if kind != "features" and (len(shape) == 2 or (len(shape) == 3 and shape[-1] in (1, 3, 4))):
            return "image"
        return "features" if len(shape) == 1 and kind != "text" else ""


def read_samples(run: Path) -> Samples | None:
    """The samples of a run folder, or None if it has none.

    Raises:
        UserError: if the file is damaged.
    """
    path = run / "samples.npz"
    if not path.exists():
        return None
    with reading(path, instead="delete it and repeat the `headstart run` of this folder"):
        arrays = read_arrays(path)
        ids, metadata = [str(name) for name in arrays["ids"]], json.loads(str(arrays["facts"]))
        x, y = ([arrays[f"{name}{i}"] for i in range(len(ids))] for name in "xy")
        check_metadata(metadata)
        _check_examples(x, y)
    return Samples(ids, x, y, metadata)


def _check_examples(x: list[np.ndarray], y: list[np.ndarray]) -> None:
    for inputs, targets in zip(x, y, strict=True):
        if inputs.ndim < 1 or targets.ndim < 1 or {inputs.dtype.kind, targets.dtype.kind} - set("fiub"):
            raise ValueError("examples that are no arrays of numbers")
        if inputs.shape[1:] != x[0].shape[1:]:
            raise ValueError("examples of different shapes")


def label(samples: Samples, y: Any) -> str:
    """The name of a target: of a class its label, else the number."""
    labels, value = samples.metadata.get("labels"), np.asarray(y)
    if value.ndim == 0 and value.dtype.kind in "iu" and labels and 0 <= value < len(labels):
        return str(labels[int(value)])
    return f"{value.item():.4g}" if value.size == 1 else ", ".join(f"{v:.4g}" for v in value.ravel()[:3])


def passages(samples: Samples, x: np.ndarray, *, most: int = 3) -> list[str]:
    """The first rows `[rows, length]` of tokens that hold any text, as text."""
    return [text for text in (decoded(samples, row) for row in x) if text.strip()][:most]


def decoded(samples: Samples, tokens: Sequence[int]) -> str:
    """Tokens as text: padding, beginning and end are left out, what the vocabulary lacks becomes a box."""
    labels = samples.metadata["labels"]
    names = [str(labels[token]) if 0 <= token < len(labels) else "<oov>" for token in tokens]
    marks = {"<pad>": "", "<bos>": "", "<eos>": "", "<oov>": "\N{WHITE SQUARE}", "\r": ""}
    return "".join(marks.get(name, name) for name in names)


def images_figure(samples: Samples, theme: Theme) -> Figure:
    """A line of pictures for every client, each with its label below."""
    clients = len(samples.ids)
    figure = Figure(figsize=(9, 0.6 + 0.93 * clients))
    lines = figure.subplots(clients, 1, squeeze=False)[:, 0]
    for axes, name, x, y in zip(lines, samples.ids, samples.x, samples.y, strict=True):
        _pictures(axes, samples, name, x, y, theme)
    titled(figure, f"Examples of {clients} test clients, a line each" if clients > 1 else "Examples of a test client")
    return figure


def _pictures(axes: Axes, samples: Samples, name: str, x: np.ndarray, y: np.ndarray, theme: Theme) -> None:
    axes.set_axis_off()
    axes.set_anchor("W")
    for index, (picture, target) in enumerate(zip(x[:PER_CLIENT], y, strict=False)):
        white = 255 if picture.dtype == np.uint8 else 1
        gray = picture.ndim == 2 or picture.shape[-1] == 1
        pixels = picture.reshape(picture.shape[:2]) if gray else picture
        axes.imshow(pixels, cmap="gray", vmin=0, vmax=white, extent=(index + 0.03, index + 0.97, 0.03, 0.97))
        axes.text(index + 0.5, -0.04, label(samples, target), ha="center", va="top", fontsize=8, color=theme.muted)
    axes.set(xlim=(0, PER_CLIENT), ylim=(-0.3, 1), aspect="equal")
    short = name if len(name) <= LETTERS else f"{name[: LETTERS - 1]}…"
    axes.set_title(short, fontsize=8, color=theme.muted, pad=1)
