"""A federation of four devices on this machine: python examples/flower/run.py

Starts a SuperLink and four SuperNodes as processes on loopback, with TLS and a key for every node; gives each the
digits of five writers of its own in a file of its own; trains personalized FedAvg for a few rounds; ends them all.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from loopback import Loopback

from headstart import Data, Experiment, FedAvg, ModelSpec, Optimizer, Personalization, Reptile, Stage, UserError
from headstart.data.federation import Federation
from headstart.data.load import load
from headstart.experiment.serialization import to_json
from headstart.flower import print_record
from headstart.runs.contents import read_json
from headstart.runs.log import read_records

HERE = Path(__file__).parent
NODES = ("north", "east", "south", "west")
WRITERS = 5
CLIENT = {"learning_rate": 0.03, "batch_size": 10}
EXPERIMENT = Experiment(
    name="devices",
    data=Data("devices", {"classes": 10}, train=0.6, validation=0.2),
    model=ModelSpec("mlp", {"widths": [200]}),
    stages=(
        Stage("FedAvg", FedAvg(epochs=20, **CLIENT), Optimizer("sgd", 1.0), 3, 12),
        Stage("Reptile", Reptile(steps=20, **CLIENT), Optimizer("adam", 1e-3), 1, 12, "uniform"),
    ),
    personalization=Personalization(Optimizer("sgd", 0.02), batch_size=10, epochs=5),
    evaluate_every=0,
    evaluation_clients=0,
)


def write_data(folder: Path) -> None:
    """Write a file for every node: the digits of its own writers, and of nobody else."""
    federation: Federation = load("glyphs", writers=WRITERS * len(NODES), examples=400)
    for number, name in enumerate(NODES):
        mine = np.arange(number * WRITERS, (number + 1) * WRITERS)
        x, y = federation.fetch(mine)
        client = np.repeat([federation.ids[int(i)] for i in mine], federation.sizes[mine].sum(axis=1))
        digits = y < 10
        np.savez(folder / f"{name}.npz", client=client[digits], x=x[digits], y=y[digits])


def follow(link: Loopback, run: int, out: Path, *, seconds: float) -> None:
    """Print the run's records as they are written, until its last stage is finished."""
    log, last = out / "seed-0" / "metrics.jsonl", out / "seed-0" / f"stage-{len(EXPERIMENT.stages) - 1}.json"
    until, next_check, printed = time.monotonic() + seconds, time.monotonic() + 20, 0
    while not last.exists():
        records = read_records(log)
        for record in records[printed:]:
            print_record(record)
        printed = len(records)
        if time.monotonic() > next_check:
            status, next_check = link.status(run), time.monotonic() + 20
            if status.startswith("finished") and not last.exists():
                raise UserError(f"the run is {status}; {link.log('link')} says more")
        if time.monotonic() > until:
            raise UserError(f"the run is not finished after {seconds:g} s; see the logs in {link.folder}")
        time.sleep(0.2)
    for record in read_records(log)[printed:]:
        print_record(record)


def main() -> None:
    """Start the federation, train, print the gain from personalization, and end all processes."""
    parser = argparse.ArgumentParser(description="A federation of four devices on this machine")
    parser.add_argument("--out", type=Path, default=Path("runs/devices"), help="the run folder")
    parser.add_argument("--seconds", type=float, default=900.0, help="when to give up")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="headstart-") as name:
        federate(Path(name), options.out.resolve(), options.seconds)
    report = read_json(options.out / "seed-0" / f"stage-{len(EXPERIMENT.stages) - 1}.json")["test"]
    accuracy = {when: report["accuracy"][when]["mean"] for when in ("initial", "personalized")}
    print(f"test clients: accuracy {accuracy['initial']:.3f} initial, {accuracy['personalized']:.3f} personalized")
    print(f"For figures and a page: headstart report {options.out}")


def federate(folder: Path, out: Path, seconds: float) -> None:
    """Run the experiment on four nodes, each in processes of its own."""
    write_data(folder)
    (folder / "experiment.json").write_text(json.dumps(to_json(EXPERIMENT)))
    with Loopback(folder / "federation", environment={"JAX_COMPILATION_CACHE_DIR": str(folder / "programs")}) as link:
        link.start_link()
        print(f"SuperLink on {link.address}", flush=True)
        for name in NODES:
            link.register(name)
            # How a node's file is read is for the node to say; the run's experiment may repeat it.
            link.start_node(name, data=str(folder / f"{name}.npz"), **{"data-options": "classes=10"})
            print(f"SuperNode {name} with {WRITERS} writers", flush=True)
        config = {"experiment": str(folder / "experiment.json"), "out": str(out)}
        run = link.submit(HERE, **config, nodes=len(NODES), deadline=120.0, patience=240.0)
        print(f"run {run}: {len(NODES)} nodes, {sum(stage.rounds for stage in EXPERIMENT.stages)} rounds", flush=True)
        follow(link, run, out, seconds=seconds)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"headstart: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
