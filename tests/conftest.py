"""What every test shares: one kind of random bits, the CPU, float64 where a test asks for it, and compiled programs."""

import io
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Three devices, so that cohorts are split, and seldom evenly; the commands that tests start take them too.
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "3")
# Nearly all the time of the tests is compilation, so programs are kept from session to session, and shared by the
# workers of one and the commands that they start. JAX knows a program by all that it is made of.
PROGRAMS = Path(__file__).parents[1] / ".cache" / f"programs-jaxlib-{version('jaxlib')}"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(PROGRAMS))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
# What headstart keeps of data is this session's own, and goes with it; workers find the name in their environment.
DATA = None if "HEADSTART_CACHE" in os.environ else tempfile.mkdtemp(prefix="headstart-tests-")
os.environ.setdefault("HEADSTART_CACHE", str(DATA))
# XLA's older code generator takes half as long to compile. Its results are the same to rounding. XLA refuses flags it
# does not know, so newer versions, and a user's XLA_FLAGS, go without.
if version("jaxlib").startswith("0.10."):
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")

import jax
import pytest
from filelock import FileLock
from PIL import Image

from headstart.cli import main as cli
from small import experiment, federation_file, run

# What compiled programs may take on the disk: some dozens of sessions between changes of the source.
MOST_BYTES = 2**30

jax.config.update("jax_default_prng_impl", "threefry2x32")
jax.config.update("jax_threefry_partitionable", True)


@pytest.fixture
def float64() -> Iterator[None]:
    """The test runs in float64."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def no_figures(monkeypatch) -> None:
    """Pages with figures of a single pixel: real ones have tests of their own, and who looks at text needs none."""
    file = io.BytesIO()
    Image.new("RGB", (1, 1)).save(file, "png")
    drawn = [(file.getvalue(), 990)] * 2
    for page in ("reports.page", "studies.html"):
        monkeypatch.setattr(f"headstart.{page}.save", lambda figure_spec, folder: drawn)


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


@pytest.fixture(scope="session")
def made_once(tmp_path_factory) -> Callable[[str, Callable[[Path], object]], Path]:
    """Makes a folder that all workers of a session share: the first that wants it makes it, and the others wait."""
    base = tmp_path_factory.getbasetemp()
    common = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def made(name: str, make: Callable[[Path], object]) -> Path:
        folder, done = common / name, common / f"{name}.done"
        with FileLock(common / f"{name}.lock"):
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                make(folder)
                done.touch()
        return folder

    return made


@pytest.fixture(scope="session")
def small_data(made_once) -> Path:
    """The federation file of `small`; nobody may change it."""
    return made_once("small-data", lambda folder: federation_file(folder / "small.npz")) / "small.npz"


@pytest.fixture(scope="session")
def small_run(made_once, small_data) -> Path:
    """A finished run of `small.experiment`; nobody may change it."""
    return made_once("small-run", lambda folder: run(experiment(small_data), folder / "run")) / "run"


def pytest_configure(config: pytest.Config) -> None:
    """Let go of programs, before the first worker starts: of those used long ago, until the rest has room."""
    if not hasattr(config, "workerinput"):
        make_room(Path(os.environ["JAX_COMPILATION_CACHE_DIR"]), MOST_BYTES)


def pytest_unconfigure() -> None:
    """Remove what headstart has kept of data."""
    if DATA is not None:
        shutil.rmtree(DATA, ignore_errors=True)


def make_room(folder: Path, most: int) -> None:
    """Delete files of a folder, those first that were used longest ago, until the rest has at most that many bytes.

    JAX has a setting for it, with which it reads every file's time whenever it adds one: minutes of a session.
    """
    files = [(path, path.stat()) for path in folder.glob("*")]
    total = sum(found.st_size for _, found in files)
    for path, found in sorted(files, key=lambda pair: max(pair[1].st_atime, pair[1].st_mtime)):
        if total <= most:
            break
        path.unlink(missing_ok=True)
        total -= found.st_size


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that start clusters and deployments come first: they take longest, much of it in waiting."""
    items.sort(key=lambda item: item.path.name not in ("test_cluster.py", "test_flower_deployed.py"))
