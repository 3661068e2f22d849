"""Where a comparison does not have a method as its authors do: what a reader who knows them needs beside numbers."""

from __future__ import annotations

from collections.abc import Mapping

from headstart.studies.compare.protocol import Entry
from headstart.studies.evidence import Table


def authors_table(entries: Mapping[str, Entry]) -> list[Table]:
    """A line for each method whose class says how it differs; no table where none does."""
    kinds = {
        name: [kind for kind in (entry.method.kind, entry.method.second_kind) if kind is not None]
        for name, entry in entries.items()
    }
    lines = tuple(
        (name, f"{text[0].upper()}{text[1:]}.")
        for name, each in kinds.items()
        if (text := ". ".join(kind.differs for kind in each if kind.differs))
    )
    note = "What a method's authors have otherwise than this comparison, which may be to its disadvantage here."
    return [Table("Where a method is not as its authors have it", ("method", "here"), lines, note)] if lines else []
