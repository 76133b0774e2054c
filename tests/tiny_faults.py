"""Faults at exact places of a worker of the tiny study: environment variables say which. Imported by the study's file.

TINY_FAULT: a signal, a place and a count, as in `SIGKILL before_tell 2`: the first worker of the study that comes to
the place that often sends itself the signal; no other does.
TINY_SPACE: `unknown` lets checkpoints find a full disk only while they are written.
TINY_STALLS: which write of a checkpoint never ends, counted from 1; it is given up soon.
TINY_CLOCK_S: how far the worker's clock is off.
TINY_FAILS: trials and how often each fails, as in `1:2 4:1`.
TINY_RETRIES: how often the study tries a failed trial again.
"""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import itertools
import os
import pkgutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

from tuner import Study

PLACES: dict[str, tuple[str, str, bool]] = {
    "after_claim": ("tuner.storage.worker.claims", "claim_several", True),
    "before_report": ("tuner.storage.worker.reporter:Reporter", "store_kept", False),
    "after_report": ("tuner.storage.worker.reporter:Reporter", "store_kept", True),
    # The arrays are written, the record is not.
    "in_save": ("tuner.training.saved.files", "_digest_head", False),
    "before_best": ("tuner.training.saved.checkpoints:Checkpoints", "write_best", False),
    "before_tell": ("tuner.storage.worker.leases", "end", False),
    "after_tell": ("tuner.storage.worker.leases", "end", True),
    # Those of several trials of a cohort, in one transaction.
    "before_ends": ("tuner.storage.worker.leases", "end_together", False),
    "after_ends": ("tuner.storage.worker.leases", "end_together", True),
    "before_suggested": ("tuner.storage.optuna.held", "store_suggested_together", False),
    "after_suggested": ("tuner.storage.optuna.held", "store_suggested_together", True),
    "before_rungs": ("tuner.storage.optuna.storage:Storage", "enter_rungs", False),
    "after_rungs": ("tuner.storage.optuna.storage:Storage", "enter_rungs", True),
}
"""Owner and name of the function of each place, and whether the place is after its call."""


def plant(study: Study, folder: Path) -> Study:
    """Plant the faults in this process; return the study with its own."""
    if "TINY_FAULT" in os.environ:
        sent, place, count = os.environ["TINY_FAULT"].split()
        plant_signal(signal.Signals[sent], place, int(count), folder / "faulty")
    if os.environ.get("TINY_SPACE") == "unknown":
        pkgutil.resolve_name("tuner.training.saved.files")._check_space = lambda *_: None
    if "TINY_STALLS" in os.environ:
        plant_stall(int(os.environ["TINY_STALLS"]))
    if "TINY_CLOCK_S" in os.environ:
        shift_clock(float(os.environ["TINY_CLOCK_S"]))
    if "TINY_FAILS" in os.environ:
        plant_failures(study.trainer, folder)
    return dataclasses.replace(study, retries=int(os.environ.get("TINY_RETRIES", study.retries)))


def plant_signal(sent: signal.Signals, place: str, count: int, marker: Path) -> None:
    path, name, is_after = PLACES[place]
    owner = pkgutil.resolve_name(path)  # imported late: checkpoints import JAX
    function, passes = getattr(owner, name), itertools.count(1)

    def fail_once() -> None:
        if next(passes) != count:
            return
        try:
            with marker.open("x") as file:
                file.write(str(os.getpid()))
        except FileExistsError:
            return
        os.kill(os.getpid(), sent)

    def planted(*arguments: Any, **options: Any) -> Any:
        if not is_after:
            fail_once()
        result = function(*arguments, **options)
        if is_after:
            fail_once()
        return result

    setattr(owner, name, planted)


def plant_stall(count: int) -> None:
    """Let a write wait forever as Orbax may: in a thread that Python waits for at the end of the process."""
    files = pkgutil.resolve_name("tuner.training.saved.files")
    unless_it_stalls, writes = files._unless_it_stalls, itertools.count(1)

    def planted(folder: Path, write: Any, limit_s: float) -> None:
        if next(writes) == count:
            write, limit_s = lambda: asyncio.run(asyncio.to_thread(threading.Event().wait)), 0.1
        unless_it_stalls(folder, write, limit_s)

    files._LOOK_S, files._unless_it_stalls = 0.05, planted


def shift_clock(shift_s: float) -> None:
    true_time, shift = time.time, datetime.timedelta(seconds=shift_s)

    class Shifted(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Any:
            return super().now(tz) + shift

        @classmethod
        def utcnow(cls) -> Any:
            return super().now(datetime.UTC).replace(tzinfo=None) + shift

    time.time = lambda: true_time() + shift_s
    datetime.datetime = Shifted


def plant_failures(trainer: Any, folder: Path) -> None:
    pairs = [word.split(":") for word in os.environ["TINY_FAILS"].split()]
    fails = {int(number): int(count) for number, count in pairs}
    train = type(trainer).train_model

    def train_or_fail(self: Any, hparams: Any, splits: Any, **options: Any) -> Any:
        number = options["about"]["trial"]
        failed = folder / f"failures-{number}"
        before = len(failed.read_text()) if failed.exists() else 0
        for report in train(self, hparams, splits, **options):
            yield report
            if before < fails.get(number, 0):
                failed.write_text("x" * (before + 1))
                raise RuntimeError(f"planted failure {before + 1} of trial {number}")

    type(trainer).train_model = train_or_fail
