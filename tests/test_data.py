"""Federations: splits that never overlap and stay, and the same rows whichever way they reach the device."""

import hashlib
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny
from headstart.data.device_data import on_device, part_rows
from headstart.data.federation import Part, from_arrays, key_data, limited, of_rows, split_clients, split_examples
from headstart.errors import UserError
from headstart.training.sampling import sample, stream


def named(ids, seed=0):
    """A federation whose every row says whose it is and which."""
    sizes = np.array([[3 + len(i) % 3, 1 + len(i) % 2] for i in ids])
    y = np.concatenate([[f"{i}/{n}" for n in range(total)] for i, total in zip(ids, sizes.sum(axis=1), strict=True)])
    return of_rows("named", ids, sizes, np.zeros((len(y), 2), np.float32), y)


IDS = [f"writer {i}" * (1 + i % 4) for i in range(40)]


def groups(federation, **options):
    """The ids of the three groups."""
    return [set(federation.select(group).ids) for group in split_clients(federation, **options)]


def test_clients_are_split_in_three_disjoint_parts_that_cover_them():
    federation = named(IDS)
    split = split_clients(federation, train=25, validation=0.1)
    assert [len(group) for group in split] == [25, 4, 11]
    assert sorted(np.concatenate(split)) == list(range(40))
    for group in split:
        part = federation.select(group)
        _, y = part.fetch(np.arange(len(part)))
        assert [row.split("/")[0] for row in y] == np.repeat(part.ids, part.sizes.sum(axis=1)).tolist()


def test_the_split_of_clients_follows_the_ids_and_the_seed_not_the_order():
    shuffled = [str(i) for i in np.random.default_rng(0).permutation(IDS)]
    assert groups(named(IDS)) == groups(named(shuffled)) != groups(named(IDS), seed=1)


def test_clients_are_ordered_by_the_digest_of_seed_and_id():
    federation = named(IDS)
    order = sorted(range(40), key=lambda i: hashlib.sha256(f"7:{IDS[i]}".encode()).digest())
    for group, expected in zip(
        split_clients(federation, train=25, validation=4, seed=7), ([0, 25], [25, 29], [29, 40]), strict=True
    ):
        assert group.tolist() == sorted(order[slice(*expected)])


def test_the_ids_of_chosen_clients_are_a_sequence():
    chosen = named(IDS).select(np.array([7, 3, 30])).select(np.array([2, 0]))
    assert list(chosen.ids) == [IDS[30], IDS[7]] == chosen.ids[:] and chosen.ids[-1] == IDS[7]
    assert IDS[7] in chosen.ids and len(chosen.ids) == len(chosen) == 2
    with pytest.raises(IndexError):
        chosen.ids[2]


@pytest.mark.parametrize("newcomer", ["a", "b", "c", "d", "e"])
def test_a_newcomer_moves_at_most_one_client_across_each_border(newcomer):
    before, after = (groups(named(ids), train=25, validation=5) for ids in (IDS, [newcomer, *IDS]))
    for one, other in zip(before, after, strict=True):
        assert len(one - other) <= 1
    assert not after[0] & before[2] and not after[2] & before[0]


@pytest.mark.parametrize("numbers", [(0.5, 0.5), (40, 0), (41, 0), (0, 5), (20, 20), (-1, 2)])
def test_a_split_that_leaves_nobody_to_train_or_test_on_is_refused(numbers):
    with pytest.raises(UserError, match="choose fewer"):
        split_clients(named(IDS), train=numbers[0], validation=numbers[1])


def test_examples_are_split_in_two_parts_that_cover_a_client_and_follow_its_id():
    whole = named(IDS)
    split = split_examples(whole, test_fraction=0.4, seed=3)
    assert not split.has_predefined_split
    np.testing.assert_array_equal(split.sizes.sum(axis=1), whole.sizes.sum(axis=1))
    np.testing.assert_array_equal(split.sizes[:, 1], np.round(whole.sizes.sum(axis=1) * 0.4))
    _, before = whole.fetch(np.array([7]))
    _, after = split.fetch(np.array([7]))
    assert sorted(after) == sorted(before) and list(after) != list(before)
    others = split_examples(named(IDS[::-1]), test_fraction=0.4, seed=3)
    assert list(others.fetch(np.array([40 - 1 - 7]))[1]) == list(after)
    assert list(split.fetch(np.array([3, 7, 5]))[1][len(split.fetch(np.array([3]))[1]) :][: len(after)]) == list(after)


def test_a_client_of_two_examples_tests_on_one_and_a_client_of_one_on_none():
    sizes = np.array([[2, 0], [1, 0], [0, 0]])
    small = from_arrays("small", ["a", "b", "c"], sizes, np.zeros((3, 1)), np.zeros(3))
    np.testing.assert_array_equal(split_examples(small, test_fraction=0.1).sizes, [[1, 1], [1, 0], [0, 0]])


def rows_of(clients):
    """Each client's real `(x, y)`."""
    sizes = np.asarray(clients.size)
    rows = [np.asarray(clients.rows)[i, :n] for i, n in enumerate(sizes)]
    return [jax.tree.map(lambda leaf, r=r: np.asarray(leaf)[r], tuple(clients.block)) for r in rows]


@pytest.mark.parametrize("part", ["adapt", "test", "all"])
def test_rows_are_the_same_whether_they_stay_on_the_device_or_stream(part):
    federation, chosen = tiny.federation(), np.array([4, 0, 2])
    resident = on_device(federation)(np.append(chosen, [-1, -1]), part)
    streaming = on_device(federation, limit=0)(np.append(chosen, [-1, -1]), part)
    for a, b in zip(resident[1:], streaming[1:], strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
    np.testing.assert_array_equal(resident.size, streaming.size)
    np.testing.assert_array_equal(resident.key_data, streaming.key_data)
    expected = []
    for i in chosen:
        adapt, test = federation.sizes[i]
        piece = {"adapt": slice(0, adapt), "test": slice(adapt, adapt + test), "all": slice(None)}[part]
        expected.append(jax.tree.map(lambda leaf, piece=piece: leaf[piece], federation.fetch(np.array([i]))))
    for found in (rows_of(resident), rows_of(streaming)):
        for own, wanted in zip(found, expected, strict=False):
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), own, wanted)
    assert [len(y) for _, y in rows_of(resident)[3:]] == [0, 0]


@pytest.mark.parametrize("limit", [0, 2**30])
def test_parts_gathered_together_are_those_gathered_apart_and_their_rows_are_fetched_once(limit):
    federation, chosen, fetched = tiny.federation(), np.array([[4, 0], [2, -1]]), []

    def fetch(clients):
        fetched.append(clients)
        return federation.fetch(clients)

    gather = on_device(replace(federation, fetch=fetch), limit=limit)
    parts: tuple[Part, ...] = ("test", "adapt", "all")
    apart = [gather(chosen, part) for part in parts]
    fetched.clear()
    together = gather.parts(chosen, *parts)
    assert len(fetched) == (limit == 0)
    jax.tree.map(np.testing.assert_array_equal, list(together), apart)
    assert all(client.block is together[0].block for client in together)


def test_the_pool_holds_every_row_of_its_clients_part_and_no_other():
    federation, chosen = tiny.federation(), np.array([0, 2, 3])
    x, _ = federation.fetch(np.arange(5))
    for part, numbers in (("adapt", [0]), ("test", [1]), ("all", [0, 1])):
        rows = part_rows(federation, chosen, part)
        assert len(set(rows.tolist())) == len(rows) == federation.sizes[chosen][:, numbers].sum()
        own = {tuple(row) for row in federation.fetch(chosen)[0]}
        assert all(tuple(row) in own for row in x[rows])
    halves = (set(part_rows(federation, chosen, part).tolist()) for part in ("adapt", "test"))
    assert not set.intersection(*halves)


def test_uint8_rows_stay_uint8_on_the_device():
    images = np.arange(12, dtype=np.uint8).reshape(3, 2, 2)
    clients = on_device(from_arrays("images", ["a"], np.array([[2, 1]]), images, np.zeros(3, np.int32)))(np.array([0]))
    assert clients.block.x.dtype == jnp.uint8


def test_sizes_that_do_not_add_up_to_the_rows_are_refused():
    with pytest.raises(UserError, match="add up to 3, but the arrays have"):
        from_arrays("wrong", ["a"], np.array([[2, 1]]), np.zeros((4, 1)), np.zeros(4))


def test_a_clients_key_is_a_hash_of_its_id():
    digest = hashlib.sha256(b"writer 7").digest()
    assert key_data("writer 7").tobytes() == digest[:8]
    assert len({key_data(i).tobytes() for i in IDS}) == 40


def test_a_cohort_is_distinct_and_a_function_of_seed_and_round():
    cohorts = [sample(0, number, 5, 12) for number in range(200)]
    assert all(len(set(clients)) == 5 and set(clients) <= set(range(12)) for clients in cohorts)
    np.testing.assert_array_equal(sample(0, 17, 5, 12), cohorts[17])
    counts = np.bincount(np.concatenate(cohorts), minlength=12)
    assert counts.min() > 50 and counts.max() < 120
    assert (sample(1, 17, 12, 12) != sample(0, 17, 12, 12)).any()


def test_the_stream_of_the_pool_is_shuffled_epochs_whatever_the_pieces():
    whole = stream(3, 0, 35, 10)
    assert all(sorted(whole[e * 10 : (e + 1) * 10]) == list(range(10)) for e in range(3))
    assert list(whole[:10]) != list(whole[10:20])
    pieces = np.concatenate([stream(3, start, 7, 10) for start in range(0, 35, 7)])
    np.testing.assert_array_equal(pieces, whole)


def arrays(**changes):
    given = {"ids": ["a", "b"], "sizes": [[2, 1], [1, 0]], "x": np.zeros((4, 2)), "y": np.zeros(4, np.int64), **changes}
    return from_arrays("mine", *given.values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ids": ["a", "a"]}, "clients number 0 and 1 have the same id 'a'; join their examples, or give each its own"),
        ({"ids": [1, 2]}, "the id of client number 0 is 1; ids are text, such as 'site-7'"),
        ({"ids": np.arange(2)}, "the id of client number 0 is np.int64(0); ids are text"),
        ({"ids": ["a", None]}, "the id of client number 1 is None; ids are text"),
        ({"ids": ["a", ""]}, "the id of client number 1 is ''; give it a name"),
        ({"ids": ["a", "\ud800"]}, "the id of client number 1 is '\\ud800'; give it a name"),
        ({"ids": "ab"}, "ids are str; give a list with the id of each client"),
        ({"ids": ["a"]}, "sizes have the shape (2, 2) for 1 ids"),
        ({"sizes": [2, 1, 1, 0]}, "sizes have the shape (4,) for 2 ids"),
        ({"sizes": [[2, 1], [1]]}, "sizes have the shape (0,) for 2 ids"),
        ({"sizes": [[2.0, 1.0], [1.0, 0.0]]}, "sizes are of type float64; give whole numbers"),
        ({"sizes": [[5, 1], [-2, 0]]}, "client number 1 has a negative size"),
        ({"sizes": [[2, 1], [2, 0]]}, "sizes add up to 5, but the arrays have {4} rows"),
        ({"x": [[0.0, 1.0]] * 4}, "x[0][0] is no array; give NumPy arrays with a row per example"),
        (
            {"x": np.array([[0, 1], [2, 3], [4, 5], [6, np.nan]])},
            "x of client b, row 4, holds a number that is missing",
        ),
        ({"x": np.array([[0, 1], [2, np.inf], [4, 5], [6, 7]])}, "x of client a, row 2, holds a number"),
        ({"x": np.full((4, 1), 1e39)}, "x of client a, row 1, holds a number that is missing, infinite or beyond"),
        ({"x": {"ids": np.full(4, 2**40)}}, "x['ids'] of client a, row 1, holds a number"),
        ({"x": np.full((4, 2), "a")}, "mine: x is of type <U1; give numbers"),
        ({"x": {"when": np.zeros(4, "M8[D]")}}, "mine: x['when'] is of type datetime64[D]; give numbers"),
        ({"x": np.zeros(4, "m8[s]")}, "x is of type timedelta64[s]; give numbers"),
        ({"y": np.full(4, b"no")}, "y is of type |S2; give numbers"),
        ({"y": np.array([0, 1, np.nan, 1])}, "y of client a, row 3, holds a number"),
        ({"y": np.array([0, 1, 2, 2**31])}, "y of client b, row 4, holds a number"),
    ],
)
def test_arrays_that_are_no_federation_get_a_sentence(changes, message):
    with pytest.raises(UserError) as caught:
        arrays(**changes)
    assert message in str(caught.value)


def test_ids_may_be_an_array_of_text_and_arrays_of_any_float():
    assert list(arrays(ids=np.array(["u", "v"])).ids) == ["u", "v"]
    for kind in (np.float16, np.float32, np.float64):
        assert arrays(x=np.ones((4, 1), kind)).fetch(np.array([1]))[0].tolist() == [[1]]


@pytest.mark.parametrize("fraction", [-0.1, 1, 2, float("nan"), float("inf"), "half", True])
def test_a_share_of_test_examples_is_a_share(fraction):
    with pytest.raises(UserError, match="test_fraction is"):
        split_examples(named(IDS), test_fraction=fraction)


@pytest.mark.parametrize("count", [0, -1, float("nan"), "3", True])
def test_limits_of_examples_are_above_zero(count):
    with pytest.raises(UserError, match="adapt_examples is"):
        limited(named(IDS), count)


def test_a_limit_beyond_all_examples_changes_nothing():
    for count in (10**9, float("inf"), 10**400):
        np.testing.assert_array_equal(limited(named(IDS), count).sizes, named(IDS).sizes)


@pytest.mark.parametrize("share", [float("nan"), float("inf"), "all"])
def test_shares_of_clients_are_numbers(share):
    with pytest.raises(UserError, match="train is"):
        split_clients(named(IDS), train=share)
