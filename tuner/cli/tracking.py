"""`tuner track` and `tuner register`: studies in MLflow, TensorBoard and W&B, and their models in MLflow."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tuner.cli.arguments import DebugOption, MlflowOption, StorageOption, StudyArgument, TensorboardOption, WandbOption
from tuner.errors import UsageError
from tuner.launch.signals import end_on_signals

if TYPE_CHECKING:
    from tuner.tracking.mirror import Ending


def track(
    study: StudyArgument,
    mlflow: MlflowOption = None,
    tensorboard: TensorboardOption = None,
    wandb: WandbOption = None,
    storage: StorageOption = None,
    once: Annotated[bool, typer.Option("--once", help="End when all that is there now is sent.")] = False,
    debug: DebugOption = False,
) -> None:
    """Send a study to MLflow, TensorBoard or W&B.

    Follows until the study is finished. What launch starts with the same options; also for a study that ran without
    them, and for what a tracker that was away still lacks.
    """
    from tuner.launch.process import EVENTS_VARIABLE
    from tuner.storage import storage_url
    from tuner.tracking import MLFLOW_VARIABLE, make_trackers
    from tuner.tracking.mirror import Ending, follow

    url = storage_url(storage)
    uri = mlflow or os.environ.get(MLFLOW_VARIABLE)
    if not (uri or tensorboard or wandb):
        raise UsageError("a tracker must be named: none is; give --mlflow URI, --tensorboard DIR or --wandb PROJECT")
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
        int | None, typer.Option("--trial", metavar="N", help="This trial instead of the best.", show_default=False)
    ] = None,
    name: Annotated[
        str | None,
        typer.Option("--name", metavar="MODEL", help="The registered model; named as the study by default."),
    ] = None,
    mlflow: MlflowOption = None,
    storage: StorageOption = None,
    debug: DebugOption = False,
) -> None:
    """Register the best trial's model with MLflow.

    Prints its URI, which mlflow.pyfunc.load_model takes wherever the tuner is installed.
    """
    from tuner.storage import storage_url
    from tuner.tracking import MLFLOW_VARIABLE
    from tuner.tracking.mlflow_models import register as register_model

    uri = mlflow or os.environ.get(MLFLOW_VARIABLE)
    if not uri:
        raise UsageError(f"an MLflow server must be named: none is; give --mlflow URI or ${MLFLOW_VARIABLE}")
    print(register_model(storage_url(storage), study, uri, number=trial, name=name))


def _step_back() -> None:
    """Let trials go first. Not by 19: other load would then keep the rest from being sent when the launcher ends."""
    os.nice(10)
    # Linux may weigh sessions against each other, and processes only within theirs.
    with contextlib.suppress(OSError):
        Path("/proc/self/autogroup").write_text("10")


def _tell_launcher(descriptor: int) -> None:
    """Tell the launcher that a tracker has taken something: it waits for the rest as long as it hears of more."""
    with contextlib.suppress(BrokenPipeError):  # the launcher has died
        os.write(descriptor, b'{"event": "progress"}\n')


def _end_with_launcher(ending: Ending) -> None:
    """Send what is left when the launcher ends, however it ends: it holds the other side of our standard input."""
    from tuner.launch.mirror_process import GRACE_S, QUIET_S, START_S

    def wait() -> None:
        sys.stdin.read()
        ending.ask(QUIET_S, START_S)
        # Whatever hangs then: nobody is left to end it.
        while time.monotonic() < (ending.by_s or 0.0) + GRACE_S:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=wait, name="launcher-watch", daemon=True).start()
