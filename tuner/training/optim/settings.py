"""The settings of an optimizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Literal

from tuner.training.optim.schedules import Constant, Number, Schedule
from tuner.training.optim.transforms import GradientNoise


@dataclass(frozen=True)
class OptimizerSettings:
    """The fields of `OptimizerSpec`, which documents them."""

    name: str = "adamw"
    learning_rate: Number | None = None
    _: KW_ONLY
    options: Mapping[str, Any] = field(default_factory=dict)
    schedule: Schedule = field(default_factory=Constant)
    decay: Number | None = None
    decay_kind: Literal["decoupled", "l2"] = "decoupled"
    decay_mask: Callable[[Any], Any] | None = None
    clip_norm: Number | None = None
    noise: GradientNoise | None = None
    accumulate_steps: int = 1
    skip_nonfinite: bool = False
    plateau: Mapping[str, Any] | None = None
