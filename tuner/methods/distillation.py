"""Knowledge distillation (Hinton et al., 2015, https://arxiv.org/abs/1503.02531).

With p(z, T) = softmax(z / T), teacher's logits v, student's z and the true label y, the loss of an example is

    alpha H(y, p(z, 1)) + (1 - alpha) T^2 D(p(v, T), p(z, T)):

alpha is the share of the *hard* labels. D is the divergence KL(p || q), or the paper's cross-entropy H(p, q), which is
larger by the teacher's entropy. Their gradients are equal, but only the divergence is 0 if student and teacher agree;
the cross-entropy then still depends on T. T^2 compensates for the gradients, which decrease as 1 / T^2 (section 2).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tuner.errors import StudyError
from tuner.methods.classification import Classifier, field
from tuner.training import ArrayDataset, Splits
from tuner.training.data.arrays import Batch, batch_order
from tuner.training.definition import H
from tuner.training.pytree import PyTree

Form = Literal["divergence", "cross_entropy"]


def soft_losses(
    student: jax.Array, teacher: jax.Array, temperature: float | jax.Array, form: Form = "divergence"
) -> jax.Array:
    """Return T^2 D(teacher, student) of each example.

    Args:
        student: The student's logits. Float[Array, "batch classes"].
        teacher: The teacher's logits; the same shape.
        temperature: T; > 0, may be traced.
        form: The form of D: `divergence` or `cross_entropy`; static.

    Returns:
        Float[Array, "batch"].
    """
    log_student, log_teacher = (jax.nn.log_softmax(logits / temperature) for logits in (student, teacher))
    if form == "cross_entropy":
        distances = -jnp.sum(jnp.exp(log_teacher) * log_student, axis=-1)
    else:
        distances = optax.losses.kl_divergence_with_log_targets(log_student, log_teacher)
    return temperature**2 * distances


def with_teacher(
    splits: Splits[ArrayDataset], teacher: Callable[[PyTree], PyTree], batch_size: int = 512
) -> Splits[ArrayDataset]:
    """Return the splits with an array `teacher_logits`, so that the teacher runs once per example, not once per epoch.

    Logits are the same on machines of the same kind. On other machines their last bits differ, and so does the digest
    of the data: a trial that was started on another kind of machine cannot be resumed.

    Args:
        splits: The splits, with an array `inputs`.
        teacher: Inputs [batch, ...] -> logits Float[Array, "batch classes"], in evaluation mode: the result of
            `load_from_checkpoint` or `TrainerModule.bind_model`, or any function.
        batch_size: The number of examples per call of the teacher.

    Raises:
        StudyError: the data are not an `ArrayDataset`, or the teacher's logits are not finite.
    """

    def taught(dataset: ArrayDataset) -> ArrayDataset:
        if not isinstance(dataset, ArrayDataset):
            raise StudyError(f"with_teacher needs an ArrayDataset: got {type(dataset).__name__}")
        arrays = dataset.host()
        indices, _ = batch_order(jnp.arange(len(dataset)), min(batch_size, len(dataset)))
        parts = [_checked(np.asarray(teacher(arrays["inputs"][rows])), len(rows)) for rows in np.asarray(indices)]
        return ArrayDataset(**arrays, teacher_logits=np.concatenate(parts)[: len(dataset)])

    test = None if splits.test is None else taught(splits.test)
    return Splits(taught(splits.train), taught(splits.validation), test)


def _checked(logits: np.ndarray, examples: int) -> np.ndarray:
    is_finite = np.isfinite(logits).all()
    if logits.ndim != 2 or len(logits) != examples or not is_finite:
        raise StudyError(
            f"the teacher must return finite logits [batch, classes]: got shape {list(logits.shape)} for {examples} "
            f"examples{'' if is_finite else ', with NaN or infinity'}"
        )
    return logits


class DistilledClassifier(Classifier[H]):
    """A classifier that learns from a teacher's logits; subclasses define `init_model`, the student.

    The data have `inputs`, `labels` and `teacher_logits`; see `with_teacher`. Optional hyperparameters: `alpha`, the
    share of the hard labels (default 1/2), `temperature` (default 2), and those of `Classifier`. Validation reports
    `accuracy`, `agreement` with the teacher's predictions, and `divergence` from the teacher at temperature 1; unlike
    `loss`, these are comparable between trials.

    Args:
        classes: The number of classes.
        form: The form of D: `divergence` or `cross_entropy`.
    """

    def __init__(self, classes: int, form: Form = "divergence") -> None:
        if form not in ("divergence", "cross_entropy"):
            raise StudyError(f"form must be 'divergence' or 'cross_entropy': got {form!r}")
        super().__init__(classes)
        self.form: Form = form

    def loss(self, outputs: jax.Array, batch: Batch, hparams: H) -> tuple[jax.Array, dict[str, Any]]:
        """Return alpha * hard + (1 - alpha) * soft losses, and the metrics.

        Args:
            outputs: The student's logits, Float[Array, "batch classes"].
            batch: The batch, with `labels`, Int[Array, "batch"], and `teacher_logits`, Float[Array, "batch classes"].
            hparams: The hyperparameters.

        Raises:
            StudyError: the batch has no teacher logits, or they have another number of classes.
        """
        if "teacher_logits" not in batch:
            raise StudyError(
                f"the data have no 'teacher_logits', only {', '.join(batch)}: add them with with_teacher(...)"
            )
        teacher = batch["teacher_logits"].astype(outputs.dtype)
        if teacher.shape != outputs.shape:
            raise StudyError(
                f"teacher and student must have the same classes: got logits {list(teacher.shape)} of the teacher, "
                f"{list(outputs.shape)} of the student"
            )
        hard, metrics = super().loss(outputs, batch, hparams)
        soft = soft_losses(outputs, teacher, field(hparams, "temperature", 2.0), self.form)
        alpha = field(hparams, "alpha", 0.5)
        metrics["agreement"] = jnp.argmax(outputs, axis=-1) == jnp.argmax(teacher, axis=-1)
        metrics["divergence"] = soft_losses(outputs, teacher, 1.0)
        return alpha * hard + (1 - alpha) * soft, metrics
