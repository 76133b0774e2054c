"""Renews leases on a thread while their trials train."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field

from sqlalchemy import Engine

from tuner.errors import StorageLost, UnknownStudy
from tuner.output.log import tell
from tuner.storage.sql.retry import PROMPT, hurried, tell_away
from tuner.storage.worker.fences import Lease
from tuner.storage.worker.leases import renew_together


@dataclass
class Watch:
    """Information for a worker during its training."""

    is_lost: threading.Event = field(default_factory=threading.Event)
    """Another worker has the trial."""
    must_stop: threading.Event = field(default_factory=threading.Event)
    """The study was stopped, or its hours are used up: the trial must be given back."""


class Renewals:
    """Renews leases from a thread, together in one transaction, while their trials train.

    Args:
        engine: The storage's engine. The thread does not wait for a database that is down, but tries again later.
        lease_s: The length of the leases in seconds.
        must_stop: Called after each renewal; returns whether all trials must be given back.
        is_ending: Returns whether the worker must exit; it then does not wait for a server that does not answer.
    """

    def __init__(
        self,
        engine: Engine,
        lease_s: float,
        must_stop: Callable[[], bool] = lambda: False,
        is_ending: Callable[[], bool] = lambda: False,
    ) -> None:
        self._engine, self._must_stop, self._every_s = engine, must_stop, lease_s / 6
        self._is_over, self._changing = threading.Event(), threading.Lock()
        self._watches: dict[Lease, Watch] = {}
        # A connection without an answer must be closed early enough to renew the leases on another one.
        statement_s = min(5.0, max(1.0, lease_s / 6))
        is_over = self._is_over.is_set
        self._patience = dataclasses.replace(PROMPT, statement_s=statement_s, is_over=lambda: is_over() or is_ending())
        self._thread = threading.Thread(target=self._beat, name="leases", daemon=True)
        self._thread.start()

    @contextlib.contextmanager
    def watching(self, lease: Lease) -> Generator[Watch]:
        """Renew a lease while the body runs."""
        try:
            yield self.add(lease)
        finally:
            with self._changing:
                del self._watches[lease]

    def add(self, lease: Lease) -> Watch:
        """Renew a lease from now on, until `watching` has ended for it."""
        with self._changing:
            return self._watches.setdefault(lease, Watch())

    def close(self) -> None:
        """End the thread; returns when no renewal is under way any more."""
        self._is_over.set()
        self._thread.join()

    def _beat(self) -> None:
        is_cut_off = False
        while not self._is_over.wait(min(1.0, self._every_s) if is_cut_off else self._every_s):
            with self._changing:
                watches = {lease: watch for lease, watch in self._watches.items() if not watch.is_lost.is_set()}
            if watches:
                is_cut_off = not self._renew(watches)

    def _renew(self, watches: Mapping[Lease, Watch]) -> bool:
        """Renew leases once; return whether that was possible."""
        numbers = ", ".join(str(lease.number) for lease in watches)
        what = f"the lease of trial {numbers} is" if len(watches) == 1 else f"the leases of trials {numbers} are"
        try:
            with hurried(self._patience):
                were_held = renew_together(self._engine, list(watches))
                for watch, was_held in zip(watches.values(), were_held, strict=True):
                    if not was_held:
                        watch.is_lost.set()
                if any(were_held) and self._must_stop():
                    for watch in watches.values():
                        watch.must_stop.set()
        except UnknownStudy:
            for watch in watches.values():
                watch.is_lost.set()
        except StorageLost as error:
            # The database may be down for a while; the end of the leases decides, not this thread.
            tell_away(self._engine, error, f"{what} not renewed")
            return False
        except Exception as error:  # the thread must continue, or a minor error would lose the trials
            tell(f"{what} not renewed: {error}", "lease_not_renewed", "warning")
            return False
        return True


@contextlib.contextmanager
def renewed(
    engine: Engine,
    lease: Lease,
    must_stop: Callable[[], bool] = lambda: False,
    is_ending: Callable[[], bool] = lambda: False,
) -> Generator[Watch]:
    """Renew a single lease from a thread while the body runs; see `Renewals`."""
    renewals = Renewals(engine, lease.lease_s, must_stop, is_ending)
    with contextlib.closing(renewals), renewals.watching(lease) as watch:
        yield watch
