"""Partitions: every example to exactly one client, and the skew that was asked for."""

from __future__ import annotations

import numpy as np
import pytest

from headstart.data.partition import at_random, by_classes, by_dirichlet
from headstart.errors import UserError

METHODS = {
    "dirichlet": lambda x, y, **options: by_dirichlet(x, y, alpha=0.3, **options),
    "classes": lambda x, y, **options: by_classes(x, y, classes_per_client=2, **options),
    "random": at_random,
}


def examples(rows=1000, classes=10, seed=0):
    return np.arange(rows), np.random.default_rng(seed).integers(0, classes, rows)


def clients(federation):
    """The x and y of each client."""
    return [federation.fetch(np.array([i])) for i in range(len(federation))]


def entropy(y, classes=10):
    share = np.bincount(y, minlength=classes) / len(y)
    return -(share[share > 0] * np.log(share[share > 0])).sum()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("count", [7, 50])
def test_every_example_goes_to_exactly_one_client(method, count):
    x, y = examples()
    federation = METHODS[method](x, y, clients=count, seed=1)
    given = clients(federation)
    assert len(federation) == count and all(len(own) for own, _ in given)
    np.testing.assert_array_equal(np.sort(np.concatenate([own for own, _ in given])), x)
    for own, labels in given:
        np.testing.assert_array_equal(labels, y[own])
    assert not federation.has_predefined_split and (federation.sizes[:, 1] > 0).all()


@pytest.mark.parametrize("method", METHODS)
def test_the_seed_decides(method):
    x, y = examples()
    one, same, other = (METHODS[method](x, y, clients=20, seed=seed) for seed in (1, 1, 2))
    for (a, _), (b, _) in zip(clients(one), clients(same), strict=True):
        np.testing.assert_array_equal(a, b)
    assert any(set(a) != set(b) for (a, _), (b, _) in zip(clients(one), clients(other), strict=True))


@pytest.mark.parametrize("method", ["dirichlet", "random"])
def test_clients_are_of_one_size(method):
    sizes = METHODS[method](*examples(1003), clients=20).sizes.sum(axis=1)
    assert sorted(set(sizes)) == [50, 51]


def test_alpha_sets_how_much_clients_differ():
    x, y = examples(20_000)
    mean = {alpha: np.mean([entropy(labels) for _, labels in clients(by_dirichlet(x, y, clients=40, alpha=alpha))])
            for alpha in (1e-9, 0.5, 1e6)}  # fmt: skip
    assert mean[1e-9] < 0.5 < mean[0.5] < mean[1e6]
    assert mean[1e6] > np.log(10) - 0.05


@pytest.mark.parametrize(("each", "count"), [(1, 10), (2, 33), (3, 4), (10, 5)])
def test_clients_hold_as_many_classes_as_asked(each, count):
    x, y = examples(2000)
    held = [set(labels) for _, labels in clients(by_classes(x, y, clients=count, classes_per_client=each))]
    assert {len(own) for own in held} == {each}
    times = np.bincount([label for own in held for label in own], minlength=10)
    assert times.max() - times.min() <= 1


def test_trees_of_arrays_are_partitioned_together():
    x, y = examples(100)
    federation = at_random({"a": x, "b": -x}, y, clients=3)
    own, _ = federation.fetch(np.arange(3))
    np.testing.assert_array_equal(own["a"], -own["b"])
    assert sorted(own["a"]) == list(range(100))


def test_what_cannot_be_done_is_said():
    x, y = examples(50)
    with pytest.raises(UserError, match="51 clients cannot share 50 examples; give a number from 1 to 50"):
        at_random(x, y, clients=51)
    with pytest.raises(UserError, match="0 clients cannot share"):
        by_dirichlet(x, y, clients=0, alpha=1)
    with pytest.raises(UserError, match="alpha is 0; give a number above 0"):
        by_dirichlet(x, y, clients=5, alpha=0)
    with pytest.raises(UserError, match="classes_per_client is 11; give a number from 1 to 10"):
        by_classes(x, y, clients=5, classes_per_client=11)
    with pytest.raises(UserError, match="3 clients of 2 classes each cannot hold all 10 classes"):
        by_classes(x, y, clients=3, classes_per_client=2)
    with pytest.raises(UserError, match="examples for 40 clients; make fewer clients"):
        by_classes(x, y, clients=40, classes_per_client=10)


@pytest.mark.parametrize("alpha", [float("inf"), 1e308, 10**400], ids=["inf", "1e308", "10**400"])
def test_an_endless_alpha_makes_clients_alike(alpha):
    found = [entropy(labels) for _, labels in clients(by_dirichlet(*examples(20_000), clients=20, alpha=alpha))]
    assert np.mean(found) > np.log(10) - 0.05


def test_an_alpha_next_to_nothing_leaves_one_class():
    x, y = examples(1000)
    first = clients(by_dirichlet(x, y, clients=20, alpha=5e-324))[0][1]
    assert len(set(first)) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": float("nan")}, "alpha is nan; give a number above 0"),
        ({"alpha": -1}, "alpha is -1; give a number above 0"),
        ({"alpha": "0.5"}, "alpha is '0.5'; give a number"),
        ({"alpha": True}, "alpha is True; give a number"),
        ({"clients": 2.5}, "clients is 2.5; give a whole number"),
        ({"clients": 10**12}, "1000000000000 clients cannot share 50 examples"),
        ({"seed": -1}, "seed is -1; give a number from 0 on"),
    ],
)
def test_options_that_are_no_such_numbers_are_named(options, message):
    x, y = examples(50)
    with pytest.raises(UserError, match=message):
        by_dirichlet(x, y, **{"clients": 5, "alpha": 1.0, **options})


def test_a_partition_of_a_table_of_bytes_is_no_federation_of_pictures():
    _, y = examples(50)
    tables = at_random(np.zeros((50, 3), np.uint8), y, clients=5)
    pictures = at_random(np.zeros((50, 3, 3), np.uint8), y, clients=5)
    assert (tables.metadata["kind"], pictures.metadata["kind"]) == ("features", "image")


@pytest.mark.parametrize("method", ["dirichlet", "classes"])
def test_classes_are_classes_however_their_numbers_are_written(method):
    x, y = examples(60, classes=3)
    expected = METHODS[method](x, y, clients=4)
    for written in (y.astype(np.float32), y * 1.0):
        found = METHODS[method](x, written, clients=4)
        assert found.metadata == expected.metadata and found.metadata["classes"] == 3
        for (_, mine), (_, theirs) in zip(clients(found), clients(expected), strict=True):
            assert mine.dtype == np.int32 and mine.tolist() == theirs.tolist()
    for wrong in (y / 2, y.astype(str), y.astype("M8[s]")):
        with pytest.raises(UserError, match=f"by_{method} needs the numbers of classes, and y is "):
            METHODS[method](x, wrong, clients=4)


@pytest.mark.parametrize("method", METHODS)
def test_true_and_false_are_two_classes_and_fractions_at_random_are_quantities(method):
    x, y = examples(60, classes=2)
    found = METHODS[method](x, y == 1, clients=4)
    assert found.metadata["classes"] == 2 and found.example()[1].dtype == np.int32
    assert "classes" not in at_random(x, y * 1.0, clients=4).metadata
