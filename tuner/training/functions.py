"""Training functions in the manner of PureJaxRL (Lu et al., 2022), which run inside compiled programs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from tuner.errors import StudyError
from tuner.study.objective import takes
from tuner.training.data.arrays import ArrayDataset, Batch, Splits
from tuner.training.metrics import Mean, Metrics
from tuner.training.pytree import PyTree
from tuner.training.state import Stream, TrainState
from tuner.training.trainer import TrainerModule

Epoch = Callable[[PyTree, jax.Array], tuple[PyTree, Mapping[str, Any]]]
"""(state, key) -> the state after an epoch, and its metrics by name, which are numbers."""


class FunctionTrainer(TrainerModule):
    """The trainer of a `vmappable` function: a step of it is an epoch of the function, and it reads no data."""

    loop = "step"

    def __init__(self, function: Callable[[Any, jax.Array], tuple[PyTree, Epoch]]) -> None:
        self._function = function
        self.name = getattr(function, "__qualname__", type(function).__qualname__)
        self.__doc__ = function.__doc__

    def own_data(self, seed: int) -> Splits:
        """Return data of one example, which the function does not get."""
        return Splits(train=ArrayDataset(inputs=np.zeros((1, 1))), validation=ArrayDataset(inputs=np.zeros((1, 1))))

    def init_model(self, hparams: Any) -> Any:
        raise StudyError(f"{self.name} is a function without a model to call or to export: read its state instead")

    def batch_size(self, hparams: Any) -> int:
        return 1

    def init_state(self, hparams: Any, batch: Batch, key: jax.Array, total_steps: int) -> TrainState:
        state, epoch = self._begin(hparams, key)
        metrics = jax.eval_shape(lambda state, key: self._train(epoch, state, key)[1], state, key)
        unknown = {name: jnp.full((), jnp.nan, jnp.float32) for name in metrics}
        zero = jnp.zeros((), jnp.int32)
        return TrainState(zero, params=state, collections=unknown, key=key, total_steps=total_steps)

    def train_step(self, state: TrainState, batch: Batch, hparams: Any, key: jax.Array) -> tuple[TrainState, Metrics]:
        assert state.key is not None
        assert state.step is not None
        _, epoch = self._begin(hparams, state.key)
        after, metrics = self._train(epoch, state.params, key)
        return dataclasses.replace(state, step=state.step + 1, params=after, collections=metrics), {}

    def eval_step(self, state: TrainState, batch: Batch, hparams: Any) -> Metrics:
        return {name: Mean.of_steps(value) for name, value in state.collections.items()}

    def _begin(self, hparams: Any, key: jax.Array) -> tuple[PyTree, Epoch]:
        made: Any = self._function(hparams, Stream.INIT.key(key))
        if not (isinstance(made, tuple) and len(made) == 2 and callable(made[1])):
            raise StudyError(
                f"{self.name} must return its first state and a function that trains an epoch, (state, epoch): got "
                f"{made!r:.200}"
            )
        state, epoch = made
        return self._arrays("the first state", state), cast("Epoch", epoch)

    def _train(self, epoch: Epoch, state: PyTree, key: jax.Array) -> tuple[PyTree, dict[str, jax.Array]]:
        made: Any = epoch(state, key)
        if not (isinstance(made, tuple) and len(made) == 2 and isinstance(made[1], Mapping) and made[1]):
            raise StudyError(
                f"the epoch of {self.name} must return the next state and a dict of metrics: got {made!r:.200}"
            )
        after, metrics = self._arrays("the state", made[0]), made[1]
        self._check_state(state, after)
        metrics = {str(name): self._arrays(f"the metric {name!r}", value) for name, value in metrics.items()}
        shapes = {name: jnp.shape(value) for name, value in metrics.items()}
        wrong = next((f"{name!r} has shape {shape}" for name, shape in shapes.items() if shape != ()), None)
        if wrong is not None:
            raise StudyError(f"metrics must be numbers: {wrong} (the epoch of {self.name})")
        return after, {name: value.astype(jnp.float32) for name, value in metrics.items()}

    def _arrays(self, what: str, tree: Any) -> Any:
        """Return a pytree with arrays of definite types as leaves."""
        try:
            return jax.tree.map(_definite, tree)
        except TypeError:
            raise StudyError(f"{what} of {self.name} must consist of arrays and numbers: got {tree!r:.200}") from None

    def _check_state(self, before: PyTree, after: PyTree) -> None:
        if jax.tree.structure(before) != jax.tree.structure(after):
            raise StudyError(
                f"the epoch of {self.name} must return a state of the same structure: got {jax.tree.structure(after)} "
                f"for {jax.tree.structure(before)}"
            )
        for (path, old), new in zip(jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after), strict=True):
            was, now = (f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}" for leaf in (old, new))
            if was != now:
                raise StudyError(
                    f"the epoch of {self.name} must not change the shapes and types of the state: "
                    f"{jax.tree_util.keystr(path) or 'the state'} was {was}, and is {now}"
                )


def _definite(leaf: Any) -> jax.Array:
    """Return an array of a definite type: that of a Python number might be another one after the first epoch."""
    array = jnp.asarray(leaf)
    is_key = jnp.issubdtype(array.dtype, jax.dtypes.prng_key)
    return array if is_key else jax.lax.convert_element_type(array, array.dtype)


def vmappable(function: Callable[[Any, jax.Array], tuple[PyTree, Epoch]]) -> FunctionTrainer:
    """Mark a training function whose trials may train at once in one program, mapped with `jax.vmap`.

    ```
    @vmappable
    def train(hparams, key):
        state = init(key)

        def epoch(state, key):
            ...
            return state, {"return": ...}

        return state, epoch

    study = Study(train=train, space=HParams, epochs=20, cohort="auto", ...)
    ```

    The function runs inside compiled programs: traced hyperparameters are JAX values, static ones Python values. It is
    called for the first state and for each epoch, always with the key of the trial, and the compiler removes what the
    epoch does not use. What takes long to compute belongs in the state.

    Args:
        function: `(hparams, key)` -> the first state, any pytree of arrays, and the function of an epoch. That takes
            the state and a key of the epoch, and returns the next state and metrics by name, Num[Array, ""] each.

    Raises:
        StudyError: in the study's check, if what they return is something else, or the state changes its structure,
            shapes or types.
    """
    if not callable(function) or not takes(function, 2):
        raise StudyError(f"vmappable needs a function of (hparams, key): got {function!r}")
    return FunctionTrainer(function)
