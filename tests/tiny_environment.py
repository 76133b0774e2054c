"""What environment variables make the tiny studies do, for the tests of faults. Imported by their files.

TINY_MODE: `bug`, `kill`, `memory` or `nan`, see the studies.
TINY_EPOCHS, TINY_TRIALS: of the study.
TINY_PAUSE_S: a pause before each report.
TINY_JUDGED: the pruner is asked about each report, and prunes nothing. So each is stored on its own, before the next.
TINY_HOLD_FILE, TINY_HOLD_EPOCH: while this file exists, training waits before the report of this epoch (1 by default)
and of later ones; a training function ends if its worker must stop.
TINY_STEPS_FILE: the file for notes of how far each training has come.
TINY_START_FOLDER: workers wait until it has a file `go`.
TINY_PATIENCE_S, TINY_LEASE_S: how long a worker waits for a database that is away, and how long its leases last.
TINY_STOPPED_FILE: the first worker that comes to its second claim stops itself, and writes its process id there.
TINY_KILL_FOLDER: each epoch of trial 0 kills its worker once, when it is stored; the folder gets a file for each epoch.
TINY_KILL_EPOCH: this epoch of trial 0 kills its worker each time, before it is stored.
TINY_NOTES: the folder for notes of the devices that each worker was given.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tuner.storage.worker.claims
import tuner.storage.worker.reporter
import tuner.worker.loop
import tuner.worker.opening

MODE = os.environ.get("TINY_MODE", "")
EPOCHS, TRIALS = int(os.environ.get("TINY_EPOCHS", "3")), int(os.environ.get("TINY_TRIALS", "6"))
PRUNER: Any = {"name": "median", "n_startup_trials": 10**6} if "TINY_JUDGED" in os.environ else "none"
KILLED = 0.35438542517570404  # the noise of trial 1
_PAUSE_S = float(os.environ.get("TINY_PAUSE_S", "0"))
_HOLD_FILE, _HOLD_EPOCH = os.environ.get("TINY_HOLD_FILE"), int(os.environ.get("TINY_HOLD_EPOCH", "1"))

if "TINY_NOTES" in os.environ:
    cores = ",".join(str(core) for core in sorted(os.sched_getaffinity(0)))
    names = ("CUDA_VISIBLE_DEVICES", "XLA_PYTHON_CLIENT_MEM_FRACTION", "OMP_NUM_THREADS")
    lines = [f"cores={cores}", *(f"{name}={os.environ.get(name, '')}" for name in names)]
    Path(os.environ["TINY_NOTES"], str(os.getpid())).write_text("\n".join(lines))

for module, variable in ((tuner.worker.loop, "PATIENCE_S"), (tuner.worker.opening, "LEASE_S")):
    if f"TINY_{variable}" in os.environ:
        setattr(module, variable, float(os.environ[f"TINY_{variable}"]))


def fail_if_told(noise: float) -> None:
    """Fail as `TINY_MODE` says, at the start of a training."""
    if MODE == "bug":
        raise RuntimeError("planted bug")
    if MODE == "kill" and abs(noise - KILLED) < 1e-9:
        os.kill(os.getpid(), signal.SIGKILL)
    if MODE == "memory" and noise > 0.5:
        raise MemoryError("planted")


def note(trial: object, step: int) -> None:
    """Note how far a training has come: process, trial, step."""
    if "TINY_STEPS_FILE" in os.environ:
        with Path(os.environ["TINY_STEPS_FILE"]).open("a") as file:
            file.write(f"{os.getpid()} {trial} {step}\n")


def pause(epoch: int = 1, must_end: Callable[[], bool] = lambda: False) -> bool:
    """Wait before the report of an epoch; return whether the training must end instead."""
    time.sleep(_PAUSE_S)
    while _HOLD_FILE and epoch >= _HOLD_EPOCH and Path(_HOLD_FILE).exists():
        if must_end():
            return True
        time.sleep(0.05)
    return False


def wait_for_others() -> None:
    """Wait until a file `go` lets all workers go at once, if there is a folder for it."""
    if "TINY_START_FOLDER" in os.environ:
        folder = Path(os.environ["TINY_START_FOLDER"])
        (folder / str(os.getpid())).touch()
        while not (folder / "go").exists():
            time.sleep(0.01)


def _stop_in_claim(path: Path, claims: int) -> None:
    standing, made = tuner.storage.worker.claims._standing, 0

    def standing_or_stop(*arguments: Any) -> Any:
        nonlocal made
        made += 1
        found = standing(*arguments)
        if made == claims:
            with contextlib.suppress(FileExistsError), path.open("x") as file:
                file.write(str(os.getpid()))
                file.flush()
                os.kill(os.getpid(), signal.SIGSTOP)
        return found

    tuner.storage.worker.claims._standing = standing_or_stop


def _kill_at_reports(folder: Path | None, deadly: int | None) -> None:
    reporter = tuner.storage.worker.reporter
    report, report_together = reporter.report, reporter.report_together

    def die_before(lease: Any, several: Any) -> None:
        if lease.number == 0 and any(one.epoch == deadly for one in several):
            os.kill(os.getpid(), signal.SIGKILL)

    def die_after(lease: Any, several: Any) -> None:
        if lease.number == 0 and folder is not None:
            with contextlib.suppress(FileExistsError):
                (folder / str(max(one.epoch for one in several))).touch(exist_ok=False)
                os.kill(os.getpid(), signal.SIGKILL)

    def report_and_die(engine: Any, lease: Any, several: Any, objective: Any) -> None:
        die_before(lease, several)
        report(engine, lease, several, objective)
        die_after(lease, several)

    def report_together_and_die(engine: Any, of_trials: Any, objective: Any) -> Any:
        for lease, several in of_trials:
            die_before(lease, several)
        were_held = report_together(engine, of_trials, objective)
        for lease, several in of_trials:
            die_after(lease, several)
        return were_held

    reporter.report, reporter.report_together = report_and_die, report_together_and_die


if "TINY_KILL_FOLDER" in os.environ:
    _kill_at_reports(Path(os.environ["TINY_KILL_FOLDER"]), None)
if "TINY_KILL_EPOCH" in os.environ:
    _kill_at_reports(None, int(os.environ["TINY_KILL_EPOCH"]))

if "TINY_STOPPED_FILE" in os.environ:
    _stop_in_claim(Path(os.environ["TINY_STOPPED_FILE"]), claims=2)
