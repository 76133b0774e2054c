"""Converts Linen modules, NNX modules and plain functions to one protocol: a model as two pure functions."""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax

from tuner.errors import StudyError
from tuner.training.pytree import PyTree


@dataclass(frozen=True)
class Model:
    """A model as pure functions.

    Attributes:
        init: (key, inputs) -> (params, collections): nested dicts of arrays. Collections are the model's variables
            other than parameters, such as batch statistics; `{}` if there are none.
        apply: (params, collections, inputs, *, train, key) -> (outputs, collections). In evaluation mode the
            collections are returned unchanged.
        module: The original module, for tables and diagnosis.

    `inputs` is a tuple of positional arguments.
    """

    init: Callable[..., tuple[Any, Any]]
    apply: Callable[..., tuple[Any, Any]]
    module: Any = None


def as_model(made: object) -> Model:
    """Convert the result of `init_model` to a `Model`.

    Args:
        made: A Linen module; an NNX module class, or any function of `rngs` that returns an NNX module; a pair of pure
            functions init(key, *inputs) -> params and apply(params, *inputs) -> outputs, where `apply` also gets
            `train` and `key` if it has such parameters; or a `Model`.

    Raises:
        StudyError: `made` is none of these.
    """
    if isinstance(made, Model):
        return made
    if isinstance(made, nn.Module):
        return _linen(made)
    if isinstance(made, tuple) and len(made) == 2 and all(map(callable, made)):
        return _pair(*made)
    is_nnx = _is_nnx_module(made)
    if not is_nnx and callable(made) and "rngs" in _parameters(made):
        return _nnx(made)
    instance = f"an instance of {type(made).__name__}; return the class, or a function of rngs, instead"
    raise StudyError(
        "init_model must return a Linen module, an NNX module class (or a function of rngs that makes one), or a pair "
        f"of functions (init, apply): got {instance if is_nnx else ' '.join(repr(made).split())[:80]}"
    )


Observe = Callable[[str, Any, Any], None]
"""(path of a module, its inputs, its outputs) -> None; called for inner modules before those that contain them."""

_observers: list[Observe] = []


@contextlib.contextmanager
def watched(observe: Observe) -> Iterator[None]:
    """Call `observe` for each module that a model runs inside the body. For diagnosis only, not inside programs."""

    def intercept(
        call: Callable[..., PyTree],
        args: tuple[object, ...],
        kwargs: dict[str, object],
        context: nn.module.InterceptorContext,
    ) -> Any:
        outputs = call(*args, **kwargs)
        if context.method_name == "__call__":
            observe("/".join(context.module.path) or type(context.module).__name__, args, outputs)
        return outputs

    _observers.append(observe)
    try:
        with nn.intercept_methods(intercept):
            yield
    finally:
        _observers.remove(observe)


@contextlib.contextmanager
def _watched_nnx(root: Any) -> Iterator[None]:
    """Call the observers for each call of an NNX module inside `root`; NNX has no interceptors."""
    from flax import nnx

    if not _observers:
        yield
        return
    paths = {id(module): "/".join(map(str, path)) for path, module in nnx.iter_modules(root)}
    kinds = {type(module) for _, module in nnx.iter_modules(root) if "__call__" in vars(type(module))}

    def wrap(call: Callable[..., PyTree]) -> Callable[..., Any]:
        @functools.wraps(call)
        def wrapped(self: object, *args: object, **kwargs: object) -> Any:
            outputs = call(self, *args, **kwargs)
            for observe in _observers:
                observe(paths.get(id(self)) or type(self).__name__, args, outputs)
            return outputs

        return wrapped

    before = {kind: vars(kind)["__call__"] for kind in kinds}
    try:
        for kind, call in before.items():
            kind.__call__ = wrap(call)
        yield
    finally:
        for kind, call in before.items():
            kind.__call__ = call


def _is_nnx_module(made: object) -> bool:
    # NNX takes a while to import: if it is not imported, this is not an NNX module.
    nnx = sys.modules.get("flax.nnx")
    return nnx is not None and isinstance(made, nnx.Module)


def _parameters(function: Callable[..., object]) -> set[str]:
    while isinstance(function, functools.partial):
        function = function.func
    try:
        # The metaclass of NNX modules hides the signature of their constructor.
        return set(inspect.signature(function.__init__ if isinstance(function, type) else function).parameters)
    except (TypeError, ValueError):  # builtins have no signature
        return set()


def _mode(function: Callable[..., object], train: bool) -> dict[str, Any]:
    """Return the mode as a keyword argument under the name that the model's call uses, if any."""
    names = _parameters(function)
    return {"train": train} if "train" in names else {"deterministic": not train} if "deterministic" in names else {}


def _linen(module: nn.Module) -> Model:
    call = type(module).__call__

    def init(key: jax.Array, inputs: tuple[PyTree, ...]) -> tuple[Any, Any]:
        variables = dict(module.init({"params": key}, *inputs, **_mode(call, False)))
        return variables.pop("params", {}), variables

    def apply(
        params: PyTree, collections: PyTree, inputs: tuple[PyTree, ...], *, train: bool, key: jax.Array | None
    ) -> tuple[Any, Any]:
        variables = {"params": params, **collections}
        # Streams with other names than "dropout" fall back to "params".
        rngs = None if key is None else {"dropout": key, "params": jax.random.fold_in(key, 1)}
        if not train:
            return module.apply(variables, *inputs, rngs=rngs, **_mode(call, False)), collections
        outputs, changed = module.apply(
            variables, *inputs, rngs=rngs, mutable=[name for name in collections], **_mode(call, True)
        )
        return outputs, {**collections, **changed}

    return Model(init, apply, module)


def _nnx(make: Callable[..., Any]) -> Model:
    """Adapt an NNX module without keeping a graph between calls: each call creates it and inserts the variables.

    Values that the constructor draws are overwritten, so the compiler removes them. Hyperparameters that the
    constructor stores, such as a traced dropout rate, are always those of this trial.
    """
    from flax import nnx

    def split(module: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        # Random streams are created from the step's key, not stored.
        params, _, rest = nnx.split_state(nnx.state(module), nnx.Param, nnx.RngState, ...)
        rest = nnx.filter_state(rest, nnx.Variable)
        return _nested(nnx.to_flat_state(params)), _nested(nnx.to_flat_state(rest))

    def init(key: jax.Array, inputs: tuple[PyTree, ...]) -> tuple[Any, Any]:
        return split(make(rngs=nnx.Rngs(key)))

    def apply(
        params: PyTree, collections: PyTree, inputs: tuple[PyTree, ...], *, train: bool, key: jax.Array | None
    ) -> tuple[Any, Any]:
        module = make(rngs=nnx.Rngs(jax.random.key(0) if key is None else key))
        for path, variable in nnx.to_flat_state(nnx.state(module, nnx.Not(nnx.RngState))):
            if isinstance(variable, nnx.Variable):
                found = _at(params if isinstance(variable, nnx.Param) else collections, path)
                _at_module(module, path).set_value(found)
        module.train() if train else module.eval()
        with _watched_nnx(module):
            outputs = module(*inputs, **_mode(type(module).__call__, train))
        return outputs, split(module)[1] if train else collections

    return Model(init, apply, make)


def _nested(flat: Iterable[tuple[tuple[object, ...], PyTree]]) -> dict[str, Any]:
    """Return NNX's flat state as nested dicts with text keys, as checkpoints need it."""
    nested: dict[str, Any] = {}
    for path, variable in flat:
        inner = nested
        for part in path[:-1]:
            inner = inner.setdefault(str(part), {})
        inner[str(path[-1])] = variable.get_value()
    return nested


def _at(nested: PyTree, path: tuple[object, ...]) -> Any:
    for part in path:
        nested = nested[str(part)]
    return nested


def _at_module(module: Any, path: tuple[Any, ...]) -> Any:
    for part in path:
        module = module[part] if isinstance(part, int) else getattr(module, part)
    return module


def _pair(init_params: Callable[..., PyTree], apply_params: Callable[..., PyTree]) -> Model:
    names = _parameters(apply_params)

    def init(key: jax.Array, inputs: tuple[PyTree, ...]) -> tuple[Any, Any]:
        return init_params(key, *inputs), {}

    def apply(
        params: PyTree, collections: PyTree, inputs: tuple[PyTree, ...], *, train: bool, key: jax.Array | None
    ) -> tuple[Any, Any]:
        options = {name: value for name, value in (("train", train), ("key", key)) if name in names}
        return apply_params(params, *inputs, **options), collections

    return Model(init, apply, (init_params, apply_params))
