"""Every private name of JAX that tuner uses, and what it uses it for.

JAX may change these without notice. `tests/unit/training/test_jax_private.py` checks each against the installed
version, and that no other module uses one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol


class Cache(Protocol):
    """What JAX asks of a cache of compiled programs: a program for a key, both of JAX's making."""

    _path: Any
    """Its folder, which JAX prints."""

    def get(self, key: str) -> bytes | None: ...
    def put(self, key: str, value: bytes) -> None: ...


def provide_cache(find: Callable[[str], Cache | None]) -> bool:
    """Make JAX use our cache of compiled programs for some folders.

    Args:
        find: Returns the cache for `jax_compilation_cache_dir`; None for JAX's own.

    Returns:
        Whether this version of JAX can be given one.
    """
    try:
        from jax._src import compilation_cache

        theirs = compilation_cache.get_file_cache
    except (ImportError, AttributeError):
        return False

    def get_file_cache(path: str) -> Any:
        cache = find(path)
        return theirs(path) if cache is None else (cache, path)

    compilation_cache.get_file_cache = get_file_cache
    return True
