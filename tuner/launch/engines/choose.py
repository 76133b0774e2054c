"""Chooses an engine by its name."""

from __future__ import annotations

from collections.abc import Callable

from tuner.errors import UsageError
from tuner.launch.engines.engine import Engine
from tuner.launch.engines.kubernetes import Kubernetes
from tuner.launch.engines.ray import Ray
from tuner.launch.engines.slurm import Slurm

_ENGINES: dict[str, Callable[[], Engine]] = {"slurm": Slurm, "kubernetes": Kubernetes, "ray": Ray}


def make_engine(name: str) -> Engine:
    """Return an engine by its name.

    Raises:
        UsageError: there is none of that name.
    """
    if name not in _ENGINES:
        names = list(_ENGINES)
        raise UsageError(f"`on` must be {', '.join(names[:-1])} or {names[-1]}: got {name!r}")
    return _ENGINES[name]()
