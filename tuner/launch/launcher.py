"""Launches studies on this machine: one, several in turn, or several at once on the same workers."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Generator, Sequence
from pathlib import Path

from rich.console import Console

from tuner.errors import TunerError, UsageError
from tuner.launch.compile_process import CompileProcess
from tuner.launch.devices import DeviceGroup, assign, choose, find_devices
from tuner.launch.mirror_process import MirrorProcess
from tuner.launch.options import LaunchOptions
from tuner.launch.progress import JsonProgress, LiveProgress, PlainProgress, Progress, Snapshot
from tuner.launch.prometheus import LaunchMetrics, served
from tuner.launch.sharing import Sharing
from tuner.launch.signals import end_on_signals
from tuner.launch.study_launch import Interrupted, Place, StudyLaunch
from tuner.output.log import has_reader, is_json, set_about, tell
from tuner.storage import StorageURL, connect_when_up, storage_url, warn_of_password
from tuner.storage.artifacts import artifacts_of
from tuner.storage.sql.background_calls import aside
from tuner.study.file import split_target
from tuner.study.source import code_digest


class SeveralFailed(TunerError):
    """Some of several studies did not finish."""

    def __init__(self, message: str, exit_status: int) -> None:
        super().__init__(message)
        self.exit_status = exit_status


def launch(target: str, options: LaunchOptions | None = None) -> Snapshot:
    """Run a study with workers on this machine until its budget is used up; progress goes to stderr.

    Args:
        target: `FILE` or `FILE:NAME`.
        options: How to launch it.

    Returns:
        The study's state at the end.

    Raises:
        UsageError: file, devices, storage URL, artifacts or a setting of the study are wrong.
        StorageLost: the database cannot be reached.
        StudyStopped: a user stopped the study.
        StudyFailed: the same error ended three trials in a row, or the workers died.
        StudyBusy: the study's file cannot be used, but workers of another launch run it.
        Interrupted: SIGINT or SIGTERM; the study can be resumed.
    """
    (snapshot,) = _launch([target], options or LaunchOptions())
    return snapshot


def launch_at_once(
    targets: Sequence[str],
    options: LaunchOptions | None = None,
    tell_result: Callable[[Snapshot], None] = lambda _: None,
) -> list[Snapshot]:
    """Run several studies at the same time, as `launch` runs one. They share the workers.

    Each study has the same number of workers, or one more than another. If there are more studies than workers, some
    wait. The workers of a study that has finished go on with the other studies.

    Args:
        targets: `FILE` or `FILE:NAME` of each study.
        options: How to launch them; a budget is that of each study.
        tell_result: Called at the end for each study that has finished, also if others have not.

    Returns:
        The state of each study at the end.

    Raises:
        UsageError: an option is wrong, or a file.
        SeveralFailed: some studies did not finish. A line has told the reason when it occurred.
        Interrupted: SIGINT or SIGTERM; the studies can be resumed.
    """
    options = options or LaunchOptions()
    check_several(targets, options)
    return _launch(targets, options, tell_result)


def in_turn(targets: Sequence[str], launch_one: Callable[[str], None]) -> None:
    """Launch one study after another. An error of a study does not keep the next one from starting.

    Args:
        targets: `FILE` or `FILE:NAME` of each study.
        launch_one: Launches a study.

    Raises:
        UsageError: a file does not exist or is not valid Python; then no study starts.
        SeveralFailed: some studies did not finish. A line has told the reason when it occurred.
        Interrupted: SIGINT or SIGTERM, which starts no further study.
    """
    failed: dict[str, TunerError] = {}
    for target in targets:
        try:
            launch_one(target)
        except Interrupted:
            raise
        except TunerError as error:
            tell(f"{target}: {error}", "study_failed", "error", file=target)
            failed[target] = error
    _raise_failed(failed, len(targets))


def check_several(targets: Sequence[str], options: LaunchOptions) -> None:
    """Check the files of several studies, and that no option names one study.

    Raises:
        UsageError: the first that is wrong.
    """
    for at, target in enumerate(targets):
        split_target(target)
        same = [other for other in targets[:at] if _place(other) == _place(target)]
        if same:
            raise UsageError(f"the same study is given twice, as {same[0]!r} and {target!r}: pass it once")
    if len(targets) > 1 and options.name is not None:
        raise UsageError(f"`name` {options.name!r} names one study: got {len(targets)} files; launch them one by one")


def _place(target: str) -> tuple[Path, str | None]:
    path, name = split_target(target)
    return path.resolve(), name


def _raise_failed(failed: dict[str, TunerError], count: int) -> None:
    if failed:
        status = next(iter(failed.values())).exit_status
        raise SeveralFailed(f"{len(failed)} of {count} studies did not finish: {', '.join(failed)}", status)


def _launch(
    targets: Sequence[str], options: LaunchOptions, tell_result: Callable[[Snapshot], None] = lambda _: None
) -> list[Snapshot]:
    if options.hosts_per_worker is not None:
        raise UsageError("`hosts_per_worker` has no effect without `on`: pass a cluster with `on`, such as slurm")
    check_live(options.live)
    set_about(study=None)  # another launch in this process may have used one
    paths = [split_target(target)[0] for target in targets]
    groups = assign(choose(find_devices(), options.devices), options.workers, options.devices_per_worker)
    url, artifacts = storage_url(options.storage), artifacts_of(options.artifacts)
    launches = [_study_launch(target, options, url, groups, is_shared=len(targets) > 1) for target in targets]
    count = f"{len(groups)} worker{'s' if len(groups) > 1 else ''}"
    files = ", ".join(map(str, paths))
    devices = [str(group) for group in groups]
    opening = f"{files} with {count} on {' | '.join(devices)}, storage {url}"
    tell(opening, "launch", file=files, devices=devices, storage=str(url))
    if not url.is_new_file():
        aside(lambda: connect_when_up(url).dispose())
    aside(artifacts.check_or_warn)
    warn_of_password()
    places = [Place(index, group) for index, group in enumerate(groups)]
    with contextlib.ExitStack() as stack:
        if options.metrics_port is not None:
            metrics = [one.metrics for one in launches]
            address = stack.enter_context(served(metrics, options.metrics_host or "127.0.0.1", options.metrics_port))
            tell(f"metrics on {address}", "metrics", address=address)
        stop, progress = stack.enter_context(_signals()), stack.enter_context(_progress(groups, options.live))
        if len(launches) == 1:
            launches[0].places = places
            launches[0].run(progress, stop)
            _tell_why_ended(launches[0].snapshot, progress)
        else:
            sharing = Sharing(launches, places, progress, _tell_why_ended)
            failed = sharing.run(stop)
            for one in launches:
                if one.target not in failed:
                    tell_result(one.snapshot)
            _raise_failed(failed, len(launches))
    return [one.snapshot for one in launches]


def _study_launch(
    target: str, options: LaunchOptions, url: StorageURL, groups: Sequence[DeviceGroup], *, is_shared: bool
) -> StudyLaunch:
    from tuner.launch.notices import LaunchNotices

    command = options.worker_command(target)
    return StudyLaunch(
        command,
        url,
        target,
        [],
        MirrorProcess(options.mirror_options(), url),
        LaunchNotices.of(options.notify, url, len(groups)),
        LaunchMetrics([str(group) for group in groups]),
        code=code_digest(split_target(target)[0]),
        compiling=None if is_shared else CompileProcess(command, groups),
        is_shared=is_shared,
    )


def _tell_why_ended(snapshot: Snapshot, progress: Progress) -> None:
    if snapshot.is_out_of_hours:
        progress.note(
            f"the study's hours are used up with {snapshot.used} of {snapshot.trials} trials finished; "
            "launch with more hours to finish the rest",
            "hours",
        )
    if snapshot.ended:
        progress.note(snapshot.ended, "ended")
    if snapshot.is_finished and snapshot.used < snapshot.trials:
        progress.note(
            f"the sampler has ended the search with {snapshot.used} of {snapshot.trials} trials finished", "finished"
        )


def _progress(groups: list[DeviceGroup], live: bool | None) -> Progress:
    console = Console(stderr=True)
    if is_json():
        return JsonProgress()
    return LiveProgress(console, groups) if console.is_terminal and live is not False else PlainProgress()


def check_live(live: bool | None) -> None:
    """Raise UsageError for a live table where there is no terminal for it."""
    if live and (is_json() or not sys.stderr.isatty()):
        found = "a JSON log" if is_json() else "no terminal"
        raise UsageError(f"`live` needs a terminal on standard error: got {found}; use `tuner watch STUDY` elsewhere")


@contextlib.contextmanager
def _signals() -> Generator[threading.Event]:
    """Set the event on SIGINT, SIGTERM or SIGHUP while the body runs; a second signal ends the process."""
    event = threading.Event()
    undo = end_on_signals((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), event.set)
    if not has_reader():
        event.set()
    try:
        yield event
    finally:
        undo()
