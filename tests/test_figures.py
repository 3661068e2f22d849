"""Figures: there for every kind of task, light and dark, and drawn from the numbers in the files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgba
from matplotlib.layout_engine import ConstrainedLayoutEngine
from PIL import Image

from headstart.reports import page as report
from headstart.reports.client_figures import HEXAGONS_FROM
from headstart.reports.figures import figure_specs, left_out
from headstart.reports.style import DARK, LIGHT, Theme, render, save
from headstart.runs.reading import open_runs
from headstart.runs.results import gains
from made_runs import EPOCHS, ROUNDS, experiment, write_run


def figure(runs: list[Path], name: str, theme: Theme = LIGHT) -> Any:
    return next(figure_spec for figure_spec in figure_specs(open_runs(runs)) if figure_spec.name == name).draw(theme)


def test_a_report_leaves_every_figure_light_and_dark(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    page = report.write([run])
    names = {path.name for path in (run / "figures").iterdir()}
    expected = {"rounds", "personalization", "clients", "gains", "samples"}
    assert names == {f"{name}{suffix}.png" for name in expected for suffix in ("", "-dark")}
    for path in (run / "figures").iterdir():
        with Image.open(path) as image:
            background = image.convert("RGB").getpixel((2, 2))
        theme = DARK if "-dark" in path.name else LIGHT
        assert "#{:02x}{:02x}{:02x}".format(*background) == theme.background, path.name  # pyright: ignore
    assert page.stat().st_size < 1_500_000


def test_a_figure_is_laid_out_once_and_drawn_alike_in_both_themes(tmp_path: Path, monkeypatch) -> None:
    layouts = []
    execute = ConstrainedLayoutEngine.execute
    monkeypatch.setattr(ConstrainedLayoutEngine, "execute", lambda *given: layouts.append(given) or execute(*given))
    specs = figure_specs(open_runs([write_run(tmp_path / "a"), write_run(tmp_path / "b")]))
    made = [save(spec, tmp_path) for spec in specs]
    assert len(layouts) == len(specs) == 4
    for spec, ((light, width), (dark, _)) in zip(specs, made, strict=True):
        assert (tmp_path / f"{spec.name}-dark.png").read_bytes() == dark
        assert (light, width) == render(spec, LIGHT)
        assert dark == render(spec, DARK)[0], spec.name


@pytest.mark.parametrize("kind", ["text", "features"])
def test_other_tasks_have_all_figures_but_pictures(tmp_path: Path, kind: str) -> None:
    made = figure_specs(open_runs([write_run(tmp_path / "run", kind=kind)]))
    assert [figure_spec.name for figure_spec in made] == ["rounds", "personalization", "clients", "gains"]
    for figure_spec in made:
        png, width = render(figure_spec, DARK)
        assert png.startswith(b"\x89PNG") and 500 < width < 1200


def test_the_curves_against_rounds_are_those_of_the_log(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", of=experiment(target=0.5))
    axes = figure([run], "rounds").axes[0]
    records = [json.loads(line) for line in (run / "seed-0" / "metrics.jsonl").read_text().splitlines()]
    evaluations = [record for record in records if record["event"] == "evaluation"]
    initial = next(line for line in axes.lines if line.get_linestyle() == "--")
    assert list(initial.get_xdata()) == [record["round"] for record in evaluations]
    np.testing.assert_allclose(
        initial.get_ydata(), [100 * record["validation"]["accuracy"][0] for record in evaluations]
    )
    assert [line.get_xdata()[0] for line in axes.lines if len(line.get_xdata()) == 2] == [ROUNDS[0], 0]
    assert {"FedAvg →", "Reptile →", "target 50.0 %"} == {text.get_text() for text in axes.texts}


def test_several_seeds_make_a_band_from_the_lowest_to_the_highest(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", seeds=3)
    axes = figure([run], "rounds").axes[0]
    history = open_runs([run])[0].history
    assert history.initial.shape == (3, len(history.rounds))
    band = axes.collections[0].get_paths()[0].vertices
    np.testing.assert_allclose(
        [band[:, 1].min(), band[:, 1].max()], 100 * np.array([history.initial.min(), history.initial.max()])
    )


def test_the_personalization_curve_is_the_uniform_mean_of_test_clients(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    axes = figure([run], "personalization").axes[0]
    for stage in (0, 1):
        with np.load(run / "seed-0" / f"stage-{stage}.npz") as arrays:
            values = arrays["test/accuracy/sums"] / arrays["test/accuracy/counts"][:, None]
        np.testing.assert_allclose(axes.lines[2 * stage].get_ydata(), 100 * values.mean(axis=0))
        chosen = json.loads((run / "seed-0" / f"stage-{stage}.json").read_text())["test"]["length"]
        assert list(axes.lines[2 * stage + 1].get_xdata()) == [chosen]
    assert axes.lines[0].get_xdata()[-1] == EPOCHS


@pytest.mark.parametrize("kind", ["image", "features"])
def test_every_client_is_a_point_and_those_made_worse_are_marked(tmp_path: Path, kind: str) -> None:
    run = write_run(tmp_path / "run", kind=kind, lift=0.03)
    panel = figure([run], "clients").axes[0]
    metric, sign = ("accuracy", 1) if kind == "image" else ("mean squared error", -1)
    with np.load(run / "seed-0" / "stage-0.npz") as arrays:
        values = arrays[f"test/{metric}/sums"] / arrays[f"test/{metric}/counts"][:, None]
    length = json.loads((run / "seed-0" / "stage-0.json").read_text())["test"]["length"]
    worse = sign * (values[:, length] - values[:, 0]) < 0
    # The first collection is the shaded half, then the two kinds of points.
    unharmed, harmed = panel.collections[1:3]
    assert (len(unharmed.get_offsets()), len(harmed.get_offsets())) == ((~worse).sum(), worse.sum())
    assert 0 < worse.sum() < 40


def test_many_clients_become_hexagons(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", clients=HEXAGONS_FROM + 1, stages=1)
    made = {figure_spec.name: figure_spec for figure_spec in figure_specs(open_runs([run]))}
    panel: Any = made["clients"].draw(LIGHT).axes[0]
    assert sum(panel.collections[1].get_array()) == HEXAGONS_FROM + 1
    assert len(render(made["clients"], DARK)[0]) < 200_000


def test_the_histogram_holds_every_client_with_zero_between_its_bars(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", kind="features")
    for panel in figure([run], "gains").axes:
        lefts = [bar.get_x() for bar in panel.patches]
        assert sum(bar.get_height() for bar in panel.patches) == 40
        assert min(abs(left) for left in lefts) < 1e-9
        assert all((bar.get_facecolor() == to_rgba(LIGHT.worse)) == (bar.get_x() < -1e-9) for bar in panel.patches)


def test_gains_turn_with_the_direction_of_the_metric_and_forget_rounding() -> None:
    accuracy, error = (experiment(kind=kind).task.metrics[0] for kind in ("image", "features"))  # pyright: ignore
    before, after = np.array([0.5, 0.5, 0.5]), np.array([0.6, 0.4, 0.5 - 1e-12])
    np.testing.assert_allclose(gains(before, after, accuracy), [0.1, -0.1, 0])
    np.testing.assert_allclose(gains(before, after, error), [-0.1, 0.1, 0])


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("clients", [2, 40])
def test_clients_without_finite_values_are_left_out_and_counted(tmp_path: Path, value: float, clients: int) -> None:
    run = write_run(tmp_path / "run", kind="features", stages=1)
    path = run / "seed-0" / "stage-0.npz"
    with np.load(path) as file:
        arrays = dict(file)
    arrays["test/mean squared error/sums"][:clients, 1:] = value
    np.savez(path, **arrays)
    read = open_runs([run])
    assert left_out(read) == [f"The figures leave out {clients} clients of FedAvg: a value is not finite."]
    made = {figure_spec.name: figure_spec.draw(LIGHT) for figure_spec in figure_specs(read)}
    assert ("gains" in made) == (clients == 2)
    if clients == 2:
        bars: Any = made["gains"].axes[0].patches
        assert sum(bar.get_height() for bar in bars) == 38
    assert report.write([run]).exists()


def test_several_runs_are_overlaid_and_get_a_panel_each(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / name, of=experiment(name), lift=lift)
        for name, lift in (("a", 0.1), ("b", 0.02), ("c", 0.05))
    ]
    assert len([line for line in figure(runs, "rounds").axes[0].lines if line.get_linestyle() == "--"]) == 3
    assert len(figure(runs, "clients").axes) == 3
    titles = [axes.get_title(loc="left") or axes.get_title() for axes in figure(runs, "gains").axes]
    assert titles == ["a", "b", "c"]


def test_drawing_leaves_the_settings_of_matplotlib_alone_and_takes_any_name(tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    run = write_run(tmp_path / "run", of=experiment("$x_ 初期 <b>"), until=20, stages=0)
    for figure_spec in figure_specs(open_runs([run, write_run(tmp_path / "other")])):
        render(figure_spec, LIGHT)
    assert dict(matplotlib.rcParams) == before


def test_the_same_files_give_the_same_picture(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    first, second = (render(figure_specs(open_runs([run]))[1], LIGHT)[0] for _ in range(2))
    assert first == second


@pytest.mark.parametrize("runs", [1, 2])
def test_a_title_says_on_which_clients_a_value_was_measured(tmp_path: Path, runs: int) -> None:
    folders = [write_run(tmp_path / f"run {number}") for number in range(runs)]
    titles = {
        spec.name: spec.draw(LIGHT).get_suptitle().replace("\n", " ") for spec in figure_specs(open_runs(folders))
    }
    assert "on validation clients" in titles.pop("rounds")
    assert set(titles) == {"personalization", "clients", "gains"}
    assert all("test client" in title for title in titles.values()), titles
