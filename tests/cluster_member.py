"""A process of a cluster, or one alone with many devices, started by test_cluster.py: results of every update, and the
clients that the process reads.

python cluster_member.py HOST:PORT PROCESSES PROCESS_ID OUT [UPDATE...]
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import optax

from headstart.training import cluster

if __name__ == "__main__":
    address, processes, process_id, out = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    if processes > 1:
        cluster.join(cluster.Membership(address, processes, process_id))

import tiny
from headstart import FOMAML, MAML, Classification, FedAvg, FedSGD, Optimizer, Parallel, Reptile, Stage
from headstart.data.device_data import on_device
from headstart.data.federation import Federation
from headstart.devices import all_devices, replicated
from headstart.learning.personalization import Personalization, personalizer
from headstart.learning.rounds import federated, run_rounds
from headstart.training.sampling import cohorts

UPDATES = {
    "fedsgd": FedSGD(),
    "fedavg": FedAvg(2, 0.1, 3),
    "reptile": Reptile(4, 0.1, 3),
    "fomaml": FOMAML(2, 0.1, 3),
    "maml": MAML(2, 0.1, 3),
}
SIZES = ((7, 3), (1, 2), (12, 5), (4, 4), (5, 2), (9, 1), (3, 3))
ROUNDS = 3


def watched(federation: Federation, read: list[int]) -> Federation:
    """The federation, with a list of the clients whose rows are fetched."""

    def fetch(clients):
        read.extend(map(int, clients))
        return federation.fetch(clients)

    return replace(federation, fetch=fetch)


def trained(update, read: list[int], devices: int | None = 1) -> np.ndarray:
    """The parameters after some rounds of an update on cohorts of five clients, momentum on the server."""
    federation, parallel = watched(tiny.federation(SIZES), read), Parallel(mesh=all_devices(devices))
    algorithm = federated(Classification(), tiny.SOFTMAX, update, optax.sgd(1.0, momentum=0.9), parallel=parallel)
    stage = Stage("stage", update, Optimizer("sgd", 1.0), ROUNDS, 5)
    gather = on_device(federation, mesh=parallel.mesh)
    everyone = np.arange(len(SIZES))
    cohort = cohorts(stage, everyone, gather, seed=0, first_round=1, parallel=parallel)(1, ROUNDS, ROUNDS).cohort
    key = jax.random.key(3, impl="threefry2x32")
    state, _ = run_rounds(algorithm)(replicated(algorithm.init(tiny.theta()), parallel.mesh), cohort, key, 1, ROUNDS)
    return np.asarray(state.params["theta"])


def personalized(devices: int | None = 1) -> np.ndarray:
    """The accuracies of all clients along personalization, and how far their losses moved."""
    parallel, recipe = Parallel(mesh=all_devices(devices)), Personalization(Optimizer("sgd", 0.1), 3, 2)
    personalize = personalizer(Classification(), tiny.SOFTMAX, recipe, parallel=parallel)
    gather = on_device(tiny.federation(SIZES), mesh=parallel.mesh)
    key = jax.random.key(4, impl="threefry2x32")
    curves = personalize(tiny.theta(), np.arange(len(SIZES)), gather, key)
    return np.concatenate([curves.metrics["accuracy"][0], curves.gain], axis=1)


def main() -> None:
    """Write which clients this process has read, and its results, which are the same in all."""
    read: dict[str, list[int]] = {name: [] for name in sys.argv[5:]}
    results = {name: trained(UPDATES[name], read[name], None) for name in read}
    np.savez(out / f"results-{process_id}.npz", personalized=personalized(None), **results)
    (out / f"read-{process_id}.json").write_text(json.dumps(read))


if __name__ == "__main__":
    main()
