"""Builds optimizers from settings: every number may be traced, and each setting belongs to one field.

The order of an update, from the gradient of the loss to the step: mean over `accumulate_steps`, clip, noise, L2 decay,
the optimizer with its schedule, decoupled decay, plateau. `skip_nonfinite` wraps all of these.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from jax.tree_util import KeyPath

from tuner.errors import StudyError, nearest
from tuner.training.optim.named import OWN_DECAY, SCHEDULE_FREE, WHOLE_ARRAY, WHOLE_LOSS, arguments_of, factory_of
from tuner.training.optim.rules import check_spec, decay_matrices, is_zero, marks
from tuner.training.optim.schedules import Constant, Number, WarmupCosine
from tuner.training.optim.settings import OptimizerSettings
from tuner.training.optim.stacks import Layers, aware_of_layers, layer_by_layer
from tuner.training.optim.transforms import (
    AccumulateState,
    SkipState,
    accumulate,
    add_noise,
    clip,
    lenient,
    like,
    rename_value_fn,
    shrink,
    skip_nonfinite,
    without_weight,
)
from tuner.training.pytree import PyTree


class OptimizerSpec(OptimizerSettings):
    """An optimizer of optax by name, with schedule, decay, clipping and more.

    Args:
        name: The name in optax; one of `OPTIMIZERS`.
        learning_rate: The schedule's peak; None if the optimizer has no learning rate, or a default.
        options: Other arguments of the optimizer, by name. Numbers may be traced, but not booleans and whole numbers.
        schedule: The shape of the learning rate; constant by default.
        decay: Weight decay. `decoupled` decay subtracts lr_t * decay * w after preconditioning, `l2` decay adds decay *
            w to the gradient before it. None means no decay and allows no mask; 0 is a normal value.
        decay_kind: `decoupled` or `l2`. Optimizers with built-in decay (adamw, lion, ...) are decoupled.
        decay_mask: Params -> tree of booleans; `decay_matrices` if None, which excludes biases and scales.
        clip_norm: Largest global norm of the loss's gradient, before any decay is added to it.
        noise: Noise that is added to the clipped gradient.
        accumulate_steps: Gradients per update; schedules count updates. An incomplete update at the end is dropped.
        skip_nonfinite: Skip and count updates whose gradient, loss or result is not finite.
        plateau: Arguments of `optax.contrib.reduce_on_plateau`; factor, rtol and atol must not be traced.
    """

    def check(self, total_steps: int) -> None:
        """Check the settings, except numbers that are traced; call it before training, outside of jit.

        Args:
            total_steps: The number of gradients in the whole training.

        Raises:
            StudyError: a name is unknown, a number is out of range, or two settings contradict each other.
        """
        self.build(total_steps, jax.random.key(0))

    def build(self, total_steps: int, key: jax.Array | None = None) -> optax.GradientTransformationExtraArgs:
        """Return the optimizer.

        Its `update(grads, state, params, value=..., grad=..., value_fn=...)` passes the loss to optimizers that use it.

        Args:
            total_steps: The number of gradients in the whole training.
            key: The trial's key, for optimizers that draw random numbers; the same in every step.

        Returns:
            A transformation that works with the strictest promotion flags and keeps the dtypes of its state.

        Raises:
            StudyError: as for `check`, or the optimizer draws random numbers and got no key.
        """
        inner = self._steps(total_steps, key)
        return lenient(skip_nonfinite(inner) if self.skip_nonfinite else inner)

    def _steps(self, total_steps: int, key: jax.Array | None) -> optax.GradientTransformationExtraArgs:
        """Return the optimizer without its outermost wrappers."""
        check_spec(self, total_steps)
        needs_key = self.noise is not None or self.name in ("noisy_sgd", "sophia")
        if needs_key and key is None:
            what = "noise" if self.noise is not None else self.name
            raise StudyError(f"{what} needs the trial's key: got key=None; call build(total_steps, key)")
        updates = total_steps // self.accumulate_steps
        made = partial(self._chain, updates, key)
        made(Layers())  # raises errors in the options now
        chained = aware_of_layers(made)
        return accumulate(chained, self.accumulate_steps) if self.accumulate_steps > 1 else without_weight(chained)

    def _chain(self, updates: int, key: jax.Array | None, layers: Layers) -> optax.GradientTransformation:
        """Return the transformations of a gradient, in order."""
        parts, mask = [], self._mask(layers)
        if self.clip_norm is not None:
            parts.append(clip(self.clip_norm))
        if self.noise is not None and key is not None:
            parts.append(add_noise(self.noise, key))
        if self.decay is not None and self._adds_decay("l2"):
            parts.append(optax.add_decayed_weights(self.decay, mask))
        parts.append(self._own(updates, key, mask, layers))
        if self.decay is not None and self._adds_decay("decoupled"):
            parts.append(optax.masked(shrink(self._rate(self.learning_rate, updates), self.decay), mask))
        if self.plateau is not None:
            parts.append(optax.contrib.reduce_on_plateau(**self.plateau))
        return optax.chain(*parts)

    def _own(
        self, updates: int, key: jax.Array | None, mask: Callable[[PyTree], PyTree], layers: Layers
    ) -> optax.GradientTransformation:
        """Return optax's optimizer, applied layer by layer in a stack if it uses whole arrays."""
        made = partial(_made, self, updates, key)
        if not layers.stacks or layers.rules == 1 or self.name not in WHOLE_ARRAY:
            return made(mask)
        # Galore decomposes matrices in a branch that is rarely taken.
        return layer_by_layer(made, mask, layers, one_by_one=self.name == "galore")

    def _adds_decay(self, kind: str) -> bool:
        """Return whether decay of this kind is added here and not by the optimizer itself."""
        return kind == self.decay_kind and self.name not in OWN_DECAY and not is_zero(self.decay)

    def _mask(self, layers: Layers) -> Callable[[Any], Any]:
        """Return the mask of the arrays that decay."""
        mask = self.decay_mask
        return layers.default_mask if mask is None or mask is decay_matrices else partial(marks, mask)

    def _rate(self, peak: Any, updates: int) -> Any:
        """Return the learning rate, as a function of the step if it changes."""
        if isinstance(self.schedule, Constant) and is_zero(self.schedule.warmup_steps):
            return peak
        return lambda step: peak * self.schedule.factor(step, updates)


@dataclass(frozen=True)
class OptimizerGroups:
    """Different optimizers for different parameters.

    Each group works as its spec alone on its arrays: norms and counts are per group. `skip_nonfinite` skips the update
    of all groups.

    Args:
        groups: The spec of each group, by name; None freezes the group.
        label: A function from a path such as "encoder/Dense_0/kernel" to the name of its group.
    """

    groups: Mapping[str, OptimizerSpec | None]
    label: Callable[[str], str]

    def check(self, total_steps: int) -> None:
        """Check the settings; see `OptimizerSpec.check`.

        Args:
            total_steps: The number of gradients in the whole training.

        Raises:
            StudyError: a group's spec is wrong, or the groups contradict each other.
        """
        self.build(total_steps, jax.random.key(0))

    def build(self, total_steps: int, key: jax.Array | None = None) -> optax.GradientTransformationExtraArgs:
        """Return the optimizer; see `OptimizerSpec.build`.

        Args:
            total_steps: The number of gradients in the whole training.
            key: The trial's key; each group draws different numbers from it.

        Returns:
            A transformation whose `init` raises StudyError if an array has no group, or if a group that is not None has
            no array.

        Raises:
            StudyError: as for `check`, or the optimizer draws random numbers and got no key.
        """
        made: dict[Hashable, optax.GradientTransformation] = {}
        for index, (name, spec) in enumerate(self.groups.items()):
            if spec is None:
                made[name] = optax.set_to_zero()
            elif not isinstance(spec, OptimizerSpec):
                raise StudyError(f"the group {name!r} must be an OptimizerSpec, or None to freeze it: got {spec!r}")
            elif spec.name in (*WHOLE_LOSS, *SCHEDULE_FREE):
                raise StudyError(
                    f"{spec.name} cannot be used for a group of parameters: got it for group {name!r}; use it for all "
                    "parameters"
                )
            else:
                made[name] = spec._steps(total_steps, None if key is None else jax.random.fold_in(key, index))
        skips = {spec.skip_nonfinite for spec in self.groups.values() if spec is not None}
        if len(skips) != 1:
            problem = "must all have the same skip_nonfinite" if skips else "train nothing: give one an OptimizerSpec"
            raise StudyError(f"the groups of OptimizerGroups {problem}")
        inner = optax.partition(made, self._labels)
        return lenient(skip_nonfinite(inner) if skips.pop() else inner)

    def _labels(self, params: PyTree) -> Any:
        """Return each array's group."""
        paths: list[str] = []

        def name(path: KeyPath, leaf: PyTree) -> str:
            where = jax.tree_util.keystr(path, simple=True, separator="/")
            paths.append(where)
            found = self.label(where)
            if found not in self.groups:
                raise StudyError(
                    f"label must return one of the groups {sorted(self.groups)}: got {found!r} for the array {where!r}"
                    + nearest(str(found), self.groups)
                )
            return found

        labels = jax.tree_util.tree_map_with_path(name, params)
        used = set(jax.tree.leaves(labels))
        for group, spec in self.groups.items():
            if spec is not None and group not in used:
                known = {*map(str, used), *paths, *(part for path in paths for part in path.split("/"))} - {group}
                raise StudyError(
                    f"label returns the group {group!r} for no array: remove the group, or set it to None"
                    + nearest(str(group), sorted(known))
                )
        return labels


def as_optimizer(made: object, total_steps: int, key: jax.Array | None = None) -> optax.GradientTransformationExtraArgs:
    """Convert the result of `init_optimizer` to a transformation that takes the loss as extra arguments.

    Args:
        made: An `OptimizerSpec`, `OptimizerGroups`, or any optax transformation.
        total_steps: Gradients of the whole training.
        key: The trial's key.

    Returns:
        A transformation that works with the strictest promotion flags.

    Raises:
        StudyError: `made` is none of these, or the spec is wrong.
    """
    if isinstance(made, OptimizerSpec | OptimizerGroups):
        return made.build(total_steps, key)
    if isinstance(made, optax.GradientTransformation):
        return lenient(made)
    raise StudyError(
        f"an optimizer must be an OptimizerSpec, OptimizerGroups or an optax GradientTransformation: got {made!r}"
    )


def skipped_steps(opt_state: PyTree) -> jax.Array | None:
    """Return the number of updates that were skipped because something was not finite.

    Args:
        opt_state: State of an optimizer built by this module.

    Returns:
        The count over all optimizers, an array of the population's shape; None if no optimizer counts.
    """
    leaves = jax.tree.leaves(opt_state, is_leaf=lambda leaf: isinstance(leaf, SkipState))
    counts = [leaf.skipped for leaf in leaves if isinstance(leaf, SkipState)]
    return sum(counts[1:], counts[0]) if counts else None


def clipped_norm(
    made: object, grads: PyTree, opt_state: PyTree, weight: jax.Array
) -> tuple[jax.Array, jax.Array] | None:
    """Return the norm that a gradient will have after the optimizer clips it.

    Args:
        made: What a trainer's `init_optimizer` returned.
        grads: The gradient of the loss.
        opt_state: The optimizer's state before the update.
        weight: The total weight of the batch's examples. Float[Array, ""].

    Returns:
        The norm, Float[Array, ""], and 1 if this step clips, else 0 (if gradients are accumulated, only their mean is
        clipped). None if the norm is not known: nothing is clipped, groups accumulate, or `made` is not a spec.
    """
    if isinstance(made, OptimizerGroups):
        specs = [spec for spec in made.groups.values() if spec is not None]
        if all(spec.clip_norm is None for spec in specs) or any(spec.accumulate_steps > 1 for spec in specs):
            return None
        of_group: dict[str, list[jax.Array]] = {}
        for name, grad in zip(jax.tree.leaves(made._labels(grads)), jax.tree.leaves(grads), strict=True):
            of_group.setdefault(name, []).append(grad)
        kept = ((spec, of_group[name]) for name, spec in made.groups.items() if spec is not None)
        return jnp.sqrt(sum(_below(optax.tree.norm(part), spec.clip_norm) ** 2 for spec, part in kept)), jnp.float32(1)
    if not isinstance(made, OptimizerSpec) or made.clip_norm is None:
        return None
    if made.accumulate_steps == 1:
        return _below(optax.tree.norm(grads), made.clip_norm), jnp.float32(1)
    state = _find(opt_state, AccumulateState).plus(grads, 0.0, weight, made.accumulate_steps)
    norm = _below(optax.tree.norm(state.means()[0]), made.clip_norm)
    is_last = state.made == made.accumulate_steps - 1
    return jnp.where(is_last, norm, 0.0), is_last.astype(jnp.float32)


def _below(norm: jax.Array, limit: Number | None) -> jax.Array:
    return norm if limit is None else jnp.minimum(norm, jnp.asarray(limit, norm.dtype))


def evaluated_params(opt_state: PyTree, params: PyTree) -> Any:
    """Return the parameters to evaluate with: for schedule-free optimizers the average, otherwise `params`.

    Args:
        opt_state: State of an optimizer built by this module, for one member of a population; or a dict of states by
            the names of their parameters.
        params: The parameters at which gradients are computed.

    Returns:
        Parameters with the same structure.
    """
    if isinstance(opt_state, dict) and isinstance(params, dict) and opt_state.keys() <= params.keys():
        return {**params, **{name: evaluated_params(one, params[name]) for name, one in opt_state.items()}}
    found = _find(opt_state, optax.contrib.ScheduleFreeState)
    if found is None:
        return params
    with jax.numpy_dtype_promotion("standard"):
        return like(optax.contrib.schedule_free_eval_params(found, params), params)


def warmup_cosine(total_steps: int, *, warmup_steps: int | None = None) -> Callable[[Any], Any]:
    """Return step -> factor: linear from 0 to 1, then half a cosine down to 0.01; see `WarmupCosine`.

    Args:
        total_steps: Updates of the whole training; > 0.
        warmup_steps: Updates until the factor is 1; by default a tenth of `total_steps`.

    Returns:
        A function of the step.

    Raises:
        ValueError: the warm-up does not end before the training.
    """
    shape = WarmupCosine(warmup_steps=warmup_steps)
    try:
        shape.check(total_steps)
    except StudyError as error:
        raise ValueError(str(error)) from error
    return lambda step: shape.factor(step, total_steps)


def adamw(learning_rate: Number, weight_decay: Number, total_steps: int) -> optax.GradientTransformation:
    """Return AdamW (Loshchilov & Hutter, 2019) with warm-up and cosine decay.

    Args:
        learning_rate: The schedule's peak; may be traced.
        weight_decay: Decoupled decay of arrays with two or more axes, except biases and scales; may be traced.
        total_steps: Updates of the whole training.

    Returns:
        The optimizer.
    """
    return OptimizerSpec("adamw", learning_rate, schedule=WarmupCosine(), decay=weight_decay).build(total_steps)


def _find(opt_state: PyTree, kind: type) -> Any:
    """Return the first state of a kind, or None."""
    leaves = jax.tree.leaves(opt_state, is_leaf=lambda leaf: isinstance(leaf, kind))
    return next((leaf for leaf in leaves if isinstance(leaf, kind)), None)


def _made(
    spec: OptimizerSpec, updates: int, key: jax.Array | None, mask: Callable[[PyTree], PyTree]
) -> optax.GradientTransformation:
    """Return optax's optimizer, with its built-in decay."""
    arguments = arguments_of(spec.name)
    given = dict(spec.options)
    if spec.name in OWN_DECAY:
        # Set even if it is 0, because optax's defaults are not 0.
        given["weight_decay"] = 0.0 if spec.decay is None else spec.decay
        given |= {name: mask for name in ("mask", "weight_decay_mask") if name in arguments}
    if spec.learning_rate is not None:
        given["learning_rate"] = spec._rate(spec.learning_rate, updates)
    if given.get("adam_learning_rate") is not None:
        given["adam_learning_rate"] = spec._rate(given["adam_learning_rate"], updates)
    if spec.name == "noisy_sgd":
        given["key"] = key
    if spec.name == "sophia":
        given.setdefault("hessian_diagonal_fn", optax.contrib.hutchinson_estimator_diag_hessian(key))
    try:
        made = factory_of(spec.name)(**given)
    except (TypeError, ValueError, AttributeError) as error:
        raise StudyError(f"optax's {spec.name} does not accept the options {dict(spec.options)!r}: {error}") from error
    return rename_value_fn(made) if spec.name == "sophia" else made
