"""The default optimizer, its rates traceable: a schedule is a shape without units times a traced peak."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import optax

Number = float | jax.Array


def warmup_cosine(total_steps: int, *, warmup_steps: int | None = None) -> Callable[[Any], Any]:
    """Return step -> factor: linear from 0 to 1, then half a cosine down to 0.01 (Loshchilov & Hutter, 2017).

    Args:
        total_steps: Updates of the whole training; > 0.
        warmup_steps: Updates until the factor is 1; a tenth of all by default.

    Raises:
        ValueError: the warm-up does not end before the training.
    """
    if warmup_steps is None:
        warmup_steps = total_steps // 10
    if not 0 <= warmup_steps < total_steps:
        raise ValueError(
            f"the warm-up must end before training does: got warmup_steps={warmup_steps}, total_steps={total_steps}"
        )
    return optax.warmup_cosine_decay_schedule(0.0, 1.0, warmup_steps, total_steps, end_value=0.01)


def adamw(learning_rate: Number, weight_decay: Number, total_steps: int) -> optax.GradientTransformation:
    """Return AdamW (Loshchilov & Hutter, 2019) with warm-up and cosine decay.

    Args:
        learning_rate: The schedule's peak; may be traced.
        weight_decay: Decoupled decay of arrays with two or more axes (not of biases and scales); may be traced.
        total_steps: Updates of the whole training.
    """
    shape = warmup_cosine(total_steps)

    def is_matrix(params: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf.ndim > 1, params)

    return optax.adamw(
        lambda step: learning_rate * shape(step),
        weight_decay=weight_decay,  # pyright: ignore[reportArgumentType]  (optax says float, a tracer works)
        mask=is_matrix,
    )
