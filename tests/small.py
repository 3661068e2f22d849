"""A federation file and an experiment on it, small enough to run in a second."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from headstart import Data, Experiment, FedAvg, ModelSpec, Optimizer, Personalization, Reptile, Run, Stage, open_run
from headstart.training.compilation_cache import ProgramCache
from headstart.training.run import run_into
from headstart.training.seed_run import Options

EVERY_ROUND = Options(checkpoint_seconds=0)
PROGRAMS = ProgramCache()


def federation_file(path: Path, *, clients: int = 12, seed: int = 0) -> Path:
    """An .npz of clients with 4 features and 3 classes; each client shifts its classes in its own way."""
    generator = np.random.default_rng(seed)
    sizes = generator.integers(6, 20, clients)
    y = generator.integers(0, 3, sizes.sum())
    client = np.repeat([f"client-{i:02d}" for i in range(clients)], sizes)
    shift = np.repeat(generator.normal(0, 0.5, (clients, 4)), sizes, axis=0)
    x = (np.eye(4)[y] * 2 + shift + generator.normal(0, 0.5, (len(y), 4))).astype(np.float32)
    np.savez(path, client=client, x=x, y=y)
    return path


def experiment(data: Path, *, rounds: tuple[int, int] = (6, 4)) -> Experiment:
    """Personalized FedAvg with a small network."""
    update = {"learning_rate": 0.1, "batch_size": 4}
    return Experiment(
        name="small",
        data=Data(str(data), {"raw": True}, train=0.6, validation=0.2),
        model=ModelSpec("mlp", {"widths": (8,)}),
        stages=(
            Stage("FedAvg", FedAvg(2, **update), Optimizer("sgd", 1.0, {"momentum": 0.9}), rounds[0], 3),
            Stage("Reptile", Reptile(3, **update), Optimizer("adam", 1e-2), rounds[1], 3, "uniform"),
        ),
        personalization=Personalization(Optimizer("sgd", 0.1), 4, 2),
        evaluate_every=2,
        evaluation_clients=2,
    )


def first_stage_only(whole: Experiment) -> Experiment:
    """Its first stage."""
    return replace(whole, stages=whole.stages[:1])


def run(plan: Experiment, out: Path, *, options: Options = EVERY_ROUND, **more: Any) -> Run:
    """`headstart.run`, saved every round, with what earlier runs of this process have compiled: most of its time."""
    run_into(plan, out, options=options, cache=PROGRAMS, **more)
    return open_run(out)
