"""Makes a trial's hyperparameters a JAX pytree, as soon as JAX is loaded."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Generator, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any


@contextlib.contextmanager
def registered_with_jax(hparams: object) -> Generator[None]:
    """Register the class of hyperparameters as a pytree: now, or when the body first imports JAX."""
    if "jax" in sys.modules:
        _register(hparams)
        yield
        return
    finder = _Finder(hparams)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.meta_path.remove(finder)


def _register(hparams: object) -> None:
    from tuner.training.foreign import register

    register(hparams)


class _Finder(MetaPathFinder):
    """Finds `jax` like the other finders, and registers hyperparameters after its import."""

    def __init__(self, hparams: object) -> None:
        self._hparams = hparams

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "jax" or self not in sys.meta_path:
            return None
        sys.meta_path.remove(self)
        spec = find_spec("jax")
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self._hparams)
        return spec


class _Loader(Loader):
    def __init__(self, loader: Loader, hparams: object) -> None:
        self._loader, self._hparams = loader, hparams

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        _register(self._hparams)
