"""Learning-rate schedules with numbers that may be traced: a factor that is multiplied with a peak learning rate.

Optax's own schedules branch in Python on warm-up lengths and rates, so they cannot be searched by a vmapped population.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike

from tuner.errors import StudyError, is_int

Number = float | jax.Array


def require(name: str, value: Any, rule: str, holds: Callable[[float], bool], advice: str = "") -> None:
    """Raise StudyError unless a number is valid. Traced numbers have no value yet and are not checked.

    Args:
        name: The name of the number in the user's code.
        value: The number.
        rule: What the number must be, as text.
        holds: Returns whether a number is valid.
        advice: What to do, for the message.

    Raises:
        StudyError: the value is not a finite number, or is invalid.
    """
    if isinstance(value, Tracer):
        return
    is_number = isinstance(value, int | float | np.number | np.ndarray | jax.Array) and not isinstance(value, bool)
    if not is_number or np.ndim(value) != 0 or not math.isfinite(value) or not holds(float(value)):
        raise StudyError(f"{name} must be {rule}: got {name}={value!r}" + (f"; {advice}" if advice else ""))


def check_steps(total_steps: object) -> None:
    """Raise StudyError unless the length of the training is known.

    Args:
        total_steps: Updates of the whole training.

    Raises:
        StudyError: it is not a whole number above zero.
    """
    if not (is_int(total_steps) or isinstance(total_steps, np.integer)) or total_steps < 1:
        raise StudyError(
            f"total_steps (the updates of the whole training) must be a whole number of at least 1: "
            f"got total_steps={total_steps!r}"
        )


def _real(number: ArrayLike) -> jax.Array:
    """Return a number as float32, which strict promotion accepts."""
    return jnp.asarray(number, jnp.float32)


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Base class of schedules: a linear warm-up from 0 to 1, followed by a shape.

    Args:
        warmup_steps: Updates until the factor is 1; may be traced.
    """

    warmup_steps: Number | None = 0

    def check(self, total_steps: int) -> None:
        """Check the numbers, except those that are traced.

        Args:
            total_steps: Updates of the whole training.

        Raises:
            StudyError: a number is invalid, or the warm-up does not end before training does.
        """
        check_steps(total_steps)
        warmup = self._warmup(total_steps)
        if isinstance(warmup, Tracer):
            return
        require("warmup_steps", warmup, "a number of updates", lambda steps: True)
        if not 0 <= float(warmup) < total_steps:
            raise StudyError(
                f"the warm-up must end before training does: got warmup_steps={warmup}, total_steps={total_steps}; "
                "shorten the warm-up or train for longer"
            )

    def factor(self, step: jax.Array | int, total_steps: int) -> jax.Array:
        """Return the factor of the peak learning rate.

        Args:
            step: Updates so far, from 0; a number or an array of any shape.
            total_steps: Updates of the whole training.

        Returns:
            Float32, of the step's shape. After the end it keeps its last value.
        """
        step, warmup = _real(step), _real(self._warmup(total_steps))
        rising = step / jnp.maximum(warmup, 1e-6)
        return jnp.where(step < warmup, rising, self._shape(step, warmup, _real(total_steps)))

    def _warmup(self, total_steps: int) -> Number:
        """Return the warm-up's length."""
        return 0 if self.warmup_steps is None else self.warmup_steps

    def _shape(self, step: jax.Array, warmup: jax.Array, total: jax.Array) -> jax.Array:
        """Return the factor after the warm-up."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Constant(Schedule):
    """Constant at the peak, after an optional warm-up."""

    def _shape(self, step: jax.Array, warmup: jax.Array, total: jax.Array) -> jax.Array:
        return jnp.ones_like(step)


def _half_cosine(progress: jax.Array, first: Number, last: Number) -> jax.Array:
    """Return half a cosine from `first` to `last` as progress goes from 0 to 1; constant outside."""
    share = (1 + jnp.cos(jnp.pi * jnp.clip(progress, 0, 1))) / 2
    return _real(last) + (_real(first) - _real(last)) * share


@dataclass(frozen=True, kw_only=True)
class WarmupCosine(Schedule):
    """A linear warm-up, then half a cosine (Loshchilov & Hutter, 2017).

    Args:
        warmup_steps: Updates until the factor is 1; a tenth of `total_steps` if None.
        end_factor: The factor at the end of the cosine.
    """

    warmup_steps: Number | None = None
    end_factor: Number = 0.01

    def check(self, total_steps: int) -> None:
        super().check(total_steps)
        require("end_factor", self.end_factor, "from 0 to 1", lambda factor: 0 <= factor <= 1)

    def _warmup(self, total_steps: int) -> Number:
        return total_steps // 10 if self.warmup_steps is None else self.warmup_steps

    def _shape(self, step: jax.Array, warmup: jax.Array, total: jax.Array) -> jax.Array:
        return _half_cosine((step - warmup) / (total - warmup), 1, self.end_factor)


@dataclass(frozen=True, kw_only=True)
class OneCycle(Schedule):
    """Half a cosine up and half a cosine down (Smith & Topin, 2018); the rise is its warm-up.

    Args:
        peak_fraction: The position of the peak, as a share of the training.
        start_factor: The first step's factor.
        end_factor: The last step's factor.
    """

    peak_fraction: Number = 0.3
    start_factor: Number = 1 / 25
    end_factor: Number = 1 / 250_000

    def check(self, total_steps: int) -> None:
        if not isinstance(self.warmup_steps, Tracer) and self.warmup_steps != 0:
            raise StudyError(
                f"OneCycle takes no warm-up, because it starts by rising: got warmup_steps={self.warmup_steps!r}; "
                "set peak_fraction"
            )
        super().check(total_steps)
        require("peak_fraction", self.peak_fraction, "between 0 and 1", lambda share: 0 < share < 1)
        for name in ("start_factor", "end_factor"):
            require(name, getattr(self, name), "from 0 to 1", lambda factor: 0 <= factor <= 1)

    def _shape(self, step: jax.Array, warmup: jax.Array, total: jax.Array) -> jax.Array:
        # Whole steps, as in optax, so that the peak itself is reached.
        peak = jnp.floor(_real(self.peak_fraction) * total)
        rise = _half_cosine(step / jnp.maximum(peak, 1), self.start_factor, 1)
        return jnp.where(step < peak, rise, _half_cosine((step - peak) / (total - peak), 1, self.end_factor))


@dataclass(frozen=True, kw_only=True)
class Exponential(Schedule):
    """Exponential decay after the warm-up.

    Args:
        decay_rate: Factor over `transition_steps` updates.
        transition_steps: Updates per decay; all updates after the warm-up if None.
        is_staircase: Decay in one step at the end of each transition.
        end_factor: The lower bound of the factor.
    """

    decay_rate: Number
    transition_steps: Number | None = None
    is_staircase: bool = False
    end_factor: Number = 0.0

    def check(self, total_steps: int) -> None:
        super().check(total_steps)
        require("decay_rate", self.decay_rate, "above 0 and at most 1", lambda rate: 0 < rate <= 1)
        require("end_factor", self.end_factor, "from 0 to 1", lambda factor: 0 <= factor <= 1)
        if self.transition_steps is not None:
            require("transition_steps", self.transition_steps, "above 0", lambda steps: steps > 0)

    def _shape(self, step: jax.Array, warmup: jax.Array, total: jax.Array) -> jax.Array:
        length = total - warmup if self.transition_steps is None else _real(self.transition_steps)
        decays = jnp.clip(step - warmup, 0, total - warmup) / length
        decays = jnp.floor(decays) if self.is_staircase else decays
        return jnp.maximum(_real(self.decay_rate) ** decays, _real(self.end_factor))


@dataclass(frozen=True, kw_only=True)
class Piecewise(Schedule):
    """Piecewise constant.

    Args:
        boundaries: Updates, counted from the start of training, from which each multiplier holds; increasing.
        multipliers: One for each boundary; the factor is the product of those reached.
    """

    boundaries: tuple[Number, ...]
    multipliers: tuple[Number, ...]

    def check(self, total_steps: int) -> None:
        super().check(total_steps)
        if len(self.boundaries) != len(self.multipliers):
            raise StudyError(
                "Piecewise needs one multiplier for each boundary: "
                f"got boundaries={self.boundaries}, multipliers={self.multipliers}"
            )
        for name, values in (("boundaries", self.boundaries), ("multipliers", self.multipliers)):
            for index, value in enumerate(values):
                require(f"{name}[{index}]", value, "at least 0", lambda number: number >= 0)
        concrete = [float(step) for step in self.boundaries if not isinstance(step, Tracer)]
        if concrete != sorted(set(concrete)) or any(step >= total_steps for step in concrete):
            raise StudyError(
                f"boundaries must increase and be less than total_steps: got boundaries={self.boundaries}, "
                f"total_steps={total_steps}"
            )

    def _shape(self, step: jax.Array, warmup: jax.Array, total: jax.Array) -> jax.Array:
        factor = jnp.ones_like(step)
        for boundary, multiplier in zip(self.boundaries, self.multipliers, strict=True):
            factor = factor * jnp.where(step < _real(boundary), 1.0, _real(multiplier))
        return factor
