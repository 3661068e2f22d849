"""What every test shares: one kind of random bits, the CPU, float64 where a test asks for it, and compiled programs."""

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Three devices, so that cohorts are split, and seldom evenly; the commands that tests start take them too.
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "3")
# Tests compile the same programs again and again; those of this session are shared, by its workers and commands too.
OWN_CACHE = "JAX_COMPILATION_CACHE_DIR" not in os.environ
if OWN_CACHE:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="headstart-tests-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
# Nearly all the time of the tests is compilation, and XLA's older code generator takes half of it. Its results are the
# same to rounding. XLA refuses flags it does not know, so newer versions, and XLA_FLAGS of one's own, go without.
if version("jaxlib").startswith("0.10."):
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")

import jax
import pytest

from headstart.cli import main as cli

jax.config.update("jax_default_prng_impl", "threefry2x32")
jax.config.update("jax_threefry_partitionable", True)


@pytest.fixture
def float64() -> Iterator[None]:
    """The test runs in float64."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def invoke(monkeypatch, capsys):
    """Calls a program's main function with an argument list; returns its exit code, output and errors."""

    def call(main: Callable[[], object], *words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [str(word) for word in words])
        try:
            main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def command(invoke, monkeypatch, tmp_path):
    """Runs the command in an empty folder; returns its exit code, output and errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return partial(invoke, cli.main, "headstart")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that start clusters and deployments come first: they take longest, much of it in waiting."""
    items.sort(key=lambda item: item.path.name not in ("test_cluster.py", "test_flower_deployed.py"))


def pytest_unconfigure() -> None:
    """Leave nothing behind."""
    if OWN_CACHE:
        shutil.rmtree(os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
