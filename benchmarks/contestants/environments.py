"""Environments of the peers: one for each, made on first use, with pinned versions."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

Packages = tuple[str, ...]


class Environment(NamedTuple):
    """What is installed, one installation after another, and for which Python: the first of these that is found.

    pythons: names of interpreters; none for the Python that runs this.
    """

    installations: tuple[Packages, ...]
    pythons: tuple[str, ...] = ()

    @property
    def packages(self) -> str:
        """What is installed, in one line."""
        return " ".join(package for step in self.installations for package in step if not package.startswith("-"))


# PyTorch comes first, so that nothing else chooses its version.
_TORCH = ("torch==2.14.1", "numpy==2.4.6")
# BlazeFL asks for Python 3.14, and runs from 3.12 on, whose syntax it uses.
_BLAZEFL = ("--ignore-requires-python", "blazefl[contrib,reproducibility]==3.0.0")
ENVIRONMENTS: dict[str, Environment] = {
    "torch": Environment((_TORCH,)),
    "pfl": Environment((_TORCH, ("pfl[pytorch]==0.6.0",))),
    "fedjax": Environment((("jax==0.10.2", "jaxlib==0.10.2", "dm-haiku==0.0.17", "numpy==2.4.6", "fedjax==0.0.17"),)),
    "flower": Environment((_TORCH, ("flwr[simulation]==1.42.0",))),
    "blazefl": Environment((_TORCH, _BLAZEFL), ("python3.14t", "python3.14", "python3.13", "python3.12")),
}


class Peer(NamedTuple):
    """A contestant: the module that it is, and the environment that it runs in; None is this one."""

    module: str
    environment: str | None


PEERS = {
    "headstart": Peer("with_headstart", None),
    "torch": Peer("with_torch", "torch"),
    "torch_processes": Peer("with_torch_processes", "torch"),
    "pfl": Peer("with_pfl", "pfl"),
    "fedjax": Peer("with_fedjax", "fedjax"),
    "flower": Peer("with_flower", "flower"),
    "blazefl": Peer("with_blazefl", "blazefl"),
    "blazefl_threads": Peer("with_blazefl_threads", "blazefl"),
}


class EnvironmentFailedError(Exception):
    """An environment could not be made; the message is the reason, in one line."""


class NoPythonError(Exception):
    """There is none of the interpreters that a peer runs on; the message says which."""


def interpreter(peer: str, folder: Path) -> str:
    """The Python that runs a peer; its environment is made if it is not there yet.

    Raises:
        EnvironmentFailedError: if it cannot be made.
        NoPythonError: if there is no Python for it.
    """
    name = PEERS[peer].environment
    if name is None:
        return sys.executable
    environment, made = folder / name, ENVIRONMENTS[name]
    base = _base(made.pythons) if made.pythons else sys.executable
    python, marker = environment / "bin" / "python", environment / "headstart.json"
    wanted = [*map(list, made.installations), *([base] if made.pythons else [])]
    if not (marker.exists() and json.loads(marker.read_text()) == wanted):
        print(f"{peer}: making its environment in {environment}", file=sys.stderr, flush=True)
        shutil.rmtree(environment, ignore_errors=True)
        _call([base, "-m", "venv", str(environment)])
        for packages in made.installations:
            _call([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages])
        marker.write_text(json.dumps(wanted))
    return str(python)


def contents(name: str, folder: Path) -> str:
    """What an environment that `interpreter` has made consists of, in one line, with its Python if it has its own."""
    made = ENVIRONMENTS[name]
    if not made.pythons:
        return made.packages
    version = "import platform, sys; print(platform.python_version() + sys.abiflags)"  # 3.14.0t: without a global lock
    python = [str(folder / name / "bin" / "python"), "-c", version]
    return f"Python {subprocess.run(python, capture_output=True, text=True).stdout.strip()}, {made.packages}"


def _base(pythons: tuple[str, ...]) -> str:
    """The first of these interpreters that runs: on the search path, or among those of pyenv and uv."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    uv = Path(os.environ.get("UV_PYTHON_INSTALL_DIR", Path.home() / ".local" / "share" / "uv" / "python"))
    for name in pythons:
        found = [shutil.which(name), *(path for root in (pyenv, uv) for path in sorted(root.glob(f"*/bin/{name}")))]
        for path in filter(None, found):
            done = subprocess.run([path, "-c", "import sys; print(sys.executable)"], capture_output=True, text=True)
            if done.returncode == 0:
                return done.stdout.strip()
    raise NoPythonError(f"it runs on {' or '.join(pythons)}, and there is none on the search path, in pyenv or in uv")


def _call(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        errors = [line for line in said if "ERROR" in line] or said or [f"exit status {done.returncode}"]
        raise EnvironmentFailedError(errors[-1].strip()[:300])
