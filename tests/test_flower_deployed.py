"""Devices for real: a SuperLink, SuperNodes with keys of their own and TLS, as processes on loopback.

One federation serves all tests of this file, in their order: equal results first, then all that can go wrong.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

pytest.importorskip("flwr")

from loopback import Loopback

import headstart
from headstart import (
    FOMAML,
    MAML,
    Cohort,
    Data,
    Experiment,
    FedAvg,
    FedSGD,
    ModelSpec,
    Optimizer,
    Personalization,
    Reptile,
    Stage,
    on_device,
)
from headstart.experiment.serialization import to_json
from headstart.experiment.setup import Prepared, prepare
from headstart.learning.rounds import State, aggregate_clients, round_key, seed_key, server_step
from headstart.runs.checkpoint import read, read_arrays
from headstart.runs.contents import read_json
from headstart.runs.directory import read_curves
from headstart.runs.log import read_records
from headstart.training.sampling import sample
from hostile import DEPLOYED, MANIFESTS, REPLIES
from patience import factor, until

NODES = ("good", "doomed", "spoiled", "slow", "late")
# The same for every node, so that they share compiled programs.
SIZES = (6, 9, 12, 15)
RATE = {"learning_rate": 0.1, "batch_size": 4}
UPDATES = (FedSGD(0.1), FedAvg(2, **RATE), Reptile(3, **RATE), FOMAML(3, **RATE), MAML(2, **RATE, query_share=0.3))
APP = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "deployed"
version = "1.0.0"
description = "headstart on devices"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "headstart"

[tool.flwr.app.components]
serverapp = "deployed:server"
clientapp = "deployed:client"

[tool.flwr.app.config]
experiment = ""
out = ""
nodes = 2
deadline = 0.0
x64 = false
"""


class Deployment:
    """A federation of processes, and what the tests need of it."""

    def __init__(self, folder: Path, link: Loopback) -> None:
        self.folder, self.link, self.started = folder, link, set()
        # A message takes as long as some imports and a little more, and this machine may have other things to do.
        began = time.monotonic()
        subprocess.run([sys.executable, "-c", "import headstart.flower"], env=link.environment("user"), check=True)
        self.deadline = max(25.0, round(12 * (time.monotonic() - began)))

    def data(self, *nodes: str) -> Path:
        """The file of one node, or one file of the clients of several."""
        if len(nodes) == 1:
            return self.folder / f"{nodes[0]}.npz"
        path = self.folder / f"{'-'.join(nodes)}.npz"
        columns = [dict(np.load(self.data(node))) for node in nodes]
        np.savez(path, **{name: np.concatenate([each[name] for each in columns]) for name in columns[0]})
        return path

    def start(self, name: str, **config: object) -> None:
        if name in self.started:
            return
        self.started.add(name)
        self.link.register(name)
        self.link.start_node(name, data=str(self.data(name)), **{"data-options": "classes=4 raw=true"}, **config)

    def submit(self, plan: Experiment, out: Path, *, nodes: int, deadline: float = 600.0, x64: bool = False) -> int:
        path = self.folder / f"{plan.name}.json"
        path.write_text(json.dumps(to_json(plan)))
        app = self.folder / "app"
        config = {"experiment": str(path), "out": str(out), "nodes": nodes, "deadline": deadline, "x64": x64}
        return self.link.submit(app, **config)

    def wait(self, run: int, done: Callable[[], object]) -> None:
        """Until this is so; a run that has ended without it is an error."""
        look = time.monotonic() + 20

        def going() -> bool:
            nonlocal look
            if time.monotonic() > look:
                said = self.link.flwr("list", "--run-id", str(run))["runs"][0]
                if said["status"].startswith("finished") and not done():
                    pytest.fail(f"{said['status']}: {said['status-details']}")
                look = time.monotonic() + 20
            return True

        until(done, going)


@pytest.fixture(scope="module")
def deployment(tmp_path_factory) -> Iterator[Deployment]:
    folder = tmp_path_factory.mktemp("deployed")
    generator = np.random.default_rng(0)
    for number, name in enumerate(NODES):
        client = np.repeat([f"client-{number}{i}" for i in range(len(SIZES))], np.roll(SIZES, number))
        y = generator.integers(0, 4, len(client))
        x = (np.eye(4, 3)[y] * 2 + generator.normal(0, 0.7, (len(y), 3))).astype(np.float32)
        np.savez(folder / f"{name}.npz", client=client, x=x, y=y)
    (folder / "app").mkdir()
    (folder / "app" / "pyproject.toml").write_text(APP)
    roots = [str(Path(headstart.__file__).parents[1]), str(Path(__file__).parent)]
    environment = {
        "PYTHONPATH": os.pathsep.join(roots),
        "JAX_NUM_CPU_DEVICES": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
    }
    with Loopback(folder / "federation", database=True, environment=environment) as link:
        link.start_link()
        deployment = Deployment(folder, link)
        deployment.start("good")
        deployment.start("doomed", fault="doomed")
        yield deployment
        started = list(link.running())
    # What could not be ended would be seen here; zombies are for their parent to bury.
    until(lambda: not any(map(alive, started)), seconds=10 * factor())


def alive(pid: int) -> bool:
    found = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True)
    return bool(found.stdout.strip()) and not found.stdout.startswith("Z")


def plan(name: str, source: Path, *stages: Stage, validation: float = 0.0, **changes: object) -> Experiment:
    return replace(
        Experiment(
            name,
            stages,
            Data(str(source), {"classes": 4, "raw": True}, train=0.6, validation=validation),
            ModelSpec("mlp", {"widths": [8]}),
            personalization=Personalization(Optimizer("sgd", 0.1), 4, 2),
            evaluation_clients=0,
            test=False,
        ),
        **changes,
    )


def distance(a, b) -> float:
    """The norm of the difference of two trees, relative to the norm of the second."""
    flat = [np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]).astype(np.float64) for tree in (a, b)]
    return float(np.linalg.norm(flat[0] - flat[1]) / np.linalg.norm(flat[1]))


def members_of(out: Path, group: str) -> dict[str, list[str]]:
    """The clients of a group, by the node that holds them."""
    members = read_json(out / "seed-0" / "members.json")[group]
    return {name: [c for c in members if c.startswith(f"client-{NODES.index(name)}")] for name in NODES}


def round_here(ready: Prepared, stage: Stage, number: int, state: State, clients: np.ndarray) -> State:
    """What a simulated round with these clients makes of a state."""
    aggregate = aggregate_clients(ready.task, ready.model, stage.update, weighting=stage.weighting)
    cohort = Cohort(on_device(ready.federation)(clients, ready.federation.training_part))
    totals, _ = jax.jit(aggregate)(state.params, cohort, round_key(seed_key(ready.experiment.seed), number))
    return server_step(stage.server.build(), state, totals)[0]


@pytest.mark.slow
def test_one_round_of_every_update_from_a_shared_state_is_the_same(deployment, tmp_path):
    server = Optimizer("sgd", 1.0, {"momentum": 0.9})
    weightings = ("examples", "uniform")
    stages = [Stage(type(u).__name__, u, server, 1, 3, weightings[i % 2]) for i, u in enumerate(UPDATES)]
    experiment = plan("updates", deployment.data("good", "doomed"), *stages)
    out = tmp_path / "devices"
    run = deployment.submit(experiment, out, nodes=2)
    deployment.wait(run, (out / "seed-0" / "stage-4.json").exists)
    ready = prepare(experiment)
    params = ready.model.init(jax.random.fold_in(seed_key(0), 0))
    for i, stage in enumerate(stages):
        before, train = params, ready.groups.train
        state = State(params, stage.server.build().init(params))
        chosen = train[sample(0, i + 1, stage.clients_per_round, len(train))]
        expected = round_here(ready, stage, i + 1, state, chosen).params
        params = read(out / "seed-0" / f"stage-{i}.safetensors", params).tree
        assert distance(params, expected) < 1e-5, stage.name
        assert distance(params, before) > 1e-4, stage.name


def test_two_stages_in_float64_are_the_same(deployment, tmp_path):
    stages = (
        Stage("FedAvg", FedAvg(2, **RATE), Optimizer("sgd", 1.0, {"momentum": 0.9}), 2, 3),
        Stage("Reptile", Reptile(3, **RATE), Optimizer("adam", 1e-2), 1, 3, "uniform"),
    )
    changes = {"model": ModelSpec("tiny:SOFTMAX"), "test": True}
    experiment = plan("two", deployment.data("good", "doomed"), *stages, validation=0.2, **changes)
    out = tmp_path / "devices"
    run = deployment.submit(experiment, out, nodes=2, x64=True)
    with jax.enable_x64(True):
        headstart.run(experiment, tmp_path / "here", allowed_modules=("tiny",))
    deployment.wait(run, (out / "seed-0" / "stage-1.json").exists)
    for stage in (0, 1):
        files = [folder / "seed-0" / f"stage-{stage}" for folder in (out, tmp_path / "here")]
        mine, theirs = (read_arrays(file.with_suffix(".safetensors"))[0] for file in files)
        assert all(array.dtype == np.float64 for array in mine.values())
        assert distance(mine, theirs) < 1e-9
        for group in ("validation", "test"):
            (ids, curves), (others, expected) = (read_curves(file.with_suffix(".npz"), group) for file in files)
            assert ids == others
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-9), curves, expected)
        assert len({read_json(file.with_suffix(".json"))["test"]["length"] for file in files}) == 1


@pytest.mark.long
def test_what_fails_is_reported_and_spoils_nothing(deployment, tmp_path):
    nodes, deadline = ("good", "doomed", "spoiled", "slow"), deployment.deadline
    deployment.start("spoiled", fault="spoiled")
    deployment.start("slow", fault="slow", seconds=deadline + 3)
    stage = Stage("step", FedSGD(0.1), Optimizer("sgd", 1.0, {"momentum": 0.9}), 4, 99)
    experiment = plan("faults", deployment.data(*NODES), stage, model=ModelSpec("logistic"))
    out, log = tmp_path / "devices", tmp_path / "devices" / "seed-0" / "metrics.jsonl"

    def rounds() -> dict[int, dict]:
        return {r["round"]: r for r in (read_records(log) if log.exists() else []) if r["event"] == "round"}

    def begun(node: str, number: int) -> Callable[[], bool]:
        return deployment.data(node).with_suffix(f".round-{number}").exists

    for path in deployment.folder.glob("*.round-*"):
        path.unlink()
    first = deployment.submit(experiment, out, nodes=len(nodes), deadline=deadline)
    deployment.wait(first, begun("doomed", 2))
    deployment.link.kill("doomed")
    deployment.start("late")
    deployment.wait(first, begun("good", 3))
    deployment.link.kill("link")
    assert sorted(rounds()) == [1, 2]
    deployment.link.start_link()
    again = deployment.submit(experiment, out, nodes=len(nodes), deadline=deadline)
    deployment.wait(again, (out / "seed-0" / "stage-0.json").exists)

    records = read_records(log)
    reasons = {(r["node"], r["round"]): r["reason"] for r in records if r["event"] == "fault"}
    assert "not finite" in reasons["spoiled", 2] and "should be float32" in reasons["spoiled", 3]
    assert reasons["slow", 2] == f"no reply within {deadline:g} s" and ("slow", 4) not in reasons
    assert reasons["doomed", 2] in (f"no reply within {deadline:g} s", "the node is gone")
    assert sorted(rounds()) == [1, 2, 3, 4]
    held = members_of(out, "train")
    members = sorted(client for clients in held.values() for client in clients)
    assert held["late"] and rounds()[1]["clients"] == sum(len(held[name]) for name in nodes)
    assert rounds()[4]["clients"] == sum(len(held[name]) for name in NODES if name != "doomed")
    lost = {(r["round"], c) for r in records if r["event"] == "fault" for c in r["clients"]}
    ready = prepare(replace(experiment, stages=(replace(stage, clients_per_round=1),)))
    indices = {name: i for i, name in enumerate(ready.federation.ids)}
    params = ready.model.init(jax.random.fold_in(seed_key(0), 0))
    state = State(params, stage.server.build().init(params))
    for number in range(1, 5):
        absent = held["late"] if number == 1 else held["doomed"] if number > 2 else []
        there = [c for c in members if (number, c) not in lost and c not in absent]
        if number == 2 and rounds()[2]["clients"] < len(there):
            there = [c for c in there if c not in held["late"]]  # it came a round later
        assert rounds()[number]["clients"] == len(there)
        state = round_here(ready, stage, number, state, np.array([indices[c] for c in there]))
    assert distance(read(out / "seed-0" / "stage-0.safetensors", state.params).tree, state.params) < 1e-5


@pytest.mark.long
def test_whatever_one_node_of_four_sends_the_others_finish(deployment, tmp_path):
    # In the place of the one that an earlier test has killed, the one that it has started.
    nodes = ("good", "late" if "late" in deployment.started else "doomed", "spoiled", "slow")
    for name in nodes[2:]:
        deployment.start(name, fault=name)
    stage = Stage("step", FedSGD(0.1), Optimizer("sgd", 1.0, {"momentum": 0.9}), len(DEPLOYED), 99)
    changes = {"model": ModelSpec("logistic"), "test": True}
    experiment = plan("hostile", deployment.data(*nodes), stage, validation=0.2, **changes)
    out = tmp_path / "devices"
    run = deployment.submit(experiment, out, nodes=len(nodes), deadline=deployment.deadline)
    log = out / "seed-0" / "metrics.jsonl"
    for number in range(1, len(DEPLOYED) + 1):  # each has the patience that other runs have for all of theirs
        deployment.wait(
            run,
            lambda number=number: f'"event": "round", "round": {number},' in (log.read_text() if log.exists() else ""),
        )
    deployment.wait(run, (out / "seed-0" / "stage-0.json").exists)

    faults = [r for r in read_records(log) if r["event"] == "fault"]
    assert {fault["node"] for fault in faults} == {"spoiled"}
    for _, reason in MANIFESTS:
        assert any(reason in fault["reason"] for fault in faults)
    held = members_of(out, "train")
    assert held["spoiled"]
    reasons = {r["round"]: r["reason"] for r in faults if r["clients"] == held["spoiled"]}
    for number, name in enumerate(DEPLOYED, 1):
        assert REPLIES[name][1] in reasons[number], name
    ready = prepare(replace(experiment, stages=(replace(stage, clients_per_round=1),)))
    indices = {name: i for i, name in enumerate(ready.federation.ids)}
    honest = np.array([indices[c] for name in nodes if name != "spoiled" for c in held[name]])
    params = ready.model.init(jax.random.fold_in(seed_key(0), 0))
    state = State(params, stage.server.build().init(params))
    for number in range(1, len(DEPLOYED) + 1):
        state = round_here(ready, stage, number, state, honest)
    assert distance(read(out / "seed-0" / "stage-0.safetensors", state.params).tree, state.params) < 1e-5
    report = read_json(out / "seed-0" / "stage-0.json")
    lost = sum(len(members_of(out, group)["spoiled"]) for group in ("validation", "test"))
    assert sum(report[group]["untested"] for group in ("validation", "test")) == lost
