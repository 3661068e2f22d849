"""A result does not outlive what it came from: data, the user's own code, the run and the seed of a state."""

import json
import os
import shutil
import signal
import sys
import types
from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import headstart as hs
from headstart.data.federation import limited
from headstart.data.fingerprint import differing, fingerprint
from headstart.data.glyphs.glyphs import glyphs
from headstart.experiment.code import code_digests, model_digest
from headstart.models.zoo import as_model
from headstart.runs.checkpoint import read_arrays, read_tree, write
from headstart.runs.contents import read_json
from small import experiment, federation_file, first_stage_only, run


def arrays(**changed):
    """A federation in memory; `changed` are functions of its parts."""
    generator = np.random.default_rng(0)
    parts = {
        "ids": [f"c{i}" for i in range(6)],
        "sizes": np.full((6, 2), 4),
        "x": generator.normal(size=(48, 3)).astype(np.float32),
        "y": generator.integers(0, 3, 48).astype(np.int32),
    }
    parts |= {name: change(parts[name]) for name, change in changed.items()}
    return hs.from_arrays("mine", *parts.values(), metadata={"kind": "features", "classes": 3})


def other(value):
    value = value.copy()
    value.flat[-1] = 1 - value.flat[-1]
    return value


def test_the_fingerprint_is_of_contents_and_names_what_differs(tmp_path, monkeypatch):
    before = fingerprint(arrays())
    assert fingerprint(arrays()) == before and not differing(before, fingerprint(arrays()))
    for part, change, words in (
        ("x", other, "the examples (x)"),
        ("y", other, "the examples (y)"),
        ("x", lambda x: x.astype(np.float64), "the examples (x)"),
        ("ids", lambda ids: [*ids[:-1], "d"], "the ids of the clients"),
        ("sizes", lambda sizes: sizes + np.array([[1, -1]]), "how many examples clients have"),
    ):
        assert differing(before, fingerprint(arrays(**{part: change}))) == words
    renamed = replace(arrays(), metadata={"kind": "features", "classes": 3, "labels": ["u", "v", "w"]})
    assert differing(before, fingerprint(renamed)) == "labels, features or kind"
    monkeypatch.setattr("headstart.data.fingerprint._ROWS_AT_ONCE", 10)
    assert fingerprint(arrays()) == before
    whole = hs.split_examples(replace(arrays(), has_predefined_split=False), seed=1)
    assert fingerprint(whole)["[0]"] != before["[0]"] and fingerprint(whole.select(np.arange(6))) == fingerprint(whole)


def test_generated_rows_are_known_by_their_options(monkeypatch):
    monkeypatch.setattr("headstart.data.glyphs.glyphs.draw", None)  # no row is drawn
    before = fingerprint(glyphs(writers=20))
    assert fingerprint(glyphs(writers=20)) == before
    for options in ({"seed": 1}, {"habits": 0.2}, {"variation": 0.5}, {"examples": 9}, {"writers": 21}):
        assert fingerprint(glyphs(**{"writers": 20, **options})) != before
    few = limited(glyphs(writers=20), 5)
    assert fingerprint(few) not in (before, fingerprint(limited(glyphs(writers=20), 6)))
    assert fingerprint(few.select(np.arange(20))) == fingerprint(limited(glyphs(writers=20), 5))
    changed = replace(glyphs(writers=2, examples=3), fetch=lambda clients: (np.zeros((6, 2)), np.zeros(6)))
    assert "[0]" in fingerprint(changed)


def stop_after(number):
    def on_event(record):
        if record["event"] == "round" and record["round"] == number:
            os.kill(os.getpid(), signal.SIGINT)

    return on_event


@pytest.fixture
def moved(tmp_path):
    """A run that stopped after round 3, a finished one, and their data."""
    data = federation_file(tmp_path / "data.npz")
    plan = first_stage_only(experiment(data))
    assert not run(plan, tmp_path / "half", on_event=stop_after(3)).finished
    assert run(plan, tmp_path / "done").finished
    return plan, data


def rewrite(data, **changes):
    """The file with changed arrays, and the size and time that it had."""
    known = data.stat()
    with np.load(data) as held:
        contents = dict(held)
    np.savez(data, **{name: changes.get(name, lambda a: a)(array) for name, array in contents.items()})
    os.utime(data, ns=(known.st_atime_ns, known.st_mtime_ns))
    assert data.stat().st_size == known.st_size


@pytest.mark.parametrize("part", ["x", "y"])
def test_examples_that_changed_behind_the_same_path_are_refused(moved, tmp_path, part):
    plan, data = moved
    rewrite(data, **{part: lambda a: a[::-1].copy()})
    for name in ("half", "done"):
        with pytest.raises(hs.UserError, match=rf"the examples \({part}\) of data have changed since .*{name} was"):
            hs.run(plan, tmp_path / name, progress=False)
    rewrite(data, **{part: lambda a: a[::-1].copy()})
    assert hs.run(plan, tmp_path / "done", progress=False).finished


def test_equal_data_elsewhere_are_the_same_data(moved, tmp_path):
    plan, data = moved
    (tmp_path / "mount").mkdir()
    shutil.move(data, tmp_path / "mount" / "data.npz")
    there = replace(plan, data=replace(plan.data, source=str(tmp_path / "mount" / "data.npz")))
    assert run(there, tmp_path / "half").finished and run(there, tmp_path / "done").finished
    ends = [read_arrays(tmp_path / name / "seed-0" / "stage-0.safetensors") for name in ("half", "done")]
    for name, array in ends[0][0].items():
        np.testing.assert_array_equal(array, ends[1][0][name])
    assert ends[0][1] == ends[1][1] and read_json(tmp_path / "half" / "experiment.json")["data"]["source"].count(
        "mount"
    )
    federation_file(data, seed=1)
    with pytest.raises(hs.UserError, match=r"data.source was .*mount"):
        hs.run(plan, tmp_path / "done", progress=False)


@pytest.mark.parametrize("foreign", ["seed", "run"])
def test_a_state_of_another_seed_or_run_is_passed_over(moved, tmp_path, foreign):
    plan, _ = moved
    stage = replace(plan.stages[0], update=replace(plan.stages[0].update, learning_rate=0.2))
    other_plan = replace(plan, seed=5) if foreign == "seed" else replace(plan, stages=(stage,))
    source = run(other_plan, tmp_path / "other").path
    newest = next((source / f"seed-{other_plan.seed}" / "checkpoints").glob("*6.safetensors"))
    copied = tmp_path / "half" / "seed-0" / "checkpoints" / newest.name
    shutil.copy(newest, copied)
    if foreign == "seed":  # of the same run, as with --seeds
        known = read_json(tmp_path / "half" / "federation.json")["run"]
        tree, about = read_arrays(copied)
        write(copied, tree, {**about, "run": known})
    notes = []
    assert run(plan, tmp_path / "half", on_event=lambda r: notes.append(r.get("text", ""))).finished
    assert any(f"holds the state of another {foreign}; it is passed over" in note for note in notes)
    assert any("resumes after round 3" in note for note in notes)
    ends = [read_arrays(tmp_path / name / "seed-0" / "stage-0.safetensors")[0] for name in ("half", "done")]
    for name, array in ends[0].items():
        np.testing.assert_array_equal(array, ends[1][name])


@pytest.mark.parametrize("name", ["p.safetensors", "p-{seed}.safetensors"])
def test_all_seeds_start_from_the_parameters_that_the_run_was_begun_with(moved, tmp_path, name):
    plan, _ = moved
    end = tmp_path / "done" / "seed-0" / "stage-0.safetensors"
    tree, about = read_tree(end), read_arrays(end)[1]
    starts = [tmp_path / name.replace("{seed}", str(seed)) for seed in range(2)]
    for start in starts:
        shutil.copy(end, start)
    plan = replace(plan, start=str(tmp_path / name))
    assert run(plan, tmp_path / "out").finished
    write(starts[0], tree, {**about, "said": "otherwise"})  # the same parameters
    assert run(plan, tmp_path / "out").finished
    write(starts[0], jax.tree.map(lambda array: array + 1, tree), about)
    with pytest.raises(hs.UserError, match=r"the parameters in .*safetensors have changed since .*out was begun"):
        run(plan, tmp_path / "out", seeds=2)
    starts[0].unlink()
    assert run(plan, tmp_path / "out").finished
    shutil.copy(end, starts[0])
    assert run(plan, tmp_path / "out", seeds=2).finished


@pytest.mark.parametrize("suffixes", [("json", "npz", "safetensors"), ("safetensors",)])
def test_the_end_of_another_seed_is_no_result(moved, tmp_path, suffixes):
    plan, _ = moved
    out = run(plan, tmp_path / "done", seeds=2).path
    ends = [[out / f"seed-{seed}" / f"stage-0.{suffix}" for suffix in suffixes] for seed in range(2)]
    own = read_arrays(ends[1][-1])[0]
    for source, target in zip(*ends, strict=True):
        shutil.copy(source, target)
    for part in ("params", "initial_model"):
        with pytest.raises(hs.UserError, match=r"the report of seed 0|the state of another seed"):
            getattr(hs.open_run(out), part)(1)
    assert run(plan, tmp_path / "done", seeds=2).finished
    for name, array in read_arrays(ends[1][-1])[0].items():
        np.testing.assert_array_equal(array, own[name])


def test_a_run_from_before_fingerprints_takes_up_what_it_finds(moved, tmp_path):
    plan, _ = moved
    path = tmp_path / "half" / "federation.json"
    kept = read_json(path)
    path.write_text(json.dumps({name: kept[name] for name in ("name", "clients", "examples", "facts", "sha256")}))
    (tmp_path / "half" / "members.json").unlink()
    assert run(plan, tmp_path / "half").finished and read_json(path) == kept
    assert set(read_json(tmp_path / "half" / "members.json")) == {"train", "validation", "test"}


OWN = """import headstart as hs
from dataclasses import dataclass
from own_parts import WIDTH
import numpy


@dataclass(frozen=True)
class Mine(hs.Classification):
    pass


def net(key=0):
    from headstart.models.zoo import MLP

    return MLP((WIDTH,), classes=3)


# a comment
EXPERIMENT = 1
"""


def test_the_users_own_code_is_known_with_what_it_imports(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)

    def digests(own=OWN, parts="WIDTH = 4\n"):
        for name, text in (("own_code", own), ("own_parts", parts)):
            (tmp_path / f"{name}.py").write_text(text)
            sys.modules.pop(name, None)
        from headstart.experiment.serialization import attribute

        task = attribute("own_code:Mine", {"own_code"}, "task")()
        plan = replace(experiment("d.npz"), model=hs.ModelSpec("own_code:net"), task=task)
        return code_digests(plan)

    try:
        before = digests()
        assert set(before) == {"own_code", "own_parts"}
        assert digests(OWN.replace("# a comment", "# another").replace("EXPERIMENT = 1", "EXPERIMENT = 2")) == before
        assert digests(OWN.replace("classes=3", "classes=4"))["own_code"] != before["own_code"]
        assert digests(parts="WIDTH = 5\n")["own_parts"] != before["own_parts"]
        assert code_digests(experiment("d.npz")) == {}
    finally:
        for name in ("own_code", "own_parts"):
            sys.modules.pop(name, None)


SCRIPT = """import headstart as hs
from dataclasses import dataclass
from own_parts import WIDTH

PULL = 2.0


def pulled(x):
    return PULL * x


@dataclass(frozen=True)
class Mine(hs.FedAvg):
    def _step(self, x):
        seeds = pulled(x)
        return seeds


seeds = 1
"""


def test_a_class_in_the_script_is_known_with_what_it_needs_of_it(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)

    def digests(script=SCRIPT, parts="WIDTH = 4\n"):
        (tmp_path / "script.py").write_text(script)
        (tmp_path / "own_parts.py").write_text(parts)
        sys.modules.pop("own_parts", None)
        main = types.ModuleType("__main__")
        main.__file__ = str(tmp_path / "script.py")
        with monkeypatch.context() as changed:
            changed.setitem(sys.modules, "__main__", main)
            exec(compile(script, main.__file__, "exec"), main.__dict__)
            plan = first_stage_only(experiment("d.npz"))
            return code_digests(replace(plan, stages=(replace(plan.stages[0], update=main.Mine(1, 0.1, 4)),)))

    try:
        before = digests()
        assert set(before) == {"Mine", "own_parts"}
        assert digests(SCRIPT.replace("seeds = 1", "seeds = 2")) == before
        for old, new in (("PULL * x", "PULL + x"), ("PULL = 2.0", "PULL = 3.0"), ("seeds = pulled", "seeds = -pulled")):
            assert digests(SCRIPT.replace(old, new))["Mine"] != before["Mine"]
        assert digests(parts="WIDTH = 5\n")["own_parts"] != before["own_parts"]
    finally:
        sys.modules.pop("own_parts", None)


def test_a_changed_module_of_the_users_is_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    text = "from headstart.models.zoo import Logistic\n\n\ndef net(scale=1.0):\n    return Logistic(classes=3)\n"
    (tmp_path / "own_net.py").write_text(text)
    plan = replace(first_stage_only(experiment(federation_file(tmp_path / "d.npz"))), model=hs.ModelSpec("own_net:net"))
    try:
        assert run(plan, tmp_path / "out", allowed_modules={"own_net"}).finished
        assert run(plan, tmp_path / "out", allowed_modules={"own_net"}).finished
        (tmp_path / "own_net.py").write_text(text.replace("scale=1.0", "scale=2.0"))
        with pytest.raises(hs.UserError, match=r"the code of own_net has changed since .* was begun"):
            run(plan, tmp_path / "out", allowed_modules={"own_net"})
    finally:
        sys.modules.pop("own_net", None)


class Net(nn.Module):
    slope: float = 1.0

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(self.slope * x)


def pair(constant):
    table = np.full(3, constant, np.float32)
    return lambda key: {"w": jnp.zeros((3, 3))}, lambda params, x: x @ params["w"] + table


def test_a_model_in_memory_is_known_by_what_it_computes():
    def digest(thing):
        return model_digest(as_model(thing, jnp.zeros((1, 3))), arrays())["sha256"]

    assert digest(Net()) == digest(Net(1.0)) != digest(Net(2.0))
    assert digest(pair(0)) == digest(pair(0)) != digest(pair(1))


def test_federations_and_models_in_memory_are_held_to_what_they_were(tmp_path):
    stage = hs.Stage("A", hs.FedAvg(1, 0.1, 4), hs.Optimizer("sgd", 1.0), 2, 2)
    plan = hs.Experiment("memory", (stage,), personalization=hs.Personalization(epochs=1), evaluate_every=0)

    def again(federation, model):
        return hs.run(plan, tmp_path / "out", federation=federation, model=model, progress=False)

    assert again(arrays(), Net()).finished and again(arrays(), Net()).finished
    with pytest.raises(hs.UserError, match=r"the examples \(y\) of mine have changed"):
        again(arrays(y=other), Net())
    with pytest.raises(hs.UserError, match=r"the code of the model has changed"):
        again(arrays(), Net(2.0))
    assert jax.__version__ in (tmp_path / "out" / "federation.json").read_text()
