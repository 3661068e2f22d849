"""Reports and tables: the numbers on the page are those that numpy finds in the files, and the page stands alone."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from headstart.cli import overview
from headstart.data.federation import from_arrays
from headstart.errors import UserError
from headstart.files import write_json
from headstart.reports import page as report
from headstart.reports import tables
from headstart.reports.format import format_change, format_epochs
from headstart.reports.style import LIGHT
from headstart.statistics.clients import bootstrap
from made_runs import EPOCHS, ROUNDS, experiment, write_run

pytestmark = pytest.mark.usefixtures("no_figures")


class Resources(HTMLParser):
    """Collects what a browser would fetch, and the tags."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.found += [value or "" for name, value in attrs if name in ("src", "srcset", "href", "data", "poster")]


def text_of(page: Path) -> str:
    text = unescape(re.sub(r"<[^>]*>", " ", page.read_text()))
    return re.sub(r"\s+", " ", text)


def by_client(run: Path, stage: int, seed: int = 0, metric: str = "accuracy") -> np.ndarray:
    """[clients, epochs + 1], straight from the file."""
    with np.load(run / f"seed-{seed}" / f"stage-{stage}.npz") as arrays:
        return arrays[f"test/{metric}/sums"] / arrays[f"test/{metric}/counts"][:, None]


def epochs_of(run: Path, stage: int, seed: int = 0) -> int:
    return json.loads((run / f"seed-{seed}" / f"stage-{stage}.json").read_text())["test"]["length"]


@pytest.mark.parametrize("kind", ["image", "text", "features"])
def test_the_page_needs_nothing_outside_and_no_javascript(tmp_path: Path, kind: str) -> None:
    page = report.write([write_run(tmp_path / "run", kind=kind)])
    parser = Resources()
    parser.feed(page.read_text())
    assert page == tmp_path / "run" / "report.html"
    assert parser.found and all(link.startswith("data:image/png;base64,") for link in parser.found)
    assert not {"script", "link", "iframe"} & set(parser.tags)
    assert not re.search(r"https?://|url\(|@import", page.read_text())


def test_every_figure_is_on_the_page_light_and_dark(tmp_path: Path) -> None:
    page = report.write([write_run(tmp_path / "run")]).read_text()
    assert page.count("<picture>") == page.count('media="(prefers-color-scheme: dark)"') == 5


def test_the_page_says_what_numpy_says(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    text = text_of(report.write([run]))
    for stage in (0, 1):
        values = by_client(run, stage)
        initial, personalized = values[:, 0], values[:, epochs_of(run, stage)]
        for column in (initial, personalized):
            low, high = bootstrap(column)
            assert f"{100 * column.mean():.1f} % [{100 * low:.1f}, {100 * high:.1f}]" in text
        difference = personalized - initial
        low, high = bootstrap(difference)
        assert f"{100 * difference.mean():+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}]" in text.replace("−", "-")
        harmed, worst = (difference < 0).mean(), np.percentile(personalized, 10)
        assert f"{100 * harmed:.1f} % test noise: up to" in text
        assert f"{100 * worst:.1f} % initial {100 * np.percentile(initial, 10):.1f} %" in text


def test_seeds_are_averaged_by_client_before_clients_are(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", seeds=3)
    row = tables.rows([run])[-1]
    initial = np.mean([by_client(run, 1, seed)[:, 0] for seed in range(3)], axis=0)
    personalized = np.mean([by_client(run, 1, seed)[:, epochs_of(run, 1, seed)] for seed in range(3)], axis=0)
    assert row.seeds == 3 and row.epochs == tuple(epochs_of(run, 1, seed) for seed in range(3))
    for got, values in (
        (row.initial, initial),
        (row.personalized, personalized),
        (row.difference, personalized - initial),
    ):
        np.testing.assert_allclose(got, (values.mean(), *bootstrap(values)), rtol=1e-12)
    spread = np.std([by_client(run, 1, seed)[:, 0].mean() for seed in range(3)], ddof=1)
    assert row.initial_clients.seed_spread == pytest.approx(spread, rel=1e-12)
    reports = [json.loads((run / f"seed-{seed}" / "stage-1.json").read_text())["test"]["hurt"] for seed in range(3)]
    np.testing.assert_allclose(row.harmed, np.mean([found["share"] for found in reports]))


def test_one_seed_gives_the_numbers_of_its_stage_file(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", kind="features")
    row = tables.rows([run])[0]
    summary = json.loads((run / "seed-0" / "stage-0.json").read_text())["test"]["mean squared error"]
    for name in ("initial", "personalized", "difference"):
        np.testing.assert_allclose(getattr(row, name), (summary[name]["mean"], *summary[name]["interval"]), rtol=1e-9)
    percentiles = list(summary["personalized"]["percentiles"].values())
    np.testing.assert_allclose(row.personalized_clients.percentiles, percentiles, rtol=1e-9)
    assert row.personalized_clients.worst_decile == row.personalized_clients.percentiles[5]
    assert row.difference.mean < 0 and not row.metric.higher_is_better


def test_clients_without_test_items_count_nowhere(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    path = run / "seed-0" / "stage-1.npz"
    with np.load(path) as file:
        arrays = dict(file)
    for name in ("accuracy", "loss"):
        arrays[f"test/{name}/counts"][:5] = 0
        arrays[f"test/{name}/sums"][:5] = 0
    expected = by_client(run, 1)[5:, 0].mean()
    np.savez(path, **arrays)
    row = tables.rows([run])[1]
    assert row.clients == 35
    np.testing.assert_allclose(row.initial.mean, expected, rtol=1e-12)


def test_rounds_to_target_are_the_first_evaluated_ones_or_more_than_all(tmp_path: Path) -> None:
    of = experiment(target=0.7)
    run = write_run(tmp_path / "run", of=of)
    records = [json.loads(line) for line in (run / "seed-0" / "metrics.jsonl").read_text().splitlines()]
    evaluations = [r for r in records if r["event"] == "evaluation"]
    chosen = [epochs_of(run, 0 if r["round"] <= ROUNDS[0] else 1) for r in evaluations]
    expected = [r["round"] for r, n in zip(evaluations, chosen, strict=True) if r["validation"]["accuracy"][n] >= 0.7]
    first, last = tables.rows([run])
    assert last.personalized_reached.rounds == (expected[0],)
    assert (str(first.initial_reached), str(last.initial_reached)) == ("> 60", "> 100")
    assert f"{expected[0]} initial > 100" in text_of(report.write([run]))


def test_some_seeds_reaching_the_target_are_counted() -> None:
    assert str(tables.Reached((40, None, 50), 100)) == "45 (2 of 3 seeds)"
    assert str(tables.Reached((40, 41), 100)) == "40.5"
    assert str(tables.Reached((None, None), 100)) == "> 100"


def test_runs_are_compared_in_one_table_with_the_last_stage_emphasised(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, of=experiment(name), lift=lift) for name, lift in (("one", 0.1), ("two", 0.03))]
    page = report.write(runs, tmp_path / "compared" / "page.html")
    results = page.read_text().partition("<h2>Results</h2>")[2].partition("</table>")[0]
    assert page == tmp_path / "compared" / "page.html"
    assert re.findall(r'<tr( class="final")?><td>(\w+)<small>(\w+)', results) == [
        ("", "one", "FedAvg"),
        (' class="final"', "one", "Reptile"),
        ("", "two", "FedAvg"),
        (' class="final"', "two", "Reptile"),
    ]
    assert "--out" in text_of(page)
    metrics = page.read_text().partition("<h2>All metrics</h2>")[2].partition("</table>")[0]
    assert re.findall(r"<tr><td>(\w*)", metrics) == ["one", "", "one", "", "two", "", "two", ""]


def check_groups(tmp_path: Path, runs: list[Path], words: str) -> None:
    page = report.write(runs, tmp_path / "page.html").read_text()
    text = re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]*>", " ", page)))
    start, notice = page.index("<h1>"), "are not of the same data or test clients"
    assert page[start:].index(notice) < page[start:].index("<h2>Results") and words in text
    assert "2 runs of different data" in text and "runs compared" not in text
    assert page.count("<h2>Results: ") == page.count("<h2>All metrics: ") == 2
    output = StringIO()
    tables.print_runs(Console(file=output, width=200), runs)
    assert output.getvalue().startswith("These runs are not of the same data") and words in output.getvalue()


@pytest.mark.parametrize("what", ["test clients", "contents", "contents of an earlier version"])
def test_runs_of_different_data_are_shown_apart_and_not_ranked(tmp_path: Path, what: str) -> None:
    kinds = {"test clients": {"clients": 30}}.get(what, {})
    one = write_run(tmp_path / "one", of=experiment("one"))
    two = write_run(tmp_path / "two", of=experiment("two"), **kinds)
    words = "other clients were tested"
    if what != "test clients":
        known = {"name": "visits", "clients": 52, "examples": 900, "facts": {}, "sha256": "a"}
        known["fingerprint"] = {"ids": "a", "sizes": "b", "[1]": "c"}
        changed = {**known, "fingerprint": {**known["fingerprint"], "[1]": "d"}}
        words = "they differ in the examples (y)"
        if what != "contents":
            changed = {**{name: known[name] for name in known if name != "fingerprint"}, "sha256": "b"}
            words = "they differ in the clients or how many examples these have"
        write_json(one / "federation.json", known)
        write_json(two / "federation.json", known)
        assert "2 runs compared" in text_of(report.write([one, two], tmp_path / "page.html"))
        write_json(two / "federation.json", changed)
    check_groups(tmp_path, [one, two], words)
    # Of either data there are examples, though they have one name.
    pictures = (tmp_path / "page.html").read_text().count('alt="Pictures of 6 test clients')
    assert pictures == (1 if what == "test clients" else 2)


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name) for name in ("a", "b")]
    labels = [row.run for row in tables.rows(runs)]
    assert labels == ["personalized_fedavg (a)"] * 2 + ["personalized_fedavg (b)"] * 2
    same = [write_run(tmp_path / name / "run", stages=1, until=60) for name in ("a", "b")]
    assert len({row.run for row in tables.rows(same)}) == 2


def test_what_differs_between_experiments_is_marked(tmp_path: Path) -> None:
    of = experiment("two")
    changed = replace(of, stages=(replace(of.stages[0], clients_per_round=7), of.stages[1]))
    runs = [write_run(tmp_path / "one", of=experiment("one")), write_run(tmp_path / "two", of=changed)]
    settings = report.write(runs).read_text().partition("<h2>The experiment</h2>")[2]
    assert re.findall(r'<tr class="differs"><td>([^<]*)', settings) == ["name", "stage 1 · clients per round"]


def test_an_unfinished_run_shows_what_there_is(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", until=20, stages=0)
    text = text_of(report.write([run]))
    assert tables.rows([run]) == []
    assert "unfinished: seed 0 is at round 20 of 100" in text and "No stage is finished yet" in text


def test_a_seed_that_lags_behind_is_left_out_of_what_it_has_not_done(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", seeds=2, until=70)
    first, last = tables.rows([run])
    assert (first.seeds, last.seeds) == (2, 1)
    assert "seed 1 is at round 70 of 100" in text_of(report.write([run]))


def test_a_run_without_validation_clients_has_no_curves_but_results(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", of=experiment(target=0.7))
    (run / "seed-0" / "metrics.jsonl").write_text("")
    page = report.write([run])
    assert page.read_text().count("<picture>") == 4
    assert str(tables.rows([run])[1].initial_reached) == "-"


def test_names_are_text_and_never_markup(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", of=experiment("<script>alert(1)</script> & $x$ [bold]"))
    page = report.write([run]).read_text()
    assert "<script>" not in page and "&lt;script&gt;" in page
    tables.print_rows(Console(file=StringIO(), force_terminal=True, width=200), tables.rows([run]))


def test_text_is_decoded_with_its_vocabulary(tmp_path: Path) -> None:
    page = report.write([write_run(tmp_path / "run", kind="text")]).read_text()
    examples = page.partition("<h2>Examples</h2>")[2].partition("<h2>")[0]
    assert re.search(r"<pre>[^<]*(the king|doth|his crown)", examples)
    assert "□know□" in examples and "&amp; weep" in examples and "&lt;bos&gt;" not in examples


def test_feature_rows_are_on_the_page_with_their_targets(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", kind="features")
    with np.load(run / "samples.npz") as arrays:
        value, target = arrays["x0"][0, 0], arrays["y0"][0]
    text = text_of(report.write([run])).replace("−", "-")
    assert f"{value:.4g}" in text and f"{target:.4g}" in text


def test_the_exact_experiment_and_the_environment_are_on_the_page(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    page = unescape(report.write([run]).read_text())
    assert json.dumps(json.loads((run / "experiment.json").read_text()), indent=2) in page
    assert json.loads((run / "environment.json").read_text())["versions"]["jax"] in page
    assert f"headstart report {run}" in page


def test_a_report_is_replaced_whole(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    (run / "report.html").write_text("old")
    assert report.write([run]).read_text()[:3] != "old"
    assert not list(run.glob(".report*"))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda run: (run / "experiment.json").unlink(),
        lambda run: (run / "experiment.json").write_text("{}"),
        lambda run: (run / "environment.json").write_text("{"),
        lambda run: (run / "seed-0" / "stage-1.npz").write_bytes(b"PK"),
        lambda run: (run / "seed-0" / "stage-1.npz").unlink(),
        lambda run: (run / "samples.npz").write_bytes(b"nothing"),
    ],
)
def test_a_folder_that_is_no_whole_run_folder_is_refused_in_one_sentence(tmp_path: Path, spoil) -> None:
    run = write_run(tmp_path / "run")
    spoil(run)
    with pytest.raises(UserError) as caught:
        report.write([run])
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)
    assert not (run / "report.html").exists() and not (run / "figures").exists()


def test_runs_that_measure_different_things_are_refused(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / kind, kind=kind) for kind in ("image", "features")]
    with pytest.raises(UserError, match="accuracy, mean squared error"):
        report.write(runs)


def test_a_pipe_gets_a_line_per_stage_and_a_terminal_a_table(tmp_path: Path) -> None:
    rows = tables.rows([write_run(tmp_path / "run", of=experiment(target=0.7))])
    pipe, terminal = StringIO(), StringIO()
    tables.print_rows(Console(file=pipe, width=40), rows)
    tables.print_rows(Console(file=terminal, force_terminal=True, width=160), rows)
    assert pipe.getvalue().count("\n") == 2 and "rounds to 70.0 % initial > 100" in pipe.getvalue()
    assert "┃" in terminal.getvalue() and "personalized_fedavg" in terminal.getvalue()
    tables.print_rows(Console(file=pipe), [])
    assert pipe.getvalue().endswith("No stage is finished yet.\n")


def test_a_summary_is_printed_with_all_its_metrics(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    summary = json.loads((run / "seed-0" / "stage-1.json").read_text())["test"]
    out = StringIO()
    tables.print_summary(Console(file=out), summary, experiment().task.metrics)  # pyright: ignore
    mean = summary["accuracy"]["difference"]["mean"]
    assert f"difference {100 * mean:+.1f} points" in out.getvalue() and "loss: initial" in out.getvalue()


def test_paths_may_be_strings(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    assert report.write([str(run)]) == run / "report.html"
    assert report.write([str(run)], str(tmp_path / "page.html")) == tmp_path / "page.html"
    assert len(tables.rows([str(run)])) == 2


def test_allowed_modules_are_part_of_the_command(tmp_path: Path) -> None:
    page = report.write([write_run(tmp_path / "run")], allowed_modules={"theirs", "mine"})
    assert "--import mine --import theirs" in text_of(page)


@pytest.mark.parametrize(("names", "expected"), [(["age", "b", "c", "d", "e"], "age"), (["x"], "feature 1")])
def test_names_of_features_are_used_where_there_is_one_per_column(
    tmp_path: Path, names: list[str], expected: str
) -> None:
    run = write_run(tmp_path / "run", kind="features")
    change_samples(run, lambda arrays: {"facts": np.array(json.dumps({"kind": "features", "features": names}))})
    assert f"<th>{expected}</th>" in report.write([run]).read_text()


def change_samples(run: Path, change) -> None:
    with np.load(run / "samples.npz") as file:
        arrays = dict(file)
    np.savez(run / "samples.npz", **arrays | change(arrays))


def test_rows_of_features_in_two_dimensions_are_no_pictures(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    change_samples(run, lambda arrays: {"facts": np.array(json.dumps({"kind": "features"}))})
    change_samples(run, lambda arrays: {k: v[..., 0] for k, v in arrays.items() if k.startswith("x")})
    assert "<h2>Examples</h2>" not in report.write([run]).read_text()


def test_without_validation_clients_nothing_is_said_to_be_chosen_on_them(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    assert "chosen on validation clients" in text_of(report.write([run]))
    for stage in (0, 1):
        path = run / "seed-0" / f"stage-{stage}.json"
        document = json.loads(path.read_text())
        path.write_text(json.dumps({name: value for name, value in document.items() if name != "validation"}))
    (run / "seed-0" / "metrics.jsonl").write_text("")
    text = text_of(report.write([run]))
    assert "chosen on validation clients" not in text and "no validation clients, the largest number tried" in text


def test_what_the_figures_do_not_show_is_said(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / f"r{i}", stages=1, until=60) for i in range(7)]
    assert "show the first 6 runs; the other 1 are not drawn" in text_of(report.write(runs))


def test_markup_in_names_is_text_on_a_terminal(tmp_path: Path) -> None:
    labels = ["[/x]", "[bold]"]
    made = from_arrays(
        "[/a]", ["u"], np.array([[2, 1]]), np.zeros((3, 2)), np.arange(3) % 2, metadata={"labels": labels}
    )
    for terminal in (True, False):
        out = StringIO()
        overview.print_overview(Console(file=out, force_terminal=terminal, width=120), made)
        assert "[/x]" in out.getvalue() and "[/a]" in out.getvalue()


def test_epochs_have_their_range_and_unit() -> None:
    assert format_epochs([1], "epochs") == "1 epoch"
    assert format_epochs([3, EPOCHS, 3], "steps") == f"3 to {EPOCHS} steps"


def test_a_difference_that_rounds_to_zero_has_no_minus_sign() -> None:
    accuracy = experiment().task.metrics[0]  # pyright: ignore[reportOptionalMemberAccess]
    assert format_change(accuracy, -1e-6) == "+0.0 points"
    assert len(LIGHT.series) == len(set(LIGHT.series)) and LIGHT.worse not in LIGHT.series
