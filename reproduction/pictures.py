"""Draw the curves of README from committed records; no study is run: `python reproduction/pictures.py`.

Every federation that has curves at the medium scale is a panel of `docs/pictures/curve.png`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from headstart.learning.tasks import Classification
from headstart.reports.by_examples import gain_figure, sentence
from headstart.reports.style import LIGHT, FigureSpec, save
from headstart.runs.by_examples import curve_of, read_by_examples
from headstart.statistics.by_examples import GainByExamples

HERE = Path(__file__).parent
# The studies' experiments, by the beginning of their folders' names.
MODELS = {"FedAvg": "FedAvg", "Reptile": "Personalized FedAvg"}
METRIC = Classification().metrics[0]
TITLE = "From how many local examples on does personalization pay?"


def curves(folder: Path) -> dict[str, GainByExamples]:
    """The curves of a federation's records, by model."""
    found = {}
    for begin, name in MODELS.items():
        match sorted(folder.glob(f"{begin}*")):
            case []:
                continue
            case [only]:
                found[name] = curve_of([read_by_examples(path) for path in sorted(only.glob("*.npz"))], METRIC)
            case several:
                sys.exit(f"{folder} has records of several experiments, {', '.join(p.name for p in several)}; keep one")
    return found


def main() -> None:
    """Say what the curves say, and draw them."""
    panels = {path.parent.name: curves(path) for path in sorted(HERE.glob("medium/*/records/*/by-examples"))}
    if not panels:
        sys.exit(f"{HERE} has no records of curves; see `headstart reproduce curve`")
    for federation, each in panels.items():
        for name, curve in each.items():
            print(f"{federation}, {sentence(name, curve, METRIC)}")
    save(
        FigureSpec("curve", TITLE, lambda theme: gain_figure(panels, METRIC, TITLE, theme)),
        HERE.parent / "docs" / "pictures",
        themes=[LIGHT],
    )


if __name__ == "__main__":
    main()
