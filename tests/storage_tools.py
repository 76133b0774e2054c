"""What several tests of the storage share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import tuner
from tuner.storage.optuna_storage import Storage


@contextlib.contextmanager
def opened(url: str) -> Iterator[Storage]:
    """Open a storage, and close its connections at the end."""
    storage = tuner.open_storage(url)
    try:
        yield storage
    finally:
        storage.close()
