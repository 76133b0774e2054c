"""Checks a trainer, its hyperparameters and its data before anything is computed."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any
from weakref import WeakKeyDictionary

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from tuner.errors import SpaceError, StudyError, is_int, nearest
from tuner.study.domains import as_traced
from tuner.study.launch_record import OPTIMIZER_RULES
from tuner.training import metrics as metrics_
from tuner.training.data.arrays import Splits, steps_per_epoch
from tuner.training.data.feed import Dataset, Feed
from tuner.training.definition import TrainerDefinition, inputs_take_hparams, settings_of
from tuner.training.hparams import register
from tuner.training.loop.programs import Carry, programs
from tuner.training.loop.spelling import check_spelling
from tuner.training.mesh import Layout
from tuner.training.metrics import Metrics
from tuner.training.model.tracing import explained
from tuner.training.optim.build import OptimizerGroups, OptimizerSpec
from tuner.training.optim.schedules import require
from tuner.training.pytree import PyTree

EVAL_BATCH = 512
"""Examples per batch in an evaluation."""


def check_settings(trainer: object) -> None:
    """Raise StudyError unless this is a trainer with valid settings."""
    if not isinstance(trainer, TrainerDefinition):
        raise StudyError(f"trainer must be a TrainerModule: got {trainer!r}")
    try:
        hash(trainer)
    except TypeError:
        raise StudyError(
            f"a trainer must be hashable, but {type(trainer).__name__} is not: "
            "if it is a dataclass, use @dataclass(eq=False)"
        ) from None
    if trainer.loop not in ("auto", "scan", "step"):
        raise StudyError(f"a trainer's loop must be 'auto', 'scan' or 'step': got {trainer.loop!r}")
    if trainer.precision not in ("float32", "bfloat16", "float16"):
        raise StudyError(f"a trainer's precision must be 'float32', 'bfloat16' or 'float16': got {trainer.precision!r}")
    check_spelling(trainer)
    inputs_take_hparams(trainer)
    every = trainer.validate_every
    if not is_int(every) or every < 1:
        raise StudyError(f"a trainer's validate_every must be a whole number of at least 1: got {every!r}")


def check_arguments(epochs: object, seed: object, direction: object, keep: object) -> None:
    """Raise StudyError for invalid arguments of a training."""
    if not is_int(epochs) or epochs < 1:
        raise StudyError(f"epochs must be a whole number of at least 1: got {epochs!r}")
    if not (is_int(seed) or isinstance(seed, np.integer)) or not 0 <= seed < 2**31:
        raise StudyError(f"seed must be a whole number in [0, 2^31): got {seed!r}")
    if direction not in ("minimize", "maximize"):
        raise StudyError(f"direction must be 'minimize' or 'maximize': got {direction!r}")
    if keep not in ("best", "last"):
        raise StudyError(f"keep must be 'best' or 'last': got {keep!r}")


def check_kinds(stop: object, *options: tuple[type, object]) -> None:
    """Raise StudyError if an option is neither None nor of its class, or `stop` is not a function."""
    for kind, option in options:
        if not isinstance(option, kind | None):
            raise StudyError(
                f"{kind.__name__.lower()} must be a tuner.training.{kind.__name__} or None: got {option!r}"
            )
    if not callable(stop):
        raise StudyError(f"stop must be a function that returns whether to stop: got {stop!r}")


def check_data(splits: object) -> None:
    """Raise StudyError unless the data are a `Splits`."""
    if not isinstance(splits, Splits):
        raise StudyError(
            f"data must be a tuner.training.Splits (training and validation data): got {type(splits).__name__}; see "
            "ArrayDataset.split"
        )


_checked: WeakKeyDictionary[Any, set[Any]] = WeakKeyDictionary()
"""The trainers that have checked each dataset."""


def check_examples(trainer: TrainerDefinition, hparams: PyTree, datasets: Mapping[str, Dataset | None]) -> None:
    """Let a trainer check datasets, given by purpose; each is checked once.

    Raises:
        StudyError: a dataset does not fit the trainer.
    """
    if not overrides(trainer, "check_data"):
        return
    mine = (type(trainer), settings_of(trainer))
    for part, dataset in datasets.items():
        if dataset is not None and mine not in _checked.setdefault(dataset, set()):
            trainer.check_data(dataset, hparams, part)
            _checked[dataset].add(mine)


def parts(splits: Splits) -> dict[str, Any]:
    """Return the datasets of splits by purpose."""
    return {"training": splits.train, "validation": splits.validation, "test": splits.test}


def check_hparams(hparams: PyTree) -> None:
    """Register hyperparameters as a pytree, and raise StudyError unless its leaves are numbers."""
    register(hparams)
    for path, leaf in jax.tree_util.tree_leaves_with_path(hparams):
        if not isinstance(leaf, jax.Array | np.ndarray | np.generic | bool | int | float):
            where = jax.tree_util.keystr(path, simple=True, separator="/")
            raise StudyError(
                f"hyperparameters must be a Space or a pytree of numbers: got {leaf!r}{where and f' ({where})'}; use "
                "a Space with choice(...) for other values, and for numbers that set a shape"
            )
        if isinstance(leaf, int | float):
            try:
                as_traced(leaf)
            except SpaceError as error:
                where = jax.tree_util.keystr(path, simple=True, separator="/")
                raise StudyError(f"hyperparameter {where}: {error}") from None


def check_average(trainer: TrainerDefinition, hparams: PyTree) -> None:
    """Raise StudyError unless the decay of smoothed weights is between 0 and 1."""
    if not overrides(trainer, "ema_decay"):
        return
    decay = trainer.ema_decay(hparams)
    if decay is not None:
        require("ema_decay", decay, "at least 0 and at most 1", lambda share: 0 <= share <= 1)


def check_optimizer(trainer: TrainerDefinition, hparams: PyTree, total_steps: int) -> None:
    """Check an `OptimizerSpec` with the trial's numbers, which are not known inside a program.

    Raises:
        StudyError: a setting is wrong.
    """
    if overrides(trainer, "init_state") and overrides(trainer, "train_step"):
        return  # the trainer has its own optimizers
    made = trainer.init_optimizer(hparams, total_steps)
    if isinstance(made, OptimizerSpec | OptimizerGroups):
        made.check(total_steps)


@lru_cache(maxsize=256)
def _asked_batch_size(
    trainer: TrainerDefinition, settings: Hashable, structure: Any, types: tuple[tuple[tuple[int, ...], DTypeLike], ...]
) -> Any:
    sizes: list[Any] = []
    # Traced, as in a program: a size that differs between trials would need a compilation for each.
    hparams = structure.unflatten(jax.ShapeDtypeStruct(*of) for of in types)
    jax.eval_shape(lambda hparams: sizes.append(trainer.batch_size(hparams)), hparams)
    return sizes[0]


def asked_batch_size(trainer: TrainerDefinition, hparams: PyTree) -> int:
    """Return the trainer's batch size.

    Raises:
        StudyError: it is not a static integer of at least 1.
    """
    leaves, structure = jax.tree.flatten(hparams)
    size = _asked_batch_size(
        trainer, settings_of(trainer), structure, tuple((np.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)
    )
    if not is_int(size) or size < 1:
        raise StudyError(f"batch_size(hparams) must return a static integer of at least 1: got {size!r}")
    return size


def has_hooks(trainer: TrainerDefinition) -> bool:
    """Return whether a trainer has hooks, which may report more metrics."""
    return any(overrides(trainer, hook) for hook in ("on_training_epoch_end", "on_validation_epoch_end"))


def overrides(trainer: TrainerDefinition, method: str) -> bool:
    """Return whether a trainer overrides a method."""
    return getattr(type(trainer), method) is not getattr(TrainerDefinition, method)


def first_shapes(trainer: TrainerDefinition, hparams: PyTree, splits: Splits, epochs: int = 1) -> Carry:
    """Return the shapes of a training's first state and metrics, without computing them."""
    layout = Layout()
    register(hparams)
    feed = Feed(splits.train, layout, asked_batch_size(trainer, hparams))
    made = programs(trainer, hparams, layout)
    # With the same types as in `Training`, which then need not trace the program again.
    fixed = {"total_steps": epochs * feed.steps, "optimizer_rules": OPTIMIZER_RULES}
    return made.init.eval_shape(feed.shapes(), hparams, np.uint32(0), **fixed)


@explained()
def check_trainer(
    trainer: TrainerDefinition,
    hparams: PyTree,
    splits: Any,
    objectives: Sequence[str],
    epochs: int,
    others: Sequence[tuple[str, str]] = (),
    reserved: Mapping[str, str] | None = None,
) -> None:
    """Trace the whole training without running it, to find errors that every trial would raise.

    Args:
        trainer: The trainer.
        hparams: The hyperparameters of a training.
        splits: The data.
        objectives: The metrics that the training must report.
        epochs: Passes over the training data.
        others: Further such metrics: what each is for, and its name.
        reserved: Metrics that it must not report, each with the message for it.

    Raises:
        StudyError: the trainer or the data have the wrong type, or a metric is never reported; the message lists the
            reported metrics. Or a reserved metric is reported.
        MissingHParam: the trainer reads a hyperparameter that the space does not have.
    """
    check_settings(trainer)
    check_data(splits)
    check_hparams(hparams)
    check_examples(trainer, hparams, parts(splits))
    size = asked_batch_size(trainer, hparams)
    check_optimizer(trainer, hparams, epochs * steps_per_epoch(len(splits.train), size))
    carry = first_shapes(trainer, hparams, splits, epochs)
    number, rows = jax.ShapeDtypeStruct((), jnp.int32), jax.ShapeDtypeStruct((len(splits.train),), jnp.int32)
    jax.eval_shape(partial(trainer.order, hparams, batch_size=size), jax.random.key(0), number, rows)
    made, layout = programs(trainer, hparams, Layout()), Layout()
    made.step.eval_shape(Feed(splits.train, layout, size).shapes(), hparams, *carry)
    position = jax.ShapeDtypeStruct((), jnp.int32)
    source = Feed(splits.validation, layout, EVAL_BATCH).shapes()
    validated, _ = made.eval_step.eval_shape(source, hparams, carry.state, None, position)
    reported = [*_names(validated), *(f"train_{name}" for name in _names(carry.totals))]
    for name, message in (reserved or {}).items():
        if name in reported:
            raise StudyError(message)
    if has_hooks(trainer):
        return  # a hook may report anything
    for what, name in [*(("objective", name) for name in objectives), *others]:
        if name not in reported:
            raise StudyError(
                f"the trainer does not report the {what} {name!r}: "
                f"it reports {', '.join(reported)}{nearest(name, reported)}"
            )


def _names(shapes: Metrics) -> list[str]:
    """Return the names that metrics of these shapes have in reports."""
    with np.errstate(all="ignore"):
        return list(metrics_.as_floats(jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), shapes)))
