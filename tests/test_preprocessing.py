"""Tables as people have them become features, by decisions of training clients alone, applied to all other data."""

import datetime
import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import headstart as hs
import small
from headstart.data.preprocessing import from_json, of_metadata, to_json
from headstart.data.review import warnings
from headstart.data.table_columns import LIMIT
from headstart.deploy.export import export_run
from headstart.experiment.setup import preprocessed
from headstart.learning.tasks import Regression

PROGRAM = Path(__file__).parents[1] / "examples" / "on_device" / "adapt.py"
COLUMNS = "site,age,tail,ward,seen,well,always,note,y,days"


def line(client: int, row: int, *, shift: float = 0.0) -> str:
    """One row of a table with a column of every kind; gaps of the age go with y, those of the ward do not."""
    g = np.random.default_rng([client, row])
    day = datetime.date(2020, 1, 1) + datetime.timedelta(days=int(g.integers(900)))
    ward = ("north", "south", "east")[g.integers(3)] if row else f"only-{client}"
    age, y = g.normal(60, 12) + shift, "ab"[g.integers(2)]
    cells = ["" if y == "b" and row % 2 else age, g.standard_cauchy() * 1e4, "NA" if row % 7 == 3 else ward, day]
    cells += [bool(g.integers(2)), 7, f"note {client}.{row}", y, 1000 + 5 * age]
    return ",".join(map(str, [f"s{client}", *cells]))


def table(path, *, changed=(), clients=10):
    """The path of a table of that many clients; the rows of those that are changed differ in everything."""
    lines = [line(c, row, shift=1e5 * (c in changed)) for c in range(clients) for row in range(24)]
    lines = [
        text.replace("north", "west") if text[1 : text.index(",")] in map(str, changed) else text for text in lines
    ]
    path.write_text("\n".join([COLUMNS, *lines]) + "\n")
    return path


def load(path, **options):
    return hs.load(path, **{"client": "site", "target": "y"} | options)


@pytest.fixture
def raw(tmp_path):
    return load(table(tmp_path / "t.csv"))


def test_a_column_of_every_kind_is_planned(raw):
    plans = {column.name: column for column in hs.Preprocessing.fit(raw, np.arange(6)).columns}
    assert not plans["ward"].indicator
    assert plans["age"].features == ("age", "age: missing") and not plans["age"].robust
    assert plans["tail"].robust and plans["tail"].features == ("tail",)
    assert plans["ward"].categories == ("east", "north", "south") and plans["ward"].other
    assert plans["seen"].kind == "date" and plans["well"].plan == "0 or 1, less the mean"
    assert plans["always"].plan == "left out: it is 7 everywhere"
    assert plans["note"].plan.startswith("left out: its 144 values hardly repeat")


def test_features_are_those_of_the_rows_that_training_clients_train_on(raw):
    clients = np.array([0, 3, 5])
    fitted = hs.Preprocessing.fit(raw, clients)
    x, _ = fitted.apply(raw).fetch(clients)
    numbers = dict(zip(fitted.features, x.T, strict=True))
    assert x.dtype == np.float32 and np.isfinite(x).all() and np.abs(x).max() <= LIMIT
    ages = raw.fetch(clients)[0][:, 0]
    gaps = np.isnan(ages)
    np.testing.assert_array_equal(numbers["age: missing"], gaps)
    expected = (ages - np.nanmean(ages)) / np.nanstd(ages)
    np.testing.assert_allclose(numbers["age"], np.where(gaps, 0, expected), atol=1e-6)
    wards = sum(numbers[name] for name in fitted.features if name.startswith("ward"))
    np.testing.assert_array_equal(wards, ~np.isnan(raw.fetch(clients)[0][:, 2]))


def test_nothing_of_held_out_clients_is_seen(tmp_path):
    first = load(table(tmp_path / "a.csv"))
    groups = hs.split_clients(first)
    held_out = [*groups.validation.tolist(), *groups.test.tolist()]
    second = load(table(tmp_path / "b.csv", changed=held_out))
    fitted = [of_metadata(preprocessed(each, groups.train).metadata) for each in (first, second)]
    assert fitted[0] == fitted[1]
    x = [fitted[0].apply(each).fetch(groups.test)[0] for each in (first, second)]
    assert not np.array_equal(*x)
    west = fitted[1].features.index("ward: other")
    assert x[1][:, west].sum() > x[0][:, west].sum()


def test_what_was_decided_survives_json_and_a_stranger_is_refused(raw):
    fitted = hs.Preprocessing.fit(raw, np.arange(6))
    document = to_json(fitted)
    assert from_json(document) == fitted
    for change in ({"scale": 0}, {"kind": "odd"}, {"center": float("nan")}, {"name": 3}, {"extra": 1}):
        columns = [{**document["columns"][0], **change}, *document["columns"][1:]]
        with pytest.raises(hs.UserError, match="preprocessing of a table cannot be read"):
            from_json({**document, "columns": columns})


def test_quantities_are_learned_standardized_and_told_in_their_own_units(tmp_path):
    raw = load(table(tmp_path / "t.csv"), target="days", features="age")
    federation = preprocessed(raw, np.arange(6))
    y, own = federation.fetch(np.arange(6))[1], raw.fetch(np.arange(6))[1]
    assert abs(y.mean()) < 1e-4 and abs(y.std() - 1) < 1e-4
    fitted = of_metadata(federation.metadata)
    task = Regression(fitted.target_center, fitted.target_scale)
    np.testing.assert_allclose(task.in_own_units(y), own, rtol=1e-5)
    errors = {m.name: float(np.mean(m.items(np.zeros_like(y)[:, None], y)[0])) for m in task.metrics}
    assert errors["mean squared error"] == pytest.approx(np.var(own), rel=1e-3)
    assert errors["mean absolute error"] == pytest.approx(np.abs(own - own.mean()).mean(), rel=1e-3)


def test_a_raw_table_trains_nothing(raw):
    with pytest.raises(hs.UserError, match="gaps, categories or dates, which no model learns from"):
        hs.on_device(raw)


@pytest.mark.parametrize(
    ("cells", "kind"),
    [
        (["1", "", "2.5"], "number"),
        (["1", "?", "2.5"], "number"),
        (["x", "1", ""], "category"),
        (["true", "", "false"], "boolean"),
        (["2020-01-01", "2020-02-29 12:30", ""], "date"),
    ],
)
def test_columns_are_what_they_look_like(cells, kind, tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("client,a,b,y\n" + "".join(f"c{i},{cell},{i},{i % 2}\n" for i, cell in enumerate(cells)))
    federation = hs.load(path)
    assert [column["kind"] for column in federation.metadata["columns"]] == [kind, "number"]


def test_numbers_and_gaps_that_give_the_target_away_are_warned_of():
    g = np.random.default_rng(0)
    severity = g.normal(size=900)
    y = np.digitize(severity, [-0.4, 0.5])
    frame = {
        "client": np.repeat([f"c{i}" for i in range(30)], 30),
        "severity": severity,
        "noisy": severity + g.normal(0, 0.5, 900),
        "discharged": np.where(y == 2, np.nan, g.normal(size=900)),
        "died": np.where(y == 0, np.nan, g.normal(size=900)),
        "y": np.where(y > 1, "yes", "no"),
    }
    found = warnings(hs.from_frame(frame, client="client", target="y"))
    assert len(found) == 2 and "'severity' alone says" in found[0]
    assert "'discharged' alone, by where it is missing, says" in found[1]


def test_a_category_of_which_no_value_is_known_is_told(tmp_path):
    (tmp_path / "t.csv").write_text(
        "client,smoker,y\n" + "".join(f"c{i % 9},{'yn'[i % 2]},{i % 3}\n" for i in range(180))
    )
    fitted = hs.Preprocessing.fit(hs.load(tmp_path / "t.csv"), np.arange(9))
    assert fitted.unknown_values(hs.load(tmp_path / "t.csv")) == []
    words = (tmp_path / "t.csv").read_text().replace(",y,", ",Y,").replace(",n,", ",N,")
    (tmp_path / "other.csv").write_text(words)
    notes = fitted.apply(hs.load(tmp_path / "other.csv")).metadata["notes"]
    assert notes == ["no value of 'smoker' ('N', 'Y') is one that training had ('n', 'y'), so all count as others"]


def test_a_stray_word_among_numbers_is_told_and_the_row_of_a_wrong_value_is_right(tmp_path):
    rows = [f"c{i % 5},{i + 0.5},{i % 2}" for i in range(60)]
    (tmp_path / "t.csv").write_text("\n".join(["client,a,y", *rows, "c1,<0.01,1"]) + "\n")
    federation = hs.load(tmp_path / "t.csv")
    assert "'a' holds numbers but for text such as '<0.01'" in federation.metadata["notes"][0]
    (tmp_path / "t.csv").write_text("\n".join(["client,a,y", *rows]) + "\n")
    fitted = hs.Preprocessing.fit(hs.load(tmp_path / "t.csv"), np.arange(4))
    with pytest.raises(hs.UserError, match=r"has '<0.01' in column 'a' of row 3, which is no number"):
        fitted.transform({"a": np.array(["1.5", "", "<0.01"], object)})


def trained(folder, target):
    """A short run on a table, and the columns of a client that it has never seen, as a file of a device."""
    path = table(folder / "t.csv")
    given = small.experiment(path, rounds=(3, 3))
    data = hs.Data(str(path), {"client": "site", "target": target}, train=0.6, validation=0.2)
    given = replace(
        given, data=data, model=None, task=None, stages=(replace(given.stages[0], update=hs.FedAvg(1, 0.01, 4)),)
    )
    rows = [line(77, row) for row in range(9)]
    (folder / "device.csv").write_text("\n".join([COLUMNS, *rows]) + "\n")
    cells = zip(*(row.split(",") for row in rows), strict=True)
    return hs.run(given, folder / "run", progress=False), dict(zip(COLUMNS.split(","), cells, strict=True))


@pytest.mark.parametrize("target", ["y", "days"])
def test_a_run_and_its_artifact_take_raw_columns_and_predict_the_same_bits(target, tmp_path, invoke, monkeypatch):
    run, columns = trained(tmp_path, target)
    monkeypatch.chdir(tmp_path)
    y = np.array(columns[target], object if target == "y" else np.float64)
    mine = run.personalize(columns, y, client="s77")
    with pytest.raises(hs.UserError, match="has no column 'age'"):
        run.predict({name: values for name, values in columns.items() if name != "age"})
    export_run(run.path, tmp_path / "artifact", platforms=["cpu"])
    program = runpy.run_path(str(PROGRAM))["main"]
    for model, words in ((run.initial_model(), ("--epochs", 0)), (mine, ())):
        given = ("artifact", "device.csv", "--client", "s77", "--no-gate", *words)
        assert invoke(program, "adapt.py", *given)[0] == 0
        found = np.load("adapted/predictions.npz")
        if target == "y":
            np.testing.assert_array_equal(found["output"], model.outputs(columns))
            assert found["label"].tolist() == model.predict(columns).tolist()
        else:
            np.testing.assert_array_equal(found["output"], model.predict(columns))
            assert 500 < found["output"].mean() < 2000
    (tmp_path / "device.csv").write_text((tmp_path / "device.csv").read_text().replace("True", "perhaps"))
    code, _, errors = invoke(program, "adapt.py", "artifact", "device.csv")
    assert code == 2 and "'perhaps', which is no boolean" in errors


def test_an_array_of_an_npz_is_a_table_in_run_personalize_predict_and_artifact(tmp_path, invoke, command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arrays = dict(np.load(small.federation_file(tmp_path / "plain.npz")))
    # One column of the array is the same everywhere, and is left out.
    arrays["x"] = np.insert(arrays["x"] * 10.0 ** np.array([-3, 0, 3, 6]), 1, 7, axis=1)
    np.savez("scaled.npz", **arrays)
    data = hs.Data("scaled.npz", {"exclude": "x[2]"}, train=0.6, validation=0.2)
    run = hs.run(replace(small.experiment(tmp_path, rounds=(3, 3)), data=data), "run", progress=False)
    assert run.decided["features"] == ["x[0]", "x[3]", "x[4]"]
    assert run.summary("test")["accuracy"]["personalized"]["mean"] > 0.5
    own = {name: values[arrays["client"] == "client-03"] for name, values in arrays.items()}
    np.savez("own.npz", **own)
    assert command("personalize", "run", "--data", "own.npz", "--out", "mine")[0] == 0
    code, _, errors = command("predict", "run", "--data", "own.npz", "--personalized", "mine", "--out", "told.csv")
    assert (code, errors) == (0, "")
    outputs = run.initial_model().outputs({"x": own["x"]})
    np.testing.assert_array_equal(run.initial_model().outputs(own["x"][:, [0, 3, 4]]), outputs)
    with pytest.raises(
        hs.UserError, match=r"the inputs have the shape .*, and training had the columns x\[0\], x\[3\]"
    ):
        run.predict(own["x"][:, :2])
    export_run(run.path, tmp_path / "artifact", platforms=["cpu"])
    program = runpy.run_path(str(PROGRAM))["main"]
    assert invoke(program, "adapt.py", "artifact", "own.npz", "--no-gate", "--epochs", 0)[0] == 0
    np.testing.assert_array_equal(np.load("adapted/predictions.npz")["output"], outputs)


def test_headstart_data_shows_the_plan_and_what_deserves_a_second_look(command, tmp_path):
    path = table(tmp_path / "t.csv")
    rows = [row.split(",") for row in path.read_text().splitlines()]
    rows[0].append("discharge")
    for row in rows[1:]:
        row.append({"a": "home", "b": "ward"}[row[COLUMNS.split(",").index("y")]])
    rows += [["s99", *rows[1][1:8], "c", *rows[1][9:]]]
    path.write_text("\n".join(map(",".join, rows)) + "\n")
    code, out, _ = command("data", path, "--client", "site", "--target", "y", "--picture", tmp_path / "t.png")
    assert code == 0
    for words in (
        "columns become",
        "column age (number): standardized (mean ",
        "column note (category): left out: its ",
        "warning: column 'discharge' alone says what the target is",
        "warning: 1 of 3 classes are held by one client alone (c)",
        "warning: 1 of 11 clients have fewer than 10 rows",
    ):
        assert words in out, out
    assert "column 'age' alone" not in out
    code, out, _ = command("data", path, "--client", "site", "--target", "days", "--picture", tmp_path / "t.png")
    assert code == 0 and "warning: column 'age' alone says what the target is" in out
    assert "column days (target): standardized" in out


def test_targets_of_several_axes_are_standardized_each_by_itself():
    x = np.random.default_rng(0).normal(size=(200, 4))
    y = np.stack([x[:, :2] * 100 + 5, x[:, 2:]], axis=2)
    frame = {"client": np.repeat(list("abcdefghij"), 20), "x": x, "y": y}
    federation = hs.from_frame(frame, features="x", regression=True)
    _, scaled = hs.Preprocessing.fit(federation, np.arange(10)).apply(federation).fetch(np.arange(10))
    assert scaled.shape == (200, 2, 2)


def test_small_differences_of_large_numbers_are_kept():
    steps = np.arange(40) % 4 / 8
    table = {"client": ["a", "b"] * 20, "y": np.arange(40) % 2, "pressure": 1e8 + steps, "other": np.arange(40) / 7}
    x, _ = hs.from_frame(table).fetch(np.arange(2))
    assert sorted(set(x[:, 0] - 1e8)) == [0, 0.125, 0.25, 0.375]
    for sound in (101_325 + 50 * steps, 2020 + 8 * steps, np.full(40, 1e8 + 0.3), [*steps[:-1], 1e30]):
        assert hs.from_frame({**table, "pressure": sound}).example()[0].dtype == np.float32
