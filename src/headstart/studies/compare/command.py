"""`headstart compare`, from its arguments to its page."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from headstart.errors import UserError
from headstart.experiment.measured import has_test_examples
from headstart.experiment.setup import Prepared
from headstart.files import sha256_of
from headstart.runs.directory import environment
from headstart.studies.compare.by_examples import (
    as_numbers,
    conclusion_by_examples,
    measure_methods,
    with_by_examples,
)
from headstart.studies.compare.leaderboard import gain_by_data_size, leaderboard, of_participants
from headstart.studies.compare.methods import select_methods
from headstart.studies.compare.protocol import Protocol, compare
from headstart.studies.compare.report import evidence, write
from headstart.studies.compare.words import conclusion, on_participants
from headstart.studies.evidence import Table
from headstart.studies.pool import Pool
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
    """Compare methods on a federation and write the report; finished runs in `out` are not repeated.

    methods: names, or `module:Class` for a custom one; by default all built-in methods.
    processes: how many runs go side by side. allowed_modules: as in `run`. command: the command line that repeats it.

    Returns:
        The path of the page, the leaderboard, and the conclusion.

    Raises:
        UserError: if something cannot be compared, or a run fails.
    """
    specs, out = select_methods(methods), Path(out)
    if protocol.participants:
        # Of sources without a predefined split training clients would use all of their rows.
        data = replace(protocol.base.data, hold_out=True)
        protocol = replace(protocol, base=replace(protocol.base, data=data))
    custom = {module for spec in specs if (module := spec.kind.__module__).split(".")[0] != "headstart"}
    allowed_modules = {*allowed_modules, *custom}
    with Pool(processes) as pool:
        runs = Runs(
            out / "runs",
            seeds=protocol.seeds,
            log=log,
            allowed_modules=allowed_modules,
            fingerprint=_fingerprint(protocol.base.data.source, allowed_modules),
            pool=pool,
            records=out / "records",
        )
        prepared = runs.prepared(protocol.base)
        _check_test_examples(prepared)
        compared, metric = compare(protocol, specs, runs), prepared.task.metrics[0]
        fewer = None
        if protocol.by_examples:
            fewer = measure_methods(compared, runs, metric, count=protocol.by_examples, seeds=protocol.seeds)
    rows = leaderboard(compared.entries, metric)
    ids = next(iter(compared.entries.values())).result.ids
    index = {client: number for number, client in enumerate(prepared.federation.ids)}
    sizes = np.asarray(prepared.federation.sizes[[index[client] for client in ids], 0])
    found = evidence(protocol, compared, rows, metric=metric, support_sizes=sizes)
    sentences = conclusion(rows, metric, gain_by_data_size(compared.entries, sizes, metric), compared.left_out)
    numbers: dict[str, Any] = {}
    if fewer is not None:
        found, numbers = with_by_examples(found, fewer, metric), {"by_examples": as_numbers(fewer)}
        sentences += conclusion_by_examples(fewer, metric)
    participants = leaderboard(taken_part, metric) if (taken_part := of_participants(compared.entries)) else []
    numbers |= {"participants": participants} if participants else {}
    sentences += on_participants(participants, metric) if participants else []
    name = Path(protocol.base.data.source).name.partition(".")[0]
    page = write(
        found,
        sentences,
        rows,
        compared.entries,
        out,
        federation=name,
        command=command,
        environment=environment(),
        numbers=numbers,
    )
    return page, found.tables[0], sentences


def _check_test_examples(prepared: Prepared) -> None:
    for group, clients in (("validation", prepared.groups.validation), ("test", prepared.groups.test)):
        if not has_test_examples(prepared.federation, clients).any():
            raise UserError(
                f"no {group} client has examples to test on; give data.train and data.validation that leave some"
            )


def _fingerprint(source: str, modules: Collection[str]) -> str:
    """Digests of the file of the data and of custom code, which are a part of the names of the runs' folders.

    What the runs in them came from is compared beside, by its contents.
    """
    files = [Path(source)] if Path(source).is_file() else []
    files += [Path(file) for name in sorted(modules) if (file := getattr(sys.modules.get(name), "__file__", None))]
    return " ".join(map(sha256_of, files))
