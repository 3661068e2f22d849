"""`headstart reproduce`: runs the studies, in pieces that resume, and writes their report."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from headstart.errors import UserError
from headstart.learning.tasks import NextCharacter
from headstart.runs.directory import environment
from headstart.studies.evidence import Evidence
from headstart.studies.paper.cnn import CNN
from headstart.studies.paper.curve import CURVE
from headstart.studies.paper.datacenter import DATACENTER
from headstart.studies.paper.finetune import FINETUNE
from headstart.studies.paper.identity import IDENTITY
from headstart.studies.paper.page import write_page, write_results
from headstart.studies.paper.server import SERVER
from headstart.studies.paper.settings import SCALES, setting_of
from headstart.studies.paper.study import Setting, Study
from headstart.studies.paper.table1 import TABLE1
from headstart.studies.paper.updates import UPDATES
from headstart.studies.pool import Pool
from headstart.studies.records import spent
from headstart.studies.runner import Runs
from headstart.training.divergence import DivergedError

STUDIES = (IDENTITY, TABLE1, FINETUNE, CURVE, DATACENTER, UPDATES, SERVER, CNN)


def reproduce(
    names: Sequence[str] = (),
    *,
    scale: str = "small",
    data: Sequence[str] = ("glyphs",),
    out: str | os.PathLike[str] = "reproduction",
    processes: int = 1,
    seeds: int | None = None,
    log: Callable[[str], None] = print,
) -> Path:
    """Run studies on federations and write one report of them all; finished runs in `out` are not repeated.

    names: of studies, by default all that suit a federation. data: names or paths of federations.
    processes: how many runs go side by side, each on its share of the cores; 1 keeps them in this process.
    seeds: of every comparison, two at least; by default as many as the scale has. With fewer than five nothing is
        decided, but a page can be had of what is done, and later ones continue from it.

    Returns:
        The path of the report.

    Raises:
        UserError: for an unknown study, scale or federation, or a run that fails.
    """
    if scale not in SCALES:
        raise UserError(f"there is no scale {scale!r}; give one of {', '.join(SCALES)}")
    chosen = _studies(names)
    if seeds is not None and seeds < 2:
        raise UserError(f"{seeds} seed cannot be compared; give two or more, or leave it out")
    settings = {name: _with_seeds(setting_of(scale, source, {}), seeds) for name, source in _named(data).items()}
    out = Path(out)
    command = _command(names, scale, data, out, seeds)
    with Pool(processes) as pool:
        runs = {
            name: Runs(out / "runs" / name, seeds=setting.seeds, log=log, pool=pool, records=out / "records" / name)
            for name, setting in settings.items()
        }
        page = _ask(chosen, settings, runs, log, lambda found: _write(found, out, scale, command))
    if page is None:
        raise UserError(
            f"none of {', '.join(study.name for study in chosen)} suits {', '.join(settings)}; see docs/paper.md"
        )
    return page


def _ask(
    studies: Sequence[Study],
    settings: Mapping[str, Setting],
    runs: Mapping[str, Runs],
    log: Callable[[str], None],
    write: Callable[[Mapping[str, Sequence[Evidence]]], Path],
) -> Path | None:
    """The page of what the studies find; None if none of them suits a federation."""
    found: dict[str, list[Evidence]] = {name: [] for name in settings}
    page = None
    for study in studies:
        for name, setting in settings.items():
            if _kind(setting) in study.kinds:
                log(f"{study.name} on {name}")
                try:
                    found[name].append(study.ask(setting, runs[name]))
                except DivergedError as error:
                    log(f"{study.name} on {name} is left out: {error}")
                    continue
                # After every study, so that its findings can be read while the others run.
                page = write(found)
    return page


def _write(found: Mapping[str, Sequence[Evidence]], out: Path, scale: str, command: str) -> Path:
    write_results(found, out)
    return write_page(
        found, out, scale=scale, command=command, environment=environment(), seconds=spent(out / "records")
    )


def _studies(names: Sequence[str]) -> Sequence[Study]:
    known = {study.name: study for study in STUDIES}
    for name in names:
        if name not in known:
            raise UserError(f"there is no study {name!r}; give some of {', '.join(known)}")
    return [known[name] for name in names] or STUDIES


def _with_seeds(setting: Setting, seeds: int | None) -> Setting:
    return setting if seeds is None else replace(setting, seeds=seeds, most_seeds=seeds, spread_seeds=seeds)


def _named(sources: Sequence[str]) -> dict[str, str]:
    """The federations by the names of their files."""
    named = {Path(source).name.partition(".")[0]: source for source in sources}
    if len(named) != len(sources):
        raise UserError(f"two of the federations {', '.join(sources)} have the same name; rename a file")
    return named


def _kind(setting: Setting) -> str:
    return "text" if isinstance(setting.task, NextCharacter) else "image"


def _command(names: Sequence[str], scale: str, data: Sequence[str], out: Path, seeds: int | None) -> str:
    given = [word for source in data for word in ("--data", source)]
    given += ["--seeds", f"{seeds}"] if seeds else []
    return shlex.join(["headstart", "reproduce", *names, "--scale", scale, *given, "--out", str(out)])
