"""The artifact: a fresh process without headstart adapts to the same bits, and decides by examples held back."""

from __future__ import annotations

import hashlib
import runpy
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from safetensors.numpy import load_file

import headstart
from headstart import Data, Experiment, FedAvg, ModelSpec, Optimizer, Personalization, Stage, load, run
from headstart.deploy.adapt import personalize_run
from headstart.deploy.export import export_run, signed
from headstart.errors import UserError
from headstart.experiment.setup import prepare
from headstart.files import whole_folder, write_json
from headstart.learning.rounds import seed_key
from headstart.runs import checkpoint
from headstart.runs.contents import read_json
from headstart.runs.directory import claimed, write_samples
from headstart.training.seed_run import Options
from small import experiment, first_stage_only

PROGRAM = Path(__file__).parents[1] / "examples" / "on_device" / "adapt.py"
# What a device has beside Python: the four packages, and what JAX itself cannot do without.
PRESENT = ("jax", "jaxlib", "numpy", "flatbuffers", "safetensors", "ml_dtypes", "opt_einsum", "scipy")
ISOLATED = f"""
import runpy, sys
from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder

class Present(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        top = name.split(".")[0]
        own = top in sys.stdlib_module_names or top.startswith("_sysconfigdata")
        return super().find_spec(name, path, target) if own or top in {PRESENT} else None

sys.meta_path[:] = [BuiltinImporter, FrozenImporter, Present]
sys.argv.pop(0)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def on_device(folder: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """The program in a process of its own, which can import nothing that a device does not have."""
    command = [sys.executable, "-I", "-c", ISOLATED, PROGRAM, *words]
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, cwd=folder, check=False)


@pytest.fixture
def adapt(invoke, tmp_path):
    """Runs the program in this process; returns its exit code, output and errors."""
    program = partial(runpy.run_path, str(PROGRAM), run_name="__main__")
    return lambda *words: invoke(program, PROGRAM, *words, "--out", tmp_path / "adapted")


@pytest.fixture(scope="session")
def finished(made_once, small_data) -> tuple[Path, Path, Path]:
    """A federation file, a finished run on it, and its artifact."""

    def make(folder: Path) -> None:
        assert run(first_stage_only(experiment(small_data)), folder / "run", options=Options(devices=1)).finished
        export_run(folder / "run", folder / "artifact")

    folder = made_once("exported", make)
    return small_data, folder / "run", folder / "artifact"


def own_examples(path: Path, federation, client: int) -> Path:
    """A client's support examples, in a file as a device has it."""
    x, y = federation.fetch(np.array([client]))
    size = federation.sizes[client, 0]
    np.savez(path, x=x[:size], y=y[:size])
    return path


def assert_same_bits(a: Path, b: Path) -> None:
    mine, theirs = load_file(a), load_file(b)
    assert mine.keys() == theirs.keys()
    for name, array in mine.items():
        assert array.dtype == theirs[name].dtype
        np.testing.assert_array_equal(array, theirs[name], err_msg=name)


def test_a_fresh_process_without_headstart_adapts_to_the_bits_of_the_command(command, finished, tmp_path):
    data, folder, artifact = finished
    assert command("personalize", folder, "--data", data, "--out", "mine", "--epochs", 3)[0] == 0
    federation, initial = load(data), load_file(artifact / "parameters.safetensors")
    client = int(np.argmax(federation.sizes[:, 0]))
    examples, name = own_examples(tmp_path / "data.npz", federation, client), federation.ids[client]
    words = [artifact, examples, "--no-gate", "--epochs", 3]
    done = on_device(tmp_path, *words, "--client", name)
    assert (done.returncode, done.stderr) == (0, "")
    size = federation.sizes[client, 0]
    assert done.stdout == (
        f"kept the adapted model unseen: adapted to {size} examples for 3 epochs, with no examples held back\n"
    )
    adapted = tmp_path / "adapted/parameters.safetensors"
    assert_same_bits(adapted, tmp_path / f"mine/parameters/{name}.safetensors")
    mine = load_file(adapted)
    assert any(np.any(mine[name] != value) for name, value in initial.items())
    # Another client's batches come in another order.
    assert on_device(tmp_path, *words, "--client", "somebody").returncode == 0
    assert any(np.any(mine[name] != value) for name, value in load_file(adapted).items())


def passages(path: Path) -> str:
    """A file of three clients' texts, as TensorFlow Federated has them."""
    texts = ("To be, or not to be: that is the question.", "Ay, marry.", "x" * 100)
    with h5py.File(path, "w") as file:
        for number, text in enumerate(texts):
            file[f"examples/client{number}/snippets"] = np.array([text.encode(), text[::-1].encode()] * 4, dtype=object)
    return str(path)


def quantities(path: Path) -> str:
    """An .npz of clients with a quantity to predict."""
    generator = np.random.default_rng(3)
    x = generator.normal(size=(24, 3)).astype(np.float32)
    y = (x @ [1.0, -2.0, 0.5] + generator.normal(0, 0.1, 24)).astype(np.float32)
    np.savez(path, client=np.repeat(["a", "b", "c"], 8), x=x, y=y)
    return str(path)


def kind(name: str, folder: Path) -> Experiment:
    """An experiment of each kind of model, with three clients."""
    data, model = {
        "linear": (lambda: Data(quantities(folder / "quantities.npz"), {"raw": True}), ModelSpec("linear")),
        "cnn": (
            lambda: Data("glyphs", {"writers": 3, "examples": 9}),
            ModelSpec("cnn", {"filters": (4,), "hidden": 4}),
        ),
        "char_lstm": (lambda: Data(passages(folder / "text.h5")), ModelSpec("char_lstm", {"width": 8, "layers": 1})),
    }[name]
    stage = Stage("FedAvg", FedAvg(), Optimizer(), 1, 2)
    # Batches of two lengths are compiled, a whole one and a half; more would take their time.
    recipe = Personalization(Optimizer("sgd", 0.1), 8 if name == "linear" else 2, 2)
    return Experiment(name, (stage,), data(), model, personalization=recipe)


def untrained(out: Path, made: Experiment) -> Path:
    """The folder of a run without evaluation, with initial parameters that nobody trained."""
    prepared = prepare(made)
    with claimed(out, prepared.experiment, prepared.federation):
        write_samples(out, prepared.federation, prepared.groups.test)
    checkpoint.write(out / "seed-0/stage-0.safetensors", prepared.model.init(seed_key(0)), {"round": 1})
    write_json(out / "seed-0/stage-0.json", {"stage": "FedAvg", "round": 1, "seed": 0})
    return out


def descended(parameters: dict[str, np.ndarray], x: np.ndarray, y: np.ndarray, *, steps: int) -> list[np.ndarray]:
    """Linear regression in float64: bias and kernel after some steps on all examples at once."""
    (bias, kernel) = (parameters[name].astype(np.float64) for name in sorted(parameters))
    for _ in range(steps):
        error = (x @ kernel + bias)[:, 0] - y
        bias, kernel = bias - 0.1 * 2 * error.mean(), kernel - 0.1 * 2 * (x * error[:, None]).mean(axis=0)[:, None]
    return [bias, kernel]


@pytest.mark.parametrize("name", ["linear", *(pytest.param(n, marks=pytest.mark.slow) for n in ("cnn", "char_lstm"))])
def test_every_kind_of_model_adapts_on_a_device_to_the_same_bits(name, tmp_path):
    made = kind(name, tmp_path)
    folder = untrained(tmp_path / "run", made)
    personalize_run(folder, made.data.source, tmp_path / "mine", options=made.data.options, devices=1)
    export_run(folder, tmp_path / "artifact")
    federation = load(made.data.source, **made.data.options)
    examples, client = own_examples(tmp_path / "data.npz", federation, 0), federation.ids[0]
    done = on_device(tmp_path, tmp_path / "artifact", examples, "--no-gate", "--client", client)
    assert (done.returncode, done.stderr) == (0, "")
    adapted = tmp_path / "adapted/parameters.safetensors"
    assert_same_bits(adapted, tmp_path / f"mine/parameters/{client}.safetensors")
    assert "is not known" in (tmp_path / "artifact/card.md").read_text()
    predictions, given = np.load(tmp_path / "adapted/predictions.npz"), np.load(examples)
    assert len(predictions["output"]) == len(given["x"])
    if name == "linear":
        initial = load_file(tmp_path / "artifact/parameters.safetensors")
        expected = descended(initial, given["x"], given["y"], steps=2)
        for found, truth in zip((v for _, v in sorted(load_file(adapted).items())), expected, strict=True):
            np.testing.assert_allclose(found, truth, rtol=1e-5)
        bias, kernel = expected
        np.testing.assert_allclose(predictions["output"], given["x"] @ kernel + bias, rtol=1e-5)


def of_numpy(parameters: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """The classes that the small network predicts."""
    bias0, kernel0, bias1, kernel1 = (parameters[name] for name in sorted(parameters))
    return np.argmax(np.maximum(x @ kernel0 + bias0, 0) @ kernel1 + bias1, axis=-1)


def test_the_gate_keeps_the_model_that_is_better_on_the_examples_held_back(adapt, finished, tmp_path):
    artifact = finished[2]
    initial = load_file(artifact / "parameters.safetensors")
    x = np.random.default_rng(5).normal(0, 2, (50, 4)).astype(np.float32)
    # A device that has other names for the classes than everybody else has much to gain.
    y = (of_numpy(initial, x) + 1) % 3
    np.savez(tmp_path / "own.npz", x=x, y=y)
    code, out, _ = adapt(artifact, tmp_path / "own.npz", "--epochs", 30)
    decision = read_json(tmp_path / "adapted/decision.json")
    kept = load_file(tmp_path / "adapted/parameters.safetensors")
    held_back = np.array(decision["held_back"])
    assert code == 0 and out.startswith("kept the adapted model: accuracy ") and len(held_back) == 10
    assert decision["kept"] == "adapted" and decision["initial"] == 0.0
    right = of_numpy(kept, x[held_back]) == y[held_back]
    assert decision["adapted"] == pytest.approx(right.mean()) and right.mean() > 0.5
    predictions = np.load(tmp_path / "adapted/predictions.npz")
    np.testing.assert_array_equal(predictions["y"], of_numpy(kept, x))
    assert predictions["label"].tolist() == [["0", "1", "2"][number] for number in predictions["y"]]
    # One whose examples held back are like everybody's, while the others mislead, has much to lose.
    y[held_back] = of_numpy(initial, x[held_back])
    np.savez(tmp_path / "misled.npz", x=x, y=y)
    code, out, _ = adapt(artifact, tmp_path / "misled.npz", "--epochs", 30)
    decision = read_json(tmp_path / "adapted/decision.json")
    assert code == 0 and decision["kept"] == "initial"
    assert decision["initial"] == 1.0 and decision["held_back"] == held_back.tolist()
    assert out == (
        f"kept the initial model: accuracy {decision['adapted']:.4g} after adapting to 40 examples for 30 epochs,"
        " 1 before, on 10 examples held back\n"
    )
    assert_same_bits(tmp_path / "adapted/parameters.safetensors", artifact / "parameters.safetensors")
    np.savez(tmp_path / "one.npz", x=x[:1], y=y[:1])
    code, out, _ = adapt(artifact, tmp_path / "one.npz", "--predict", tmp_path / "own.npz")
    assert code == 0 and "none can be held back" in out
    np.testing.assert_array_equal(np.load(tmp_path / "adapted/predictions.npz")["y"], of_numpy(initial, x))


def test_the_card_and_the_description_state_the_results_of_the_run(finished):
    _, folder, artifact = finished
    card, report = read_json(artifact / "card.json"), read_json(folder / "seed-0/stage-0.json")
    assert card["test"] == report["test"] and card["validation"] == report["validation"]
    assert (card["data"]["clients"], card["data"]["classes"]) == (12, 3)
    page = (artifact / "card.md").read_text()
    accuracy = report["test"]["accuracy"]["personalized"]
    low, high = (100 * bound for bound in accuracy["interval"])
    assert f"{100 * accuracy['mean']:.1f} % [{low:.1f}, {high:.1f}]" in page and "On 3 test clients" in page
    source = str(Path(headstart.__file__).parent).encode()
    assert not any(source in path.read_bytes() for path in artifact.iterdir()), "a folder of this machine"
    about = read_json(artifact / "artifact.json")
    assert about["platforms"] == ["cpu", "cuda", "rocm", "tpu"]
    assert about["x"] == {"shape": ["capacity", 4], "dtype": "float32"}
    assert about["y"] == {"shape": ["capacity"], "dtype": "int32", "below": 3}
    assert about["recipe"]["length"] == report["validation"]["length"]
    stored = load_file(artifact / "parameters.safetensors")
    assert [(entry["name"], tuple(entry["shape"])) for entry in about["parameters"]] == [
        (name, stored[name].shape) for name in sorted(stored)
    ]


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def changed(folder: Path, **entries: Any) -> None:
    path = folder / "artifact.json"
    about = {name: value for name, value in read_json(path).items() if name != "sha256"}
    write_json(path, signed({**about, **entries}))


def unreadable(folder: Path) -> None:
    content = b"a program that no JAX of today can read"
    (folder / "adapt.jaxexport").write_bytes(content)
    files = read_json(folder / "artifact.json")["files"]
    changed(folder, files=files | {"adapt.jaxexport": {"sha256": hashlib.sha256(content).hexdigest()}})


DAMAGES = {
    "no folder": (lambda folder: (folder / "artifact.json").unlink(), "cannot read"),
    "a damaged description": (lambda folder: damage(folder / "artifact.json"), "artifact.json is damaged"),
    "half a description": (lambda folder: (folder / "artifact.json").write_text("{"), "artifact.json is damaged"),
    "a damaged program": (lambda folder: damage(folder / "adapt.jaxexport"), "adapt.jaxexport is damaged"),
    "a missing program": (lambda folder: (folder / "predict.jaxexport").unlink(), "predict.jaxexport"),
    "damaged parameters": (lambda folder: damage(folder / "parameters.safetensors"), "safetensors is damaged"),
    "another platform": (
        lambda folder: changed(folder, platforms=["cuda", "tpu"]),
        "the artifact is for cuda, tpu, but JAX computes on cpu here",
    ),
    "another format": (lambda folder: changed(folder, format=3), "has format 3, this program reads 1 and 2"),
    "a program of another JAX": (unreadable, "cannot read the program adapt, made with JAX"),
}
X, Y = np.zeros((5, 4), np.float32), np.arange(5) % 3
WRONG = {
    "a wrong shape": ({"x": X[:, :3], "y": Y}, "has the shape [5, 3], but must be [examples, 4]"),
    "a missing axis": ({"x": X, "y": Y[:, None]}, "has the shape [5, 1], but must be [examples]"),
    "a wrong type": ({"x": X, "y": Y / 2}, "is float64, but must be int32"),
    "text": ({"x": X.astype(str), "y": Y}, "but must be float32"),
    "numbers that are too large": ({"x": X, "y": Y + 2**40}, "that are no int32"),
    "classes that are too many": ({"x": X, "y": Y + 1}, "goes from 1 to 3, but must be from 0 to 2"),
    "no number": ({"x": X * np.nan, "y": Y}, "not finite"),
    "no y": ({"x": X}, "has no array 'y'; it holds x"),
    "rows without a target": ({"x": X, "y": Y[:4]}, "5 rows of x and 4 of y"),
}


def refused(code: int, out: str, err: str, complaint: str) -> None:
    assert (code, out) == (2, "")
    assert complaint in err and err.startswith("adapt.py: ") and len(err.strip().splitlines()) == 1


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_artifact_is_refused_in_one_sentence(adapt, finished, tmp_path, name):
    spoil, complaint = DAMAGES[name]
    for path in finished[2].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    spoil(tmp_path)
    np.savez(tmp_path / "data.npz", x=X, y=Y)
    refused(*adapt(tmp_path, tmp_path / "data.npz"), complaint)
    assert not (tmp_path / "adapted").exists()


@pytest.mark.parametrize("name", WRONG)
def test_data_that_do_not_suit_are_refused_in_one_sentence(adapt, finished, tmp_path, name):
    arrays, complaint = WRONG[name]
    arguments: dict[str, Any] = arrays
    np.savez(tmp_path / "data.npz", **arguments)
    refused(*adapt(finished[2], tmp_path / "data.npz"), complaint)
    assert not (tmp_path / "adapted").exists()


def test_a_file_that_is_none_a_folder_that_cannot_be_written_and_senseless_numbers_are_refused(
    adapt, finished, tmp_path
):
    (tmp_path / "data.npz").write_bytes(b"PK\x03\x04 and no more")
    refused(*adapt(finished[2], tmp_path / "data.npz"), "give an .npz file of x and y")
    refused(*adapt(finished[2], tmp_path / "absent.npz"), "absent.npz")
    np.savez(tmp_path / "data.npz", x=X, y=Y)
    refused(*adapt(finished[2], tmp_path / "data.npz", "--held-back", 1.5), "must lie between 0 and 1")
    refused(*adapt(finished[2], tmp_path / "data.npz", "--epochs", -1), "must be at least 0")
    (tmp_path / "adapted").write_text("in the way")
    refused(*adapt(finished[2], tmp_path / "data.npz"), "give another --out")


def test_the_command_writes_an_artifact_whole_or_not_at_all(command, finished, tmp_path):
    _, folder, artifact = finished
    code, out, err = command("export", folder, "--out", "made", "--platforms", "cuda,cpu")
    assert (code, err) == (0, "")
    assert {line.split(": ")[0].split("/")[1] for line in out.splitlines()} == {
        path.name for path in artifact.iterdir()
    }
    assert read_json(tmp_path / "made/artifact.json")["platforms"] == ["cpu", "cuda"]
    for words, complaint in {
        (str(folder), "--out", "made"): "holds files already; choose a new or an empty folder",
        (str(folder), "--out", "new", "--platforms", "metal"): "there is no platform 'metal'; choose among cpu,cuda",
        (str(folder), "--out", "new", "--platforms", ","): "there is no platform to export for",
        (str(tmp_path), "--out", "new"): "is no run folder",
        (str(folder), "--out", "/proc/new"): "cannot write the folder /proc/new",
    }.items():
        code, _, err = command("export", *words)
        assert code == 2 and complaint in err and len(err.strip().splitlines()) == 1, words
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made"]


def test_a_folder_that_is_not_finished_never_appears(tmp_path):
    with pytest.raises(UserError, match="no room"), whole_folder(tmp_path / "out") as folder:
        (folder / "half").write_text("")
        raise UserError("no room")
    assert not list(tmp_path.iterdir())


def test_a_run_without_kept_examples_and_a_model_that_cannot_be_exported_are_refused(finished, tmp_path, monkeypatch):
    (tmp_path / "uneven.py").write_text(
        "import jax.numpy as jnp\n\n\ndef net(classes):\n"
        "    def init(key):\n        return {'w': jnp.zeros((4, classes))}\n\n"
        "    def apply(params, x):\n        return jnp.asarray(jax_outside(x)) @ params['w']\n\n"
        "    return init, apply\n\n\n"
        "def jax_outside(x):\n    import jax\n\n"
        "    return jax.pure_callback(lambda x: x, jax.ShapeDtypeStruct(x.shape, x.dtype), x)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    made = Experiment(
        "uneven", experiment(finished[0]).stages[:1], Data(str(finished[0]), {"raw": True}), ModelSpec("uneven:net")
    )
    prepared = prepare(made, allowed_modules={"uneven"})
    folder = tmp_path / "run"
    with claimed(folder, prepared.experiment, prepared.federation):
        pass
    checkpoint.write(folder / "seed-0/stage-0.safetensors", prepared.model.init(seed_key(0)), {"round": 1})
    write_json(folder / "seed-0/stage-0.json", {"stage": "FedAvg", "round": 1, "seed": 0})
    with pytest.raises(UserError, match=r"a run keeps examples only if x and y are one array each"):
        export_run(folder, tmp_path / "artifact", allowed_modules={"uneven"})
    write_samples(folder, prepared.federation, prepared.groups.test)
    with pytest.raises(UserError, match="the program 'adapt' of this model and task cannot be exported"):
        export_run(folder, tmp_path / "artifact", allowed_modules={"uneven"})
    assert not (tmp_path / "artifact").exists()
