"""`tuner track` and `tuner register`: send studies to MLflow, TensorBoard and W&B, and models to MLflow."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tuner.cli.arguments import (
    DebugOption,
    MlflowOption,
    PreferOption,
    StorageOption,
    StudyArgument,
    TensorboardOption,
    WandbOption,
    check_choice,
)
from tuner.errors import UsageError
from tuner.launch.signals import end_on_signals
from tuner.trial.events import RowsSent, encode

if TYPE_CHECKING:
    from tuner.tracking.mirror import Ending


def track(
    study: StudyArgument,
    mlflow: MlflowOption = None,
    tensorboard: TensorboardOption = None,
    wandb: WandbOption = None,
    storage: StorageOption = None,
    once: Annotated[bool, typer.Option("--once", help="Exit after sending everything recorded so far.")] = False,
    debug: DebugOption = False,
) -> None:
    """Send a study to MLflow, TensorBoard or W&B.

    Runs until the study is finished. `tuner launch` runs this with the same options; run it yourself for a study that
    was launched without them, or to send what an unreachable tracker missed.
    """
    from tuner.launch.process import EVENTS_VARIABLE
    from tuner.storage import storage_url
    from tuner.tracking import MLFLOW_VARIABLE, make_trackers
    from tuner.tracking.mirror import Ending, follow

    url = storage_url(storage)
    uri = mlflow or os.environ.get(MLFLOW_VARIABLE)
    if not (uri or tensorboard or wandb):
        raise UsageError("no tracker given: pass --mlflow URI, --tensorboard DIR or --wandb PROJECT")
    ending = Ending()
    end_on_signals((signal.SIGINT, signal.SIGTERM), partial(setattr, ending, "now", True))
    descriptor = os.environ.pop(EVENTS_VARIABLE, None)
    if descriptor is not None:
        ending.on_progress = partial(_tell_launcher, int(descriptor))
        _end_with_launcher(ending)
    trackers = make_trackers(uri, tensorboard, wandb)
    if descriptor is not None:
        _step_back()
    follow(url, study, trackers, once=once, ending=ending)
    if ending.now:
        raise typer.Exit(130)


def register(
    study: StudyArgument,
    trial: Annotated[
        int | None,
        typer.Option("--trial", metavar="N", help="Trial to register.  [default: the best trial]", show_default=False),
    ] = None,
    prefer: PreferOption = None,
    name: Annotated[
        str | None,
        typer.Option("--name", metavar="MODEL", help="Name of the registered model.  [default: the study's name]"),
    ] = None,
    mlflow: MlflowOption = None,
    storage: StorageOption = None,
    debug: DebugOption = False,
) -> None:
    """Register the best trial's model with MLflow.

    Prints the model's URI. mlflow.pyfunc.load_model loads it on any machine where tuner is installed.
    """
    from tuner.storage import storage_url
    from tuner.tracking import MLFLOW_VARIABLE
    from tuner.tracking.mlflow_models import register as register_model

    uri = mlflow or os.environ.get(MLFLOW_VARIABLE)
    if not uri:
        raise UsageError(f"no MLflow server given: pass --mlflow URI or set ${MLFLOW_VARIABLE}")
    check_choice(trial, prefer)
    print(register_model(storage_url(storage), study, uri, number=trial, prefer=prefer, name=name))


def _step_back() -> None:
    """Lower the priority of this process by 10; at 19, other load would delay the last rows when the launcher exits."""
    os.nice(10)
    # Linux may schedule sessions against each other, and processes only within their session.
    with contextlib.suppress(OSError):
        Path("/proc/self/autogroup").write_text("10")


def _tell_launcher(descriptor: int) -> None:
    """Report progress to the launcher: it waits for the remaining rows as long as reports arrive."""
    with contextlib.suppress(BrokenPipeError):  # the launcher has exited
        os.write(descriptor, f"{json.dumps(encode(RowsSent()))}\n".encode())


def _end_with_launcher(ending: Ending) -> None:
    """Send the remaining rows when the launcher exits, which closes this process's standard input."""
    from tuner.launch.mirror_process import GRACE_S, QUIET_S, START_S

    def wait() -> None:
        sys.stdin.read()
        ending.ask(QUIET_S, START_S)
        # A tracker may hang, and no launcher is left to kill this process.
        while time.monotonic() < (ending.by_s or 0.0) + GRACE_S:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=wait, name="launcher-watch", daemon=True).start()
