"""How much a command prints: its results alone, its notes too, or its details besides."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path

import typer
from rich.console import Console

from headstart.console import echo


class Level(IntEnum):
    """How much to print, from least to most."""

    QUIET = 0
    NORMAL = 1
    VERBOSE = 2


@dataclass(frozen=True)
class Output:
    """The console of one command, and how much to print on it; errors do not come this way."""

    level: Level = Level.NORMAL
    console: Console = field(default_factory=Console)

    @property
    def quiet(self) -> bool:
        """Whether only results are printed."""
        return self.level == Level.QUIET

    def result(self, text: str) -> None:
        """Print what the command was asked for."""
        echo(self.console, text)

    def note(self, text: str) -> None:
        """Print progress or a hint, unless only results are wanted."""
        if self.level >= Level.NORMAL:
            echo(self.console, text)

    def detail(self, text: str) -> None:
        """Print what only `--verbose` asks for."""
        if self.level >= Level.VERBOSE:
            echo(self.console, text, style="dim")

    @contextmanager
    def status(self, text: str) -> Iterator[Callable[[str], None]]:
        """A line that says what happens during the time of the block; yields what changes its text."""
        if self.quiet:
            yield lambda _: None
            return
        with self.console.status(text) as status:
            yield status.update

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Details of the block when it ends well: devices, compiled programs, seconds."""
        if self.level < Level.VERBOSE:
            yield
            return
        began = time.monotonic()
        with _compilations() as seconds:
            yield
        for line in _about_jax(seconds):
            self.detail(line)
        self.detail(f"time: {time.monotonic() - began:.1f} s in all")


def output_of(context: typer.Context) -> Output:
    """The output that the options before the command's name have asked for."""
    return context.ensure_object(Output)


@contextmanager
def _compilations() -> Iterator[list[float]]:
    """The seconds that JAX takes for each program which it compiles, or reads from the cache, during the block."""
    from jax import monitoring

    seconds: list[float] = []

    def on_duration(event: str, duration_secs: float, **_: object) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            seconds.append(duration_secs)

    monitoring.register_event_duration_secs_listener(on_duration)
    try:
        yield seconds
    finally:
        monitoring.unregister_event_duration_listener(on_duration)


def _about_jax(seconds: list[float]) -> list[str]:
    import jax

    devices = jax.devices()
    folder = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    return [
        f"devices: {len(devices)} × {devices[0].device_kind}",
        f"programs: {len(seconds)} compiled or read from {folder}, in {sum(seconds):.1f} s",
    ]


def files_in(folder: Path) -> str:
    """The files of a folder, hidden ones left out, as one line of details."""
    names = sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    return f"files in {folder.absolute()}: {', '.join(names)}"
