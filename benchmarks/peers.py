"""headstart beside pfl, FedJAX, Flower's simulation, BlazeFL and a plain loop in PyTorch: the same work, in turn.

    python benchmarks/peers.py [--workloads cnn cnn_lean lstm logistic mlp] [--cohorts 5 20 100] [--peers torch pfl …]
    python benchmarks/peers.py --quick

Every peer gets an environment of its own, made on first use. All train the same model from the same parameters with
federated averaging, on the same clients in the same rounds: one epoch of SGD in batches of 20 (lstm: 10), and a mean
weighted by examples. Sizes of clients are like FEMNIST's, 104 examples on average (lstm: 16 snippets of 80 characters).
The plain loop comes twice: `torch` is one process, of all threads or of one, whichever is faster; `torch_processes` is
one process of one thread for each core. BlazeFL comes twice as well: `blazefl` is its process mode, `blazefl_threads`
its thread mode, on a free-threaded Python 3.14 where there is one; elsewhere the threads share the global lock, which
PyTorch releases while it computes. Both are left out where Python is older than 3.12 and no newer one is found.

First everybody trains, untimed, which warms up what is compiled. In the first cohort of each workload that lasts
until there is something to see, and everybody must reach about the same accuracy; who learns less has failed, and the
exit status is 1. Then the contestants train in turn, each for some whole rounds that last about --seconds, which is
repeated. Data lie in memory, nothing is evaluated meanwhile, and who waits does not compute. Printed are medians over
the repetitions; a ratio is headstart's examples per second divided by the contestant's in the same repetition, its
median and range. Memory is the peaks of all processes of a contestant, summed; pages that they share count once for
each.

Of PyTorch the registry has, for Linux on x86-64, only a build with CUDA's libraries, which take each process some
300 MB more than one without.

Without options, that takes about 80 minutes on two cores, of which cohorts of 100 take some 20 for cnn and 20 for lstm;
the environments take 22 GB, most of it PyTorch's, once for each. --quick takes about two minutes: mlp and cnn, cohorts
of 20, and the two loops in PyTorch.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from contestants import federations, workload
from contestants.environments import PEERS, EnvironmentFailedError, NoPythonError, contents, interpreter
from contestants.match import OURS, TOLERANCE, Match, Row, log
from contestants.table import table

_COHORTS = (5, 20, 100)
_QUICK = {
    "workloads": ["mlp", "cnn"],
    "cohorts": [20],
    "peers": ["torch", "torch_processes"],
    "repetitions": 3,
    "seconds": 0.5,
}


def main() -> None:
    """Measure what is asked for, and print a table; exit with status 1 if a contestant has failed."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that contestants end too
    given = _given()
    (pythons, absent), rows = _pythons(given), []
    settings = _settings(given, pythons) | absent
    for name in given.workloads:
        examples = federations.examples_of(name)
        for number, cohort in enumerate(given.cohorts):
            log(f"{name}, cohorts of {cohort}")
            made = federations.workload_of(name, examples, cohort, given.threads)
            rows += _rows(made, pythons, given, check=number == 0)
            if given.json:
                given.json.write_text(json.dumps({"settings": settings, "rows": rows}, indent=1))
    print(*(f"{name}: {value}" for name, value in settings.items()), "", table(rows), sep="\n")
    sys.exit(any(row.get("failed") or row["complaint"] for row in rows))


def _rows(
    made: workload.Workload, pythons: dict[str, str | None], given: argparse.Namespace, *, check: bool
) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "workload.npz"
        workload.write(path, made)
        match = Match(path, made.settings, pythons, given.seconds, given.repetitions)
        try:
            return match.rows(check=check)
        finally:
            match.close()


def _settings(given: argparse.Namespace, pythons: dict[str, str | None]) -> dict[str, Any]:
    """What the numbers depend on."""
    environments = dict.fromkeys(PEERS[name].environment for name, python in pythons.items() if python)
    packages = {name: contents(name, given.environments) for name in environments if name}
    ours = [f"{name}=={version(name)}" for name in ("jax", "jaxlib", "flax", "optax", "numpy")]
    return {
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "Python": platform.python_version(),
        "threads": given.threads,
        "repetitions": f"{given.repetitions} of about {given.seconds} s",
        "clients": f"{federations.CLIENTS}, SGD with rates {federations.RATES}",
        "tolerance": f"{TOLERANCE} below the median accuracy",
        OURS: " ".join(ours),
        **packages,
    }


def _pythons(given: argparse.Namespace) -> tuple[dict[str, str | None], dict[str, str]]:
    """The interpreter of each contestant, None where its environment failed; and who is left out for which reason."""
    found: dict[str, str | None] = {}
    absent: dict[str, str] = {}
    for name in dict.fromkeys((OURS, *given.peers)):
        try:
            found[name] = interpreter(name, given.environments)
        except NoPythonError as error:
            absent[name] = f"left out: {error}"
            log(f"{name}: {absent[name]}")
        except EnvironmentFailedError as error:
            log(f"{name} failed: {error}")
            found[name] = None
    return found, absent


def _given() -> argparse.Namespace:
    parser, quick = _parser(), argparse.ArgumentParser(add_help=False)
    quick.add_argument("--quick", action="store_true")
    if quick.parse_known_args()[0].quick:
        parser.set_defaults(**_QUICK)
    return parser.parse_args()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    folder = Path.home() / ".cache" / "headstart" / "peers"
    default = [name for name in federations.WORKLOADS if name != "cnn_dropout"]
    add = parser.add_argument
    add("--quick", action="store_true", help="other defaults, for a quick look")
    add("--workloads", nargs="+", choices=federations.WORKLOADS, default=default, metavar="NAME", help="of %(choices)s")
    add("--cohorts", nargs="+", type=int, default=_COHORTS, metavar="N", help="clients per round (5 20 100)")
    add("--peers", nargs="+", choices=list(PEERS), default=list(PEERS), metavar="NAME", help="of %(choices)s")
    add("--repetitions", type=int, default=5, help="how often everybody trains (%(default)s)")
    add("--seconds", type=float, default=1.5, help="about how long each time, at least one round (%(default)s)")
    add("--threads", type=int, default=cores, help="cores that a contestant may use (all)")
    add(
        "--environments",
        type=Path,
        default=folder,
        metavar="DIR",
        help="where the peers' environments are (.cache/headstart/peers in the home folder)",
    )
    add("--json", type=Path, metavar="FILE", help="write everything measured there too")
    return parser


if __name__ == "__main__":
    main()
