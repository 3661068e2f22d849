"""Run folders as `headstart run` writes them, with invented numbers: for the tests of reports, figures and tables."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from headstart.data.federation import Federation, from_arrays
from headstart.data.readers.text import passage, snippets
from headstart.experiment.experiment import Data, Experiment, ModelSpec, Stage
from headstart.experiment.serialization import to_json
from headstart.files import write_bytes, write_json
from headstart.learning.optimizers import Optimizer
from headstart.learning.personalization import Curves, Personalization, choose_epochs
from headstart.learning.tasks import Classification, NextCharacter, Regression
from headstart.methods.paper import FedAvg, Reptile
from headstart.runs.directory import curve_arrays, environment, write_arrays, write_samples
from headstart.statistics.clients import summarize

EPOCHS = 5
ROUNDS = (60, 40)


def experiment(name: str = "personalized_fedavg", kind: str = "image", **fields: Any) -> Experiment:
    """FedAvg, then Reptile, on data of a kind ("image", "text", "features")."""
    task = {"image": Classification(), "text": NextCharacter(), "features": Regression()}[kind]
    model = {"image": "cnn", "text": "char_lstm", "features": "linear"}[kind]
    stages = (
        Stage(
            "FedAvg",
            FedAvg(epochs=2, learning_rate=0.02, batch_size=20),
            Optimizer("sgd", 1.0, {"momentum": 0.9}),
            ROUNDS[0],
        ),
        Stage("Reptile", Reptile(steps=10, learning_rate=0.02, batch_size=20), Optimizer("adam", 1e-3), ROUNDS[1]),
    )
    defaults = {"data": Data("glyphs", {"writers": 200}), "personalization": Personalization(epochs=EPOCHS)}
    return Experiment(name, **{"stages": stages, "model": ModelSpec(model), "task": task} | defaults | fields)


def federation(kind: str, clients: int, generator: np.random.Generator) -> Federation:
    """Clients with 3 to 40 test examples each."""
    sizes = np.stack([np.full(clients, 6), generator.integers(3, 41, clients)], axis=1)
    ids = [f"f{number:04d}_{number % 47:02d}" for number in range(clients)]
    rows = int(sizes.sum())
    if kind == "text":
        words = np.array(["the king ", "doth ", "not <know> ", "& weep ", "his crown\n", "for love "])
        texts = ["".join(generator.choice(words, 12)).encode() for _ in range(clients)]
        made = passage([snippets(ids, [False] * clients, texts)], source="made up", has_predefined_split=True)
        return Federation(
            "text", ids, sizes, lambda chosen: (made.x[chosen[:1]], made.y[chosen[:1]]), True, made.metadata
        )
    if kind == "features":
        return from_arrays(kind, ids, sizes, generator.normal(size=(rows, 5)), generator.normal(size=rows))
    y = generator.integers(0, 62, rows)
    strokes = np.hypot(*np.mgrid[-1:1:28j, -1:1:28j])[None, :, :, None] * (1 + y[:, None, None, None] / 62)
    x = np.where(np.abs(strokes - 0.6) < 0.12, 20, 255).astype(np.uint8)
    labels = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    return from_arrays(kind, ids, sizes, x, y, metadata={"kind": "image", "classes": 62, "labels": labels})


def curves(kind: str, sizes: np.ndarray, start: float, end: float, generator: np.random.Generator) -> Curves:
    """Results of clients of different skill, from `start` before to about `end` after personalization."""
    items = sizes[:, 1] * (70 if kind == "text" else 1)
    path = start + (end - start) * (1 - np.exp(-1.2 * np.arange(EPOCHS + 1)))
    skill = generator.normal(0, 0.07, (len(items), 1)) + generator.normal(0, 0.05, (len(items), EPOCHS + 1))
    gain = np.zeros((len(items), EPOCHS + 1))
    if kind == "features":
        error = np.exp(3 * skill) * path * generator.gamma(4, 0.25, (len(items), 1))
        sums = error * items[:, None]
        gain = sums[:, :1] - sums
        return Curves(
            {m.name: (f(sums), items) for m, f in zip(Regression().metrics, (_same, np.sqrt), strict=True)},
            gain,
            gain**2,
        )
    right = np.round(np.clip(path + skill, 0.02, 0.99) * items[:, None])
    gain = right - right[:, :1]
    metrics = {"accuracy": (right, items), "loss": (2.5 * (items[:, None] - right), items)}
    if kind == "text":
        metrics["perplexity"] = metrics["loss"]
    return Curves(metrics, gain, np.abs(gain) + 0.06 * items[:, None])


def _same(sums: np.ndarray) -> np.ndarray:
    return sums


def write_run(
    out: Path,
    *,
    of: Experiment | None = None,
    kind: str = "image",
    clients: int = 40,
    seeds: int = 1,
    lift: float = 0.1,
    stages: int = 2,
    until: int | None = None,
    seed: int = 0,
) -> Path:
    """A run folder.

    lift: what personalization adds to accuracy. stages: how many are finished. until: the last round of the last seed.
    """
    of = of or experiment(kind=kind)
    generator = np.random.default_rng(seed)
    validation, test = (federation(kind, n, generator) for n in (12, clients))
    write_json(out / "experiment.json", to_json(of))
    write_json(out / "environment.json", environment())
    write_samples(out, test, np.arange(len(test)))
    for number in range(seeds):
        last = until if until is not None and number == seeds - 1 else sum(ROUNDS)
        folder = out / f"seed-{number}"
        write_bytes(folder / "metrics.jsonl", _log(kind, of, number, last, lift, generator))
        for stage in range(min(stages, sum(last >= end for end in np.cumsum(ROUNDS)))):
            _write_stage(folder, kind, of, stage, {"validation": validation, "test": test}, lift, generator)
    return out


def level(kind: str, number: int, lift: float) -> tuple[float, float]:
    """Initial and personalized level of a kind after a number of rounds."""
    progress = 1 - np.exp(-number / 25)
    if kind == "features":
        return 4 - 2 * progress, 4 - 2 * progress - 10 * lift * progress
    initial = 0.02 + (0.5 if kind == "text" else 0.68) * progress
    return initial, initial + lift * (0.3 + 0.7 * progress)


def _log(kind: str, of: Experiment, seed: int, last: int, lift: float, generator: np.random.Generator) -> bytes:
    assert of.task is not None
    names, records = [metric.name for metric in of.task.metrics], []
    for number in range(last + 1):
        stage = of.stages[0 if number <= ROUNDS[0] else 1].name
        head = {"round": number, "stage": stage, "seed": seed}
        if number:
            training = {name: 0.5 for name in names}
            more = {"training": training, "clients": 10, "dropped": 0, "seconds": 0.4}
            records.append({"event": "round", **head, **more})
        if number % of.evaluate_every == 0:
            initial, end = level(kind, number, lift)
            values = initial + (end - initial) * (1 - np.exp(-1.2 * np.arange(EPOCHS + 1))) + generator.normal(0, 0.004)
            records.append(
                {"event": "evaluation", **head, "validation": {name: values.tolist() for name in names}, "clients": 12}
            )
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def _write_stage(
    folder: Path,
    kind: str,
    of: Experiment,
    stage: int,
    groups: Mapping[str, Federation],
    lift: float,
    generator: np.random.Generator,
) -> None:
    assert of.task is not None
    number = int(np.cumsum(ROUNDS)[stage])
    report: dict[str, Any] = {"stage": of.stages[stage].name, "round": number, "seed": int(folder.name[5:])}
    arrays, epochs = {}, EPOCHS
    for group, clients in groups.items():
        result = curves(kind, clients.sizes, *level(kind, number, lift), generator)
        epochs = choose_epochs(result, of.task) if group == "validation" else epochs
        arrays |= curve_arrays(group, clients, result)
        report[group] = summarize(result, of.task, epochs=epochs)
    write_arrays(folder / f"stage-{stage}.npz", arrays)
    write_json(folder / f"stage-{stage}.json", report)
