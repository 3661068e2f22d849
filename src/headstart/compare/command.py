"""`headstart compare`, from its words to its page."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np

from headstart.compare.contenders import contenders
from headstart.compare.leaderboard import Row, leaderboard
from headstart.compare.protocol import Protocol, compare
from headstart.compare.report import evidence, write
from headstart.compare.words import conclusion
from headstart.errors import UserError
from headstart.folder import environment
from headstart.studies.evidence import Table
from headstart.studies.runs import Runs


def compare_methods(
    protocol: Protocol,
    *,
    methods: Sequence[str] = (),
    out: str | os.PathLike[str] = "compared",
    processes: int = 1,
    tell: Callable[[str], None] = print,
    trusted: Collection[str] = (),
    command: str = "",
) -> tuple[Path, Table, list[str]]:
    """Compare methods on a federation and write the report; what is finished in `out` is not run again.

    methods: names, or `module:Class` of one's own; default: all that come with headstart.
    processes: how many runs go beside each other. trusted: as in `run`. command: what does it all again.

    Returns:
        The path of the page, the leaderboard, and the conclusion.

    Raises:
        UserError: for what cannot be compared, or a run that fails.
    """
    who, out = contenders(methods), Path(out)
    trusted = {*trusted, *(name.partition(":")[0] for name in methods if ":" in name)}
    runs = Runs(out / "runs", seeds=protocol.seeds, processes=processes, tell=tell, trusted=trusted)
    prepared = runs.prepared(protocol.base)
    if not len(prepared.groups.validation):
        raise UserError("there are no validation clients to choose settings on; set data.validation above 0")
    compared = compare(protocol, who, runs)
    entries = compared.entries
    metric = prepared.task.metrics[0]
    rows: list[Row] = leaderboard(entries, metric)
    ids = next(iter(entries.values())).result.ids
    places = {client: place for place, client in enumerate(prepared.federation.ids)}
    sizes = prepared.federation.sizes[[places[client] for client in ids], 0]
    found = evidence(protocol, compared, rows, metric=metric, adapt_sizes=np.asarray(sizes))
    sentences = conclusion(entries, rows, metric)
    name = Path(protocol.base.data.source).name.partition(".")[0]
    page = write(found, sentences, rows, out, federation=name, command=command, environment=environment())
    return page, found.tables[0], sentences
