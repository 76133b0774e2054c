"""Checkpoints that one process reads for all: what the others get is the same, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tuner.errors import CheckpointError
from tuner.training import Layout
from tuner.training.saved.checkpoints import Checkpoints
from tuner.training.saved.shared import SharedCheckpoints


class Wire:
    """The two ends of a group of two, one after the other: what the first sends, the second receives."""

    def __init__(self, is_leader: bool, sent: list[tuple[str, Any, list[bytes]]]) -> None:
        self.is_leader, self.sent = is_leader, sent

    def agree(self, what: str, decide: Callable[[], Any]) -> Any:
        return self.share(what, lambda: (decide(), []))[0]

    def share(self, what: str, pack: Callable[[], Any]) -> tuple[Any, list[bytes]]:
        if self.is_leader:
            value, arrays = pack()
            self.sent.append((what, json.loads(json.dumps(value)), [bytes(array) for array in arrays]))
            return value, []
        expected, value, arrays = self.sent.pop(0)
        assert expected == what
        return value, arrays


TREE = {
    "weights": jnp.asarray([-0.0, np.nan, np.inf, 1e-42], jnp.float32),
    "half": jnp.ones((2, 3), jnp.bfloat16),
    "scalar": jnp.int32(7),
    "key": jax.random.key(3),
    "flags": jnp.asarray([True, False]),
    "host": np.arange(3, dtype=np.uint8),
    "nothing": {},
    "empty": jnp.zeros((0, 4), jnp.float32),
}
RECORD = {"epoch": 2, "reports": [{"epoch": 1, "step": 3, "metrics": {"loss": float("nan")}}], "best": None}


@pytest.fixture
def pair(tmp_path: Path) -> tuple[SharedCheckpoints, SharedCheckpoints]:
    """The checkpoints of rank 0, and those of another rank, which has a folder of its own."""
    sent: list[tuple[str, Any, list[bytes]]] = []
    first = SharedCheckpoints(Wire(True, sent), tmp_path / "first", every_s=0.0)
    return first, SharedCheckpoints(Wire(False, sent), tmp_path / "second", every_s=0.0)


def same_bits(one: Any, other: Any) -> None:
    def bits(leaf: Any) -> bytes:
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(leaf) if is_key else leaf).tobytes()

    leaves, others = jax.tree.leaves_with_path(one), jax.tree.leaves_with_path(other)
    assert [path for path, _ in leaves] == [path for path, _ in others]
    for (path, mine), (_, theirs) in zip(leaves, others, strict=True):
        assert (mine.dtype, mine.shape, bits(mine)) == (theirs.dtype, theirs.shape, bits(theirs)), path


@pytest.mark.parametrize("layout", [Layout(), Layout(jax.devices()[:4])])
def test_all_ranks_restore_what_rank_0_reads(pair: tuple[SharedCheckpoints, SharedCheckpoints], layout: Layout) -> None:
    first, second = pair
    for one in pair:
        one.save(5, TREE, RECORD)
        one.wait()
    assert not second.folder.exists(), "only rank 0 writes"
    shardings = layout.shardings(TREE) if layout.devices else None

    read, got = [one.restore(TREE, shardings=shardings, identity={"epoch": 2}) for one in pair]

    assert read is not None
    assert got is not None
    assert read[0] == got[0] == 5
    same_bits(read[1], TREE)
    same_bits(got[1], TREE)
    assert json.dumps(got[2]) == json.dumps(read[2])
    assert second.restored == got[2]
    if shardings is not None:
        assert got[1]["weights"].sharding == shardings["weights"]
    # One process alone can go on with it.
    same_bits(Checkpoints(first.folder).restore(TREE, shardings=shardings)[1], TREE)  # pyright: ignore[reportOptionalSubscript]


def test_no_rank_restores_what_there_is_not(pair: tuple[SharedCheckpoints, SharedCheckpoints]) -> None:
    assert [one.has_latest() for one in pair] == [False, False]
    assert [one.latest_record() for one in pair] == [None, None]
    assert [one.restore(TREE) for one in pair] == [None, None]


def test_rank_0_says_what_is_there_and_due(pair: tuple[SharedCheckpoints, SharedCheckpoints]) -> None:
    first, second = pair
    with Checkpoints(second.folder) as others:
        others.save(1, TREE, {"epoch": 9})  # left by another trial on that host
    first.save(5, TREE, RECORD)
    first.wait()
    assert [one.has_latest() for one in pair] == [True, True]
    assert json.dumps([one.latest_record() for one in pair]) == json.dumps([RECORD, RECORD])
    asked: list[int] = []
    assert [one.agree_to_stop(lambda: asked.append(1) or True) for one in pair] == [True, True]
    assert len(asked) == 1
    assert [one.is_due() for one in pair] == [True, True]
    first._every_s = 1000.0
    assert [one.agree_to_stop(lambda: False) for one in pair] == [False, False]
    assert [one.is_due() for one in pair] == [False, False]


def test_only_rank_0_writes_the_best_and_deletes(pair: tuple[SharedCheckpoints, SharedCheckpoints]) -> None:
    first, second = pair
    for one in pair:
        one.offer_best(5, TREE, RECORD)
    assert first.write_best() == first.folder / "best"
    assert second.write_best() is None
    with Checkpoints(second.folder) as others:
        others.save(1, TREE, RECORD)
    second.delete_latest()
    assert Checkpoints(second.folder).has_latest()


def test_a_checkpoint_of_another_training_is_refused_by_rank_0(
    pair: tuple[SharedCheckpoints, SharedCheckpoints],
) -> None:
    first, _ = pair
    first.save(5, TREE, RECORD)
    with pytest.raises(CheckpointError, match="another training"):
        first.restore(TREE, identity={"epoch": 3})
