"""Renews a lease on a thread while its trial trains."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass, field

from sqlalchemy import Engine

from tuner.errors import LeaseLost, StorageLost, UnknownStudy
from tuner.output.log import tell
from tuner.storage.sql.retry import PROMPT, hurried, tell_away
from tuner.storage.worker.fences import Lease
from tuner.storage.worker.leases import renew


@dataclass
class Watch:
    """Information for a worker during its training."""

    is_lost: threading.Event = field(default_factory=threading.Event)
    """Another worker has the trial."""
    must_stop: threading.Event = field(default_factory=threading.Event)
    """The study was stopped, or its hours are used up: the trial must be given back."""


@contextlib.contextmanager
def renewed(
    engine: Engine,
    lease: Lease,
    must_stop: Callable[[], bool] = lambda: False,
    is_ending: Callable[[], bool] = lambda: False,
) -> Generator[Watch]:
    """Renew a lease from a thread while the body runs.

    Args:
        engine: The storage's engine. The thread does not wait for a database that is down, but tries again later.
        lease: The lease.
        must_stop: Called after each renewal; returns whether the trial must be given back.
        is_ending: Returns whether the worker must exit; it then does not wait for a server that does not answer.
    """
    is_over, watch = threading.Event(), Watch()
    # A connection without an answer must be closed early enough to renew the lease on another one.
    statement_s = min(5.0, max(1.0, lease.lease_s / 6))
    patience = dataclasses.replace(PROMPT, statement_s=statement_s, is_over=lambda: is_over.is_set() or is_ending())

    def beat() -> None:
        is_cut_off = False
        while not is_over.wait(min(1.0, lease.lease_s / 6) if is_cut_off else lease.lease_s / 6):
            try:
                with hurried(patience):
                    renew(engine, lease)
                    if must_stop():
                        watch.must_stop.set()
                is_cut_off = False
            except (LeaseLost, UnknownStudy):
                watch.is_lost.set()
                return
            except StorageLost as error:
                # The database may be down for a while; the end of the lease decides, not this thread.
                tell_away(engine, error, f"the lease of trial {lease.number} is not renewed")
                is_cut_off = True
            except Exception as error:  # the thread must continue, or a minor error would lose the trial
                tell(f"cannot renew the lease of trial {lease.number}: {error}", "lease_not_renewed", "warning")
                is_cut_off = True

    thread = threading.Thread(target=beat, name=f"lease-{lease.number}", daemon=True)
    thread.start()
    try:
        yield watch
    finally:
        is_over.set()
        thread.join()
