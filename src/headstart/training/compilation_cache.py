"""Compiled programs: kept between processes in the cache folder, and not too many of them in one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

import jax

from headstart.data.cache import cache_root
from headstart.devices import cores_as_devices
from headstart.experiment.setup import Prepared

# JAX keeps what takes a second to compile; reading a program back takes some 5 ms.
LEAST_SECONDS = 0.02
# Of data other than those in use, which a process keeps for runs to come.
MOST_BYTES = 2**30


def keep_programs() -> None:
    """Have JAX keep what it compiles, unless the user's environment says where; before it compiles anything.

    Where the cache cannot be written, nothing is kept.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    folder = cache_root() / "programs"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            jax.config.update("jax_compilation_cache_dir", str(folder))
    except OSError:
        return
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", LEAST_SECONDS)


def prepare_devices(count: int | None) -> None:
    """Use all cores, or at most `count` devices, and keep compiled programs; before anything else is asked of JAX."""
    cores_as_devices(count)
    keep_programs()


def crowded() -> bool:
    """Whether programs had better be let go: more than half of the memory maps are taken that Linux gives a process.

    Each program takes some hundred, and where there are no more the compiler ends the process.
    """
    try:
        most = int(Path("/proc/sys/vm/max_map_count").read_text())
        with Path("/proc/self/maps").open("rb") as maps:
            return sum(1 for _ in maps) > most // 2
    except OSError:
        return False


class ProgramCache:
    """Data, models and compiled programs that one run leaves to the next, where they are the same.

    many: whether runs with many settings are to come, so that a program had better serve several kinds of server.
    """

    def __init__(self, *, many: bool = False) -> None:
        self.many = many
        # With the experiment that each was made for; those of the one used last come last.
        self._made: dict[str, tuple[Prepared, Any]] = {}

    def get(self, key: str, make: Callable[[], Any], prepared: Prepared) -> Any:
        """What was made for the key, now or before; it is kept as long as the data of `prepared` are."""
        if key not in self._made:
            self._made[key] = prepared, make()
        return self._made[key][1]

    def prepared(self, key: str, make: Callable[[Prepared | None], Prepared]) -> Prepared:
        """What is made of what was kept under the key, or of None, and kept in its place; other data have to fit in."""
        earlier, _ = self._made.get(key, (None, None))
        prepared = make(earlier)
        self._made.pop(key, None)
        self._made[key] = prepared, None
        self._let_go()
        return prepared

    def make_room(self) -> None:
        """Let everything go if the programs are too many for a process."""
        if crowded():
            self._made.clear()

    def _let_go(self) -> None:
        """Let go of data that were used longest ago, with all that was made for them, where they are too large."""
        used = {id(prepared.federation): prepared.federation for prepared, _ in reversed(self._made.values())}
        newest, *older = used
        totals = accumulate(used[data].nbytes for data in older)
        there = {newest, *(data for data, total in zip(older, totals, strict=True) if total <= MOST_BYTES)}
        self._made = {key: made for key, made in self._made.items() if id(made[0].federation) in there}
