"""`tuner launch` and `tuner worker`."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Annotated, TextIO, cast

import typer

from tuner.cli.arguments import (
    DEBUG_VARIABLE,
    ArtifactsOption,
    DebugOption,
    DeviceHoursOption,
    DirectionOption,
    FileArgument,
    LogFormat,
    LogFormatOption,
    MlflowOption,
    NameOption,
    ObjectiveOption,
    PrunerOption,
    SamplerOption,
    SeedOption,
    SetOption,
    StallMinutesOption,
    StorageOption,
    TensorboardOption,
    TrialMinutesOption,
    TrialsOption,
    WallHoursOption,
    WandbOption,
    parse_named,
    split_pairs,
)
from tuner.errors import StudyStopped, UsageError
from tuner.launch.signals import end_on_signals
from tuner.study.file import Settings
from tuner.study.spec import Direction
from tuner.trial import Event, Stop, print_event
from tuner.trial.events import StudyRefused, encode

_GRACE_S = 4.0
"""Seconds that a worker may take to stop; then another thread gives back its trial. Less than a launcher waits."""
_SAVE_S = 20.0
"""Seconds more for a trial that has noticed the request, and saves its state; a launcher does not wait for them."""


def launch(
    file: FileArgument,
    storage: StorageOption = None,
    workers: Annotated[
        int | None,
        typer.Option(metavar="N", help="Number of worker processes.  [default: one per device; on CPUs at most 4]"),
    ] = None,
    devices: Annotated[str, typer.Option(metavar="LIST", help="auto, or device numbers such as 0,1.")] = "auto",
    devices_per_worker: Annotated[
        int | None, typer.Option(metavar="N", help="Number of devices for each worker.  [default: 1]")
    ] = None,
    trials: TrialsOption = None,
    wall_hours: WallHoursOption = None,
    device_hours: DeviceHoursOption = None,
    trial_minutes: TrialMinutesOption = None,
    stall_minutes: StallMinutesOption = None,
    artifacts: ArtifactsOption = None,
    seed: SeedOption = None,
    fixed: SetOption = None,
    name: NameOption = None,
    objective: ObjectiveOption = None,
    direction: DirectionOption = None,
    sampler: SamplerOption = None,
    pruner: PrunerOption = None,
    mlflow: MlflowOption = None,
    tensorboard: TensorboardOption = None,
    wandb: WandbOption = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            "--metrics-port",
            metavar="N",
            help="Port on which to serve Prometheus metrics; 0 picks a free port.  [default: off]",
            show_default=False,
        ),
    ] = None,
    metrics_host: Annotated[
        str | None,
        typer.Option(
            "--metrics-host",
            metavar="ADDRESS",
            help="Address on which to serve the metrics; they need no login.  [default: 127.0.0.1]",
            show_default=False,
        ),
    ] = None,
    log_format: LogFormatOption = LogFormat.TEXT,
    live: Annotated[
        bool | None,
        typer.Option(
            "--live/--no-live", help="Show a live table, or one line per update.  [default: live on a terminal]"
        ),
    ] = None,
    debug: DebugOption = False,
) -> None:
    """Run a study with several workers.

    Ends when the budget is used up. Run it again to resume a study, or to add trials with --trials.
    """
    from tuner.launch import LaunchOptions
    from tuner.launch import launch as launch_study

    options = LaunchOptions(
        storage=storage,
        artifacts=artifacts,
        workers=workers,
        devices=devices,
        devices_per_worker=devices_per_worker,
        trials=trials,
        wall_hours=wall_hours,
        device_hours=device_hours,
        trial_minutes=trial_minutes,
        stall_minutes=stall_minutes,
        seed=seed,
        fixed=split_pairs("--set", fixed),
        name=name,
        objectives=tuple(objective or ()),
        directions=tuple(direction or ()),
        sampler=parse_named("--sampler", sampler),
        pruner=parse_named("--pruner", pruner),
        mlflow=mlflow,
        tensorboard=tensorboard,
        wandb=wandb,
        metrics_port=metrics_port,
        metrics_host=metrics_host,
        live=live,
    )
    snapshot = launch_study(file, options)
    from tuner.cli.show import print_best, tell_best
    from tuner.storage.sql.background_calls import aside

    aside(partial(tell_best if log_format is LogFormat.JSON else print_best, snapshot.study, storage))


def worker(
    file: FileArgument,
    storage: StorageOption = None,
    trials: TrialsOption = None,
    wall_hours: WallHoursOption = None,
    device_hours: DeviceHoursOption = None,
    trial_minutes: TrialMinutesOption = None,
    stall_minutes: StallMinutesOption = None,
    artifacts: ArtifactsOption = None,
    seed: SeedOption = None,
    fixed: SetOption = None,
    name: NameOption = None,
    objective: ObjectiveOption = None,
    direction: DirectionOption = None,
    sampler: SamplerOption = None,
    pruner: PrunerOption = None,
    log_format: LogFormatOption = LogFormat.TEXT,
    debug: DebugOption = False,
) -> None:
    """Run one worker in the foreground.

    `tuner launch` starts workers itself. Run them directly in containers or under a scheduler; any number can share a
    study.
    """
    from tuner.launch.devices import settle
    from tuner.launch.options import check_number
    from tuner.launch.process import EVENTS_VARIABLE

    check_number("trials", trials, 1)
    check_number("seed", seed, 0)
    settings = Settings(
        name=name,
        objectives=objective or (),
        directions=cast("list[Direction]", direction or []),
        trials=trials,
        fixed=split_pairs("--set", fixed),
        more={
            "wall_hours": wall_hours,
            "device_hours": device_hours,
            "trial_minutes": trial_minutes,
            "stall_minutes": stall_minutes,
            "seed": seed,
            "sampler": parse_named("--sampler", sampler),
            "pruner": parse_named("--pruner", pruner),
        },
    )
    if log_format is LogFormat.JSON and EVENTS_VARIABLE not in os.environ:
        from tuner.launch.relay import relay

        raise typer.Exit(relay())
    settle(os.environ)
    descriptor = os.environ.pop(EVENTS_VARIABLE, None)
    stop = _stop_on_signals()
    work = partial(_work, file, storage, artifacts, settings, stop)
    if descriptor is None:
        work(print_event)
    else:
        _stop_with_launcher(stop)
        with open(int(descriptor), "w", encoding="utf-8", buffering=1) as pipe:
            _work_for_launcher(work, pipe)
    # Otherwise Python's garbage collector runs over all objects of JAX at exit: half a second.
    gc.freeze()
    if stop.requested:
        raise typer.Exit(130)


def _work_for_launcher(work: Callable[[Callable[[Event], None]], None], pipe: TextIO) -> None:
    """Run a worker that sends its events, and an error in the study, to its launcher."""

    def say(event: Event) -> None:
        # A dead launcher reads nothing; its end stops this worker through standard input.
        with contextlib.suppress(BrokenPipeError):
            pipe.write(json.dumps(encode(event)) + "\n")

    try:
        work(say)
    except (UsageError, StudyStopped) as error:
        say(StudyRefused(str(error), error.exit_status))
        if os.environ.get(DEBUG_VARIABLE):
            raise
        raise typer.Exit(error.exit_status) from None


def _work(
    file: str,
    storage: str | None,
    artifacts: str | None,
    settings: Settings,
    stop: Stop,
    say: Callable[[Event], None],
) -> None:
    from tuner.storage import connect_when_up, storage_url
    from tuner.study.file import load_target, split_target
    from tuner.trial.environment import LAUNCHED_VARIABLE
    from tuner.worker import run_worker

    url = storage_url(storage)
    found = load_target(file, settings)
    # A launcher has already connected, and its workers wait longer.
    if LAUNCHED_VARIABLE not in os.environ and not url.is_new_file():
        connect_when_up(url).dispose()
    path = str(split_target(file)[0])
    run_worker(found.study, url, artifacts=artifacts, file=path, function=found.function, say=say, stop=stop)


def _stop_on_signals() -> Stop:
    """Return a flag that SIGINT and SIGTERM set; a second signal ends the process immediately.

    Before the worker can have a trial, the first signal does the same: importing the study's file or its data may take
    long, or wait for a process that never answers. If the main thread does not end in a few seconds, another one does.
    """
    stop = Stop(owns_process=True)

    def request() -> None:
        is_first, stop.requested = not stop.requested, True
        if is_first:
            _end_later(stop)
        if not stop.is_heeded and threading.current_thread() is threading.main_thread():
            raise KeyboardInterrupt

    end_on_signals((signal.SIGINT, signal.SIGTERM), request)
    return stop


def _stop_with_launcher(stop: Stop) -> None:
    """Stop when the launcher ends for any reason: it has the other end of our standard input."""

    def wait() -> None:
        sys.stdin.read()
        stop.requested = True
        _end_later(stop)

    threading.Thread(target=wait, name="launcher-watch", daemon=True).start()


def _end_later(stop: Stop) -> None:
    """Give back the trial and end this process in a few seconds, if its main thread has not done so.

    That thread may be in code that never checks whether to stop: a compilation, a sleep, another library.
    """

    def end() -> None:
        time.sleep(_GRACE_S)
        end_s = time.monotonic() + _SAVE_S
        while stop.is_noticed and time.monotonic() < end_s:
            time.sleep(0.1)
        try:
            stop.give_back()
        finally:
            os._exit(130)

    threading.Thread(target=end, name="last-resort", daemon=True).start()
