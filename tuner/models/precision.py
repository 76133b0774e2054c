"""Lets models mix precisions under a user's strict promotion of dtypes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax


def mixes_precisions(call: Callable[..., Any]) -> Callable[..., Any]:
    """Return a model's `__call__` under JAX's standard promotion of dtypes.

    In half precision, Flax's normalisations and attention compute sums in float32 on purpose, which
    `JAX_NUMPY_DTYPE_PROMOTION=strict` refuses.
    """

    @functools.wraps(call)
    def promoted(*given: Any, **named: Any) -> Any:
        with jax.numpy_dtype_promotion("standard"):
            return call(*given, **named)

    return promoted
