"""Parallelism over clients: who works where, and that it changes nothing but the time."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import tiny
from headstart import (
    FOMAML,
    MAML,
    Centralized,
    Classification,
    Examples,
    FedAvg,
    FedSGD,
    Optimizer,
    Reptile,
    UserError,
    as_model,
)
from headstart.data.device_data import on_device
from headstart.devices import all_devices
from headstart.learning.parallel import Parallel, assign_clients
from headstart.learning.partial_batches import with_partial_batches
from headstart.learning.personalization import Personalization, personalizer
from headstart.learning.rounds import Cohort, federated, round_key, run_rounds
from headstart.training.sampling import cohorts

KEY = jax.random.key(3, impl="threefry2x32")
UPDATES = [FedSGD(), FedAvg(2, 0.1, 3), Reptile(4, 0.1, 3), FOMAML(2, 0.1, 3), MAML(2, 0.1, 3)]


@pytest.mark.parametrize("lanes", [1, 2, 3])
@pytest.mark.parametrize("devices", [1, 3])
@pytest.mark.parametrize("count", [1, 5, 12])
def test_everyone_is_assigned_once(lanes, devices, count):
    parallel, clients = Parallel(lanes, all_devices(devices)), np.arange(count) + 100
    assigned = assign_clients(clients, np.random.default_rng(count).integers(1, 90, count), parallel)
    assert sorted(assigned[assigned >= 0]) == clients.tolist()
    assert len(assigned) % devices == 0


def test_devices_get_about_as_much_to_do():
    sizes = np.random.default_rng(0).lognormal(4.5, 0.6, 30).astype(int)
    assigned = assign_clients(np.arange(30), sizes, Parallel(mesh=all_devices(3))).reshape(3, -1)
    loads = np.array([sizes[row[row >= 0]].sum() for row in assigned])
    assert loads.max() < 1.03 * loads.mean()


def test_lanes_run_clients_of_one_size_side_by_side():
    sizes = np.array([10, 90, 11, 91, 12, 92])
    lanes = assign_clients(np.arange(6), sizes, Parallel(3)).reshape(3, 2)
    assert [set(column) for column in lanes.T] == [{1, 3, 5}, {0, 2, 4}]


def test_more_devices_than_there_are_are_refused():
    with pytest.raises(UserError, match="64 devices are more than the 3"):
        all_devices(64)


@pytest.mark.parametrize("update", UPDATES, ids=lambda update: type(update).__name__)
def test_devices_and_lanes_change_a_round_by_rounding_only(update, float64):
    federation, results = tiny.federation(), []
    for devices, lanes in ((1, 1), (3, 1), (2, 2)):
        parallel = Parallel(lanes, all_devices(devices))
        algorithm = federated(Classification(), tiny.SOFTMAX, update, optax.sgd(1.0, momentum=0.9), parallel=parallel)
        clients = assign_clients(np.arange(5), federation.sizes[:, 0], parallel)
        cohort = Cohort(on_device(federation, mesh=parallel.mesh)(clients))
        state, info = jax.jit(algorithm.step)(algorithm.init(tiny.theta()), cohort, KEY)
        results.append(jax.device_get((state.params, info.metrics, info.clients)))
    for other in results[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), results[0], other)


def test_several_rounds_in_one_program_are_the_same_bits_as_one_after_another():
    federation = tiny.federation()
    algorithm, gather = (
        federated(Classification(), tiny.SOFTMAX, FedAvg(1, 0.1, 3), optax.adam(0.1)),
        on_device(federation),
    )
    cohorts = [np.array([4, 0]), np.array([1, 2]), np.array([2, -1])]
    program, empty = run_rounds(algorithm), np.full((1, 2), -1)
    together, infos = program(algorithm.init(tiny.theta()), Cohort(gather(np.stack([*cohorts, empty[0]]))), KEY, 7, 3)
    state, counted = algorithm.init(tiny.theta()), []
    for number, clients in enumerate(cohorts, start=7):
        drawn = Cohort(gather(np.concatenate([clients[None], empty, empty, empty])))
        state, info = program(state, drawn, KEY, number, 1)
        counted.append(int(info.clients[0]))
    jax.tree.map(np.testing.assert_array_equal, together, state)
    assert counted == np.asarray(infos.clients)[:3].tolist() == [2, 2, 1]
    step = jax.jit(algorithm.step)
    plain = algorithm.init(tiny.theta())
    for number, clients in enumerate(cohorts, start=7):
        plain, _ = step(plain, Cohort(gather(clients)), round_key(KEY, number))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), together.params, plain.params)


def test_clients_personalized_on_several_devices_come_back_in_their_order():
    federation, recipe, curves = tiny.federation(), Personalization(batch_size=3, epochs=2), []
    for devices in (1, 3):
        parallel = Parallel(mesh=all_devices(devices))
        personalize = personalizer(Classification(), tiny.SOFTMAX, recipe, parallel=parallel, clients_at_once=4)
        gather = on_device(federation, mesh=parallel.mesh)
        curves.append(personalize(tiny.theta(), np.array([3, 0, 4, 1, 2]), gather, KEY))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), *curves)


@pytest.mark.parametrize("rows", [0, 1, 2, 3, 5, 6, 10])
def test_a_partial_batch_runs_at_the_shortest_length_that_holds_it(rows):
    lengths = []

    def function(examples, scale):
        jax.debug.callback(lambda n: lengths.append(int(n)), examples.mask.shape[0])
        return scale * jnp.sum(examples.x * examples.mask)

    x, mask = jnp.arange(10.0) + 1, jnp.arange(10) < rows
    examples = Examples(x, x, mask)
    assert jax.jit(with_partial_batches(function))(examples, 2.0) == rows * (rows + 1)
    jax.effects_barrier()
    assert lengths == [next(n for n in (3, 5, 8, 10) if n >= rows)]


def test_side_by_side_a_batch_stays_whole():
    examples = Examples(jnp.ones((2, 8)), jnp.ones((2, 8)), jnp.arange(8) < jnp.array([[1], [8]]))
    summed = jax.jit(jax.vmap(with_partial_batches(lambda examples: (examples.x * examples.mask).sum())))
    np.testing.assert_array_equal(summed(examples), [1, 8])
    assert "cond" not in str(jax.make_jaxpr(summed)(examples))


@pytest.mark.parametrize("limit", [0, 2**30])
def test_the_pool_of_a_datacenter_needs_no_even_number_of_clients(limit):
    federation, stage = tiny.federation(), Centralized("pool", Optimizer("sgd", 0.1), rounds=2, steps=2, batch_size=4)
    gather = on_device(federation, limit=limit, mesh=all_devices(3))
    drawn = cohorts(stage, np.arange(5), gather, seed=0, first_round=1)(1, 2, 3).cohort
    assert drawn.clients.rows.shape == (3, 1, 8)
    assert drawn.clients.block.y.shape[0] >= federation.sizes.sum()


class Normalized(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(4)(nn.BatchNorm(use_running_average=not train)(x))


def test_batch_statistics_of_a_partial_batch_do_not_depend_on_lanes():
    federation, results = tiny.federation(), []
    model = as_model(Normalized(), np.zeros((1, 3), np.float32))
    for lanes in (1, 3):
        algorithm = federated(Classification(), model, FedAvg(2, 0.1, 8), optax.sgd(1.0), parallel=Parallel(lanes))
        cohort = Cohort(on_device(federation)(np.arange(5)))
        state, _ = jax.jit(algorithm.step)(algorithm.init(model.init(KEY)), cohort, KEY)
        results.append(state.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), *results)
