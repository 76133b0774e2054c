"""Finds the axes of parameters that count the layers of a `Stack`, so that optimizers treat each layer separately.

A `Stack` declares its axis while the model is initialised. The optimizer reads the declarations when its state is
created, and the state keeps them as part of its structure, so that later steps do not need the model.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import jax
import optax
from jax.tree_util import KeyPath

from tuner.study.launch_record import OPTIMIZER_RULES
from tuner.training.pytree import PyTree

MASKED = optax.MaskedNode()


@dataclass(frozen=True)
class Layers:
    """The layers of a model, as an optimizer sees them.

    Attributes:
        rules: See `tuner.trial.OPTIMIZER_RULES`.
        stacks: (path, length) of each stack: the arrays below the path have a first axis of that length.
    """

    rules: int = OPTIMIZER_RULES
    stacks: tuple[tuple[str, int], ...] = ()

    def axes(self, path: str, shape: tuple[int, ...]) -> int:
        """Return how many of an array's first axes count layers; nested stacks have several.

        Args:
            path: The array's path, such as "stack/layers/Dense_0/kernel". It may have a prefix for the whole model.
            shape: The array's shape.
        """
        count = 0
        for stack, length in self.stacks:  # the outer before the inner
            if f"/{stack}/" in f"/{path}/" and count < len(shape) and shape[count] == length:
                count += 1
        return count

    def default_mask(self, params: PyTree) -> Any:
        """Mark the arrays that decay; see `tuner.training.decay_matrices`."""
        if self.rules == 1:
            return jax.tree.map(lambda leaf: leaf.ndim > 1, params)

        def decays(path: KeyPath, leaf: PyTree) -> bool:
            where = path_of(path)
            is_named = where.rpartition("/")[2] in ("bias", "scale")
            return not is_named and leaf.ndim - self.axes(where, leaf.shape) > 1

        return jax.tree_util.tree_map_with_path(decays, params)


def path_of(path: KeyPath) -> str:
    """Return a leaf's path as text."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


# The stacks declared while a model is initialised; None if they are not collected.
_declared: ContextVar[tuple[int, set[tuple[str, int]]] | None] = ContextVar("declared", default=None)


@contextlib.contextmanager
def collect_stacks(rules: int) -> Iterator[None]:
    """Pass the declared stacks to optimizers whose state is created inside the body."""
    token = _declared.set((rules, set()))
    try:
        yield
    finally:
        _declared.reset(token)


def declare_stack(path: tuple[str, ...], length: int) -> None:
    """Declare that the arrays of the module at a path have a first axis of `length` layers."""
    found = _declared.get()
    if found is not None:
        found[1].add(("/".join(path), length))


def declared_layers() -> Layers:
    """Return the layers declared so far; outside of a training none, with the newest rules."""
    found = _declared.get()
    return Layers() if found is None else Layers(found[0], tuple(sorted(found[1], key=lambda one: len(one[0]))))


class ChainState(tuple):
    """The states of a chain of transformations, and their layers; for JAX a tuple with the same paths."""

    layers: Layers

    def __new__(cls, states: PyTree = (), layers: Layers | None = None) -> ChainState:
        made = super().__new__(cls, states)
        made.layers = layers or Layers()
        return made


def _children(state: ChainState) -> tuple[Any, Layers]:
    return [(jax.tree_util.SequenceKey(at), part) for at, part in enumerate(state)], state.layers


jax.tree_util.register_pytree_with_keys(
    ChainState,
    _children,
    lambda layers, states: ChainState(states, layers),
    lambda state: (tuple(state), state.layers),
)


def aware_of_layers(make: Callable[[Layers], optax.GradientTransformation]) -> optax.GradientTransformationExtraArgs:
    """Return a chain that is built for the layers declared when its state is created.

    Args:
        make: Layers -> a transformation whose state is a tuple.
    """

    def init(params: PyTree) -> ChainState:
        layers = declared_layers()
        return ChainState(make(layers).init(params), layers)

    def update(updates: PyTree, state: PyTree, params: PyTree = None, **extra: object) -> Any:
        made = optax.with_extra_args_support(make(state.layers))
        steps, after = made.update(updates, tuple(state), params, **extra)
        return steps, ChainState(after, state.layers)

    return optax.GradientTransformationExtraArgs(init, update)


Mask = Callable[[Any], Any]


def layer_by_layer(
    make: Callable[[Mask], optax.GradientTransformation], mask: Mask, layers: Layers, *, one_by_one: bool
) -> optax.GradientTransformationExtraArgs:
    """Return an optimizer that treats each layer of a stack as a separate array.

    Args:
        make: Mask of the decaying arrays -> the optimizer, in which no array depends on another.
        mask: Parameters -> mask of the decaying arrays; called with all parameters, stacked.
        layers: The layers.
        one_by_one: Loop over layers instead of computing all at once, so that a branch inside runs only if it is taken.
    """

    def label(path: KeyPath, leaf: PyTree) -> str:
        axes = layers.axes(path_of(path), leaf.shape)
        return "x".join(["layers", *map(str, leaf.shape[:axes])]) if axes else "whole"

    def grouped(params: PyTree) -> optax.GradientTransformationExtraArgs:
        labels = jax.tree_util.tree_map_with_path(label, params)
        # A mark may cover a whole subtree.
        marks = jax.tree.map(lambda mark, part: jax.tree.map(lambda _: mark, part), mask(params), params)
        made: dict[Any, Any] = {}
        for group in sorted(set(jax.tree.leaves(labels))):
            of_group = jax.tree.map(lambda mark, one, group=group: mark if one == group else MASKED, marks, labels)
            made[group] = make(lambda _, of_group=of_group: of_group)
            for _ in range(group.count("x")):
                made[group] = _mapped(made[group], one_by_one)
        return optax.with_extra_args_support(optax.partition(made, lambda _: labels))

    def update(updates: PyTree, state: PyTree, params: PyTree = None, **extra: object) -> Any:
        return grouped(updates if params is None else params).update(updates, state, params, **extra)

    return optax.GradientTransformationExtraArgs(lambda params: grouped(params).init(params), update)


def _mapped(inner: optax.GradientTransformation, one_by_one: bool) -> optax.GradientTransformation:
    """Return a transformation of arrays with an additional first axis, along which each has its own state."""
    supported = optax.with_extra_args_support(inner)

    def over(function: Callable[..., PyTree]) -> Callable[..., Any]:
        return (lambda *trees: jax.lax.map(lambda each: function(*each), trees)) if one_by_one else jax.vmap(function)

    def update(updates: PyTree, state: PyTree, params: PyTree = None, **extra: object) -> Any:
        return over(lambda *trees: supported.update(*trees, **extra))(updates, state, params)

    return optax.GradientTransformationExtraArgs(over(inner.init), update)
