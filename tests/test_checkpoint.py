"""Saved states: whole or refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from headstart import UserError
from headstart.learning.rounds import State
from headstart.runs import checkpoint


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


def test_the_state_of_another_model_is_refused(tmp_path):
    checkpoint.write(tmp_path / "state.safetensors", state(1), {})
    with pytest.raises(UserError, match="another model or optimizer"):
        checkpoint.read(tmp_path / "state.safetensors", {"w": jnp.zeros(3)})


def test_without_any_good_state_there_is_none(tmp_path):
    (tmp_path / "round-0000001.safetensors").write_bytes(b"nothing")
    saved, complaints = checkpoint.read_newest(tmp_path, lambda about: state(0))
    assert saved is None and "damaged" in complaints[0]
