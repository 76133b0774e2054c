"""Search spaces as JAX pytrees: traced fields are leaves, static fields are part of the structure."""

from __future__ import annotations

import dataclasses

import jax

from tuner.study.space import Space, is_traced

_registered: set[type[Space]] = set()


def register(hparams: object) -> None:
    """Register the class of hyperparameters, and of nested spaces, as pytrees; only the first call has an effect."""
    if not isinstance(hparams, Space):
        return
    kind = type(hparams)
    names = [field.name for field in dataclasses.fields(hparams)]  # pyright: ignore[reportArgumentType]
    if kind not in _registered:
        traced = [name for name in names if is_traced(kind, name)]
        jax.tree_util.register_dataclass(kind, traced, [name for name in names if name not in traced])
        _registered.add(kind)
    for name in names:
        register(getattr(hparams, name))
