"""Run folders whose files are damaged, foreign or gone: each use of them ends in a result or in a sentence."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from headstart import Optimizer, UserError, open_run
from headstart.reports.page import write
from headstart.runs.log import read_log
from small import experiment, run

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


BAD_LINES = [
    bytes(64),
    b"\xff\xfe not text",
    b"[1, 2",
    b"{}",
    b"null",
    b'{"event": "round", "round": "3", "stage": "FedAvg"}',
    b'{"event": "evaluation", "round": 2, "stage": "FedAvg", "validation": {"accuracy": "good"}}',
    b'{"event": "round", "round": 1' + b"0" * 400 + b', "stage": "FedAvg"}',
    b"[" * 50_000,
]


def test_lines_of_a_log_that_cannot_be_read_are_passed_over_and_counted(small_run, tmp_path):
    out = shutil.copytree(small_run, tmp_path / "run")
    log = out / "seed-0" / "metrics.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join([*lines[:2], *(bad + b"\n" for bad in BAD_LINES), *lines[3:], b'{"event": "rou']))
    assert read_log(log) == ([json.loads(line) for line in (*lines[:2], *lines[3:])], len(BAD_LINES))
    found, whole = open_run(out), open_run(small_run)
    lost = json.loads(lines[2])
    assert [note.partition("metrics.jsonl ")[2] for note in found.notes] == [
        f"has {len(BAD_LINES)} lines that cannot be read: passed over",
        *([f"lacks 1 of 10 rounds, the first of them {lost['round']}"] if lost["event"] == "round" else []),
    ]
    assert found.summary() == whole.summary()
    assert set(found.history.rounds) <= set(whole.history.rounds)
    assert f"{len(BAD_LINES)} lines that cannot be read" in write([out]).read_text()


def test_a_log_that_lost_lines_is_no_end_of_a_run(small_data, small_run, tmp_path):
    out = shutil.copytree(small_run, tmp_path / "run")
    log, notes = out / "seed-0" / "metrics.jsonl", []
    lines = log.read_bytes().splitlines(keepends=True)
    (out / "seed-0" / "stage-1.json").unlink()
    log.write_bytes(b"".join([*lines[:2], bytes(64), b"\n", *lines[4:]]))
    assert run(experiment(small_data), out, on_event=lambda record: notes.append(record.get("text", ""))).finished
    said = [note.partition("metrics.jsonl ")[2] for note in notes if "metrics.jsonl" in note]
    assert said[0] == "has 1 line that cannot be read: passed over" and "of 10 rounds" in said[1]
    assert open_run(out).summary() == open_run(small_run).summary()
    assert read_log(log)[1] == 0


@pytest.mark.parametrize("end", ["stage-1.json", "stage-1.npz", "stage-1.safetensors"])
def test_a_damaged_end_of_a_run_is_made_again(small_data, small_run, tmp_path, end):
    out = shutil.copytree(small_run, tmp_path / "run")
    file = out / "seed-0" / end
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match=end):
        open_run(out).params()
    assert run(experiment(small_data), out).finished
    np.testing.assert_array_equal(*(open_run(folder).clients()["personalized"] for folder in (out, small_run)))
    assert open_run(out).report() == open_run(small_run).report()


def test_a_folder_that_is_removed_during_the_run_is_no_finished_run(small_data, tmp_path):
    def remove(record) -> None:
        if record["event"] == "stage" and record["stage"] == "Reptile":
            shutil.rmtree(tmp_path / "out")

    with pytest.raises(UserError, match=r"out was removed, renamed or replaced during the run"):
        run(experiment(small_data), tmp_path / "out", on_event=remove)


def test_every_damage_to_every_file_is_a_result_or_a_sentence(small_run, tmp_path):
    generator = np.random.default_rng(0)
    names = files_of(small_run)
    for number, (what, damage) in enumerate(DAMAGES.items()):
        for name in names[number % 3 :: 3]:
            out = shutil.copytree(small_run, tmp_path / f"{what}-{name.replace('/', '-')}")
            (out / name).write_bytes(damage((out / name).read_bytes()))
            used(out)
    for number in range(24):
        out = shutil.copytree(small_run, tmp_path / f"value-{number}")
        path = out / [name for name in names if name.endswith((".json", ".jsonl"))][number % 6]
        path.write_bytes(values_replaced(path.read_bytes(), generator))
        used(out)


def test_no_json_that_a_diverging_personalization_leaves_has_infinity(small_data, tmp_path):
    whole = experiment(small_data)
    wild = replace(whole.personalization, optimizer=Optimizer("sgd", 1e30))
    run(replace(whole, personalization=wild), tmp_path / "out")
    for path in sorted((tmp_path / "out").rglob("*.json*")):
        for text in [path.read_text()] if path.suffix == ".json" else path.read_text().splitlines():
            json.loads(text, parse_constant=pytest.fail)
    assert open_run(tmp_path / "out").report()["test"]["loss"]["initial"]["mean"] > 0
    write([tmp_path / "out"])
