"""A federation on one machine, for trials and tests: a SuperLink and SuperNodes as processes on loopback."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from credentials import write_certificates, write_node_key

from headstart.errors import UserError

# Seconds in which a program must have started or answered, and a process have ended before it is made to.
START, END = 300.0, 8.0


class Loopback:
    """A context of processes that are started one by one and end together. Nothing leaves this machine.

    folder: for keys, logs and the homes of the processes. secure: TLS, and only nodes with a registered key.
    database: whether the SuperLink keeps its state in a file, so that it can be started again.
    environment: further variables for every process.
    """

    def __init__(
        self,
        folder: Path,
        *,
        secure: bool = True,
        database: bool = False,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.folder, self.secure, self.port = folder.resolve(), secure, _free_port()
        self._database, self._more = database, dict(environment or {})
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Loopback:
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.secure:
            write_certificates(self.folder)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    @property
    def address(self) -> str:
        """The address of the SuperLink."""
        return f"127.0.0.1:{self.port}"

    def start_link(self) -> None:
        """Start the SuperLink, on the same port every time.

        Raises:
            UserError: if it does not come up.
        """
        keys = ["--ssl-certfile", "server.pem", "--ssl-keyfile", "server.key", "--ssl-ca-certfile", "ca.crt"]
        words = [*keys, "--enable-supernode-auth"] if self.secure else ["--insecure"]
        words += ["--database", str(self.folder / "link.db")] if self._database else []
        words += ["--port", str(self.port), "--disable-runtime-dependency-installation"]
        self._start("link", "flower-superlink", *words)
        _wait_for_port(self.port, self._processes["link"], self.log("link"))

    def register(self, name: str) -> None:
        """Write a node's key, and register it with the SuperLink."""
        write_node_key(self.folder / name)
        self.flwr("supernode", "register", f"{self.folder / name}.pub", "--name", name)

    def start_node(self, name: str, **config: Any) -> None:
        """Start a SuperNode; in a secure federation it must be registered.

        config: of the node, as its ClientApp sees it.
        """
        keys = ["--root-certificates", "ca.crt", "--auth-supernode-private-key", name]
        options = keys if self.secure else ["--insecure"]
        options += ["--superlink", self.address, "--port", str(_free_port()), "--node-config", _toml(config)]
        self._start(name, "flower-supernode", *options)

    def submit(self, app: Path, **config: Any) -> int:
        """Start a run of the app in this folder; returns the run's id.

        config: of the run, as its ServerApp sees it.
        """
        options = ["--run-config", _toml(config)] if config else []
        return int(self.flwr("run", str(app), *options)["run-id"])

    def status(self, run: int) -> str:
        """The status of a run on the SuperLink, such as "finished:completed"."""
        return str(self.flwr("list", "--run-id", str(run))["runs"][0]["status"])

    def flwr(self, *words: str) -> dict[str, Any]:
        """Run the `flwr` command; returns its JSON output.

        Raises:
            UserError: if it fails.
        """
        command = [_program("flwr"), *words[:-1], words[-1], "--format", "json"]
        environment = self.environment("user")
        done = subprocess.run(command, env=environment, capture_output=True, cwd=self.folder, timeout=START)
        text = done.stdout.decode(errors="replace")
        try:
            document = json.loads(text[text.index("{") :])
        except ValueError:
            document = {}
        if done.returncode or document.get("success") is False:
            raise UserError(f"flwr {' '.join(words)} failed: {text}{done.stderr.decode(errors='replace')}")
        return document

    def log(self, name: str) -> Path:
        """The file of a process's output."""
        return self.folder / f"{name}.log"

    def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        """Send a signal to a process, SIGKILL also to all it has started, and wait for its end."""
        process = self._processes.pop(name)
        children = _descendants({process.pid})
        for pid in {process.pid, *children} if number == signal.SIGKILL else {process.pid}:
            _signal(pid, number)
        process.wait(START)

    def running(self) -> set[int]:
        """The ids of the processes, and of all that they have started."""
        roots = {process.pid for process in self._processes.values()}
        return roots | _descendants(roots)

    def end(self) -> None:
        """End all processes: by SIGTERM, nodes first, and after some seconds by SIGKILL."""
        running = dict(sorted(self._processes.items(), key=lambda pair: pair[0] == "link"))
        everything = self.running()
        for process in running.values():
            _signal(process.pid, signal.SIGTERM)
        until = time.monotonic() + END
        while time.monotonic() < until and any(process.poll() is None for process in running.values()):
            time.sleep(0.1)
        ended = {process.pid for process in running.values() if process.poll() is not None}
        for pid in everything - ended:
            _signal(pid, signal.SIGKILL)
        for process in running.values():
            process.wait(START)
        self._processes.clear()

    def _start(self, name: str, program: str, *arguments: str) -> None:
        with self.log(name).open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [_program(program), *arguments],
                env=self.environment(name),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def environment(self, name: str) -> dict[str, str]:
        """The environment of a process: without telemetry, and with a home of its own."""
        # Nodes that share a home race for the app they install there.
        home = self.folder / "homes" / name
        home.mkdir(parents=True, exist_ok=True)
        trust = 'root-certificates = "{}"'.format(self.folder / "ca.crt") if self.secure else "insecure = true"
        connection = f'[superlink]\ndefault = "loopback"\n[superlink.loopback]\naddress = "{self.address}"\n{trust}\n'
        (home / "config.toml").write_text(connection, encoding="utf-8")
        quiet = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "FLWR_HOME": str(home)}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        return {**os.environ, **quiet, "PATH": path, "PYTHONUNBUFFERED": "1", **self._more}


def _program(name: str) -> str:
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise UserError(f"there is no program {name}; install headstart[flower]")
    return found


def _toml(config: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={json.dumps(value)}" for name, value in config.items())


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def _wait_for_port(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + START
    while time.monotonic() < until and process.poll() is None:
        with socket.socket() as attempt:
            if attempt.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    ended = process.returncode is not None
    raise UserError(f"the SuperLink {'has ended' if ended else f'did not start in {START:g} s'}; {log} says why")


def _descendants(roots: set[int]) -> set[int]:
    """The processes that these have started, and so on."""
    table = subprocess.run(["ps", "-Ao", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    children: dict[int, set[int]] = {}
    for pid, parent in (map(int, line.split()) for line in table.splitlines()):
        children.setdefault(parent, set()).add(pid)
    found, fresh = set(), set(roots)
    while fresh:
        fresh = set().union(*(children.get(pid, set()) for pid in fresh)) - found
        found |= fresh
    return found


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
