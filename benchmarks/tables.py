"""The default command on raw tables, beside scikit-learn's models of all clients together and of every client alone.

    pip install scikit-learn
    python benchmarks/tables.py [--kinds classes quantities] [--clients 20 60 300] [--sharing 0.7] [--seeds 1 2 3 4 5]

Tables are generated: clients of 20 to 200 rows, twelve numbers of scales from 1e-3 to 1e6, three categories, a date, a
tenth of all values missing. Of what makes the target, a client shares that share with the others; with --sharing 0 they
have nothing in common. `headstart run fedavg --data FILE --client site --target y` gets no other option.

The reference is the better of a global and a per-client logistic or ridge regression of scikit-learn, on standardized
numbers and one-hot categories, with the one of three strengths that is best on the test rows themselves. Printed are a
row per table, with what the run says of federating, and medians.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import argparse
import csv
import datetime
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge

import headstart as hs

NUMBERS, CLASSES, MISSING = 12, 3, 0.1
LABELS = (("a", "b", "c", "d"), ("red", "green"), ("x", "y", "z", "w", "v"))
STRENGTHS = (0.1, 1.0, 10.0)
# Of classes a point less than the reference is as good, of quantities 5 % more squared error.
POINT, FACTOR = 0.01, 1.05


@dataclass(frozen=True)
class Row:
    """What came of one table: the mean over test clients of accuracy or squared error, and what the run says."""

    initial: float
    personalized: float
    together: float
    alone: float
    seconds: float
    federating: str


def write_table(path: Path, clients: int, seed: int, kind: str, sharing: float) -> None:
    g = np.random.default_rng([seed, clients, 7])
    scales = 10.0 ** g.uniform(-3, 6, NUMBERS)
    offsets = g.normal(0, 3, NUMBERS) * scales
    width, outputs = NUMBERS + sum(map(len, LABELS)), CLASSES if kind == "classes" else 1
    shared = g.normal(0, 1, (width, outputs)) * (g.random((width, 1)) < 0.6)
    with path.open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["site", *(f"n{i}" for i in range(NUMBERS)), *(f"c{i}" for i in range(len(LABELS))), "day", "y"])
        for client in range(clients):
            own = g.normal(0, 1, shared.shape)
            weights = sharing * shared + (1 - sharing) * own
            bias = g.normal(0, 0.7, outputs) * (1.3 - sharing)
            z = g.normal(0, 1, (int(g.integers(20, 201)), NUMBERS)) + g.normal(0, 0.5, NUMBERS)
            codes = [g.integers(0, len(labels), len(z)) for labels in LABELS]
            x = np.concatenate([z, *(np.eye(len(labels))[c] for labels, c in zip(LABELS, codes, strict=True))], axis=1)
            output = x @ weights / np.sqrt(3) + bias
            if kind == "classes":
                chosen = (1.3 * output + g.gumbel(0, 1, output.shape)).argmax(axis=1)
                targets = [f"class {i}" for i in chosen]
            else:
                targets = [f"{v:.3f}" for v in 1000 + 250 * (output[:, 0] + g.normal(0, 0.6, len(z)))]
            for row, target in enumerate(targets):
                cells = [f"{value:.6g}" for value in z[row] * scales + offsets]
                cells += [labels[c[row]] for labels, c in zip(LABELS, codes, strict=True)]
                cells = ["" if g.random() < MISSING else cell for cell in cells]
                day = datetime.date(2021, 1, 1) + datetime.timedelta(days=int(g.integers(700)))
                lines.writerow([f"site{client:03d}", *cells, day, target])


def measured(folder: Path, kind: str) -> Row:
    path, out = folder / "table.csv", folder / "run"
    command = [sys.executable, "-m", "headstart", "run", "fedavg", "--data", str(path), "--client", "site"]
    began = time.perf_counter()
    done = subprocess.run([*command, "--target", "y", "--out", str(out)], check=True, capture_output=True, text=True)
    seconds = time.perf_counter() - began
    run = hs.open_run(out)
    ours = run.summary("test")[run.metric.name]
    together, alone = references(run, hs.load(path, client="site", target="y"), kind)
    said = next((line for line in done.stdout.splitlines() if line.startswith("Federating")), "")
    said = said.partition(":")[0]
    return Row(ours["initial"]["mean"], ours["personalized"]["mean"], together, alone, seconds, said)


def references(run: hs.Run, federation: hs.Federation, kind: str) -> tuple[float, float]:
    """The best strength's mean over test clients: of a model of all training clients, and of one per client."""
    assert run.members is not None
    index = {client: number for number, client in enumerate(federation.ids)}
    train, test = ([index[client] for client in run.members[group]] for group in ("train", "test"))
    x, y = federation.fetch(np.arange(len(federation)))
    ends = np.cumsum(federation.sizes.sum(axis=1))
    begins = ends - federation.sizes.sum(axis=1)
    pooled = np.concatenate([np.arange(begins[client], ends[client]) for client in train])
    x = _features(x, federation.metadata["columns"], pooled)
    middles = begins + federation.sizes[:, 0]
    parts = [(slice(begins[i], middles[i]), slice(middles[i], ends[i])) for i in test if middles[i] < ends[i]]
    together, alone = [], []
    for strength in STRENGTHS:
        model = _fitted(kind, strength, x[pooled], y[pooled])
        together.append(np.mean([_value(kind, model, x[query], y[query]) for _, query in parts]))
        each = [_value(kind, _fitted(kind, strength, x[own], y[own]), x[query], y[query]) for own, query in parts]
        alone.append(np.mean(each))
    best = max if kind == "classes" else min
    return float(best(together)), float(best(alone))


def _features(x: np.ndarray, columns: Sequence[dict[str, Any]], training: np.ndarray) -> np.ndarray:
    parts = []
    for values, column in zip(x.T, columns, strict=True):
        if column["kind"] == "category":
            parts.append((values[:, None] == np.arange(len(column["labels"]))).astype(float))
            continue
        mean, deviation = np.nanmean(values[training]), np.nanstd(values[training])
        parts.append(np.where(np.isnan(values), 0, (values - mean) / deviation)[:, None])
    return np.concatenate(parts, axis=1)


def _fitted(kind: str, strength: float, x: np.ndarray, y: np.ndarray) -> Any:
    """A model; of a client with one class alone, that class."""
    if kind == "quantities":
        return Ridge(alpha=1 / strength).fit(x, y)
    if len(np.unique(y)) == 1:
        return y[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return LogisticRegression(C=strength, max_iter=2000).fit(x, y)


def _value(kind: str, model: Any, x: np.ndarray, y: np.ndarray) -> float:
    predicted = model.predict(x) if hasattr(model, "predict") else np.full(len(y), model)
    return float((predicted == y).mean() if kind == "classes" else ((predicted - y) ** 2).mean())


def as_good(kind: str, ours: float, reference: float) -> bool:
    return ours >= reference - POINT if kind == "classes" else ours <= FACTOR * reference


def report(kind: str, clients: int, name: str, row: Row) -> None:
    reference = (max if kind == "classes" else min)(row.together, row.alone)
    verdict = "as good" if as_good(kind, row.personalized, reference) else "short"
    print(
        f"{kind}, {clients} clients, {name}: initial {row.initial:.4g}, personalized {row.personalized:.4g};"
        f" scikit-learn together {row.together:.4g}, alone {row.alone:.4g}: {verdict}; {row.seconds:.0f} s."
        f" {row.federating}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", default=["classes", "quantities"], choices=["classes", "quantities"])
    parser.add_argument("--clients", nargs="+", type=int, default=[20, 60, 300])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3, 4, 5])
    parser.add_argument("--sharing", type=float, default=0.7)
    given = parser.parse_args()
    for kind in given.kinds:
        for clients in given.clients:
            rows = []
            for seed in given.seeds:
                with tempfile.TemporaryDirectory() as folder:
                    write_table(Path(folder) / "table.csv", clients, seed, kind, given.sharing)
                    rows.append(measured(Path(folder), kind))
                report(kind, clients, f"table {seed}", rows[-1])
            best = max if kind == "classes" else min
            ours, reference = median(r.personalized for r in rows), median(best(r.together, r.alone) for r in rows)
            verdict = "as good" if as_good(kind, ours, reference) else "short"
            print(f"{kind}, {clients} clients, medians: personalized {ours:.4g}, reference {reference:.4g}: {verdict}")


if __name__ == "__main__":
    main()
