"""The steps of small models as a bare loop in NumPy: what a machine's own products allow, beside `headstart bench`.

    python benchmarks/bare_steps.py [--seconds 5]

A process of one thread on each core takes steps of SGD in batches of 20 images of 784 numbers, stored as uint8: it
gathers a batch, multiplies forward and backward, and moves the parameters. Nothing else is done: no order is drawn,
no metric is kept, no client begins or ends. Printed are examples/s of all processes, as a share of the float32
products of large matrices that the same processes compute, and the same when batches lie ready as float32.
"""

import argparse
import multiprocessing
import os
import time

import numpy as np

BATCH, INPUTS, HIDDEN, CLASSES, ROWS = 20, 784, 200, 62, 4000
LAYERS = {"logistic": ((INPUTS, CLASSES),), "mlp": ((INPUTS, HIDDEN), (HIDDEN, CLASSES))}


def operations(name: str) -> int:
    """Of an example: three products for each layer, two for the first, whose inputs need no gradient."""
    return sum(2 * a * b * (2 if number == 0 else 3) for number, (a, b) in enumerate(LAYERS[name]))


def step(x: np.ndarray, labels: np.ndarray, matrices: list[np.ndarray], learning_rate: np.float32) -> None:
    """One step of SGD on the mean of the cross-entropies."""
    values = [x]
    for matrix in matrices[:-1]:
        values.append(np.maximum(values[-1] @ matrix, 0))
    logits = values[-1] @ matrices[-1]
    gradient = np.exp(logits - logits.max(axis=1, keepdims=True))
    gradient /= gradient.sum(axis=1, keepdims=True)
    gradient[np.arange(len(labels)), labels] -= 1
    gradient /= np.float32(len(labels))
    for number in reversed(range(len(matrices))):
        of_matrix = values[number].T @ gradient
        if number:
            gradient = (gradient @ matrices[number].T) * (values[number] > 0)
        of_matrix *= learning_rate
        matrices[number] -= of_matrix


def train(name: str, gathers: bool, seconds: float) -> float:
    """Examples per second of this process."""
    draws = np.random.default_rng(0)
    images = draws.integers(0, 256, (ROWS, INPUTS), dtype=np.uint8)
    labels = draws.integers(0, CLASSES, ROWS)
    ready = images[:BATCH].astype(np.float32) / np.float32(255)
    matrices = [draws.normal(0, 0.05, shape).astype(np.float32) for shape in LAYERS[name]]
    order, done, began = draws.permutation(ROWS), 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        rows = order[done % ROWS : done % ROWS + BATCH]
        x = images[rows].astype(np.float32) / np.float32(255) if gathers else ready
        step(x, labels[rows], matrices, np.float32(0.01))
        done += BATCH
    return done / (time.perf_counter() - began)


def multiply(seconds: float) -> float:
    """Operations per second of this process in products of large matrices."""
    left = np.ones((1024, 1024), np.float32)
    done, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        np.matmul(left, left)
        done += 2 * 1024**3
    return done / (time.perf_counter() - began)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="how long each is measured")
    seconds = parser.parse_args().seconds
    # Read when a process begins and loads NumPy.
    os.environ |= dict.fromkeys(("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"), "1")
    cores = len(os.sched_getaffinity(0))
    with multiprocessing.get_context("spawn").Pool(cores) as pool:
        products = sum(pool.map(multiply, [seconds] * cores, chunksize=1))
        print(f"{cores} processes of one thread: large products {products / 1e9:.1f} GFLOP/s")
        for name in LAYERS:
            for gathers in (True, False):
                speed = sum(pool.starmap(train, [(name, gathers, seconds)] * cores, chunksize=1))
                share = speed * operations(name) / products
                print(f"{name:9} {'gathering' if gathers else 'ready    '} {speed:9,.0f} examples/s {share:6.2f}")


if __name__ == "__main__":
    main()
