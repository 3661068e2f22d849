"""A cluster beside a single process: the same rounds by two processes of one core each and by one process of both.

    python benchmarks/cluster.py [--model cnn] [--rounds 12] [--repetitions 3] [--processes 2]

Clients' sizes are like FEMNIST's, 104 examples on average, and lie in a file. Printed are examples per second, medians
over the rounds after the first call of the compiled program, and the ratio in each repetition.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import numpy as np
from contestants.federations import examples_of

WARM_ROUNDS = 3


def main() -> None:
    """Measure in alternation, and print."""
    given = _given()
    with tempfile.TemporaryDirectory() as folder:
        data = _write_data(Path(folder) / "clients.npz")
        ratios = []
        for repetition in range(given.repetitions):
            single = _rate(given, data, Path(folder) / f"single-{repetition}", processes=1)
            several = _rate(given, data, Path(folder) / f"several-{repetition}", processes=given.processes)
            ratios.append(several / single)
            print(
                f"one process: {single:,.0f} examples/s; {given.processes} processes: {several:,.0f}; ratio"
                f" {several / single:.2f}",
                flush=True,
            )
    print(f"median ratio {median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]")


def _write_data(path: Path) -> Path:
    examples = examples_of("cnn")
    client = np.repeat([f"client-{i:03d}" for i in range(len(examples.sizes))], examples.sizes)
    np.savez(path, client=client, x=examples.x, y=examples.y)
    return path


def _rate(given: argparse.Namespace, data: Path, out: Path, *, processes: int) -> float:
    """Examples per second of a run; each of its processes has an equal share of the cores."""
    cores = sorted(os.sched_getaffinity(0))
    share = len(cores) // processes
    settings = (f"stages.0.rounds={given.rounds}", "stages.0.clients_per_round=20", "evaluate_every=0")
    command = [sys.executable, "-m", "headstart", "run", "fedavg", "--data", data, "--model", given.model, "--out", out]
    command += [word for setting in settings for word in ("--set", setting)]
    command += ["--set", "data.train=0.9", "--set", "data.validation=0.05"]
    command += ["--devices", share]
    address = f"127.0.0.1:{_free_port()}"
    started = []
    for number in range(processes):
        member = ["--coordinator", address, "--processes", processes, "--process-id", number]
        words = command + (member if processes > 1 else [])
        mine = set(cores[number * share : (number + 1) * share])
        started.append(
            subprocess.Popen(
                [str(word) for word in words],
                stdout=subprocess.DEVNULL,
                preexec_fn=lambda mine=mine: os.sched_setaffinity(0, mine),
            )
        )
    for process in started:
        if process.wait():
            sys.exit(f"a run ended with status {process.returncode}")
    records = [json.loads(line) for line in (out / "seed-0" / "metrics.jsonl").read_text().splitlines()]
    rounds = [record for record in records if record["event"] == "round" and record["round"] > WARM_ROUNDS]
    return median(record["items"] / record["seconds"] for record in rounds)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def _given() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="cnn")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    main()
