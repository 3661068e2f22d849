"""headstart itself."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from headstart.data.device_data import Gather, on_device
from headstart.data.federation import Federation, from_arrays
from headstart.devices import all_devices, cores_as_devices, replicated
from headstart.learning.parallel import Parallel
from headstart.learning.rounds import Algorithm, Cohort, State, federated, run_rounds
from headstart.learning.tasks import Classification, NextCharacter, Task
from headstart.methods.paper import FedAvg
from headstart.training.loop import CALL_ROUNDS
from headstart.training.sampling import assign_rounds

from .federations import model_of
from .protocol import serve
from .workload import Workload, as_input

_TEST_BATCH = 200


class Headstart:
    """FedAvg under `sgd(1.0)`, which is plain averaging."""

    def __init__(self, given: Workload) -> None:
        settings = given.settings
        task: Task = NextCharacter() if settings.model == "lstm" else Classification()
        self.given, self.model = given, model_of(settings.model, given.x)
        update = FedAvg(1, settings.learning_rate, settings.batch_size)
        parallel = Parallel(mesh=all_devices())
        algorithm = federated(task, self.model, update, optax.sgd(1.0), parallel=parallel)
        self.gather = on_device(_federation(given), mesh=parallel.mesh)
        initial = algorithm.init(jax.tree.map(jnp.asarray, nested(given.parameters)))
        self.state = replicated(initial, parallel.mesh)  # where rounds leave it: the program compiles once
        self.train = trainer(algorithm, self.gather, given)

    def run(self, first: int, count: int) -> None:
        """Train `count` rounds."""
        self.state = self.train(self.state, first, count)

    def accuracy(self) -> float:
        """The share of right answers on the test rows."""
        predict = jax.jit(lambda params, x: self.model.apply(params, x)[0].argmax(-1))
        # As PyTorch's contestants do: all rows at once would be what takes most memory.
        batches = np.split(self.given.test_x, range(_TEST_BATCH, len(self.given.test_x), _TEST_BATCH))
        found = np.concatenate([np.asarray(predict(self.state.params, as_input(x))) for x in batches])
        return float((found == self.given.test_y).mean())


def trainer(algorithm: Algorithm, gather: Gather, given: Workload) -> Callable[[State, int, int], State]:
    """The function that trains some rounds: `(state, first, count) -> state`."""
    program, key, parallel = run_rounds(algorithm), jax.random.key(0), Parallel(mesh=gather.mesh)

    def train(state: State, first: int, count: int) -> State:
        for start in range(first, first + count, CALL_ROUNDS):
            numbers = range(start, min(start + CALL_ROUNDS, first + count))
            assigned = assign_rounds(map(given.cohort, numbers), given.sizes, CALL_ROUNDS, parallel)
            state, _ = program(state, Cohort(gather(assigned)), key, start, len(numbers))
        return jax.block_until_ready(state)

    return train


def nested(parameters: dict[str, np.ndarray]) -> dict:
    """The tree whose leaves have these paths."""
    tree: dict = {}
    for path, value in parameters.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return tree


def _federation(given: Workload) -> Federation:
    sizes = np.stack([given.sizes, np.zeros_like(given.sizes)], axis=1)
    return from_arrays("benchmark", [f"client{i}" for i in range(len(sizes))], sizes, given.x, given.y)


if __name__ == "__main__":
    cores_as_devices()
    serve(Headstart)
