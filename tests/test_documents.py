"""JSON from elsewhere is read as it is, or refused; text from elsewhere controls no terminal."""

import json
import time

import pytest

from headstart.console import printable
from headstart.documents import parse_json


@pytest.mark.parametrize("value", [None, True, 3, -2.5, "é\u2028", [], {}, {"a": [1, {"b": "\U0001f600"}]}, 10**300])
def test_a_sound_document_is_read_as_it_is(value):
    assert parse_json(json.dumps(value)) == value
    assert parse_json(json.dumps(value, ensure_ascii=False).encode()) == value


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[" * 100_000, "nested more than 64 deep"),
        ("[" * 65 + "]" * 65, "nested more than 64 deep"),
        ('{"a":' * 100 + "1" + "}" * 100, "nested more than 64 deep"),
        ("NaN", "NaN is no number"),
        ("[-Infinity]", "-Infinity is no number"),
        ("1e400", "beyond the largest number"),
        ("1" * 5000, "5000 digits"),
        ('{"a": 1, "b": 2, "a": 3}', "it has 'a' twice"),
        (r'["\ud800"]', "not valid Unicode"),
        (r'{"\udfff": 1}', "not valid Unicode"),
        ("\ud800", "."),
        (b'"\xff\xfe', "."),
        ("", "."),
        ('"' + "x" * 2**24 + '"', "more than 16777216"),
    ],
    ids=range(14),
)
def test_any_other_document_is_refused(text, complaint):
    with pytest.raises(ValueError, match=complaint):
        parse_json(text)


def test_many_names_take_no_long_time():
    began = time.process_time()
    assert len(parse_json("{" + ",".join(f'"{i}":0' for i in range(100_000)) + "}")) == 100_000
    assert time.process_time() - began < 5


def test_text_from_elsewhere_controls_no_terminal():
    assert printable("a\x1b[31mb\r\n\u202ec\ud800é") == r"a\x1b[31mb\r\n\u202ec\ud800é"
    assert printable("x" * 2000, most=3) == "xxx… (2000 characters)"
    assert printable("a\n\tb\x07", keep="\n\t") == "a\n\tb\\x07"
