"""Reports from Python: runs in hand, or their folders, compared on one page."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path

from headstart.reports.page import write
from headstart.runs.run import Run


def report(
    runs: Run | str | os.PathLike[str] | Sequence[Run | str | os.PathLike[str]],
    out: str | os.PathLike[str] | None = None,
    *,
    allowed_modules: Collection[str] = (),
) -> Path:
    """Write one self-contained page and, in `figures/` beside it, its figures, light and dark; returns the page's path.

    runs: a run or several to be compared, or their folders, finished or not. out: the page; by default `report.html` in
        the first folder.
    allowed_modules: modules beside headstart's own that saved tasks may be imported from.

    Raises:
        UserError: if a folder is no run folder, or the runs do not measure the same thing.
    """
    chosen = [runs] if isinstance(runs, Run | str | os.PathLike) else list(runs)
    return write(chosen, out, allowed_modules=allowed_modules)
