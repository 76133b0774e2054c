"""Classification with smoothed labels and smoothed weights: the base, or the baseline, of most methods here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from tuner.errors import StudyError
from tuner.training import TrainerModule
from tuner.training.data.arrays import Batch
from tuner.training.data.feed import Dataset
from tuner.training.data.labels import check_labels, only_classes
from tuner.training.definition import H


class Classifier(TrainerModule[H]):
    """A softmax classifier of `inputs` into `labels`; subclasses define `init_model`.

    Optional hyperparameters: with `label_smoothing` a, the targets are (1 - a) onehot + a / classes (Szegedy et al.,
    2016, section 7). With `ema_decay` d, evaluation uses the smoothed weights d average + (1 - d) new (Polyak &
    Juditsky, 1992).

    Args:
        classes: The number of classes.
    """

    def __init__(self, classes: int) -> None:
        self.classes = classes

    def loss(self, outputs: jax.Array, batch: Batch, hparams: H) -> tuple[jax.Array, dict[str, Any]]:
        """Return the cross-entropy with smoothed labels; and `accuracy` and `nll`, the cross-entropy with true labels.

        Args:
            outputs: Logits, Float[Array, "batch classes"].
            batch: The batch, with `labels`, Int[Array, "batch"].
            hparams: The hyperparameters.
        """
        labels = batch["labels"].astype(jnp.int32)
        nll = only_classes(optax.softmax_cross_entropy_with_integer_labels(outputs, labels), labels, self.classes)
        metrics = {"accuracy": jnp.argmax(outputs, axis=-1) == labels, "nll": nll}
        smoothing = field(hparams, "label_smoothing")
        if smoothing is None:
            return nll, metrics
        targets = optax.smooth_labels(jax.nn.one_hot(labels, self.classes), smoothing)
        return only_classes(optax.softmax_cross_entropy(outputs, targets), labels, self.classes), metrics

    def check_data(self, dataset: Dataset, hparams: H, part: str) -> None:
        check_labels(dataset, self.classes, part)

    def ema_decay(self, hparams: H) -> Any:
        return field(hparams, "ema_decay")


def refuse_uncalled(trainer: TrainerModule, kind: type[TrainerModule], **methods: str) -> None:
    """Raise StudyError if a subclass defines methods that would have no effect.

    Args:
        trainer: A trainer with its own training steps.
        kind: Its class that defines these steps.
        methods: Methods of `TrainerModule` that the steps do not call, and what to define instead.

    Raises:
        StudyError: a subclass of `kind` defines one of them.
    """
    for method, instead in methods.items():
        if getattr(type(trainer), method) is not getattr(kind, method):
            raise StudyError(
                f"{kind.__name__} does not call {method}: in {type(trainer).__name__} define {instead} instead"
            )


def needed(hparams: object, name: str) -> Any:
    """Return a required hyperparameter of a method.

    Raises:
        StudyError: the space does not have it.
    """
    if isinstance(hparams, Mapping) and name not in hparams:
        raise StudyError(f"the search space has no hyperparameter {name!r}: it has {', '.join(hparams)}")
    return hparams[name] if isinstance(hparams, Mapping) else getattr(hparams, name)


def field(hparams: object, name: str, default: object = None) -> Any:
    """Return a hyperparameter, or the default if the space does not have it."""
    return hparams.get(name, default) if isinstance(hparams, Mapping) else getattr(hparams, name, default)
