"""The page of a reproduction: all that was found is on it, it stands alone, and its figures draw in every case."""

from __future__ import annotations

import json
import re
from html import unescape
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from headstart.reports.format import format_points
from headstart.reports.style import DARK, LIGHT, FigureSpec, Theme, render
from headstart.statistics.verdicts import decide, decide_most, difference, spread
from headstart.studies import html as studies_html
from headstart.studies.evidence import Choice, Claim, Evidence, Table, format_difference, format_spread
from headstart.studies.figures import by_epochs, curves, forest
from headstart.studies.html import as_document
from headstart.studies.paper.page import write_page, write_results

EPOCHS = (1, 2, 5, 10)
PAPER = {"M = 5, initial": (0.7473, 0.8028, 0.7879, np.nan), "M = 20, personalized": (0.8957, 0.9057, 0.9032, 0.8953)}


def differences(generator: np.random.Generator, mean: float, seeds: int = 6, clients: int = 40) -> np.ndarray:
    return mean + generator.normal(0, 0.005, (seeds, 1)) + generator.normal(0, 0.04, (seeds, clients))


def finetune(number: int) -> Evidence:
    """A made-up study: one claim of every verdict, of which one is full of signs that HTML must not see."""
    generator = np.random.default_rng(number)
    found = {
        "personalized: Reptile after FedAvg − FedAvg for as many rounds": difference(differences(generator, 0.02)),
        "initial: Reptile after FedAvg − FedAvg": difference(differences(generator, -0.03)),
        "personalized: Adam on the server − momentum": difference(differences(generator, 0.0005)),
        "with too few seeds": difference(differences(generator, 0.04, seeds=3)),
        "with a single seed": difference(differences(generator, 0.04, seeds=1)),
        "without values": difference(np.full((5, 4), np.nan)),
    }
    first, second, third, *_ = found
    rounds = np.arange(0, 101, 10)
    broken = rising(generator, 0.5)
    broken[0, 4:] = np.nan
    broken[:, 7] = np.nan
    panels = [
        ("initial", [("FedAvg(5)", rounds, rising(generator, 0.6)), ("centralized", rounds, broken)]),
        ("personalized", [("FedAvg(5)", rounds, rising(generator, 0.8)), ("Reptile", rounds, rising(generator, 0.7))]),
    ]
    rows = tuple((what, format_points(of.mean), str(of.seeds)) for what, of in list(found.items())[:3])
    return Evidence(
        "finetune",
        'Does careful "fine-tuning" give a model that is easier to personalize?',
        (
            Claim("Reptile after FedAvg personalizes better", "", *judged([first], found)),
            Claim("Its initial accuracy is better, K<10 & E>5", "not known", *judged([second], found)),
            Claim("The optimizer alone does it", "its own words, <quoted>", *judged([third, first], found)),
        ),
        (Table("What a second stage changes", ("stage", "points", "seeds"), rows, "In points <of accuracy>."),),
        (
            forest("finetune-forest", "Changes by a second stage", "What a second stage changes", list(found.items())),
            curves("rounds", "Rounds", "Accuracy in training", panels, x_label="round", y_label="accuracy"),
        ),
        (Choice("server rate", {"Adam 0.001": 0.71234567, "Adam <0.01>": 0.8, "Adam 1": float("nan")}, "Adam <0.01>"),),
        ("A candidate diverged & was left out.",),
        {"FedAvg": "headstart run fedavg --seeds 6 --out 'a b'", "Reptile": "headstart run reptile"},
    )


def judged(names: list[str], found: dict[str, Any]) -> tuple[Any, tuple[str, ...]]:
    return decide([found[name].sign for name in names]), tuple(format_difference(name, found[name]) for name in names)


def rising(generator: np.random.Generator, to: float) -> np.ndarray:
    return to * (1 - np.exp(-np.arange(11) / 2)) + generator.normal(0, 0.015, (4, 11))


def table1(number: int) -> Evidence:
    """Another one, with numbers of the paper."""
    generator = np.random.default_rng(10 + number)
    rows = {
        f"M = {m}, {what}": generator.normal(mean, width, (12, len(EPOCHS)))
        for m, what, mean, width in (
            (5, "initial", 0.74, 0.03), (5, "personalized", 0.85, 0.003),
            (20, "initial", 0.83, 0.02), (20, "personalized", 0.9, 0.002),
        )
    }  # fmt: skip
    found = spread(rows["M = 5, initial"], rows["M = 5, personalized"])
    cells = tuple((name, *(f"{100 * v:.1f} %" for v in values.mean(axis=0))) for name, values in rows.items())
    return Evidence(
        "table1",
        "How do E and M change the two models?",
        (
            Claim(
                "Personalized accuracy varies less over seeds than initial accuracy",
                "2 to 16 times less",
                decide_most([found.sign]),
                (format_spread("M = 5, E = 1, initial", found),),
            ),
        ),
        (Table("Table 1", ("", *(f"E = {e}" for e in EPOCHS)), cells),),
        (by_epochs("table1", "Accuracy against E", "Accuracy against the local epochs", EPOCHS, rows, paper=PAPER),),
    )


FOUND = {"glyphs": (table1(0), finetune(0)), "Shake speare/é": (finetune(1),)}
ENVIRONMENT = {"versions": {"jax": "0.10.2"}, "system": "Linux <x86_64>", "devices": ["cpu", "cpu"]}


def write(out: Path, found: Any = FOUND, seconds: float | None = 4321.0) -> Path:
    command = "headstart reproduce --scale 'small' --out here"
    return write_page(found, out, scale="small", command=command, environment=ENVIRONMENT, seconds=seconds)


def text_of(path: Path) -> str:
    text = unescape(re.sub(r"<[^>]*>", " ", path.read_text(encoding="utf-8")))
    return spaced(text.replace("−", "-"))


def spaced(text: str) -> str:
    return re.sub(r"\s+", " ", text.replace("−", "-")).strip()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("page"))


def test_everything_found_is_on_the_page(written: Path) -> None:
    text = text_of(written)
    for federation, evidences in FOUND.items():
        for evidence in evidences:
            assert f"{evidence.name} on {federation}" in text and evidence.question in text
            for claim in evidence.claims:
                assert f"{claim.decision} {claim.text} The paper: {claim.paper or 'not known'}" in text
                assert all(spaced(sentence) in text for sentence in claim.evidence)
            for table in evidence.tables:
                assert spaced(table.title) in text and spaced(table.note) in text
                assert all(spaced(cell) in text for row in table.rows for cell in row)
            assert all(spaced(note) in text for note in evidence.notes)
            assert all(spaced(f"# {name} {command}") in text for name, command in evidence.commands.items())
            assert all(figure_spec.text in text for figure_spec in evidence.figure_specs)
    for words in (
        "headstart reproduce --scale 'small' --out here",
        "Linux <x86_64>",
        "versions · jax 0.10.2",
        "72 min",
    ):
        assert words in text
    for words in ("server rate Adam 0.001 0.7123", "Adam <0.01> 0.8 chosen", "Adam 1 diverged"):
        assert words in text


def test_the_summary_has_a_row_per_claim_and_a_column_per_federation(written: Path) -> None:
    table = written.read_text(encoding="utf-8").split("<h2>What was found</h2>")[1].split("</table>")[0]
    rows = [
        [spaced(unescape(re.sub(r"<[^>]*>", "", cell))) for cell in re.findall(r"<t[hd]>(.*?)</t[hd]>", row)]
        for row in re.findall(r"<tr.*?</tr>", table)
    ]
    glyphs, other = finetune(0).claims, finetune(1).claims
    assert rows == [
        ["claim", "the paper", "glyphs", "Shake speare/é"],
        ["table1", "", "", ""],
        [table1(0).claims[0].text, "2 to 16 times less", "holds", "–"],
        ["finetune", "", "", ""],
        *(
            [one.text, paper, one.decision, two.decision]
            for one, two, paper in zip(
                glyphs, other, ("not known", "not known", "its own words, <quoted>"), strict=True
            )
        ),
    ]
    assert {claim.decision for claim in glyphs} == {"holds", "does not hold", "inconclusive"}


@pytest.mark.parametrize(
    ("decision", "kind"), [("holds", " holds"), ("does not hold", " refuted"), ("inconclusive", "")]
)
def test_a_verdict_has_a_colour_and_a_word(written: Path, decision: str, kind: str) -> None:
    assert f'<span class="verdict{kind}">{decision}</span>' in written.read_text(encoding="utf-8")


class Parsed(HTMLParser):
    """Checks that every tag is closed; collects what a browser would fetch, the links and their anchors."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.links: set[str] = set()
        self.anchors: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.sources += [given[name] for name in ("src", "srcset") if name in given]
        self.links |= {given["href"]} if "href" in given else set()
        self.anchors += [given["id"]] if "id" in given else []
        assert tag not in ("script", "link", "iframe")
        if tag not in ("meta", "img", "source"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_stands_alone_and_its_links_lead_somewhere(written: Path) -> None:
    content = written.read_text(encoding="utf-8")
    parser = Parsed()
    parser.feed(content)
    assert not parser.open
    assert parser.sources and all(source.startswith("data:image/png;base64,") for source in parser.sources)
    assert parser.links == {f"#{anchor}" for anchor in parser.anchors} and len(set(parser.anchors)) == len(
        parser.anchors
    )
    assert not re.search(r"https?://|url\(|@import", content)
    assert "K&lt;10 &amp; E&gt;5" in content and "K<10" not in content and "<quoted>" not in content


def test_figures_are_on_the_page_and_beside_it_light_and_dark(written: Path) -> None:
    names = [
        "table1-glyphs",
        *(f"finetune-{f}-{w}" for f in ("glyphs", "shake-speare-é") for w in ("forest", "rounds")),
    ]
    expected = {f"{name}{suffix}.png" for name in names for suffix in ("", "-dark")}
    assert {path.name for path in (written.parent / "figures").iterdir()} == expected
    content = written.read_text(encoding="utf-8")
    assert content.count("<picture>") == content.count('media="(prefers-color-scheme: dark)"') == len(names)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_lines_keep_colours_of_their_own_in_the_embedded_figure(theme: int, tmp_path: Path) -> None:
    x = np.arange(11)
    lines = [(f"line {i}", x, 0.5 - 0.1 * i * x / 10 + np.array([[-0.05], [0.0], [0.05]])) for i in range(4)]
    figure_spec = curves("datacenter", "", "Lines in bands", [("", lines)], x_label="epochs", y_label="accuracy")
    picture = studies_html.draw("glyphs", table1(0), figure_spec, tmp_path)
    with Image.open(BytesIO(picture[theme])) as image:
        pixels = np.asarray(image.convert("RGB"), np.int64).reshape(-1, 3)
    for colour in (LIGHT, DARK)[theme].series[:4]:
        wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
        assert (np.abs(pixels - wanted).max(axis=1) < 12).sum() > 300, colour


def test_fifteen_figures_stay_below_a_megabyte(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def drawn_already(figure_spec: FigureSpec, folder: Path) -> list[tuple[bytes, int]]:
        name = re.sub("-[a-e](?=-|$)", "-glyphs", figure_spec.name)
        return [((written.parent / "figures" / f"{name}{s}.png").read_bytes(), 946) for s in ("", "-dark")]

    monkeypatch.setattr(studies_html, "save", drawn_already)
    path = write(tmp_path, {name: (table1(i), finetune(i)) for i, name in enumerate("abcde")})
    assert path.stat().st_size < studies_html.MOST_BYTES
    assert path.read_text(encoding="utf-8").count("<figure") == 15


def test_a_page_that_would_be_too_large_shows_light_figures_only_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(studies_html, "save", lambda figure_spec, folder: [(picture_of(0), 946), (picture_of(1), 946)])
    monkeypatch.setattr(studies_html, "MOST_BYTES", 30_000)
    content = write(tmp_path).read_text(encoding="utf-8")
    assert "<picture>" not in content and content.count('<figure class="light">') == 5
    assert "Figures are light only" in content


def picture_of(seed: int) -> bytes:
    """A small picture that does not compress."""
    noise = np.random.default_rng(seed).integers(0, 256, (40, 40, 3), np.uint8)
    file = BytesIO()
    Image.fromarray(noise).save(file, "png")
    return file.getvalue()


def test_a_page_without_federations_or_time_is_a_page(tmp_path: Path) -> None:
    assert "Federations: none" in text_of(write(tmp_path, {}, seconds=None))


def test_results_are_readable_json_that_comes_back_the_same(tmp_path: Path) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    paths = write_results(FOUND, tmp_path)
    names = ["table1-glyphs.json", "finetune-glyphs.json", "finetune-shake-speare-é.json"]
    assert [path.relative_to(tmp_path / "results").name for path in paths] == names
    evidences = [evidence for evidences in FOUND.values() for evidence in evidences]
    for path, evidence in zip(paths, evidences, strict=True):
        read = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
        assert read == as_document(evidence)
        assert set(read) == set(Evidence._fields) - {"figure_specs"}
        assert [claim["decision"] for claim in read["claims"]] == [claim.decision for claim in evidence.claims]
        assert read["tables"][0]["rows"] == [list(row) for row in evidence.tables[0].rows]


def test_floats_are_rounded_and_what_is_not_finite_is_null() -> None:
    values = {"a": np.float32(1 / 3), "b": float("nan"), "c": -np.inf, "d": 123456789.0, "e": np.int64(7), "f": 2}
    choice = as_document(finetune(0)._replace(choices=(Choice("rate", values, "a"),)))["choices"][0]
    assert choice["values"] == {"a": 0.333333, "b": None, "c": None, "d": 123457000.0, "e": 7, "f": 2}
    assert isinstance(choice["values"]["e"], int)


MADE: dict[str, FigureSpec] = {
    "forest": FOUND["glyphs"][1].figure_specs[0],
    "panels": FOUND["glyphs"][1].figure_specs[1],
    "by epochs": FOUND["glyphs"][0].figure_specs[0],
    "one row": forest("one", "", "One", [("alone", difference(np.ones((5, 4)) * np.arange(4)))], unit="rounds"),
    "long label": forest("long", "", "Long " * 40, [("many words " * 20, difference(np.full((5, 3), 0.1)))]),
    "one point": curves("a", "", "A", [("", [("x", np.array([3]), np.array([[0.5]]))])], x_label="x", y_label="y"),
    "no values": curves(
        "b", "", "B", [("", [("x", np.arange(4), np.full((2, 4), np.nan))])], x_label="x", y_label="cosine", share=False
    ),
    "many lines": curves(
        "c",
        "",
        "C",
        [(f"panel {i}", [(f"a line with number {n}", np.arange(5) / 4, np.full((3, 5), n / 9)) for n in range(9)])
         for i in range(3)],
        x_label="x",
        y_label="share (%)",
    ),
    "one E": by_epochs("d", "", "D", (5,), {"M = 5, initial": np.array([[0.5], [0.6]])}),
    "one seed": by_epochs("e", "", "E", (1, 3), {"M = 5, initial": np.array([[0.5, np.nan]])}),
}  # fmt: skip


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
@pytest.mark.parametrize("case", MADE)
def test_every_figure_draws_in_both_themes(case: str, theme: Theme) -> None:
    png, width = render(MADE[case], theme)
    assert png.startswith(b"\x89PNG") and 500 < width <= 1000


def test_a_forest_shows_means_and_two_way_intervals_in_format_points() -> None:
    rows = [("decided", difference(differences(np.random.default_rng(0), 0.03)))]
    axes = forest("f", "", "F", rows).draw(LIGHT).axes[0]
    found = rows[0][1]
    drawn = [list(np.ravel(line.get_xdata())) for line in axes.lines]
    expected = [[0, 0], [100 * end for end in found.interval]]
    for got, wanted in zip(drawn, [*expected, [100 * found.mean]], strict=True):
        np.testing.assert_allclose(got, wanted)
    assert axes.lines[-1].get_color() == LIGHT.series[0]
    assert [text.get_text().replace("−", "-") for text in axes.texts] == [format_points(found.mean)]


def test_a_curve_is_the_mean_over_seeds_in_a_band_of_all() -> None:
    values = np.array([[0.1, 0.2, np.nan], [0.3, 0.6, np.nan]])
    axes = curves("c", "", "C", [("", [("x", np.arange(3), values)])], x_label="", y_label="y").draw(LIGHT).axes[0]
    np.testing.assert_allclose(np.asarray(axes.lines[0].get_ydata()), [20, 40, np.nan])
    band: Any = axes.collections[0].get_paths()[0].vertices
    assert band[:, 1].min() == pytest.approx(10) and band[:, 1].max() == pytest.approx(60)
    assert axes.get_ylabel() == "y (%)"


def test_accuracy_by_epochs_has_every_e_as_a_tick_and_the_paper_as_marks() -> None:
    rows = {"M = 5, initial": np.array([[0.7, 0.8], [0.6, 0.6]]), "M = 5, personalized": np.array([[0.8, 0.9]])}
    paper = {"M = 5, initial": (0.74, 0.8)}
    axes = by_epochs("e", "", "E", (2, 5), rows, paper=paper).draw(LIGHT).axes[0]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["2", "5"] and axes.get_xscale() == "log"
    marks = next(line for line in axes.lines if line.get_marker() == "D")
    np.testing.assert_allclose(np.asarray(marks.get_ydata()), [74, 80])
    lines = [line for line in axes.lines if line.get_marker() == "o"]
    np.testing.assert_allclose(np.asarray(lines[0].get_ydata()), [65, 70])
    assert [line.get_linestyle() for line in lines] == ["--", "-"]
    bars: Any = axes.collections[0]
    reach = [segment[:, 1] for segment in bars.get_segments()]
    spreads = 10 / np.sqrt(2), 20 / np.sqrt(2)
    expected = [[mean - spread, mean + spread] for mean, spread in zip((65, 70), spreads, strict=True)]
    np.testing.assert_allclose(reach, expected)
