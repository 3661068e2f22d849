"""Run folders whose files are damaged, foreign or gone: each use of them ends in a result or in a sentence."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from headstart import UserError, open_run
from headstart.reports.page import write
from small import run

pytestmark = pytest.mark.usefixtures("no_figures")

DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "zeros": lambda content: bytes(len(content)),
    "list": lambda content: b"[]\n",
    "null": lambda content: b"null\n",
    "nothing": lambda content: b"{}\n",
    "text": lambda content: b'"text"\n',
    "not UTF-8": lambda content: b'{"name": "\xff\xfe"}\n',
    "deep": lambda content: b"[" * 100_000 + b"]" * 100_000 + b"\n",
    "deep dictionaries": lambda content: b'{"a":' * 5000 + b"1" + b"}" * 5000 + b"\n",
    "huge number": lambda content: b"1" + b"0" * 400 + b"\n",
    "endless number": lambda content: b"1" * 10_000 + b"\n",
    "NaN": lambda content: b"NaN\n",
}


def values_replaced(content: bytes, generator: np.random.Generator) -> bytes:
    """A JSON document, or a line of a log, with one value replaced by one of another type or size."""
    lines = content.split(b"\n")
    number = int(generator.integers(len(lines) - 1)) if b"\n" in content.strip() and content[:2] != b"{\n" else None
    document = json.loads(content if number is None else lines[number])
    positions: list[tuple] = []

    def walk(value) -> None:
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, inner in items:
            positions.append((value, key))
            walk(inner)

    walk(document)
    foreign = [None, True, -1, 0.5, 10**400, "text", [], {}, [1], {"a": 1}, float("nan"), float("inf"), [[]], "\ud800"]
    holder, key = positions[generator.integers(len(positions))]
    if generator.random() < 0.2 and isinstance(holder, dict):
        del holder[key]
    else:
        holder[key] = foreign[generator.integers(len(foreign))]
    if number is None:
        return json.dumps(document, indent=2).encode()
    return b"\n".join([*lines[:number], json.dumps(document).encode(), *lines[number + 1 :]])


def arrays_replaced(path: Path, generator: np.random.Generator) -> None:
    """An .npz with one array replaced by one of another type or shape, or left out."""
    with np.load(path) as file:
        arrays = dict(file)
    name = sorted(arrays)[generator.integers(len(arrays))]
    foreign = [np.zeros(0), np.zeros((2, 2)), np.array("text"), np.array(5), np.full((3, 1, 1), np.nan), None]
    array = foreign[generator.integers(len(foreign))]
    rest = {key: value for key, value in arrays.items() if key != name}
    np.savez(path, **(rest if array is None else rest | {name: array}))


def used(out: Path, plan=None) -> str:
    """What comes of every use of a run folder: "" or the sentence."""
    sentences = []

    def attempt(work: Callable[[], object]) -> None:
        try:
            work()
        except UserError as error:
            sentences.append(str(error))

    def read() -> None:
        found = open_run(out)
        assert found.finished in (True, False) and repr(found) and found.history
        for use in (found.clients, found.summary, found.params, found.report, lambda: found.example_federation):
            attempt(use)
        attempt(lambda: found.personal_experiment())
        attempt(lambda: found.metadata)

    attempt(read)
    attempt(lambda: write([out], out.parent / "page.html"))
    if plan is not None:
        attempt(lambda: run(plan, out))
    assert all(len(sentence) < 3000 for sentence in sentences)
    return " ".join(sentences)


def files_of(run_folder: Path) -> list[str]:
    return sorted(str(p.relative_to(run_folder)) for p in run_folder.rglob("*") if p.is_file() and p.name != ".lock")
