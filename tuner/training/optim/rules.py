"""Checks the settings of an optimizer before training; each mistake raises a one-line error."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax
import optax.contrib
from jax.core import Tracer

from tuner.errors import StudyError, is_int, nearest
from tuner.training.optim.named import (
    BELOW_ONE,
    ELSEWHERE,
    FIXED_RATE,
    OPTIMIZERS,
    OWN_DECAY,
    POSITIONS,
    REFUSED,
    SCHEDULE_FREE,
    arguments_of,
)
from tuner.training.optim.schedules import Constant, Number, Schedule, check_steps, require
from tuner.training.optim.settings import OptimizerSettings
from tuner.training.optim.stacks import Layers
from tuner.training.optim.transforms import GradientNoise
from tuner.training.pytree import PyTree


def decay_matrices(params: PyTree) -> Any:
    """Mark arrays with two or more axes that are not called `bias` or `scale`: the default of `decay_mask`.

    Used as `decay_mask` in a trainer, it ignores the axis that `Stack` adds.
    """
    return Layers().default_mask(params)


def decay_all(params: PyTree) -> Any:
    """Mark every array."""
    return jax.tree.map(lambda leaf: True, params)


def marks(mask: Callable[[PyTree], PyTree], params: PyTree) -> Any:
    """Return the marks that a `decay_mask` returns for parameters.

    Raises:
        StudyError: they are not a tree like the parameters; a mark may cover a whole subtree.
    """
    made = mask(params)
    try:
        jax.tree.map(lambda mark, part: None, made, params)
    except ValueError:
        raise StudyError(
            f"decay_mask must return a tree of booleans like the parameters: got {_difference(made, params)}"
        ) from None
    return made


def _difference(made: PyTree, params: PyTree) -> str:
    """Describe where a tree of marks differs from the parameters."""
    by_tree = (jax.tree_util.tree_leaves_with_path(tree) for tree in (made, params))
    marked, arrays = ([jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in one] for one in by_tree)
    for name in arrays:
        if not any(f"{name}/".startswith(f"{mark}/") for mark in marked):
            return f"no boolean for {name!r}"
    for mark in marked:
        if not any(f"{name}/".startswith(f"{mark}/") for name in arrays):
            return f"a boolean for {mark!r}, which is not a parameter{nearest(mark, arrays)}"
    return f"{type(made).__name__} instead of {type(params).__name__}, here or further down the tree"


def is_zero(number: Number | None) -> bool:
    """Return whether a number is known to be 0, or is None."""
    return number is None or (not isinstance(number, Tracer) and float(number) == 0.0)


def check_spec(spec: OptimizerSettings, total_steps: int) -> None:
    """Raise StudyError if a setting of a spec is wrong."""
    check_steps(total_steps)
    _check_name(spec.name)
    _check_options(spec)
    _check_numbers(spec, total_steps)
    _check_rate(spec)
    _check_decay(spec)
    _check_company(spec)


def _check_name(name: str) -> None:
    if name in REFUSED:
        raise StudyError(f"{name!r} cannot be used as the optimizer: {REFUSED[name]}")
    if name not in OPTIMIZERS:
        raise StudyError(f"optimizer must name an optimizer of optax: got {name!r}" + nearest(str(name), OPTIMIZERS))


def _check_options(spec: OptimizerSettings) -> None:
    known = {name: argument for name, argument in arguments_of(spec.name).items() if name not in ELSEWHERE}
    for name, value in spec.options.items():
        if name in ELSEWHERE:
            raise StudyError(f"{name!r} is not an option: got {value!r} ({spec.name}); {ELSEWHERE[name]} instead")
        if name not in known:
            raise StudyError(f"{spec.name} has no option {name!r}" + nearest(name, known))
        is_number = isinstance(known[name].default, float) or name in BELOW_ONE
        if name == "b1" and spec.name in SCHEDULE_FREE:
            why = "evaluation divides by it"
            require(f"{spec.name}'s b1", value, "above 0 and below 1", lambda share: 0 < share < 1, why)
        elif name in BELOW_ONE and value is not None and not callable(value):
            require(f"{spec.name}'s {name}", value, "at least 0 and below 1", lambda share: 0 <= share < 1)
        elif is_number and value is not None and not callable(value):
            require(f"{spec.name}'s {name}", value, "a finite number", lambda number: True)


def _check_numbers(spec: OptimizerSettings, total_steps: int) -> None:
    steps = spec.accumulate_steps
    if not is_int(steps) or not 1 <= steps <= total_steps:
        raise StudyError(
            "accumulate_steps must be a whole number from 1 to total_steps: "
            f"got accumulate_steps={steps!r}, total_steps={total_steps}"
        )
    if not isinstance(spec.schedule, Schedule):
        raise StudyError(f"schedule must be a Schedule: got {spec.schedule!r}; use Constant(), WarmupCosine(), ...")
    spec.schedule.check(total_steps // steps)
    if spec.learning_rate is not None:
        require("learning_rate", spec.learning_rate, "above 0", lambda rate: rate > 0)
    if spec.decay is not None:
        require("decay", spec.decay, "at least 0", lambda decay: decay >= 0)
    if spec.clip_norm is not None:
        require("clip_norm", spec.clip_norm, "above 0", lambda norm: norm > 0, "None disables clipping")
    if not isinstance(spec.skip_nonfinite, bool):
        raise StudyError(f"skip_nonfinite must be True or False: got {spec.skip_nonfinite!r}")
    if not isinstance(spec.noise, GradientNoise | None):
        raise StudyError(f"noise must be a GradientNoise or None: got {spec.noise!r}")
    if spec.noise is not None:
        require("noise.eta", spec.noise.eta, "at least 0", lambda eta: eta >= 0)
        require("noise.gamma", spec.noise.gamma, "at least 0", lambda gamma: gamma >= 0)


def _check_rate(spec: OptimizerSettings) -> None:
    argument = arguments_of(spec.name).get("learning_rate")
    is_flat = isinstance(spec.schedule, Constant) and is_zero(spec.schedule.warmup_steps)
    if argument is None and spec.learning_rate is not None:
        raise StudyError(f"{spec.name} has no learning_rate: got {spec.learning_rate!r}; see its options")
    if argument is not None and argument.default is argument.empty and spec.learning_rate is None:
        raise StudyError(f"{spec.name} needs a learning_rate: got None")
    if not is_flat and spec.learning_rate is None:
        raise StudyError(f"a schedule needs a learning_rate: got None with {spec.schedule} ({spec.name})")
    if not is_flat and spec.name in FIXED_RATE:
        raise StudyError(f"{spec.name} cannot have a schedule: got {spec.schedule}; {FIXED_RATE[spec.name]}")


def _check_decay(spec: OptimizerSettings) -> None:
    if spec.decay_kind not in ("decoupled", "l2"):
        raise StudyError(f"decay_kind must be 'decoupled' or 'l2': got {spec.decay_kind!r}")
    if spec.name in OWN_DECAY and spec.decay_kind == "l2":
        other = spec.name.removesuffix("w").removeprefix("schedule_free_")
        instead = other if other != spec.name and other in OPTIMIZERS else "adam"
        raise StudyError(f"{spec.name} always decays weights decoupled: got decay_kind='l2'; use {instead!r} for l2")
    if spec.decay_mask is not None and not callable(spec.decay_mask):
        raise StudyError(f"decay_mask must be a function of the parameters: got {spec.decay_mask!r}")
    if spec.decay is None and spec.decay_mask is not None:
        raise StudyError("decay_mask has no effect without decay: got decay=None; set decay, or remove the mask")
    if is_zero(spec.decay):
        return
    arguments = arguments_of(spec.name)
    if spec.name in OWN_DECAY and not {"mask", "weight_decay_mask"} & set(arguments):
        if spec.decay_mask is not decay_all:
            raise StudyError(
                f"{spec.name} decays every array, so decay_mask must be decay_all: got {spec.decay_mask!r}"
            )
    elif spec.name not in OWN_DECAY and spec.decay_kind == "decoupled":
        if spec.name in POSITIONS:
            raise StudyError(
                f"{spec.name} would undo decoupled decay in its next step: got decay_kind='decoupled'; use 'l2'"
            )
        if spec.learning_rate is None:
            raise StudyError(
                f"decoupled decay needs a learning_rate, which scales it: got None ({spec.name}); "
                "set learning_rate or decay_kind='l2'"
            )


def _check_company(spec: OptimizerSettings) -> None:
    if spec.name == "noisy_sgd" and spec.noise is not None:
        raise StudyError(
            "noise is set twice, by noise= and by noisy_sgd: use 'sgd' with noise=, or noisy_sgd's eta and gamma"
        )
    changes = {
        "clip_norm": spec.clip_norm is not None,
        "noise": spec.noise is not None,
        "decay": not is_zero(spec.decay),
        "accumulate_steps": spec.accumulate_steps > 1,
        "plateau": spec.plateau is not None,
    }
    if spec.name == "lbfgs" and any(changes.values()):
        wrong = ", ".join(name for name, is_set in changes.items() if is_set)
        raise StudyError(
            f"lbfgs cannot be used with {wrong}: its line search needs the unchanged loss; remove the setting"
        )
    if spec.plateau is not None:
        _check_plateau(spec.name, spec.plateau)


def _check_plateau(name: str, plateau: Mapping[str, Any]) -> None:
    if name in POSITIONS:
        raise StudyError(f"plateau cannot be used with {name}, which would undo a scaled step in its next step")
    known = inspect.signature(optax.contrib.reduce_on_plateau).parameters
    for argument, value in plateau.items():
        if argument not in known:
            raise StudyError(
                f"optax's reduce_on_plateau has no argument {argument!r} (plateau=){nearest(argument, known)}"
            )
        require(f"plateau's {argument}", value, "at least 0", lambda number: number >= 0)
        if argument in ("factor", "rtol", "atol") and isinstance(value, Tracer):
            raise StudyError(
                f"plateau's {argument} must be a plain number, not a traced hyperparameter: optax compares it in Python"
            )
    try:
        optax.contrib.reduce_on_plateau(**plateau)
    except ValueError as error:
        raise StudyError(f"optax's reduce_on_plateau does not accept plateau={dict(plateau)!r}: {error}") from error
