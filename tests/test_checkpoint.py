"""Saved states: whole or refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import save, save_file

from headstart import UserError
from headstart.learning.rounds import State
from headstart.runs import checkpoint
from headstart.runs.start import read_parameters


def state(seed: int) -> State:
    params = {"params": {"w": jax.random.normal(jax.random.key(seed), (3, 2)), "b": jnp.full(2, seed, jnp.float32)}}
    return State(params, optax.adam(1e-3).init(params))


def test_a_state_comes_back_bit_for_bit_with_what_was_said_about_it(tmp_path):
    checkpoint.write_round(tmp_path, state(1), {"round": 3, "stage": 0})
    saved, complaints = checkpoint.read_newest(tmp_path, lambda about: jax.eval_shape(lambda: state(0)))
    assert saved is not None and saved.about == {"round": 3, "stage": 0} and not complaints
    assert jax.tree.structure(saved.tree) == jax.tree.structure(state(1))
    for a, b in zip(jax.tree.leaves(saved.tree), jax.tree.leaves(state(1)), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_only_the_two_newest_states_are_kept(tmp_path):
    for number in (1, 2, 11):
        checkpoint.write_round(tmp_path, state(number), {"round": number, "stage": 0})
    assert [path.name for path in sorted(tmp_path.iterdir())] == [
        "round-0000002.safetensors",
        "round-0000011.safetensors",
    ]


@pytest.mark.parametrize("position", [0.1, 0.5, 0.9, 0.999])
def test_a_changed_byte_anywhere_is_noticed(tmp_path, position):
    path = tmp_path / "state.safetensors"
    checkpoint.write(path, state(1), {"round": 1})
    content = bytearray(path.read_bytes())
    content[int(position * len(content))] ^= 0x55
    path.write_bytes(content)
    with pytest.raises(UserError):
        checkpoint.read(path, state(0))


def test_every_flipped_bit_of_what_is_said_about_a_state_is_noticed(tmp_path):
    path = tmp_path / "round-0000012.safetensors"
    checkpoint.write_round(tmp_path, {"w": np.arange(2.0)}, {"round": 12, "stage": 0, "kept": 3})
    content = path.read_bytes()
    for position in range(len(content)):
        for bit in range(8):
            path.write_bytes(content[:position] + bytes([content[position] ^ 1 << bit]) + content[position + 1 :])
            saved, notes = checkpoint.read_newest(tmp_path, lambda about: {"w": np.zeros(2)})
            assert saved is None and len(notes) == 1, (position, bit)


def test_a_state_of_before_is_read_and_its_round_is_that_of_its_name(tmp_path):
    arrays = {"['w']": np.arange(2.0)}
    for number, said in ((12, 12), (13, 28)):
        about = {"about": json.dumps({"round": said, "stage": 0}), "sha256": checkpoint._digest(arrays, "")}
        (tmp_path / f"round-{number:07d}.safetensors").write_bytes(save(arrays, about))
    saved, notes = checkpoint.read_newest(tmp_path, lambda about: {"w": np.zeros(2)})
    assert saved is not None and saved.about["round"] == 12 and saved.tree["w"].tolist() == [0, 1]
    assert len(notes) == 1 and "round-0000013.safetensors is damaged" in notes[0]


def test_files_that_headstart_did_not_write_are_left(tmp_path):
    for name in ("round-best.safetensors", "round-1.safetensors", "round-0000001.safetensors.bak"):
        (tmp_path / name).write_text("mine")
    for number in (1, 2, 3, 10_000_000):
        checkpoint.write_round(tmp_path, {"w": np.zeros(1)}, {"round": number})
    kept = ["round-0000003.safetensors", "round-10000000.safetensors"]
    mine = ["round-best.safetensors", "round-1.safetensors", "round-0000001.safetensors.bak"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*kept, *mine])


def model() -> dict:
    return {"params": {"Dense_0": {"kernel": np.arange(6, dtype=np.float32).reshape(3, 2), "bias": np.ones(2, "f4")}}}


FOREIGN = {
    "as headstart names them": lambda step: "".join(f"['{each}']" for each in step),
    "with dots": ".".join,
    "with slashes": "/".join,
    "without the collection": lambda step: ".".join(step[1:]),
}


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("written", FOREIGN)
def test_parameters_that_somebody_else_wrote_are_started_from(tmp_path, written, dtype):
    steps = [("params", "Dense_0", name) for name in ("kernel", "bias")]
    arrays = {FOREIGN[written](step): model()["params"]["Dense_0"][step[-1]].astype(jnp.dtype(dtype)) for step in steps}
    save_file(arrays, tmp_path / "mine.safetensors", {"made": "elsewhere"})
    found = read_parameters(tmp_path / "mine.safetensors", jax.eval_shape(model))
    jax.tree.map(np.testing.assert_array_equal, found, model())
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {np.dtype("float32")}


@pytest.mark.parametrize(
    ("arrays", "complaint"),
    [
        ({"Dense_0.kernel": np.zeros((3, 2), "f4")}, "no params.Dense_0.bias"),
        (
            {"Dense_0.kernel": np.zeros((3, 2), "f4"), "Dense_0.bias": np.zeros(3, "f4")},
            r"bias of shape \(3,\) instead",
        ),
        (
            {"a": np.zeros(1), "Dense_0.kernel": np.zeros((3, 2)), "Dense_0.bias": np.zeros(2)},
            "a, which the model has not",
        ),
        (
            {"Dense_0.kernel": np.zeros((3, 2), "i4"), "Dense_0.bias": np.zeros(2, "f4")},
            "kernel as int32, and the model",
        ),
        ({"Dense_0.kernel": np.full((3, 2), 1e300), "Dense_0.bias": np.zeros(2)}, "kernel that are not finite"),
    ],
)
def test_parameters_of_another_model_are_refused_by_name(tmp_path, arrays, complaint):
    save_file(arrays, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=complaint):
        read_parameters(tmp_path / "other.safetensors", model())


def test_the_state_of_another_model_is_refused(tmp_path):
    checkpoint.write(tmp_path / "state.safetensors", state(1), {})
    with pytest.raises(UserError, match="another model or optimizer"):
        checkpoint.read(tmp_path / "state.safetensors", {"w": jnp.zeros(3)})


def test_without_any_good_state_there_is_none(tmp_path):
    (tmp_path / "round-0000001.safetensors").write_bytes(b"nothing")
    saved, complaints = checkpoint.read_newest(tmp_path, lambda about: state(0))
    assert saved is None and "damaged" in complaints[0]
