"""Pytrees as plain dicts: any of them comes back to the bit, from memory and from the disk."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from tuner.errors import CheckpointError
from tuner.training.saved.checkpoints import Checkpoints
from tuner.training.saved.plain import from_plain, to_plain
from tuner.training.state import TrainState

NAN, INF = math.nan, math.inf


class Pair(NamedTuple):
    left: Any
    right: Any


def every_leaf() -> dict[str, Any]:
    """Each kind of leaf and container, with bit patterns that a conversion would lose."""
    params = {"Dense_0": {"kernel": jnp.arange(6.0).reshape(2, 3), "bias": jnp.array([NAN, -0.0, INF])}}
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    with jax.numpy_dtype_promotion("standard"):
        opt_state = optimizer.init(params)
    bits = np.arange(0, 2**16, 7, dtype=np.uint16)
    return {
        "state": TrainState(
            step=jnp.asarray(7, jnp.int32), params=params, opt_state=opt_state, key=jax.random.key(5), total_steps=9
        ),
        "bfloat16": jnp.asarray(bits.view(ml_dtypes.bfloat16)),
        "float16": bits.view(np.float16),
        "float64": np.array([NAN, 1e-320, -0.0]),
        "int64": np.array([-(2**62) - 1]),
        "bools": jnp.array([True, False]),
        "complex": jnp.array([1 + 2j]),
        "keys": jax.random.split(jax.random.key(1), 3),
        "rbg": jax.random.key(2, impl="rbg"),
        "raw key": jax.random.PRNGKey(3),
        "numbers": (np.asarray(3), np.asarray(2.5), jnp.asarray(4)),
        "pair": Pair(jnp.zeros((0, 3), jnp.bfloat16), [np.zeros((2, 0)), None, (), {}]),
        "layers": {0: jnp.ones(2), 1: {}, 10: np.asarray(-3, np.int8)},
        "a": {"b": jnp.asarray(1.0, jnp.float32)},
        "a.b": jnp.asarray(2.0, jnp.float32),
        "a/b%2Eé": jnp.asarray(3.0, jnp.float32),
    }


def assert_same(found: Any, expected: Any) -> None:
    """Fail unless two trees are the same to the bit, types and weak types included."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for path, (a, b) in zip(
        jax.tree_util.tree_leaves_with_path(found),
        zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True),
        strict=True,
    ):
        assert type(a) is type(b), path
        assert getattr(a, "weak_type", None) == getattr(b, "weak_type", None), path
        if hasattr(b, "dtype") and jnp.issubdtype(b.dtype, jax.dtypes.prng_key):
            assert a.dtype == b.dtype, path
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        a, b = np.asarray(a), np.asarray(b)
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes()), path


def abstract(tree: Any) -> Any:
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, weak_type=getattr(leaf, "weak_type", False)), tree
    )


def test_any_tree_comes_back_bit_for_bit() -> None:
    tree = every_leaf()
    plain = to_plain(tree)
    assert all(isinstance(leaf, np.ndarray | jax.Array) for leaf in jax.tree.leaves(plain))
    assert plain["state"]["params"]["Dense_0"]["kernel"].shape == (2, 3)
    assert plain["layers"]["1"] == {} == plain["pair"]["right"]["1"]
    assert plain["keys"].dtype == jnp.uint32
    assert_same(from_plain(plain, tree), tree)


def test_64_bits_that_jax_would_cut_stay_in_numpy() -> None:
    wide = np.array([2**40 + 1])
    assert_same(from_plain({"x": wide}, {"x": jax.ShapeDtypeStruct((1,), np.int64)}), {"x": wide})


@pytest.mark.parametrize("tree", [{}, None, (), np.ones(3), optax.EmptyState(), {"a": {"b": None}}])
def test_trees_of_no_or_one_leaf_come_back(tree: Any, tmp_path: Path) -> None:
    assert_same(from_plain(to_plain(tree), tree), tree)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, tree, {})
        restored = checkpoints.restore(tree)
    assert restored is not None
    assert_same(restored[1], tree)


@pytest.mark.parametrize(
    ("like", "message"),
    [
        ({"a": {"x": np.ones(2, np.float32), "y": np.ones(2)}}, "a/y is missing"),
        ({}, "the state has no array a/x"),
        ({"a": {"x": np.ones((2, 1), np.float32)}}, r"a/x is float32\[2\], and float32\[2,1\] in the state"),
        ({"a": {"x": np.ones(2, np.int32)}}, r"a/x is float32\[2\], and int32\[2\] in the state"),
        ({"a": {"x": 1}}, r"a/x is float32\[2\], and int64\[\] in the state"),
    ],
)
def test_a_tree_that_does_not_fit_is_named(like: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        from_plain({"a": {"x": np.ones(2, np.float32)}}, like)


def test_leaves_that_are_no_arrays_and_equal_names_are_refused() -> None:
    with pytest.raises(CheckpointError, match="a/0 is str"):
        to_plain({"a": ["text"]})
    with pytest.raises(CheckpointError, match="have the same name: 1"):
        to_plain({_Loud("1"): 1, _Loud("1 "): 2})


class _Loud(str):
    """Two that differ, yet print alike."""

    def __str__(self) -> str:
        return self.strip()


def test_every_leaf_survives_the_disk_and_abstract_states_restore_it(tmp_path: Path) -> None:
    tree = every_leaf()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(7, tree, {"history": [{"step": 1, "value": NAN}, {"step": 2, "value": -INF}]})
        restored = checkpoints.restore(tree)
        assert restored is not None
        step, found, record = restored
        on_device = tree["state"]
        abstractly = checkpoints.restore({**tree, "state": jax.eval_shape(lambda: on_device)})
    assert step == 7
    assert_same(found, tree)
    assert math.isnan(record["history"][0]["value"])
    assert record["history"][1] == {"step": 2, "value": -INF}
    assert abstractly is not None
    assert_same(abstractly[1]["state"], on_device)


@pytest.mark.parametrize(("save_on", "restore_on"), [(8, 1), (1, 8), (8, 4)])
def test_a_checkpoint_moves_between_numbers_of_devices(save_on: int, restore_on: int, tmp_path: Path) -> None:
    def sharded(count: int) -> NamedSharding | SingleDeviceSharding:
        devices = jax.devices()
        if count == 1:
            return SingleDeviceSharding(devices[3])
        return NamedSharding(Mesh(np.array(devices[:count]), ("data",)), PartitionSpec("data"))

    values = jnp.arange(64.0).reshape(16, 4)
    tree = {
        "w": jax.device_put(values, sharded(save_on)),
        "key": jax.random.key(1),
        "none": None,
        "weak": jnp.asarray(2),
    }
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, tree, {})
        shardings = {
            "w": sharded(restore_on),
            "key": SingleDeviceSharding(jax.devices()[2]),
            "none": None,
            "weak": None,
        }
        restored = checkpoints.restore(abstract(tree), shardings=shardings)
        unplaced = checkpoints.restore(abstract(tree))
    assert restored is not None
    assert unplaced is not None
    assert restored[1]["w"].sharding == sharded(restore_on)
    assert restored[1]["key"].devices() == {jax.devices()[2]}
    assert unplaced[1]["w"].devices() == {jax.devices()[0]}
    for found in (restored[1], unplaced[1]):
        assert np.array_equal(np.asarray(found["w"]), np.asarray(values))
        assert found["key"] == tree["key"]
        assert found["weak"].weak_type


def test_a_checkpoint_of_an_earlier_version_gets_the_parts_that_were_added() -> None:
    before = {"totals": {"loss": {"total": np.float32(3)}}, "opt_state": {"made": np.int32(1)}}
    now = {
        "totals": {"loss": {"total": jnp.float32(0)}, "clipped_grad_norm": {"total": jnp.float32(5)}},
        "opt_state": {"made": jnp.int32(0), "accumulated_weight": jnp.ones((2,))},
    }
    found = from_plain(to_plain(before), now)
    assert (float(found["totals"]["loss"]["total"]), int(found["opt_state"]["made"])) == (3.0, 1)
    assert float(found["totals"]["clipped_grad_norm"]["total"]) == 0.0
    assert found["opt_state"]["accumulated_weight"].tolist() == [-1.0, -1.0]
    with pytest.raises(CheckpointError, match=r"opt_state/other is missing"):
        from_plain(to_plain(before), {**now, "opt_state": {**now["opt_state"], "other": jnp.float32(0)}})
