"""Checks that one thing has one word, the field's own, as in docs/glossary.md: `python tests/check_words.py`.

A rule is a word that is not to be used and what to write instead. It holds for names in code, or for phrases in
docstrings, comments, texts and pages. Keys of saved files are neither: they are texts of one word, part of a format.
"""

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

FOLDERS = "src", "tests", "benchmarks", "examples", "docs"
PAGES = "README.md", "FINDINGS.md"
SUFFIXES = ".py", ".pyi", ".md", ".html", ".jinja", ".j2"
# Folders of earlier versions, kept verbatim; and the words themselves.
SKIPPED = "tests/before/*", "tests/check_words.py"


class Rule(NamedTuple):
    """A word that is not to be used.

    pattern: all of a name, or a phrase whose spaces may be line ends. instead: what to write.
    where, exceptions: the files it holds for, and those among them in which the word means something else.
    """

    kind: Literal["name", "phrase"]
    pattern: str
    instead: str
    where: tuple[str, ...] = ("*",)
    exceptions: tuple[str, ...] = ()


class Text(NamedTuple):
    """A name or a sentence of a file, and the line it begins in."""

    kind: Literal["name", "phrase"]
    line: int
    text: str


SOURCE = ("src/*",)
LEARNING = "src/headstart/learning/*", "src/headstart/methods/*", "tests/test_contract.py", "tests/test_method*.py"
RUNNING = "src/headstart/training/*", "src/headstart/studies/*", "src/headstart/experiment/*"
GLYPHS = "src/headstart/data/glyphs/*"  # pens draw, place and bend
BENCHMARKS = "benchmarks/*", "src/headstart/bench/*"  # they watch a clock and a machine's memory
WATCHDOGS = "src/headstart/training/cluster.py", "src/headstart/training/supervisor.py"  # they watch a process
DROPOUT = "src/headstart/models/*"  # which has a rate, and keeps units
IDENTITY = "src/headstart/studies/paper/*", "tests/test_identity.py"  # which is a sum of terms
INTERVALS = "src/headstart/statistics/*", "src/headstart/studies/*", "tests/*"  # over seeds, over clients

RULES = (
    Rule("name", "Place|Session|_session", "SeedRun, Position, RunContext"),
    Rule("name", "[Kk]ept|once", "ProgramCache; default_state", (*RUNNING, *LEARNING)),
    Rule("name", "[Rr]ecorded|Outcome", "results, Run, StageResult"),
    Rule("name", "remembers|remembering|shares_a_model", "is_stateful, is_single_model"),
    Rule("name", "hooks_of|Hooks", "ClientUpdate"),
    Rule("name", "share|serve|keep|begin", "init_server, server_optimizer, init_client_state, personal_init", LEARNING),
    Rule("name", "[Bb]ends?|bent|pull|pulled|only", "gradient transform, proximal, masked", LEARNING),
    Rule("name", "[Mm]emory|memories", "client_state", (*SOURCE, "tests/*"), BENCHMARKS),
    Rule("name", "blank", "default_state", LEARNING),
    Rule("name", "Descent|descent|Legs?|leg", "LocalSGD, LocalState, Segment", LEARNING),
    Rule(
        "name", "folded|weigh|several|deal|room", "aggregate_clients, to_totals, run_rounds, assign, capacity", SOURCE
    ),
    Rule("name", "over_clients", "map_reduce_clients", exceptions=INTERVALS),
    Rule("name", "renews|renewed", "has_batch_stats, batch_stats_mask"),
    Rule("name", "trim|trimmed|trimmed_rows", "partial_batches"),
    Rule("name", "looks?|watch|watched|watching", "evaluate, curves, monitor", SOURCE, (*BENCHMARKS, *WATCHDOGS)),
    Rule("name", "choosing|until", "selection_clients, stop_at", SOURCE),
    Rule("name", "started", "initial_params", ("src/headstart/training/*",)),
    Rule("name", r"_?(told|[Tt]ell|listen|hear|say|spoken|shown)(_\w+)?", "log, on_event, echo, format_*"),
    Rule("name", r"(?!test_)\w+_(told|spoken|shown)", "log, on_event, echo, format_*"),
    Rule("name", "Draw|Drawn|Drawing", "gather, CohortBatch, FigureSpec", exceptions=(GLYPHS,)),
    Rule("name", "draw", "gather", ("src/headstart/data/*", *RUNNING[:1], *LEARNING), (GLYPHS,)),
    Rule("name", "_?places?|placed", "index, path, position, slot", exceptions=(GLYPHS,)),
    Rule("name", "lengths?|units", "epochs, steps", ("src/headstart/training/*", "src/headstart/learning/pers*")),
    Rule("name", "rates?|rates_given", "learning_rate, learning_rates", exceptions=(DROPOUT,)),
    Rule("name", "tries|relative|uncounted", "search_space, scaled_by_learning_rate", LEARNING),
    Rule("name", "_?[Cc]ontenders?|whom?", "method, methods, gain_by_data_size"),
    Rule("name", "[Cc]rossed", "two_way"),
    Rule("name", "_?hurt|worse_off", "harmed"),
    Rule("name", r"_?facts|\w+_facts|own_split|mark", "metadata, has_predefined_split, fingerprint", SOURCE),
    Rule(
        "name",
        "Holding|Site|Crew|[Tt]erms|[Rr]oster|meet|settle",
        "Manifest, Node, Membership, ServerConfig, Registry",
        exceptions=IDENTITY,
    ),
    Rule("name", "Imported|trusted", "ModelSpec, allowed_modules"),
    Rule("name", "PATIENCE", "a name for each of its meanings"),
    Rule("name", "hands", "what it counts"),
    Rule("name", "write_report", "report"),
    Rule("phrase", "not decided|undecided", "inconclusive"),
    Rule("phrase", "hurt|worse off", "harmed, clients with lower accuracy"),
    Rule("phrase", "(by|against|than) chance( alone| would| makes| explains)*", "expected from test noise"),
    Rule("phrase", "client arithmetic", "client compute"),
    Rule("phrase", "FedAvg as it is", "FedAvg (global model)"),
    Rule("phrase", "what fine-tuning makes", "gain from fine-tuning (points)"),
    Rule("phrase", "learning together", "federated over local-only training"),
    Rule("phrase", "worst tenth", "bottom 10 % of clients"),
    Rule("phrase", "(both|clients) (taken )?as drawn", "two-way (seeds × clients)"),
    Rule("phrase", "dearer", "exceeds the budget"),
    Rule("phrase", "comes? along", "built-in"),
    Rule("phrase", "(go|goes|gone|going|went) on( with)?", "resumes, continues"),
    Rule("phrase", "one's own", "custom"),
    Rule("phrase", "so many", "n"),
    Rule("phrase", "trusted", "allowed modules"),
    Rule("phrase", "paper reproduced", "Reproduction of …"),
    Rule("phrase", "(adapt|test) part", "support examples, query examples"),
    Rule("phrase", "(?-i:PAPER)", "arXiv:1909.12488 with equation or table"),
    Rule("phrase", "contenders?", "method"),
    Rule("phrase", "client memory", "client state"),
    Rule("phrase", "(is|are|be|was|were) told|tells?(?! (them |it )?apart)|spoken", "reports, says, gives"),
)


def texts(path: Path) -> Iterator[Text]:
    """The names of a file, each where it comes first, and its sentences."""
    content = path.read_text(encoding="utf-8")
    if path.suffix not in (".py", ".pyi"):
        yield from page_texts(content, markdown=path.suffix == ".md")
        return
    names = {path.stem: 1}
    for node in ast.walk(ast.parse(content)):
        line = getattr(node, "lineno", 1)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield Text("phrase", line, node.value)
        for field in ("id", "attr", "arg", "name", "asname"):
            if isinstance(name := getattr(node, field, None), str):
                names.setdefault(name.rpartition(".")[2], line)
    yield from (Text("name", line, name) for name, line in names.items())
    for token in tokenize.generate_tokens(io.StringIO(content).readline):
        if token.type == tokenize.COMMENT:
            yield Text("phrase", token.start[0], token.string)


def page_texts(content: str, *, markdown: bool) -> Iterator[Text]:
    """The sentences of a page; of Markdown the names in its code, too."""
    yield Text("phrase", 1, content)
    for code in re.finditer(r"```.*?```|`[^`\n]+`", content, re.DOTALL) if markdown else ():
        # Of a command or a line of code, not what is said beside it.
        for word in re.finditer(r"#[^\n]*|[^\W\d][\w-]*", code[0]):
            yield Text("name", content.count("\n", 0, code.start() + word.start()) + 1, word[0])


def among(path: Path, patterns: Iterable[str]) -> bool:
    """Whether a path is one of these."""
    return any(fnmatch(path.as_posix(), pattern) for pattern in patterns)


def found(path: Path) -> Iterator[str]:
    """What a file has that a rule refuses."""
    rules = [rule for rule in RULES if among(path, rule.where) and not among(path, rule.exceptions)]
    by_kind = {kind: [rule for rule in rules if rule.kind == kind] for kind in ("name", "phrase")}
    for text in texts(path):
        for rule in by_kind[text.kind]:
            for match in _compiled(rule).finditer(text.text):
                line = text.line + text.text.count("\n", 0, match.start())
                yield f"{path}:{line}: {' '.join(match[0].split())!r}: write {rule.instead}"


@cache
def _compiled(rule: Rule) -> re.Pattern[str]:
    if rule.kind == "name":
        return re.compile(rf"\A(?:{rule.pattern})\Z")
    words = rule.pattern.replace(" ", r"\s+")
    return re.compile(rf"(?<!\w)(?:{words})(?!\w)", re.IGNORECASE)


if __name__ == "__main__":
    inside = [path for folder in FOLDERS for path in sorted(Path(folder).rglob("*")) if path.suffix in SUFFIXES]
    paths = [p for p in [*inside, *map(Path, PAGES)] if not among(p, SKIPPED)]
    problems = [problem for path in paths for problem in found(path)]
    print("\n".join(problems) or f"words in {len(paths)} files are the field's")
    sys.exit(bool(problems))
