"""Knowledge distillation (Hinton et al., 2015, https://arxiv.org/abs/1503.02531).

With p(z, T) = softmax(z / T), teacher's logits v, student's z and the true label y, the loss of an example is

    alpha H(y, p(z, 1)) + (1 - alpha) T^2 D(p(v, T), p(z, T)):

alpha is the share of the *hard* labels. D is the divergence KL(p || q), or the paper's cross-entropy H(p, q), which is
larger by the teacher's entropy. Gradients are the same; but only the divergence is 0 where student and teacher agree,
and the other's values depend on T even there. T^2 keeps the size of gradients, which fall as 1 / T^2 (section 2).
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

Form = Literal["divergence", "cross_entropy"]


def soft_losses(student: jax.Array, teacher: jax.Array, temperature: Any, form: Form = "divergence") -> jax.Array:
    """Return T^2 D(teacher, student) of each example.

    Args:
        student: Logits. Float[Array, "batch classes"].
        teacher: Logits; the same shape.
        temperature: T; > 0, may be traced.
        form: What D is; static.

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
    splits: Splits[ArrayDataset], teacher: Callable[[Any], Any], batch_size: int = 512
) -> Splits[ArrayDataset]:
    """Return the splits with an array `teacher_logits`: the teacher sees every example once, not once an epoch.

    Logits are the same on machines of one kind; elsewhere their last bits differ, and with them what the data are
    known by: a trial that another kind of machine began is not resumed there.

    Args:
        splits: With an array `inputs`.
        teacher: Inputs [batch, ...] -> logits Float[Array, "batch classes"], in evaluation mode: what
            `load_from_checkpoint` or `TrainerModule.bind_model` return, or any function.
        batch_size: Examples that the teacher is given at a time.

    Raises:
        StudyError: the data are no `ArrayDataset`, or the teacher returns no finite logits.
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


class DistilledClassifier(Classifier):
    """Classification by a student of a teacher's logits; subclasses define `init_model`, the student.

    The data have `inputs`, `labels` and `teacher_logits`, see `with_teacher`. Hyperparameters: `alpha`, the share of
    the hard labels (1/2 where a space has none), `temperature` (2), and those of `Classifier`. Validation reports
    `accuracy`, `agreement` with the teacher's predictions, and `divergence` from it at temperature 1, which unlike
    `loss` are comparable between trials.

    Args:
        classes: How many there are.
        form: What D is: `divergence` or `cross_entropy`.
    """

    def __init__(self, classes: int, form: Form = "divergence") -> None:
        if form not in ("divergence", "cross_entropy"):
            raise StudyError(f"form must be 'divergence' or 'cross_entropy': got {form!r}")
        super().__init__(classes)
        self.form: Form = form

    def loss(self, outputs: jax.Array, batch: Batch, hparams: Any) -> tuple[jax.Array, dict[str, Any]]:
        """Return alpha * hard + (1 - alpha) * soft losses, and the metrics.

        Args:
            outputs: The student's logits, Float[Array, "batch classes"].
            batch: With `labels`, Int[Array, "batch"], and `teacher_logits`, Float[Array, "batch classes"].
            hparams: The hyperparameters.

        Raises:
            StudyError: the batch has no teacher's logits, or they are of other classes.
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
