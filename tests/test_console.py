"""Names from files on terminals and in tables: seen as they are, and obeyed by nobody."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest
from rich.console import Console

from headstart.cli.overview import print_overview
from headstart.console import csv_cell, echo
from headstart.data.federation import from_arrays
from headstart.data.load import load
from headstart.deploy.adapt import personalize_run
from headstart.errors import UserError

# A colour, a cleared screen, a bell, text that runs backwards, a line that looks like another, half a character.
HOSTILE = ["\x1b[31mred", "a\x1b[2Jb", "bell\a", "abc\u202ecba", "one\rtwo", "one\ntwo", "\ud800"]


@pytest.mark.parametrize("text", HOSTILE)
def test_what_is_printed_controls_no_terminal(text):
    file = io.StringIO()
    echo(Console(file=file, force_terminal=True, color_system=None, width=200), text)
    printed = file.getvalue().rstrip("\n")
    assert all(character.isprintable() or character == "\n" for character in printed)


@pytest.mark.parametrize("terminal", [True, False])
def test_the_overview_of_a_federation_controls_no_terminal(terminal):
    names = [name for name in HOSTILE if name != "\ud800"]
    metadata = {"kind": "features", "labels": names, "features": names[:2], "notes": names, "classes": 6}
    federation = from_arrays("\x1b[2J\n", names, [[1, 1]] * 6, np.zeros((12, 2)), np.arange(12) % 6, metadata=metadata)
    file = io.StringIO()
    print_overview(Console(file=file, force_terminal=terminal, color_system=None, width=200), federation)
    assert not {"\x1b", "\a", "\r", "\u202e"} & set(file.getvalue())
    assert r"\x1b[31mred" in file.getvalue() and "notes" not in file.getvalue()


def test_a_sentence_about_a_file_is_one_line(tmp_path):
    (tmp_path / "a.csv").write_text('client,"a\x1b[2J\nb",y\nu,inf,0\nv,1,1\n')
    with pytest.raises(
        UserError, match=r"has an infinite value, or one beyond the range of float32, in column 'a\\x1b\[2J\\nb'"
    ) as caught:
        load(tmp_path / "a.csv")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("=1+1", "'=1+1"),
        ("+cmd|' /C calc'!A0", "'+cmd|' /C calc'!A0"),
        ("-2+3", "'-2+3"),
        ("@SUM(A1)", "'@SUM(A1)"),
        (" =1", "' =1"),
        ("\t=1", "'\\t=1"),
        ("\r", "'\\r"),
        ("-inf", "'-inf"),
        ("-3.5", "-3.5"),
        ("+1e-7", "+1e-7"),
        ("007", "007"),
        ("ward 7 = A", "ward 7 = A"),
        ("Плетнёв", "Плетнёв"),
        ("a\x00b", "a\\x00b"),
        ("", ""),
    ],
)
def test_no_cell_is_a_formula_and_numbers_stay_numbers(text, cell):
    assert csv_cell(text) == cell


def test_the_clients_of_a_personalization_are_no_formulas(small_run, tmp_path):
    ids, generator = ["=1+1", "-7", "a\x1b[2J"], np.random.default_rng(0)
    x, y = generator.normal(size=(12, 4)).astype(np.float32), np.arange(12, dtype=np.int32) % 3
    metadata = {"kind": "features", "classes": 3, "labels": ["0", "1", "2"]}
    personalize_run(small_run, from_arrays("own", ids, [[2, 2]] * 3, x, y, metadata=metadata), tmp_path / "out")
    rows = list(csv.DictReader((tmp_path / "out/clients.csv").read_text().splitlines()))
    texts = [(row.pop("client"), row.pop("group in the run")) for row in rows]
    assert texts == [("'=1+1", "new"), ("-7", "new"), (r"a\x1b[2J", "new")]
    assert all(np.isfinite(float(cell)) for row in rows for cell in row.values())
