"""`TrainerModule`: a trainer that can train, evaluate, bind and tabulate a model."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from tuner.errors import StudyError, nearest
from tuner.training.data.arrays import Splits
from tuner.training.data.feed import Dataset
from tuner.training.definition import H, TrainerDefinition
from tuner.training.loop.evaluation import bind, evaluate, tabulate
from tuner.training.loop.training import Training
from tuner.training.state import TrainState


class TrainerModule(TrainerDefinition[H]):
    """A model, its loss and its optimizer, as pure functions of hyperparameters.

    Write `class Trainer(TrainerModule[HParams])` to tell editors and type checkers the class of the hyperparameters.

    Every method that uses arrays is pure and takes `hparams`: trials that differ only in traced hyperparameters run the
    same compiled program. Override `init_model` and `loss`; the other methods have defaults. Attributes of an instance
    that are numbers, texts or tuples are settings: programs are compiled for them, and a checkpoint can be used only by
    a trainer with equal settings. Start the names of other attributes, such as a hook's counters, with an underscore.

    `inputs` is the only method for which `hparams` is optional: `inputs(batch)` and `inputs(batch, hparams)` both work.

    Attributes:
        loop: `"scan"` runs an epoch as one compiled program, `"step"` as a loop of compiled steps, `"auto"` measures
            once which of them is faster for a program on a kind of device.
        precision: The type in which the model computes; parameters, optimizer and batch statistics stay float32.
            `"float16"` scales the loss (Micikevicius et al., 2018); `"bfloat16"` does not need that.
        validate_every: Epochs between validations, and so between reports; the last epoch is always validated.
    """

    def train_model(self, hparams: H, splits: Splits, *, epochs: int, seed: int, **options: Any) -> Training:
        """Train: return a generator of reports, one for each validated epoch. Closing it ends the training.

        Its attributes `state` and `best` are the current and the best state.

        Args:
            hparams: The hyperparameters.
            splits: Training and validation data, and optionally test data.
            epochs: Passes over the training data; > 0.
            seed: In [0, 2^31). The same seed gives the same reports, bit for bit on the same machine.
            options: See `tuner.training.Training`.

        Raises:
            StudyError: an option is unknown, or the trainer, hyperparameters or data are invalid; see `Training`.
        """
        known = _options_of_training()
        for name in options:
            if name not in known:
                raise StudyError(f"train_model has no option {name!r}{nearest(name, known)}")
        return Training(self, hparams, splits, epochs=epochs, seed=seed, **options)

    def eval_model(self, state: TrainState, dataset: Dataset, hparams: H) -> dict[str, float]:
        """Return all metrics over a dataset in evaluation mode; means are weighted by example."""
        return evaluate(self, state, dataset, hparams)

    def bind_model(self, state: TrainState, hparams: H) -> Callable[..., Any]:
        """Return the trained model as a compiled function of its inputs; it uses evaluation mode and smoothed weights.

        Args:
            state: From `Training` or from a checkpoint.
            hparams: The hyperparameters it was trained with.
        """
        return bind(self, state, hparams)

    def print_tabulate(self, hparams: H, splits: Splits) -> None:
        """Print the path, shape, type and size of each parameter, and the total size."""
        print(tabulate(self, hparams, splits))


@functools.cache
def _options_of_training() -> tuple[str, ...]:
    return tuple(inspect.signature(Training).parameters)
