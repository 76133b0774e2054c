"""A trial that this process holds: it is read from memory, and what is suggested for it is written together."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

from optuna.trial import FrozenTrial
from sqlalchemy import Engine

from tuner.storage.worker.fences import Lease
from tuner.storage.worker.leases import Suggested, store_suggested, store_suggested_together


@dataclass
class Held:
    """A trial on which this process has a lease: no other process may write to it, so it is read from memory."""

    lease: Lease
    study_id: int
    trial: FrozenTrial
    new_params: list[tuple[str, float, str]] = field(default_factory=list[tuple[str, float, str]])
    new_attributes: dict[str, str] = field(default_factory=dict[str, str])
    """System attributes from before the first `flush`, in which samplers store information about suggestions."""
    is_suggested: bool = False
    flushing: threading.Lock = field(default_factory=threading.Lock)
    changing: threading.Lock = field(default_factory=threading.Lock)
    """Held while `new_params` or `new_attributes` change: `flush` may run on another thread than the training."""

    def flush(self, engine: Engine) -> None:
        """See `Storage.flush`."""
        with self.flushing:
            new = self.take_new()
            if new.is_empty:
                return
            try:
                store_suggested(engine, new)
            except BaseException:  # the next call stores them
                self.put_back(new)
                raise

    def take_new(self) -> Suggested:
        """Return what is not stored yet, which the caller stores, or puts back."""
        self.is_suggested = True
        with self.changing:
            taken = Suggested(self.lease, self.new_params, self.new_attributes)
            self.new_params, self.new_attributes = [], {}
        return taken

    def put_back(self, suggested: Suggested) -> None:
        """Keep what could not be stored for the next call."""
        with self.changing:
            self.new_params = [*suggested.params, *self.new_params]
            self.new_attributes = {**suggested.attributes, **self.new_attributes}


def flush_together(engine: Engine, several: Sequence[Held]) -> None:
    """Write what is suggested for several different trials in one transaction; see `Storage.flush_together`."""
    with contextlib.ExitStack() as flushing:
        for held in several:
            flushing.enter_context(held.flushing)
        new = [(held, taken) for held in several if not (taken := held.take_new()).is_empty]
        were_held = [False] * len(new)
        try:
            if new:
                were_held = store_suggested_together(engine, [taken for _, taken in new])
        finally:
            for (held, taken), was_held in zip(new, were_held, strict=True):
                if not was_held:
                    held.put_back(taken)
