"""What a model costs: its parameters, the operations of a prediction, and the time of a prediction."""

from __future__ import annotations

import math
import statistics
import threading
import time
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from tuner.errors import StudyError
from tuner.study.costs import FLOPS, LATENCY, PARAMETERS
from tuner.training.data.batches import batch_shapes
from tuner.training.data.feed import Feed
from tuner.training.definition import TrainerDefinition, settings_of
from tuner.training.hparams import register
from tuner.training.loop.checks import asked_batch_size, first_shapes
from tuner.training.loop.programs import programs
from tuner.training.mesh import Layout
from tuner.training.model.tracing import explained
from tuner.training.pytree import PyTree

_WARM_UP, _RUNS = 5, 30
_KEPT = 64


@dataclass(frozen=True)
class _Prediction:
    """The compiled prediction of one example."""

    flops: float
    latency_ms: float


_known: OrderedDict[Hashable, _Prediction] = OrderedDict()
_lock = threading.Lock()


@explained()
def costs(trainer: TrainerDefinition, hparams: PyTree, splits: Any, names: Sequence[str]) -> dict[str, float]:
    """Measure a model before it is trained.

    Args:
        trainer: The trainer.
        hparams: The hyperparameters.
        splits: The data.
        names: What to measure: `parameters`, the number of trainable numbers; `flops`, the floating-point operations
            for the prediction of one example, as XLA counts them in the compiled program; `latency_ms`, the median time
            in milliseconds of this prediction on the first device of this process. The last two are measured once for
            each shape of the model.
    """
    if not names:
        return {}
    register(hparams)
    shapes = first_shapes(trainer, hparams, splits).state
    found: dict[str, float] = {}
    if PARAMETERS in names:
        found[PARAMETERS] = float(sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes.params)))
    if FLOPS in names or LATENCY in names:
        prediction = _prediction(trainer, hparams, splits, shapes)
        found |= {FLOPS: prediction.flops, LATENCY: prediction.latency_ms}
    return {name: found[name] for name in names}


@explained()
def check_costs(trainer: TrainerDefinition, hparams: PyTree, splits: Any, names: Sequence[str]) -> None:
    """Trace what `costs` measures, to find errors that every trial would raise.

    Raises:
        StudyError: the trainer cannot predict a batch of one example; the message has the reason.
    """
    if not {FLOPS, LATENCY} & set(names):
        return
    shapes = first_shapes(trainer, hparams, splits).state
    try:
        inputs = _inputs(trainer, hparams, _one_example(trainer, hparams, splits))
        programs(trainer, hparams, Layout()).predict.eval_shape(shapes.params, shapes.collections, inputs, hparams)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise StudyError(
            f"measure={list(names)!r} needs a trainer that predicts one example: {type(trainer).__name__} does not: "
            f"{reason}"
        ) from error


def _one_example(trainer: TrainerDefinition, hparams: PyTree, splits: Any) -> dict[str, jax.ShapeDtypeStruct]:
    source = Feed(splits.train, Layout(), asked_batch_size(trainer, hparams)).shapes()
    return {name: jax.ShapeDtypeStruct((1, *leaf.shape[1:]), leaf.dtype) for name, leaf in batch_shapes(source).items()}


def _inputs(trainer: TrainerDefinition, hparams: PyTree, batch: Any) -> Any:
    def arguments(batch: Any, hparams: PyTree) -> Any:
        return trainer._arguments(batch, hparams)  # pyright: ignore[reportPrivateUsage]: a part of the definition

    return jax.eval_shape(arguments, batch, hparams)


def _prediction(trainer: TrainerDefinition, hparams: PyTree, splits: Any, shapes: Any) -> _Prediction:
    batch = _one_example(trainer, hparams, splits)
    key = (
        type(trainer),
        settings_of(trainer),
        jax.tree.structure(hparams),
        *((name, leaf.shape, leaf.dtype) for name, leaf in sorted(batch.items())),
    )
    with _lock:  # trainings of one process would disturb each other's times
        if key not in _known:
            _known[key] = _measure(trainer, hparams, batch, shapes)
            if len(_known) > _KEPT:
                _known.popitem(last=False)
        return _known[key]


def _measure(trainer: TrainerDefinition, hparams: PyTree, batch: Any, shapes: Any) -> _Prediction:
    placed = jax.device_put(hparams)
    inputs = _inputs(trainer, placed, batch)
    made = programs(trainer, placed, Layout())
    compiled = made.predict.lower(shapes.params, shapes.collections, inputs, placed).compile()
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), (shapes.params, shapes.collections, inputs))
    times: list[float] = []
    for _ in range(_WARM_UP + _RUNS):
        began_s = time.perf_counter()
        jax.block_until_ready(compiled(*zeros, placed))
        times.append(1000 * (time.perf_counter() - began_s))
    analysis: Any = compiled.cost_analysis() or {}
    counted = analysis[0] if isinstance(analysis, list) else analysis  # a list before JAX 0.5
    return _Prediction(float(counted.get("flops", math.nan)), statistics.median(times[_WARM_UP:]))
