"""`headstart compare`, from its words to its page."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np

from headstart.errors import UserError
from headstart.files import sha256_of
from headstart.runs.directory import environment
from headstart.studies.compare.contenders import contenders
from headstart.studies.compare.leaderboard import leaderboard, whom
from headstart.studies.compare.protocol import Protocol, compare
from headstart.studies.compare.report import evidence, write
from headstart.studies.compare.words import conclusion
from headstart.studies.evidence import Table
from headstart.studies.runner import Runs


def compare_methods(
    protocol: Protocol,
    *,
    methods: Sequence[str] = (),
    out: str | os.PathLike[str] = "compared",
    processes: int = 1,
    log: Callable[[str], None] = print,
    allowed_modules: Collection[str] = (),
    command: str = "",
) -> tuple[Path, Table, list[str]]:
    """Compare methods on a federation and write the report; what is finished in `out` is not run again.

    methods: names, or `module:Class` of one's own; default: all that come with headstart.
    processes: how many runs go beside each other. allowed_modules: as in `run`. command: what does it all again.

    Returns:
        The path of the page, the leaderboard, and the conclusion.

    Raises:
        UserError: for what cannot be compared, or a run that fails.
    """
    who, out = contenders(methods), Path(out)
    own = {module for each in who if (module := each.kind.__module__).split(".")[0] != "headstart"}
    allowed_modules = {*allowed_modules, *own}
    runs = Runs(
        out / "runs",
        seeds=protocol.seeds,
        processes=processes,
        log=log,
        allowed_modules=allowed_modules,
        fingerprint=_fingerprint(protocol.base.data.source, allowed_modules),
    )
    prepared = runs.prepared(protocol.base)
    for group, clients in (("validation", prepared.groups.validation), ("test", prepared.groups.test)):
        if not (prepared.federation.sizes[clients, 1] > 0).any():
            raise UserError(
                f"no {group} client has examples to test on; give data.train and data.validation that leave some"
            )
    compared = compare(protocol, who, runs)
    metric = prepared.task.metrics[0]
    rows = leaderboard(compared.entries, metric)
    ids = next(iter(compared.entries.values())).result.ids
    places = {client: place for place, client in enumerate(prepared.federation.ids)}
    sizes = prepared.federation.sizes[[places[client] for client in ids], 0]
    found = evidence(protocol, compared, rows, metric=metric, adapt_sizes=np.asarray(sizes))
    sentences = conclusion(rows, metric, whom(compared.entries, np.asarray(sizes), metric), compared.left_out)
    name = Path(protocol.base.data.source).name.partition(".")[0]
    page = write(
        found, sentences, rows, compared.entries, out, federation=name, command=command, environment=environment()
    )
    return page, found.tables[0], sentences


def _fingerprint(source: str, modules: Collection[str]) -> str:
    """What decides results beside an experiment's words: the data's file, and code of one's own."""
    files = [Path(source)] if Path(source).is_file() else []
    files += [Path(file) for name in sorted(modules) if (file := getattr(sys.modules.get(name), "__file__", None))]
    return " ".join(map(sha256_of, files))
