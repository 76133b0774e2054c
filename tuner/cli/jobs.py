"""`tuner launch --on`, `tuner scale` and `tuner logs`: workers that an engine runs, and the output of trials."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from tuner.cli.arguments import ArtifactsOption, DebugOption, LogFormat, StorageOption, StudyArgument
from tuner.cli.watch import draw
from tuner.errors import UsageError
from tuner.output.log import say
from tuner.storage import connected, storage_url

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from tuner.launch import LaunchOptions
    from tuner.launch.engines import JobOptions
    from tuner.results.json_rows import WatchedJson


def launch_on(
    target: str, options: LaunchOptions, where: JobOptions, *, is_dry: bool, is_detached: bool, log_format: LogFormat
) -> str | None:
    """Launch a study on an engine.

    Returns:
        The study's name, if it is finished; None if nothing was waited for.
    """
    from tuner.launch import engines
    from tuner.launch.launcher import check_live

    if options.live is not None and (is_dry or is_detached):
        raise UsageError(f"`live` has no effect with `{'dry_run' if is_dry else 'detach'}`: leave it out")
    check_live(options.live)
    plan = engines.make_plan(target, options, where)
    if is_dry:
        print(plan.script(), end="")
        return None
    if is_detached:
        study = engines.launch_on(plan, None).study
        say(f"follow it with `tuner watch {study}`, end it with `tuner stop {study}`")
        return None
    with _shown(options.live, log_format) as show:
        return engines.launch_on(plan, show).study


@contextlib.contextmanager
def _shown(live: bool | None, log_format: LogFormat) -> Generator[Callable[[WatchedJson], None]]:
    """Yield a function that shows progress: as a live table on a terminal, else one line for each change."""
    from rich.console import Console
    from rich.live import Live

    console = Console(stderr=True)
    if console.is_terminal and live is not False and log_format is LogFormat.TEXT:
        with Live(console=console, auto_refresh=False) as table:
            yield lambda state: table.update(draw(state), refresh=True)
        return
    from tuner.launch.engines.follow import tell_progress

    yield tell_progress()


def scale(
    study: StudyArgument,
    workers: Annotated[int, typer.Argument(metavar="N", min=0, help="Number of workers.")],
    storage: StorageOption = None,
    debug: DebugOption = False,
) -> None:
    """Change the number of workers of a study on a cluster.

    For a study that `tuner launch --on` runs with Slurm, Kubernetes or Ray. With fewer workers, the surplus ones give
    back their trials and stop; the others resume these trials.
    For example: tuner scale digits_mlp 8
    """
    from tuner.launch.engines import scale_jobs
    from tuner.storage.read.queries import find_study

    url = storage_url(storage)
    with connected(url) as engine:
        changed = scale_jobs(engine, find_study(engine, study).study_id, workers, url)
    for job in changed:
        say(f"{job.name}: {_count(job.workers)}" if job.workers else f"{job.name} is cancelled")
    if not changed:
        say(f"study {study!r} has {_count(workers)} already")


def _count(workers: int) -> str:
    return f"{workers} worker{'' if workers == 1 else 's'}"


def logs(
    study: StudyArgument,
    number: Annotated[
        int | None, typer.Argument(metavar="[NUMBER]", help="The trial whose output to show.", show_default=False)
    ] = None,
    worker: Annotated[
        str | None,
        typer.Option("--worker", metavar="W", help="Only this worker's log, by its name.", show_default=False),
    ] = None,
    trial: Annotated[
        int | None,
        typer.Option("--trial", metavar="N", help="Only what workers printed during this trial.", show_default=False),
    ] = None,
    is_followed: Annotated[
        bool, typer.Option("--follow", "-f", help="Print new lines until the trial ends, or Ctrl-C.")
    ] = False,
    artifacts: ArtifactsOption = None,
    storage: StorageOption = None,
    debug: DebugOption = False,
) -> None:
    """Show the output of a trial, or the logs of workers on a cluster.

    With NUMBER, prints the trial's log file if it is in the artifacts folder on this machine, otherwise the trial's
    last lines, which are in the database. Without NUMBER, prints the logs of workers on a cluster (Slurm, Kubernetes or
    Ray). Slurm and Ray write them to files: run this command on a machine that can read them. On Kubernetes, it reads
    the logs of the pods. With several logs, each line begins with the log's name.
    For example: tuner logs digits_mlp 7
    """
    if number is not None and (worker is not None or trial is not None):
        raise UsageError("pass either NUMBER (a trial's log), or --worker and --trial (logs of workers), not both")
    with connected(storage_url(storage)) as engine:
        if number is not None:
            _print_trial_log(engine, study, number, artifacts, is_followed=is_followed)
            return
        from tuner.launch.engines.logs import find_logs, follow_logs, read_logs

        find = partial(find_logs, engine, study, worker=worker, trial=trial)
        for line in follow_logs(find) if is_followed else read_logs(find()):
            print(line, flush=is_followed)


def _why_none(*, has_ended: bool) -> str:
    if not has_ended:
        return "it has printed nothing yet"
    return "it printed nothing, or ran outside of a worker (`Study.run`, `Study.ask`), where output is not recorded"


def _print_trial_log(engine: Engine, study: str, number: int, artifacts: str | None, *, is_followed: bool) -> None:
    from tuner.results.trial_log import follow_log, read_log
    from tuner.storage.artifacts import artifacts_of

    find = partial(read_log, engine, study, number, artifacts_of(artifacts))
    found = find()
    if found.file is None and found.lines:
        say(f"the last lines of trial {number}, from the database; its file is not in the artifacts folder here")
    if not found.lines and (found.has_ended or not is_followed):
        say(f"no output of trial {number} is stored: {_why_none(has_ended=found.has_ended)}")
    for line in follow_log(find) if is_followed else found.lines:
        print(line, flush=is_followed)
