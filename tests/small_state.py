"""A small state and what is done with it, for the tests of checkpoints."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from tuner.training.saved.checkpoints import Checkpoints


def small_state(number: int = 0) -> dict[str, Any]:
    return {"w": np.arange(24, dtype=np.float32).reshape(4, 6) + np.float32(number), "n": np.asarray(number)}


def assert_same(found: Any, expected: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def write_best(checkpoints: Checkpoints, number: int, record: dict[str, Any]) -> Path | None:
    checkpoints.offer_best(number, small_state(number), record)
    return checkpoints.write_best()


def restored(checkpoints: Checkpoints, **options: Any) -> tuple[int, Any, dict[str, Any]]:
    found = checkpoints.restore(small_state(), **options)
    assert found is not None
    return found
