"""Arbitrary documents for property tests: JSON of all kinds, and sound documents with something changed in them.

In the suite each property sees few examples, always the same; HEADSTART_EXAMPLES=10000 gives it more.
"""

import copy
import json
import os
import resource
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

NAMES = (
    *("type", "headstart.FedAvg", "headstart.Experiment", "headstart.methods.Ditto", "headstart.Optimizer"),
    *("headstart.__main__.main", "headstart.methods.os", "headstart.run", "os.system", "builtins:eval", "__class__"),
    *("", ".", ":", "²", "-1", "NaN", "inf", "sgd", "adam", "cnn", "mlp", "glyphs", "float32[3]", "{0.__class__}"),
    *("a\x00b", "\ud800", "\x1b[31m", "\u202e", "x" * 5000, "../..", "1e400", "momentum", "learning_rate", "widths"),
)
NUMBERS = (0, -1, 1, 2**31, 2**32, 2**53 + 1, 2**63, -(2**63) - 1, 10**30, 10**350, 1e308, 1e-320, 0.5, float("nan"))

scalars = (
    st.none()
    | st.booleans()
    | st.sampled_from(NUMBERS)
    | st.integers(-3, 12)
    | st.floats()
    | st.sampled_from(NAMES)
    | st.text(st.characters(), max_size=8)
)
documents = st.recursive(
    scalars | st.sampled_from(["[" * 30, {}, []]),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=12,
)


def examples(few: int) -> Callable[[Any], Any]:
    """The settings of a property: this many examples in the suite, without chance and files."""
    most = int(os.environ.get("HEADSTART_EXAMPLES", few))
    return settings(
        max_examples=most, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
    )


def paths(document: Any, path: tuple = ()) -> list[tuple]:
    """The path of everything in a document but itself."""
    if not isinstance(document, dict | list):
        return []
    pairs = document.items() if isinstance(document, dict) else enumerate(document)
    return [each for key, item in pairs for each in ((*path, key), *paths(item, (*path, key)))]


@st.composite
def changed(draw: st.DrawFn, sound: Any) -> Any:
    """A sound document, with one to three places replaced, removed, renamed or wrapped."""
    document = copy.deepcopy(sound)
    for _ in range(draw(st.integers(1, 3))):
        found = paths(document)
        if not found:
            return draw(documents)
        *parents, last = draw(st.sampled_from(found))
        target = document
        for step in parents:
            target = target[step]
        kind = draw(st.sampled_from(("replace", "replace", "remove", "rename", "wrap", "nest")))
        if kind == "remove":
            del target[last]
        elif kind == "rename" and isinstance(target, dict):
            target[draw(st.sampled_from(NAMES))] = target.pop(last)
        elif kind == "wrap":
            target[last] = draw(st.sampled_from(([target[last]], {"type": target[last]}, {"a": target[last]})))
        elif kind == "nest":
            target[last] = json.loads("[" * 90 + "]" * 90)
        else:
            target[last] = draw(documents)
    return document


def peak_bytes() -> int:
    """The most bytes that this process has had so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
