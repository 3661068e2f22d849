"""What training decided of its data is applied to data that come later; a contradiction is a sentence."""

import json
import runpy
from pathlib import Path

import numpy as np
import pandas
import pytest

import headstart as hs
from headstart.data.decided import class_numbers, decisions
from headstart.data.load import load_as_decided
from headstart.deploy.adapt import personalize_run
from headstart.deploy.export import description, read_source
from small import run as run_small

FAST = hs.Personalization(hs.Optimizer("sgd", 0.1), 4, 1)


def plan(data, model="logistic", *, rounds=12, **options) -> hs.Experiment:
    stage = hs.Stage("A", hs.FedAvg(2, 0.1, 4), hs.Optimizer("sgd", 1.0), rounds, 4)
    source = hs.Data(str(data), options)
    return hs.Experiment("decided", (stage,), source, hs.ModelSpec(model), personalization=FAST, evaluate_every=0)


def squares(path, ids, border, seed, dtype=np.uint8):
    """Pictures of a light square, left or right, before a background of this level."""
    generator, n = np.random.default_rng(seed), 8 * len(ids)
    x, y = np.full((n, 28, 28), border), np.arange(n) % 2
    for i in range(n):
        x[i, 8:20, 6 + 8 * y[i] : 14 + 8 * y[i]] = 200
    x = np.clip(x + generator.integers(0, 20, x.shape), 0, 255).astype(dtype)
    np.savez(path, client=np.repeat(ids, 8), x=x, y=y)
    return path


def table(path, labels, *, columns=("a", "b"), ids=("u", "v", "w"), rows=12, seed=0):
    """A CSV of clients whose label is decided by which feature is the larger, or by both being low."""
    generator = np.random.default_rng(seed)
    x = generator.normal(0, 2, (rows * len(ids), 2))
    code = np.where((x < 0).all(axis=1), 2, (x[:, 1] > x[:, 0]).astype(int))
    lines = [
        ",".join([ids[i // rows], *(f"{dict(a=row[0], b=row[1])[name]:.4f}" for name in columns), str(labels[code[i]])])
        for i, row in enumerate(x)
        if labels[code[i]] is not None
    ]
    path.write_text("\n".join([",".join(["client", *columns, "y"]), *lines]) + "\n")
    return path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    data = squares(folder / "train.npz", [f"s{i}" for i in range(12)], 10, 1)
    return run_small(plan(data), folder / "run")


@pytest.fixture(scope="module")
def codes(tmp_path_factory):
    """A run whose labels are 3, 5 and 7."""
    folder = tmp_path_factory.mktemp("codes")
    data = table(folder / "train.csv", (3, 5, 7), ids=[f"s{i:02d}" for i in range(12)])
    return run_small(plan(data, rounds=40), folder / "run")


def initial(run, source, out, **options):
    return personalize_run(run, str(source), out, options=options, epochs=0)[0]["accuracy"]["initial"]["mean"]


@pytest.mark.parametrize("border", [10, 60, 100])
def test_pictures_keep_the_polarity_of_those_of_training(pictures, tmp_path, border):
    own = squares(tmp_path / "own.npz", ["n0", "n1"], border, 2)
    assert initial(pictures, own, tmp_path / "out") == 1.0
    with np.load(own) as arrays:
        x, y = arrays["x"], arrays["y"]
    federation = load_as_decided(own, {}, pictures.decided)
    assert not federation.metadata["inverted"] and federation.metadata["background"] == pytest.approx(
        border + 10, abs=2
    )
    read, _ = federation.fetch(np.arange(2))
    np.testing.assert_array_equal(np.sort(read, axis=None), np.sort(x, axis=None))
    if border == 10:
        with pytest.raises(hs.UserError, match="the negatives of those trained on"):
            pictures.predict(255 - x)
        with pytest.raises(hs.UserError, match="the negatives of those trained on"):
            pictures.personalize(255 - x, y)
    assert np.mean(pictures.predict(x) == y.astype(str)) == 1.0


def test_an_artifact_knows_labels_and_polarity_and_a_device_holds_its_own_to_them(pictures, codes):
    known = description(read_source(pictures), ["cpu"], {})["facts"]
    assert not known["inverted"] and known["background"] < 30
    program = runpy.run_path(str(Path(__file__).parents[1] / "examples" / "on_device" / "adapt.py"))
    as_trained, mistake = program["as_trained"], program["MistakeError"]
    x = np.full((3, 28, 28, 1), 20, np.uint8)
    assert as_trained("x", "x", x, {"facts": known}) is not None
    with pytest.raises(mistake, match="the negatives of those that the model was trained on"):
        as_trained("x in own.npz", "x", 255 - x, {"facts": known})
    known = description(read_source(codes), ["cpu"], {})["facts"]
    assert known["labels"] == ["3", "5", "7"] and known["features"] == ["a", "b"]
    assert as_trained("y", "y", np.array(["7", "3"]), {"facts": known}).tolist() == [2, 0]
    for unknown in ("4", 4, 4.0, 0, 2):
        with pytest.raises(
            mistake, match=rf"y in own.npz has the label '{float(unknown):.0f}', and the model knows 3, 5, 7"
        ):
            as_trained("y in own.npz", "y", np.array([unknown]), {"facts": known})


@pytest.mark.parametrize(
    ("labels", "given"),
    [
        (["1", "2", "3"], [1, 2]),
        (["1", "2", "3"], [1.0, 3.0]),
        (["-1", "1"], [-1, 1]),
        (["0", "1", "2"], [0, 2]),
        (["high", "low"], [0, 1]),
        (["high", "low"], ["low", "high"]),
        (["False", "True"], [True, False]),
    ],
)
def test_a_device_numbers_labels_as_a_run_does(labels, given):
    program = runpy.run_path(str(Path(__file__).parents[1] / "examples" / "on_device" / "adapt.py"))
    found = program["as_trained"]("y", "y", np.array(given), {"facts": {"kind": "features", "labels": labels}})
    np.testing.assert_array_equal(found, class_numbers(np.array(given), labels))
    tokens = program["as_trained"]("y", "y", np.array([1, 2]), {"facts": {"kind": "text", "labels": ["1", "2", "3"]}})
    assert tokens.tolist() == [1, 2]


def test_light_pictures_contradict_a_run_of_dark_ones_unless_the_user_decides(pictures, tmp_path):
    own = squares(tmp_path / "own.npz", ["n0", "n1"], 10, 2)
    with np.load(own) as arrays:
        light = {**arrays, "x": 255 - arrays["x"]}
    np.savez(own, **light)
    with pytest.raises(hs.UserError, match=r"own.npz holds pictures .* --data-option inverted=true or false"):
        initial(pictures, own, tmp_path / "out")
    assert initial(pictures, own, tmp_path / "out", inverted="true") == 1.0
    assert not hs.load(own).metadata["inverted"] and hs.load(own, inverted=True).metadata["inverted"]


def test_a_run_that_was_begun_with_inverted_pictures_resumes_with_them(tmp_path):
    data = squares(tmp_path / "train.npz", [f"s{i}" for i in range(12)], 10, 1)
    as_before = plan(data, inverted=True)
    run_small(as_before, tmp_path / "run", federation=None)
    # Once this was decided by the background, and no option said it.
    document = json.loads((tmp_path / "run/experiment.json").read_text())
    document["data"]["options"] = {}
    (tmp_path / "run/experiment.json").write_text(json.dumps(document))
    longer = plan(data, rounds=13)
    resumed = run_small(longer, tmp_path / "run")
    assert resumed.finished and resumed.decided["background"] > 200
    assert initial(resumed, squares(tmp_path / "own.npz", ["n0"], 10, 2), tmp_path / "out") == 1.0


@pytest.mark.parametrize(("scale", "shift"), [(1 / 60, -1.0), (3.0, 0.0)])
def test_pictures_of_any_numbers_are_kept_as_they_are(tmp_path, scale, shift):
    own = squares(tmp_path / "own.npz", ["n0", "n1"], 10, 2)
    with np.load(own) as arrays:
        x, y = arrays["x"] * scale + shift, arrays["y"]
    np.savez(own, client=np.repeat(["n0", "n1"], 8), x=x, y=y)
    federation = hs.load(own)
    assert federation.metadata["kind"] == "image" and federation.metadata["background"] < 64
    found = federation.fetch(np.arange(2))[0]
    np.testing.assert_allclose(np.sort(found, axis=None), np.sort(x, axis=None).astype(np.float32), rtol=1e-6)
    known = decisions(federation.metadata)
    negative = tmp_path / "negative.npz"
    np.savez(negative, client=np.repeat(["n0", "n1"], 8), x=-x, y=y)
    with pytest.raises(hs.UserError, match="the negatives of those trained on"):
        load_as_decided(negative, {}, known)
    with pytest.raises(hs.UserError, match="invert them in the file"):
        hs.load(negative, inverted=True)


def test_pictures_in_hand_have_one_scale(pictures, tmp_path):
    own = squares(tmp_path / "own.npz", ["n0"], 10, 2)
    with np.load(own) as arrays:
        x = arrays["x"]
    expected = pictures.predict(x)
    for given in (x[..., None], x.astype(np.int64), x / 255.0):
        np.testing.assert_array_equal(pictures.predict(given), expected)
    with pytest.raises(hs.UserError, match="give whole numbers from 0 to 255, or fractions"):
        pictures.predict(x.astype(np.float32))
    with pytest.raises(hs.UserError, match=r"shape \[rows, 14, 28, 1\], and those trained on had \[rows, 28, 28, 1\]"):
        pictures.predict(x[:, :14])


@pytest.mark.parametrize(
    ("labels", "columns"),
    [((3, 5, 7), ("b", "a")), ((3, None, 7), ("a", "b")), ((None, 5, 7), ("b", "a")), (("3", "5.0", "7"), ("a", "b"))],
    ids=["features in another order", "a label in the middle lacks", "the first label lacks", "labels as fractions"],
)
def test_labels_and_features_go_by_name(codes, tmp_path, labels, columns):
    own = table(tmp_path / "own.csv", labels, columns=columns, ids=("n0", "n1"), seed=5)
    assert initial(codes, own, tmp_path / "out") > 0.8
    federation = load_as_decided(own, {}, codes.decided)
    assert federation.metadata["labels"] == ["3", "5", "7"] and federation.metadata["features"] == ["a", "b"]


def test_what_training_did_not_know_is_a_sentence(codes, tmp_path):
    def refused(words, name="own.csv", **options):
        with pytest.raises(hs.UserError, match=words):
            initial(codes, tmp_path / name, tmp_path / "out", **options)

    table(tmp_path / "own.csv", (3, 4, 7))
    refused("has the target '4' in column 'y' of client u, which is not among the labels .*3, 5, 7")
    table(tmp_path / "own.csv", (0, 1, 2))
    refused("which is not among the labels")
    table(tmp_path / "own.csv", (3, 5, 7))
    refused("labels=7,5,3 is not what the run was trained with", labels="7,5,3")
    refused("regression=true is not what the run was trained with", regression="true")
    refused("features=b is not what the run was trained with", features="b")
    table(tmp_path / "own.csv", (3, 5, 7), columns=("a",))
    refused("has no column 'b'")
    squares(tmp_path / "own.npz", ["n0"], 10, 2)
    refused("has no column 'a'", "own.npz")
    assert not (tmp_path / "out").exists()


def test_in_hand_too_labels_and_features_go_by_name(codes):
    x = np.array([[2.0, 1.0], [1.0, 2.0], [-2.0, -2.0]] * 4, np.float32)
    frame = pandas.DataFrame({"note": 0, "b": x[:, 1], "a": x[:, 0]})
    assert codes.predict(x)[:3].tolist() == ["3", "5", "7"]
    np.testing.assert_array_equal(codes.predict(frame), codes.predict(x))
    with pytest.raises(hs.UserError, match="what you give has no column 'b'; training had a, b"):
        codes.predict(frame.rename(columns={"b": "c"}))
    y = np.array([3, 5, 7] * 4)
    models = [codes.personalize(x, given, epochs=1) for given in (y, y.astype(str), y.astype(float))]
    for model in models[1:]:
        np.testing.assert_array_equal(model.outputs(x), models[0].outputs(x))
    with pytest.raises(hs.UserError, match="there is a target '4', and training knew 3, 5, 7"):
        codes.personalize(x, y + (y == 5) * -1)


def test_a_federation_in_memory_is_held_to_what_training_decided(codes, tmp_path):
    x, y, sizes = np.ones((4, 2), np.float32), np.array([0, 1, 2, 0], np.int32), np.array([[2, 2]])

    def given(**metadata):
        known = {"kind": "features", "classes": 3, "labels": ["3", "5", "7"], "features": ["a", "b"], **metadata}
        return hs.from_arrays("mine", ["n"], sizes, x, y, metadata=known)

    assert personalize_run(codes, given(), tmp_path / "out", epochs=0)[0]["clients"] == 1
    for contradiction, words in (
        ({"labels": ["7", "5", "3"]}, "numbers its labels otherwise"),
        ({"labels": ["3", "5", "9"]}, "has the label '9'"),
        ({"features": ["b", "a"]}, "has the features b, a, and training had a, b"),
        ({"kind": "text"}, "holds data of the kind text"),
        ({"classes": None, "labels": None}, "has quantities for targets"),
    ):
        with pytest.raises(hs.UserError, match=f"mine {words}"):
            personalize_run(codes, given(**contradiction), tmp_path / "out", epochs=0)


def test_class_numbers_are_those_of_the_labels_and_else_the_numbers_of_classes():
    named = ["high", "low", "mid"]
    assert class_numbers(np.array(["mid", "high"]), named).tolist() == [2, 0]
    assert class_numbers(np.array([2, 0, 3]), named).tolist() == [2, 0, -1]
    assert class_numbers(np.array([b"low", b"?"]), named).tolist() == [1, -1]
    assert class_numbers(np.array([True, False]), ["False", "True"]).tolist() == [1, 0]
    assert class_numbers(np.array([7.0, 3.5]), ["3", "7"]).tolist() == [1, -1]
    assert class_numbers(np.array([0, 1]), ["1", "2"]).tolist() == [-1, 0]
    assert (
        class_numbers(np.array([10, 61, 3]), "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")[0] == 10
    )


def test_what_runs_before_recorded_of_their_pictures_decides_as_well():
    kept = {"kind": "image", "inverted": True, "source": "npz a.npz"}
    assert decisions(kept) == {"kind": "image", "inverted": True, "background": 255}
    assert decisions({**kept, "source": "FedJAX sqlite a"}) == {"kind": "image", "background": 255}
    assert "background" not in decisions({**kept, "inverted": False})


def test_the_lists_of_a_request_are_those_of_a_run(tmp_path):
    table(tmp_path / "t.csv", ["0", "1", "2"])
    decided = decisions(hs.load(tmp_path / "t.csv", target="y").metadata)
    in_a_request = {name: tuple(value) if isinstance(value, list) else value for name, value in decided.items()}
    assert {type(in_a_request[name]) for name in ("labels", "features")} == {tuple}
    assert load_as_decided(tmp_path / "t.csv", {"target": "y"}, in_a_request).metadata["features"] == ["a", "b"]
