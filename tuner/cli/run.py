"""`tuner worker`."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator
from functools import partial
from typing import TYPE_CHECKING, TextIO, cast

import typer

from tuner.cli.arguments import (
    DEBUG_VARIABLE,
    ArtifactsOption,
    CohortOption,
    CompileOnlyOption,
    CoordinatorOption,
    DebugOption,
    DeviceHoursOption,
    DirectionOption,
    FileArgument,
    HostsOption,
    LabelOption,
    LogFormat,
    LogFormatOption,
    NameOption,
    ObjectiveOption,
    OwnerOption,
    PrunerOption,
    RankOption,
    SamplerOption,
    SeedOption,
    SetOption,
    StallMinutesOption,
    StorageOption,
    TrialMinutesOption,
    TrialsOption,
    WallHoursOption,
    parse_cohort,
    parse_named,
    split_pairs,
)
from tuner.errors import StudyBusy, StudyChanged, StudyFileError, StudyStopped, TunerError, UsageError
from tuner.launch.signals import end_on_signals
from tuner.study.file import Settings
from tuner.study.spec import Direction
from tuner.trial import Event, Stop, print_event
from tuner.trial.environment import LAUNCHED_VARIABLE, WORKER_VARIABLE
from tuner.trial.events import StudyRefused, encode

if TYPE_CHECKING:
    from tuner.worker.group import Leader, Member

_GRACE_S = 4.0
"""Seconds that a worker may take to stop; then another thread gives back its trial. Less than a launcher waits."""
_SAVE_S = 20.0
"""Seconds more for a trial that has noticed the request, and saves its state; a launcher does not wait for them."""

_FOLLOW_S = 40.0
"""Seconds that another rank than 0 waits after a signal; rank 0 needs fewer."""


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
    cohort: CohortOption = None,
    owner: OwnerOption = None,
    label: LabelOption = None,
    hosts: HostsOption = None,
    coordinator: CoordinatorOption = None,
    rank: RankOption = None,
    compile_only: CompileOnlyOption = False,
    log_format: LogFormatOption = LogFormat.TEXT,
    debug: DebugOption = False,
) -> None:
    """Run one worker in the foreground.

    `tuner launch` starts workers itself. Run them directly in containers or under a scheduler; any number can share a
    study.
    """
    from tuner.launch.devices import settle
    from tuner.launch.options import check_limits, check_number
    from tuner.launch.process import EVENTS_VARIABLE
    from tuner.trial.environment import RELAYED_VARIABLE
    from tuner.worker.group import find_member

    check_number("trials", trials, 1)
    check_number("seed", seed, 0)
    check_limits(wall_hours, device_hours, trial_minutes, stall_minutes)
    member = find_member(hosts, coordinator, rank, os.environ)
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
            "cohort": parse_cohort(cohort),
            "owner": owner,
            "labels": tuple(label) if label else None,
        },
    )
    if log_format is LogFormat.JSON and EVENTS_VARIABLE not in os.environ:
        from tuner.launch.relay import relay

        raise typer.Exit(relay())
    settle(os.environ)
    descriptor = os.environ.pop(EVENTS_VARIABLE, None)
    is_relayed = os.environ.pop(RELAYED_VARIABLE, None) is not None
    if member is not None and compile_only:
        raise UsageError("--compile-only is for programs of one device: leave out --hosts")
    if member is not None and member.rank > 0:
        stop = _leave_signals_to_rank_0()
        work = partial(_work_in_group, file, storage, artifacts, settings, stop, member=member)
    else:
        stop = _stop_on_signals(has_launcher=descriptor is not None and not is_relayed)
        given = (file, storage, artifacts, settings, stop)
        work = partial(_work, *given) if member is None else partial(_work_in_group, *given, member=member)
        if compile_only:
            work = partial(_compile_only, file, artifacts, settings, stop)
    if descriptor is None:
        work(print_event)
    else:
        _stop_with_launcher(stop, at_once=compile_only)
        with open(int(descriptor), "w", encoding="utf-8", buffering=1) as pipe:
            _work_for_launcher(work, pipe)
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
    group: Leader | None = None,
) -> None:
    from tuner.storage import connect_when_up, storage_url
    from tuner.study.file import load_target, split_target
    from tuner.worker import run_worker

    url = storage_url(storage)
    with busy_if_at_work(file, storage):
        found = load_target(file, settings)
        # A launcher has already connected, and its workers wait longer.
        if LAUNCHED_VARIABLE not in os.environ and not url.is_new_file():
            connect_when_up(url).dispose()
        path = str(split_target(file)[0])
        run_worker(
            found.study, url, artifacts=artifacts, file=path, function=found.function, say=say, stop=stop, group=group
        )


def _compile_only(
    file: str, artifacts: str | None, settings: Settings, stop: Stop, say: Callable[[Event], None]
) -> None:
    from tuner.study.file import load_target
    from tuner.worker.compile_ahead import compile_programs

    compile_programs(load_target(file, settings).study, artifacts=artifacts, say=say, stop=stop)


def _work_in_group(
    file: str,
    storage: str | None,
    artifacts: str | None,
    settings: Settings,
    stop: Stop,
    say: Callable[[Event], None],
    member: Member,
) -> None:
    """Run a process of a worker that spans hosts. All of them end in order, or none."""
    from tuner.study.file import load_target, split_target
    from tuner.training.hosts import connect, disconnect
    from tuner.worker.follow import run_follower
    from tuner.worker.group import follow, lead

    name = os.environ.get(WORKER_VARIABLE, "")
    if member.rank == 0:
        leader, address = lead(member, name)
        leader.on_stop = partial(setattr, stop, "requested", True)
        try:
            connect(address, member)
            _work(file, storage, artifacts, settings, stop, say, leader)
        finally:
            leader.close()
            disconnect()
        return
    follower, address = follow(member, name, stop)
    stop.give_back = follower.pass_on_stop
    if stop.requested:  # while it connected
        follower.pass_on_stop()
    try:
        connect(address, member)
        run_follower(load_target(file, settings).study, follower, file=str(split_target(file)[0]))
    except Exception as error:
        follower.report(error)
        follower.wait_for_dismissal()
        raise
    finally:
        disconnect()


@contextlib.contextmanager
def busy_if_at_work(target: str, storage: str | None) -> Generator[None]:
    """Raise `StudyBusy` for a file that is broken or has changed while other workers run a study of this file.

    They loaded an earlier version of it, and it may be repaired: who restarts this process should do so later.
    """
    from tuner.storage import connected, storage_url
    from tuner.storage.read.activity import is_file_at_work
    from tuner.study.file import split_path

    try:
        yield
    except (StudyFileError, StudyChanged) as error:
        url, is_at_work = storage_url(storage), False
        with contextlib.suppress(TunerError):
            if not url.is_new_file():
                with connected(url) as engine:
                    is_at_work = is_file_at_work(engine, split_path(target)[0].absolute())
        if not is_at_work:
            raise
        raise StudyBusy(
            f"{error}; other workers are running a study of this file: correct the file, then run this command again"
        ) from None


def _stop_on_signals(*, has_launcher: bool) -> Stop:
    """Return a flag that SIGINT and SIGTERM set; a second signal ends the process immediately.

    Before the worker can have a trial, the first signal does the same: importing the study's file or its data may take
    long, or wait for a process that never answers. If the main thread does not end in a few seconds, another one does.
    """
    stop = Stop(owns_process=True, has_launcher=has_launcher)

    def request() -> None:
        is_first, stop.requested = not stop.requested, True
        if is_first:
            _end_later(stop)
        if not stop.is_heeded and threading.current_thread() is threading.main_thread():
            raise KeyboardInterrupt

    end_on_signals((signal.SIGINT, signal.SIGTERM), request)
    return stop


def _leave_signals_to_rank_0() -> Stop:
    """Return a flag that SIGINT and SIGTERM set. Rank 0 is told, and decides when to end.

    Schedulers send the signals to all ranks, or only to those of a host that is taken away.
    """
    stop = Stop(owns_process=True)

    def end() -> None:
        stop.give_back()
        time.sleep(_FOLLOW_S)
        os._exit(130)

    def request() -> None:
        is_first, stop.requested = not stop.requested, True
        if is_first:
            threading.Thread(target=end, name="last-resort", daemon=True).start()

    end_on_signals((signal.SIGINT, signal.SIGTERM), request)
    return stop


def _stop_with_launcher(stop: Stop, *, at_once: bool = False) -> None:
    """Stop when the launcher ends for any reason: it has the other end of our standard input.

    Args:
        stop: Is set then.
        at_once: Whether the process has nothing to end in order.
    """

    def wait() -> None:
        sys.stdin.read()
        if at_once:
            os._exit(130)
        stop.requested = True
        _end_later(stop)

    threading.Thread(target=wait, name="launcher-watch", daemon=True).start()


def _end_later(stop: Stop) -> None:
    """Give back the trial and end this process in a few seconds, if its main thread has not done so.

    That thread may be in code that never checks whether to stop: a compilation, a sleep, another library.
    """
    save_s = 0.0 if stop.has_launcher else _SAVE_S  # a launcher kills its workers after the grace
    stop.ends_at_s = time.monotonic() + _GRACE_S + save_s

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
