"""Checks that all labels are classes. Training with a wrong label would not raise an error."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tuner.errors import StudyError
from tuner.training.data.arrays import ArrayDataset


def check_labels(dataset: Any, classes: int, part: str, *, name: str = "labels", lowest: int = 0) -> None:
    """Raise StudyError unless all labels of a dataset are classes; call it in `TrainerModule.check_data`.

    It skips examples of weight 0, streams, labels with more than one axis, and datasets without labels.

    Args:
        dataset: The dataset.
        classes: The number of classes.
        part: The purpose of the dataset, for the message, such as `training`.
        name: The name of the array with the labels.
        lowest: The lowest valid label; -1 if that means "no label".

    Raises:
        StudyError: a label is not a whole number from `lowest` to `classes - 1`.
    """
    shared = dataset._shared.host if isinstance(dataset, ArrayDataset) else {}
    if name not in shared or shared[name].ndim != 1:
        return
    labels = shared[name][dataset._rows]
    numbers = labels.astype(np.float64)
    is_wrong = ~((numbers >= lowest) & (numbers < classes) & (numbers == np.floor(numbers)))
    if "weight" in shared:
        is_wrong &= shared["weight"][dataset._rows] > 0
    if is_wrong.any():
        at = int(np.argmax(is_wrong))
        others = int(is_wrong.sum()) - 1
        raise StudyError(
            f"{name} must be whole numbers from {lowest} to {classes - 1}, for {classes} classes: got "
            f"{labels[at].item()!r} for example {int(dataset._rows[at])} of the {part} data"
            f"{f' and {others} more' if others else ''}; change the number of classes, or skip these "
            "examples (weight 0)"
        )


def only_classes(losses: jax.Array, labels: jax.Array, classes: int) -> jax.Array:
    """Return losses, with NaN where a label is not a class, because streams are not checked before training.

    Args:
        losses: Float[Array, "batch"].
        labels: Int[Array, "batch"].
        classes: The number of classes.
    """
    return jnp.where((labels >= 0) & (labels < classes), losses, jnp.nan)
