import importlib.util
import time
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest

from headstart.data.federation import split_clients
from headstart.data.glyphs.atlas import FONTS, _fonts
from headstart.data.glyphs.draws import bits, normal, streams, uniform
from headstart.data.glyphs.glyphs import glyphs
from headstart.data.glyphs.pen import draw
from headstart.errors import UserError


def rows_of(federation, writer):
    return federation.fetch(np.array([writer]))


def test_the_same_seed_gives_the_same_rows_and_another_seed_others():
    first, again, other = (glyphs(writers=3, examples=30, seed=seed).fetch(np.arange(3)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert (first[1] != other[1]).mean() > 0.5


def test_a_writer_does_not_depend_on_the_size_of_the_federation_or_on_the_order():
    small, large = glyphs(writers=12, seed=3), glyphs(writers=5000, seed=3)
    np.testing.assert_array_equal(small.sizes, large.sizes[:12])
    assert list(small.ids) == [large.ids[i] for i in range(12)]
    chosen = large.select(np.array([4999, 7, 2]))
    x, y = chosen.fetch(np.array([1]))
    np.testing.assert_array_equal(x, rows_of(small, 7)[0])
    np.testing.assert_array_equal(y, rows_of(small, 7)[1])


def test_a_fetch_is_the_fetches_of_its_writers_one_after_the_other():
    federation = glyphs(writers=40, humps=(9, 70), seed=5)
    order = np.random.default_rng(0).permutation(40)
    x, y = federation.fetch(order)
    singles = [rows_of(federation, i) for i in order]
    np.testing.assert_array_equal(x, np.concatenate([single[0] for single in singles]))
    np.testing.assert_array_equal(y, np.concatenate([single[1] for single in singles]))
    assert len(x) == federation.sizes.sum()


def test_nobody_fetched_is_no_rows():
    x, y = glyphs(writers=2).fetch(np.zeros(0, np.int64))
    assert x.shape == (0, 28, 28, 1) and y.shape == (0,)


def test_the_first_rows_do_not_depend_on_how_many_follow():
    few, many = (rows_of(glyphs(writers=1, examples=n), 0) for n in (7, 150))
    np.testing.assert_array_equal(few[0], many[0][:7])
    np.testing.assert_array_equal(few[1], many[1][:7])


@pytest.mark.parametrize("humps", [(170, 340), (30, 90)])
def test_sizes_have_two_humps_with_a_valley_between(humps):
    totals = glyphs(writers=20_000, humps=humps).sizes.sum(axis=1)
    near = [np.mean(abs(totals / hump - 1) < 0.1) for hump in (humps[0], np.sqrt(humps[0] * humps[1]), humps[1])]
    assert near[0] > 3 * near[1] and near[2] > 2 * near[1]
    np.testing.assert_allclose(totals.mean(), 0.65 * humps[0] + 0.35 * humps[1], rtol=0.02)


def test_sizes_are_those_of_femnist():
    totals = glyphs(writers=20_000).sizes.sum(axis=1)
    # LEAF (Caldas et al. 2018), Table 1: mean 226.83, deviation 88.94.
    assert abs(totals.mean() - 226.83) < 6 and abs(totals.std() - 88.94) < 6


def test_a_share_of_the_examples_tests_and_everyone_with_two_tests_on_one():
    sizes = glyphs(writers=2000).sizes
    share = sizes[:, 1] / sizes.sum(axis=1)
    assert share.min() > 0.10 and share.max() < 0.15
    for examples, expected in [(1, (1, 0)), (2, (1, 1)), (3, (2, 1)), (20, (18, 2))]:
        assert (glyphs(writers=3, examples=examples).sizes == expected).all()
    assert (glyphs(writers=3, examples=20, test_fraction=0.5).sizes == 10).all()


def test_ink_is_dark_on_a_white_background():
    x, y = glyphs(writers=10).fetch(np.arange(10))
    assert x.dtype == np.uint8 and y.dtype == np.int32 and x.shape[1:] == (28, 28, 1)
    assert np.median(x) == 255
    border = np.concatenate([x[:, [0, -1]].reshape(-1), x[:, :, [0, -1]].reshape(-1)])
    assert (border == 255).mean() > 0.97
    ink = (x < 128).mean(axis=(1, 2, 3))
    assert (ink > 0.01).mean() > 0.999 and ink.max() < 0.5
    assert 0.05 < ((x > 20) & (x < 235)).mean() < 0.4, "edges are antialiased"


def test_every_class_appears_and_half_are_digits():
    _, y = glyphs(writers=60).fetch(np.arange(60))
    assert set(y) == set(range(62))
    assert abs((y < 10).mean() - 0.5) < 0.03


def test_writers_differ_in_how_often_they_write_a_character():
    _, y = glyphs(writers=40, examples=1000).fetch(np.arange(40))
    digits = np.stack([np.bincount(row[row < 10], minlength=10) for row in y.reshape(40, 1000)])
    spread = digits.std(axis=0).mean()
    assert spread > 1.5 * np.sqrt(1000 * 0.05 * 0.95), "more than the chance of drawing alone"


def test_one_writers_examples_are_more_alike_than_different_writers():
    x, y = glyphs(writers=12, examples=400).fetch(np.arange(12))
    means, within = {}, []
    for writer in range(12):
        rows = slice(400 * writer, 400 * (writer + 1))
        for label in range(10):
            examples = x[rows][y[rows] == label].astype(np.float64)
            means[writer, label] = examples[::2].mean(axis=0)
            within.append(np.square(examples[1::2].mean(axis=0) - means[writer, label]).mean())
    between = [np.square(means[a, d] - means[b, d]).mean() for a in range(12) for b in range(a) for d in range(10)]
    assert np.median(between) > 4 * np.median(within)


def test_examples_of_one_character_differ():
    x, y = rows_of(glyphs(writers=1, examples=300), 0)
    fives = x[y == 5].reshape(-1, 784)
    assert len(np.unique(fives, axis=0)) == len(fives) > 5


def own_shape_error(writers, **options):
    """How often the nearest mean of the same writer's other examples is another character's."""
    x, y = glyphs(writers=writers, examples=600, **options).fetch(np.arange(writers))
    return np.mean([_errors(*pair) for pair in zip(np.split(x, writers), np.split(y, writers), strict=True)])


def _errors(x, y):
    x = x.reshape(len(x), -1).astype(np.float32)
    means = np.stack([x[:300][y[:300] == label].mean(axis=0) for label in range(10)])
    tests = x[300:][y[300:] < 10]
    nearest = np.square(tests[:, None] - means).sum(axis=-1).argmin(axis=1)
    return np.mean(nearest != y[300:][y[300:] < 10])


def test_a_writer_can_be_read_from_his_own_examples():
    assert own_shape_error(8) < 0.12


def test_habits_make_writers_draw_other_shapes():
    plain, odd = (glyphs(writers=8, examples=300, seed=7, habits=habits).fetch(np.arange(8)) for habits in (0.0, 0.5))
    np.testing.assert_array_equal(plain[1], odd[1])
    changed = (plain[0] != odd[0]).any(axis=(1, 2, 3))
    assert 0.35 < changed.mean() < 0.65


def test_variation_sets_how_far_writers_differ():
    def spread(variation):
        x, y = glyphs(writers=30, examples=120, variation=variation, habits=0).fetch(np.arange(30))
        return x[y == 3].astype(np.float64).std(axis=0).mean()

    assert spread(0) < spread(1) < spread(2)


def test_a_million_writers_cost_nothing_until_asked_for():
    glyphs(writers=1).fetch(np.array([0]))  # the templates are drawn once per process
    tracemalloc.start()
    # Of the process alone: what else the machine does is no matter of it.
    start = time.process_time()
    federation = glyphs(writers=1_000_000, examples=20)
    assert time.process_time() - start < 3
    assert tracemalloc.get_traced_memory()[1] < 100e6
    start = time.process_time()
    x, _ = federation.select(np.arange(20) * 49_999).fetch(np.arange(20))
    assert time.process_time() - start < 1
    tracemalloc.stop()
    assert len(x) == 400 and federation.sizes.sum(axis=1).max() == 20


def test_ids_are_a_sequence_of_distinct_names():
    ids = glyphs(writers=100).ids
    assert len(set(ids)) == len(ids) == 100
    assert ids[-1] == ids[99] and ids[3:5] == [ids[3], ids[4]]
    with pytest.raises(IndexError):
        ids[100]
    assert len(split_clients(glyphs(writers=20), train=10, validation=4).test) == 6


@pytest.mark.parametrize(
    "options",
    [
        {"writers": 0},
        {"examples": 0},
        {"humps": (170,)},
        {"humps": (0, 3)},
        {"test_fraction": 1.0},
        {"habits": 1.5},
        {"variation": -1},
        {"writers": 2.5},
        {"writers": None},
        {"humps": 170},
        {"habits": (1,)},
        {"seed": 0.5},
        {"examples": 10.5},
        {"writers": 10**12},
        {"examples": 10**12},
        {"seed": 2**64},
        {"habits": True},
        {"test_fraction": float("nan")},
    ],
)
def test_an_option_out_of_range_is_named(options):
    with pytest.raises(UserError, match=next(iter(options))):
        glyphs(**options)


def test_draws_are_uniform_normal_and_unrelated():
    draws = bits(streams(2**63 + 5, np.arange(200_000)), 2)
    u, z = uniform(draws), normal(draws)
    assert u.min() >= 0 and u.max() < 1
    np.testing.assert_allclose(np.histogram(u[:, 0], 20, (0, 1))[0], 10_000, rtol=0.05)
    np.testing.assert_allclose([z.mean(), z.std(), (z**3).mean()], [0, 1, 0], atol=0.02)
    assert abs(np.corrcoef(np.concatenate([u, np.roll(u, 1, axis=0)], axis=1).T) - np.eye(4)).max() < 0.01


def test_draws_are_those_of_splitmix64():
    # The first outputs of the published generator from seed 1234567.
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert bits(np.array([1234567], np.uint64), 3)[0].tolist() == expected


def test_rows_that_were_drawn_are_read_the_next_time(monkeypatch, tmp_path):
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path))
    monkeypatch.setattr("headstart.data.kept._LEAST_BYTES", 0)
    everyone = np.arange(5)
    x, y = glyphs(writers=5, examples=8).fetch(everyone)
    draws = []
    monkeypatch.setattr("headstart.data.glyphs.glyphs.draw", lambda *given: draws.append(given) or draw(*given))
    federation = glyphs(writers=5, examples=8)
    for clients in (everyone, [3, 1], [2], []):
        rows = np.concatenate([np.arange(0), *(np.arange(8 * i, 8 * i + 8) for i in clients)]).astype(int)
        for found, drawn in zip(federation.fetch(np.array(clients, int)), (x, y), strict=True):
            assert found.dtype == drawn.dtype
            np.testing.assert_array_equal(found, drawn[rows])
    assert not draws
    for options in ({"writers": 4}, {"seed": 1}, {"habits": 0.2}, {"examples": 9}):
        glyphs(**{"writers": 5, "examples": 8, **options}).fetch(np.array([0]))
    assert len(draws) == 4
    # What is damaged is drawn anew.
    for file in tmp_path.glob("generated/*/x.npy"):
        file.write_bytes(file.read_bytes()[:-1] + b"?")
    np.testing.assert_array_equal(glyphs(writers=5, examples=8).fetch(everyone)[0], x)
    assert len(draws) == 5


def test_of_generated_rows_those_are_kept_that_were_used_last(monkeypatch, tmp_path):
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path))
    monkeypatch.setattr("headstart.data.kept._LEAST_BYTES", 0)
    for writers in range(1, 8):
        glyphs(writers=writers, examples=2).fetch(np.arange(writers))
    assert len(list(tmp_path.glob("generated/*"))) == 4


def test_fonts_that_are_elsewhere_than_matplotlib_are_found(monkeypatch, tmp_path):
    own = _fonts()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: SimpleNamespace(origin=str(tmp_path / "__init__.py")))
    for folder in (own, _fonts()):
        assert all((folder / f"{name}.ttf").exists() for name in FONTS)
