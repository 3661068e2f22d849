"""Runs beside each other: differences client by client are those of the files, and are said in words."""

from __future__ import annotations

import re
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

import headstart
from headstart.errors import UserError
from headstart.files import write_json
from headstart.reports import page as report
from headstart.reports import tables
from made_runs import experiment, write_run
from test_report import by_client, epochs_of, text_of

pytestmark = pytest.mark.usefixtures("no_figures")


def values(run: Path, seeds: range, *, metric: str = "accuracy") -> np.ndarray:
    """[2, seeds, clients], initial and personalized, straight from the files."""
    each = [(by_client(run, 1, seed, metric), epochs_of(run, 1, seed)) for seed in seeds]
    return np.stack([np.stack([v[:, 0] for v, _ in each]), np.stack([v[:, n] for v, n in each])])


def two_runs(folder: Path, *, seeds: tuple[int, int] = (5, 5), kind: str = "image") -> list[Path]:
    lifts = (0.1, 0.25) if kind == "image" else (0.01, 0.05)
    return [
        write_run(folder / name, of=experiment(name, kind), kind=kind, seeds=count, lift=lift)
        for name, count, lift in zip(("one", "two"), seeds, lifts, strict=True)
    ]


def test_a_difference_is_that_of_each_client_and_seed(tmp_path: Path) -> None:
    one, two = two_runs(tmp_path)
    found = headstart.paired_difference(headstart.open_run(two), headstart.open_run(one))
    gaps = values(two, range(5)) - values(one, range(5))
    for difference, gap in zip((found.initial, found.personalized), gaps, strict=True):
        assert difference.mean == pytest.approx(gap.mean())
        assert (difference.seeds, difference.clients) == gap.shape
        low, high = stats.ttest_1samp(gap.mean(axis=1), 0).confidence_interval()
        assert difference.over_seeds == pytest.approx((low, high))
    assert found.decides and found.personalized.sign == 1
    back = headstart.paired_difference(headstart.open_run(one), headstart.open_run(two))
    assert back.personalized.interval == pytest.approx([-end for end in found.personalized.interval[::-1]])


def test_where_lower_is_better_a_lower_value_is_a_gain(tmp_path: Path) -> None:
    one, two = two_runs(tmp_path, kind="features")
    found = headstart.paired_difference(headstart.open_run(two), headstart.open_run(one))
    metric = headstart.open_run(one).metric
    assert not metric.higher_is_better
    gap = values(one, range(5), metric=metric.name) - values(two, range(5), metric=metric.name)
    assert found.personalized.mean == pytest.approx(gap[1].mean()) and found.personalized.mean > 0
    text = text_of(report.write([one, two], tmp_path / "page.html"))
    assert re.search(r"two less one, .* personalized −\d\S* \[−\d\S* −\d\S*\], better", text), text[:3000]


def test_common_seeds_are_paired_and_others_in_their_order(tmp_path: Path) -> None:
    one, two = two_runs(tmp_path, seeds=(5, 3))
    found = headstart.paired_difference(headstart.open_run(one), headstart.open_run(two))
    assert found.initial.mean == pytest.approx((values(one, range(3)) - values(two, range(3)))[0].mean())
    assert not found.decides and found.unpaired == 2
    for number in range(3):
        folder = (two / f"seed-{number}").rename(two / f"seed-{number + 7}")
        for file in (*folder.glob("*.json"), *folder.glob("*.jsonl")):
            file.write_text(file.read_text().replace(f'"seed": {number}', f'"seed": {number + 7}'))
    moved = headstart.paired_difference(headstart.open_run(one), headstart.open_run(two))
    assert moved == found
    (two / "seed-7").rename(two / "seed-2")
    for file in (two / "seed-2").glob("*.json*"):
        file.write_text(file.read_text().replace('"seed": 7', '"seed": 2'))
    partly = headstart.paired_difference(headstart.open_run(one), headstart.open_run(two))
    assert (partly.initial.seeds, partly.unpaired) == (1, 6)


def test_a_page_and_a_terminal_say_which_run_is_better(tmp_path: Path) -> None:
    runs = two_runs(tmp_path)
    text = text_of(report.write(runs, tmp_path / "page.html"))
    said = re.search(r"two less one, on the same 40 test clients: [^.]*\.\d[^()]*\(two-way, 5 seeds\)\.", text)
    gap = 100 * (values(runs[1], range(5)) - values(runs[0], range(5)))[1].mean()
    assert (
        said
        and f"initial accuracy no difference, personalized +{gap:.1f} points" in said[0]
        and said[0].count("better") == 1
    )
    assert "trained models alone" not in text
    output = StringIO()
    tables.print_runs(Console(file=output, width=400), runs)
    assert "two less one, on the same 40 test clients" in output.getvalue()


def test_few_seeds_speak_of_their_models_alone(tmp_path: Path) -> None:
    text = text_of(report.write(two_runs(tmp_path, seeds=(1, 1)), tmp_path / "page.html"))
    said = re.search(r"two less one, .*?\(1 seed\)\.", text)
    assert said and "ahead" in said[0] and "better" not in said[0]
    assert "fewer than 5 seeds, intervals are over clients, of these trained models alone" in text


def test_of_three_runs_each_is_beside_the_first(tmp_path: Path) -> None:
    runs = [*two_runs(tmp_path), write_run(tmp_path / "three", of=experiment("three"), seeds=3, lift=0.2)]
    text = text_of(report.write(runs, tmp_path / "page.html"))
    assert re.search(
        r"two less one, [^()]*better \(two-way, 5 seeds\)\. three less one, [^()]*\(3 paired seeds\)", text
    )
    assert "three less two" not in text


def test_runs_of_other_data_are_beside_their_own(tmp_path: Path) -> None:
    runs = two_runs(tmp_path) + [
        write_run(tmp_path / name, of=experiment(name), clients=30, seeds=5, lift=lift)
        for name, lift in (("three", 0.1), ("four", 0.2))
    ]
    text = text_of(report.write(runs, tmp_path / "page.html"))
    assert "two less one, on the same 40" in text and "four less three, on the same 30" in text
    assert len(re.findall(r"\w+ less \w+, on the same", text)) == 2


def test_a_run_beside_itself_has_no_difference(tmp_path: Path) -> None:
    one, _ = two_runs(tmp_path)
    again = write_run(tmp_path / "again", of=experiment("again"), seeds=5, lift=0.1)
    text = text_of(report.write([one, again], tmp_path / "page.html"))
    assert "initial accuracy no difference, personalized no difference (two-way, 5 seeds)." in text


def test_rounding_is_no_difference(tmp_path: Path) -> None:
    one, _ = two_runs(tmp_path, kind="features")
    again = write_run(tmp_path / "again", of=experiment("again", "features"), kind="features", seeds=5, lift=0.01)
    change_sums(again, lambda sums: sums * (1 - 1e-8))
    found = headstart.paired_difference(headstart.open_run(again), headstart.open_run(one))
    assert found.initial.mean == found.personalized.mean == 0


def change_sums(run: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Change what test clients came to in every metric, seed and epoch of the last stage."""
    for path in run.glob("seed-*/stage-1.npz"):
        with np.load(path) as arrays:
            changed = {name: arrays[name] for name in arrays}
        for name in changed:
            if name.startswith("test/") and name.endswith("/sums"):
                changed[name] = change(changed[name].astype(np.float64))
        np.savez(path, **changed)


def test_nothing_is_decided_where_clients_were_lost(tmp_path: Path) -> None:
    one, two = two_runs(tmp_path, kind="features")

    def diverged(sums: np.ndarray) -> np.ndarray:
        return np.where((np.arange(len(sums)) < 8)[:, None] & (np.arange(sums.shape[1]) > 0), np.inf, sums)

    change_sums(two, diverged)
    found = headstart.paired_difference(headstart.open_run(two), headstart.open_run(one))
    assert (found.initial.clients, found.personalized.clients, found.left_out) == (32, 32, 8)
    text = text_of(report.write([one, two], tmp_path / "page.html"))
    said = re.search(r"two less one, on the same 32 test clients, without 8 clients whose training diverged[^.]*", text)
    assert said and said[0].endswith(
        "so that nothing is decided: initial mean squared error no difference, personalized −0"
    )


def test_an_unfinished_run_is_named_so_and_decides_nothing(tmp_path: Path) -> None:
    one, _ = two_runs(tmp_path)
    half = write_run(tmp_path / "half", of=experiment("half"), seeds=5, stages=1, until=60)
    text = text_of(report.write([one, half], tmp_path / "page.html"))
    said = re.search(r"half \(unfinished, after FedAvg, round 60\) less one, [^.]*\.\d.*?seeds\)\.", text)
    assert said and "behind" in said[0] and "worse" not in said[0]


def test_one_run_has_nothing_beside_it(tmp_path: Path) -> None:
    one, two = two_runs(tmp_path)
    assert "Runs beside each other" not in text_of(report.write([one], tmp_path / "page.html"))
    unfinished = write_run(tmp_path / "three", of=experiment("three"), stages=0, until=20)
    text = text_of(report.write([unfinished, one, two], tmp_path / "page.html"))
    assert "two less one" in text and "three less" not in text and "less three" not in text


def test_other_data_with_the_same_ids_are_refused(tmp_path: Path) -> None:
    runs = two_runs(tmp_path)
    known = {"name": "visits", "clients": 52, "examples": 900, "facts": {}, "sha256": "a"}
    for run, of in zip(runs, "cd", strict=True):
        write_json(run / "federation.json", {**known, "fingerprint": {"ids": "a", "sizes": "b", "[1]": of}})
    one, two = map(headstart.open_run, runs)
    with pytest.raises(UserError, match=r"cannot be compared client by client: they differ in the examples \(y\)"):
        headstart.paired_difference(one, two)


def test_runs_that_cannot_be_paired_are_refused_in_one_sentence(tmp_path: Path) -> None:
    one, two = (headstart.open_run(run) for run in two_runs(tmp_path))
    fewer = headstart.open_run(write_run(tmp_path / "fewer", of=experiment("fewer"), clients=30))
    unfinished = headstart.open_run(write_run(tmp_path / "three", of=experiment("three"), stages=0, until=20))
    numbers = headstart.open_run(write_run(tmp_path / "four", of=experiment("four", "features"), kind="features"))
    for other, words in (
        (fewer, "one and fewer cannot be compared client by client: other clients were tested"),
        (unfinished, "three has no results on test clients yet"),
        (numbers, "one measures accuracy and four"),
    ):
        with pytest.raises(UserError, match=words):
            headstart.paired_difference(one, other)
    assert headstart.paired_difference(one, two).initial.clients == 40
