"""Decide committed studies again, from the numbers that their folders hold; no study is run.

    python reproduction/decide_again.py reproduction/* comparison/*

A study of the paper stores, of every comparison, the interval over seeds and that over clients, but not the noise that
both hold: its comparisons are decided by the widest two-way interval that these two allow (`square_and_add`). A
leaderboard stores two-way errors: it is decided by the present degrees of freedom. Figures are those of the old pages.
"""

from __future__ import annotations

import base64
import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from html import unescape
from pathlib import Path
from typing import Any

from scipy import stats

from headstart.files import write_bytes, write_json
from headstart.learning.tasks import Classification
from headstart.reports.format import GainFormat
from headstart.reports.html import Picture
from headstart.statistics.two_way import Interval, TwoWay, freedom, square_and_add
from headstart.statistics.verdicts import (
    LEAST_SEEDS,
    LEAST_SEEDS_FOR_SPREAD,
    Decision,
    Difference,
    correlation_interval,
    decide,
    decide_most,
)
from headstart.studies.compare.decisions import Verdict, verdicts
from headstart.studies.compare.leaderboard import Row, primary_of
from headstart.studies.compare.methods import BASELINE, FEDAVG
from headstart.studies.compare.report import values_table
from headstart.studies.compare.words import claims, conclusion
from headstart.studies.evidence import Choice, Claim, Evidence, Table
from headstart.studies.html import as_content, as_document, plain, render_study, settings_rows
from headstart.studies.paper.page import write_page, write_results

EARLIER = (
    "This page's runs are older than this rule. Then a comparison was decided if its interval over seeds and that over"
    " clients both excluded zero, and the noise that the two have in common was not stored. Every comparison here is"
    " decided again by the widest two-way interval that the two stored ones allow (squared and added: Zou and Donner"
    ' 2008), no run is repeated, and "open" marks those of which the narrowest would exclude zero and the widest does'
    " not. Colours in figures and stars in tables are still by the earlier rule."
)
ALIKE = "true gain were the mean one and as many answers changed; too many where clients differ in that."
WIDEST = "two-way at most"
_END = r"\[([^,\]]+), ([^,\]]+)\]"
_TWO_WAY = rf"(?:{_END} {WIDEST}, )?"
_DECIDED = r"(?: \((?:inconclusive|open)\))?$"
POINTS = re.compile(rf"(.*): (\S+) points, {_TWO_WAY}{_END} over (\d+) seeds, {_END} over (\d+) clients{_DECIDED}")
ROUNDS = re.compile(rf"(.*, (-?\d+) fewer) \({_TWO_WAY}{_END} over seeds, {_END} over clients\){_DECIDED}")
SPREAD = re.compile(rf"(.* over (\d+) seeds, correlation) {_TWO_WAY}{_END} over seeds, {_END} over clients{_DECIDED}")
POWER = re.compile(r"([\d.]+) points \(([\d.]+) by (\d+) seeds(?: alone)?, ([\d.]+) by (\d+) clients(?: alone)?\)")


def decided_again(sentence: str) -> tuple[str, int | None]:
    """A sentence on a comparison with its two-way interval, and its sign: 1, -1, or 0; None if it compares nothing."""
    if found := POINTS.fullmatch(sentence):
        what, mean, _, _, *numbers = found.groups()
        seeds, clients, count = _interval(numbers[:2]), _interval(numbers[3:5]), int(numbers[2])
        both = square_and_add(float(mean), seeds, clients)
        sign, tag = _sign(both, seeds, clients, enough=count >= LEAST_SEEDS)
        low, high = both
        stored = (
            f"[{numbers[0]}, {numbers[1]}] over {count} seeds, [{numbers[3]}, {numbers[4]}] over {numbers[5]} clients"
        )
        return f"{what}: {mean} points, [{low:+.2f}, {high:+.2f}] {WIDEST}, {stored}{tag}", sign
    if found := ROUNDS.fullmatch(sentence):
        what, mean, _, _, *numbers = found.groups()
        seeds, clients = _interval(numbers[:2]), _interval(numbers[2:])
        low, high = both = square_and_add(float(mean), seeds, clients)
        sign, tag = _sign(both, seeds, clients, enough=True)
        return f"{what} ([{low:.0f}, {high:.0f}] {WIDEST}, {_stored(numbers)}){tag}", sign
    if found := SPREAD.fullmatch(sentence):
        what, count, _, _, *numbers = found.groups()
        seeds, clients = _interval(numbers[:2]), _interval(numbers[2:])
        low, high = both = correlation_interval(seeds, clients)
        sign, tag = _sign(both, seeds, clients, enough=int(count) >= LEAST_SEEDS_FOR_SPREAD)
        return f"{what} [{low:.2f}, {high:.2f}] {WIDEST}, {_stored(numbers)}{tag}", sign
    return sentence.replace("best here: ", "best here on test clients: "), None


def _stored(ends: Sequence[str]) -> str:
    return f"[{ends[0]}, {ends[1]}] over seeds, [{ends[2]}, {ends[3]}] over clients"


def _interval(ends: Sequence[str]) -> Interval:
    return float(ends[0]), float(ends[1])


def _sign(both: Interval, *each: Interval, enough: bool) -> tuple[int, str]:
    sides = [(low > 0) - (high < 0) for low, high in (both, *each)]
    if not enough:
        return 0, " (inconclusive)"
    # The narrowest two-way interval is the wider of the two, so that both exclude zero if it does.
    return sides[0], "" if sides[0] else " (open)" if abs(sum(sides[1:])) == 2 else " (inconclusive)"


def claim_again(study: str, claim: Mapping[str, Any]) -> Claim:
    """A claim with its evidence and its decision by the study's own rule, or as it was where that compares nothing."""
    sentences, signs = zip(*map(decided_again, claim["evidence"]), strict=True)
    given = [sign for sign in signs if sign is not None]
    decision: Decision = claim["decision"]
    if study == "datacenter":
        decision = decide(_comparable(sentences, signs))
    elif "varies less over seeds" in claim["text"]:
        decision = decide_most(given)
    elif "help the initial model most" in claim["text"]:
        decision = decide([given[2], given[0]])
    elif given:
        decision = decide(given)
    return Claim(claim["text"], claim["paper"], decision, sentences)


def _comparable(sentences: Sequence[str], signs: Sequence[int | None]) -> list[int]:
    """Of the datacenter's models the signs of the personalized differences; 0 where a model missed its target."""
    found: list[int] = []
    for sentence, sign in zip(sentences, signs, strict=True):
        if sign is None:  # it did not reach the target, or is not comparable
            found[-1] = 0
        elif sentence.startswith("personalized"):
            found.append(sign)
    return found


def power_again(note: str) -> str:
    """A note with the differences that would be decided, by the two-way rule: at most these."""

    def widest(found: re.Match[str]) -> str:
        _, seeds, n, clients, m = found.groups()
        both = (float(seeds) ** 2 + float(clients) ** 2) ** 0.5
        return f"{both:.2f} points ({seeds} by {n} seeds alone, {clients} by {m} clients alone)"

    return POWER.sub(widest, note).replace("are decided four times", "are decided at least four times")


def evidence_again(document: Mapping[str, Any]) -> Evidence:
    """A study's evidence with the decisions of the present rule."""
    claims = tuple(claim_again(document["name"], claim) for claim in document["claims"])
    tables = tuple(_table_again(Table(**each)) for each in document["tables"])
    choices = tuple(
        Choice(each["what"], {k: float("nan") if v is None else v for k, v in each["values"].items()}, each["chosen"])
        for each in document["choices"]
    )
    notes = tuple(map(power_again, document["notes"]))
    return Evidence(document["name"], document["question"], claims, tables, (), choices, notes, document["commands"])


def _table_again(table: Table) -> Table:
    rows = tuple(tuple(decided_again(cell)[0] for cell in row) for row in table.rows)
    note = table.note.replace("* both intervals exclude zero.", "* both intervals exclude zero, the earlier rule.")
    note = note.replace("true gain were the mean one. Changes", f"{ALIKE} Changes")
    return Table(table.title, tuple(table.head), rows, note)


def rows_again(document: Mapping[str, Any]) -> list[Row]:
    """The rows of a leaderboard with the present degrees of freedom, and the decisions that follow."""
    rows = [_row_again(dict(row)) for row in document["rows"]]
    beside, over = _decided(rows, BASELINE, "versus"), _decided(rows, FEDAVG, "over_fedavg")
    return [
        row._replace(
            decided=beside[row.name].side,
            doubt=beside[row.name].reason,
            over_fedavg_decided=over[row.name].side,
            over_fedavg_doubt=over[row.name].reason,
        )
        for row in rows
    ]


def _row_again(row: dict[str, Any]) -> Row:
    earlier_names = {"harmed": "hurt", "learning_rates": "rates", "examples": "gradients"}
    row |= {name: row.pop(before, row.get(name)) for name, before in earlier_names.items()}
    stored = row["by_seeds_and_clients"]
    seeds, clients = stored["seeds"], stored["clients"]
    earlier = "interval" not in stored
    for name in ("initial", "personalized", "gain", "over_fedavg"):
        row[name] = _stored_mean(row[name])
        if earlier and row[name].error:
            share = _seeds_share(row[name].freedom, seeds, clients)
            row[name] = row[name]._replace(freedom=float(freedom(1.0, share, seeds, clients)))
    row["versus"] = _stored_mean(row["versus"])
    if earlier and row["versus"].error:
        low, high = stored["over_seeds"]
        of_seeds = ((high - low) / 2 / stats.t.ppf(0.975, seeds - 1)) ** 2
        variance = max(row["versus"].error ** 2, of_seeds)
        row["versus"] = row["versus"]._replace(freedom=float(freedom(variance, of_seeds, seeds, clients)))
    intervals = (tuple(stored[name]) for name in ("over_seeds", "over_clients"))
    row["by_seeds_and_clients"] = Difference(
        stored["mean"], row["versus"].interval(), *intervals, seeds=seeds, clients=clients
    )
    return Row(**row)


def _stored_mean(stored: Mapping[str, float | None]) -> TwoWay:
    mean, error, degrees = (stored[name] for name in ("mean", "error", "freedom"))
    return TwoWay(math.nan if mean is None else mean, math.inf if error is None else error, degrees or 1.0)


def _seeds_share(satterthwaite: float, seeds: int, clients: int) -> float:
    """The greatest share of the seeds in a variance of which these are the earlier degrees of freedom."""
    a, b = 1 / (seeds - 1), 1 / (clients - 1)
    root = max(b**2 - (a + b) * (b - 1 / satterthwaite), 0.0) ** 0.5
    return min((b + root) / (a + b), 1.0)


def _decided(rows: Sequence[Row], reference: str, field: str) -> dict[str, Verdict]:
    """As `leaderboard` decides."""
    found: dict[str, TwoWay] = {row.name: getattr(row, field) for row in rows}
    lost = {row.name: row.lost > 0 for row in rows}
    return verdicts(found, lost, reference=reference, primary=primary_of(reference), seeds=rows[0].seeds)


AGAIN = (
    "Intervals and verdicts of this page are computed again, from the standard errors that it stores, with degrees of"
    " freedom that decide fewer ties (Cochran and Cox's weights for Satterthwaite's), and with the primary question"
    " decided by itself; no run is repeated. Those of gains by data size, and colours in figures, are the earlier ones."
)


def conclusion_again(rows: Sequence[Row], earlier: Sequence[str]) -> list[str]:
    """The conclusion in the present words; of gains by data size no more than the earlier numbers are stored."""
    sentences = conclusion(rows, Classification().metrics[0])
    of = {row.name: row for row in rows}
    same = of[BASELINE].initial == of[FEDAVG].initial
    what = (
        "the gain from fine-tuning over the model that it starts from"
        if same
        else ("FedAvg + fine-tuning over FedAvg (global model), another model,")
    )
    (sizes,) = (each for each in earlier if each.startswith("By data size (means): "))
    start = "By data size (means): "
    numbers = sizes.partition(" is ")[2]
    return [*sentences[:2], f"{start}{what} is {numbers}", *sentences[2:]]


class Page:
    """What an old page holds beside the numbers that are stored: its figures, its environment, its command."""

    def __init__(self, path: Path) -> None:
        self.text = path.read_text(encoding="utf-8")
        rows = re.findall(
            r"<tr><td>([^<]*)</td><td>([^<]*)</td></tr>", self.text.partition("<h2>The environment</h2>")[2]
        )
        self.environment = {unescape(name): unescape(value) for name, value in rows}
        self.command = unescape(self._one(r"<h2>Make this page again</h2>\s*<pre>(.*?)</pre>"))

    def _one(self, pattern: str) -> str:
        found = re.search(pattern, self.text, re.DOTALL)
        return found[1] if found else ""

    @property
    def scale(self) -> str:
        """The scale of the studies."""
        return self._one(r"Scale: (\w+)\.")

    @property
    def seconds(self) -> float | None:
        """The time that the runs took, as the page has it."""
        hours, minutes = (self._one(rf"The runs took [^.]*?(\d+) {unit}") for unit in ("h", "min"))
        return 3600.0 * int(hours or 0) + 60 * int(minutes or 0) or None

    def pictures(self, section: str = "") -> list[Picture]:
        """The figures of a study, or of the whole page."""
        text = self.text.partition(f'<h3 id="{section}">')[2].partition("<h3 id=")[0] if section else self.text
        found = re.findall(
            r'<figure[^>]*>(?:<picture><source [^>]*srcset="data:image/png;base64,([^"]*)">)?\s*'
            r'<img src="data:image/png;base64,([^"]*)" width="(\d+)" alt="([^"]*)">',
            text,
        )
        return [
            Picture(base64.b64decode(light), base64.b64decode(dark or light), int(width), unescape(alt))
            for dark, light, width, alt in found
        ]


def study_again(folder: Path) -> list[str]:
    """Decide the studies of a folder again and write their page; returns what changed."""
    page, federation = Page(folder / "report.html"), folder.name
    order = re.findall(rf'<h3 id="([^"]*)-{federation}">', page.text)
    documents = [json.loads((folder / "results" / f"{name}-{federation}.json").read_text()) for name in order]
    found = {federation: [evidence_again(each) for each in documents]}
    pictures = {(federation, name): page.pictures(f"{name}-{federation}") for name in order}
    write_results(found, folder)
    write_page(
        found,
        folder,
        scale=page.scale,
        command=page.command,
        environment=page.environment,
        seconds=page.seconds,
        pictures=pictures,
        remarks=(EARLIER,),
    )
    before = [(document["name"], claim) for document in documents for claim in document["claims"]]
    after = [claim for evidence in found[federation] for claim in evidence.claims]
    return [
        f"{federation}, {name}: {new.text}: {old['decision']} -> {new.decision}"
        for (name, old), new in zip(before, after, strict=True)
        if old["decision"] != new.decision
    ]


def board_again(folder: Path) -> list[str]:
    """Decide a leaderboard again and write its page; returns what changed."""
    page, document = Page(folder / "report.html"), json.loads((folder / "leaderboard.json").read_text())
    metric, rows, federation = Classification().metrics[0], rows_again(document), folder.name
    sentences = conclusion_again(rows, document["conclusion"])
    choices = (
        Choice(each["what"], {k: math.nan if v is None else v for k, v in each["values"].items()}, each["chosen"])
        for each in document["choices"]
    )
    tables = (values_table(rows, GainFormat(metric)), *(_table_again(Table(**each)) for each in document["tables"][1:]))
    earlier = (note for note in document["notes"] if not note.startswith(AGAIN[:60]))
    notes = (*earlier, AGAIN)
    name, question = document["name"], document["question"]
    found = Evidence(name, question, claims(rows, metric), tables, (), tuple(choices), notes, document["commands"])
    numbers = {"conclusion": sentences, "rows": rows, "tried": document["tried"]}
    write_json(folder / "leaderboard.json", as_document(found) | plain(numbers))
    content = render_study(
        "compare.html",
        title=f"headstart: methods on {federation}",
        question=question,
        methods=len(rows),
        federation=federation,
        conclusion=sentences,
        found=as_content(found, page.pictures()),
        environment=settings_rows(page.environment),
        command=page.command,
    )
    write_bytes(folder / "report.html", content)
    names = ("decided", "over_fedavg_decided")
    return [
        f"{federation}, {new.name}, {field}: {old[field]} -> {getattr(new, field)}"
        for old, new in zip(document["rows"], rows, strict=True)
        for field in names
        if old[field] != getattr(new, field)
    ]


if __name__ == "__main__":
    for each in map(Path, sys.argv[1:]):
        is_board = (each / "leaderboard.json").exists()
        if is_board or (each / "results").is_dir():
            again = board_again if is_board else study_again
            print("\n".join(again(each)) or f"{each}: no verdict changed")
