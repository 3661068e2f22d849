"""Environments of the peers: one for each, made on first use, with pinned versions."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

Packages = tuple[str, ...]

_TORCH = "torch==2.13.0"
# What each installation is, one after another: PyTorch comes first, so that nothing else chooses its version.
ENVIRONMENTS: dict[str, tuple[Packages, ...]] = {
    "torch": ((_TORCH, "numpy==2.4.6"),),
    "pfl": ((_TORCH, "numpy==2.4.6"), ("pfl[pytorch]==0.6.0",)),
    "fedjax": (("jax==0.10.2", "jaxlib==0.10.2", "dm-haiku==0.0.17", "numpy==2.4.6", "fedjax==0.0.17"),),
    "flower": ((_TORCH, "numpy==2.4.6"), ("flwr[simulation]==1.41.0",)),
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
}


class EnvironmentFailedError(Exception):
    """An environment could not be made; the message is the reason, in one line."""


def interpreter(peer: str, folder: Path) -> str:
    """The Python that runs a peer; its environment is made if it is not there yet.

    Raises:
        EnvironmentFailedError: if it cannot be made.
    """
    name = PEERS[peer].environment
    if name is None:
        return sys.executable
    environment = folder / name
    python, marker = environment / "bin" / "python", environment / "headstart.json"
    wanted = [list(packages) for packages in ENVIRONMENTS[name]]
    if not (marker.exists() and json.loads(marker.read_text()) == wanted):
        print(f"{peer}: making its environment in {environment}", file=sys.stderr, flush=True)
        shutil.rmtree(environment, ignore_errors=True)
        _call([sys.executable, "-m", "venv", str(environment)])
        for packages in wanted:
            _call([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages])
        marker.write_text(json.dumps(wanted))
    return str(python)


def _call(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        errors = [line for line in said if "ERROR" in line] or said or [f"exit status {done.returncode}"]
        raise EnvironmentFailedError(errors[-1].strip()[:300])
