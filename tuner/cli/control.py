"""Commands that change a study: safe while workers run, unless a command says otherwise."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from tuner.cli.arguments import ArtifactsOption, DebugOption, StorageOption, StudyArgument, split_pairs
from tuner.errors import UsageError
from tuner.output.log import say
from tuner.storage import connected, storage_url
from tuner.storage.artifacts import artifacts_of


def stop(study: StudyArgument, storage: StorageOption = None, debug: DebugOption = False) -> None:
    """Stop a study on all machines.

    Running workers save their trials, release them, and exit within seconds. No worker starts on the study until
    `tuner resume`. Jobs of an engine such as Slurm are cancelled.
    For example: tuner stop digits_mlp
    """
    from tuner.launch.engines import cancel_open_jobs
    from tuner.storage.read.queries import find_study
    from tuner.storage.worker.studies import stop as stop_study

    with connected(storage_url(storage)) as engine:
        study_id = find_study(engine, study).study_id
        was_running = stop_study(engine, study_id)
        cancel_open_jobs(engine, study_id, "its workers exit by themselves when they start")
    say(f"study {study!r} {'is stopped' if was_running else 'was already stopped'}")


def resume(study: StudyArgument, storage: StorageOption = None, debug: DebugOption = False) -> None:
    """Allow a stopped study to be launched again, on any machine.

    A study that its target, patience or terminator has ended needs another setting instead.
    For example: tuner resume digits_mlp
    """
    from tuner.results.stopping import recorded_end
    from tuner.storage.read.queries import find_study
    from tuner.storage.worker.studies import resume as resume_study

    with connected(storage_url(storage)) as engine:
        study_id = find_study(engine, study).study_id
        ended = recorded_end(engine, study_id)
        was_stopped = ended is None and resume_study(engine, study_id)
    if ended is not None:
        say(ended.describe(study))
        return
    words = "can be launched again" if was_stopped else "was not stopped"
    say(f"study {study!r} {words}")


def enqueue(
    study: StudyArgument,
    values: Annotated[
        list[str], typer.Argument(metavar="NAME=VALUE...", help="Hyperparameters; the rest are sampled.")
    ],
    storage: StorageOption = None,
    debug: DebugOption = False,
) -> None:
    """Queue a trial with given hyperparameters; the next free worker runs it.

    The trial counts towards the study's number of trials.
    For example: tuner enqueue digits_mlp learning_rate=3e-3 width=128
    """
    from tuner.admin.edits import enqueue as enqueue_trial

    params = enqueue_trial(storage_url(storage), study, split_pairs("a hyperparameter", values))
    words = ", ".join(f"{name}={value}" for name, value in params.items())
    say(f"a trial of {study!r} with {words} is queued")
    _warn_used_up(study, storage)


def extend(
    study: StudyArgument,
    epochs: Annotated[
        int, typer.Option("--epochs", metavar="N", help="Total number of epochs, those already trained included.")
    ],
    count: Annotated[
        int | None,
        typer.Option("-n", metavar="K", help="Number of best trials to continue.  [default: 1]", show_default=False),
    ] = None,
    numbers: Annotated[
        list[int] | None,
        typer.Option("--trial", metavar="NUMBER", help="A trial to continue, instead of the best; may be repeated."),
    ] = None,
    storage: StorageOption = None,
    debug: DebugOption = False,
) -> None:
    """Queue trials that continue finished ones with more epochs.

    Each continues the last state of a complete trial, with the same hyperparameters and seed, and counts towards the
    study's number of trials. The finished trials do not change. The study needs keep_last. Pruners do not judge these
    trials.
    For example: tuner extend digits_mlp -n 3 --epochs 60
    """
    from tuner.admin.extend import extend as extend_trials

    queued = extend_trials(storage_url(storage), study, epochs=epochs, count=count, numbers=numbers or ())
    for one in queued:
        say(
            f"trial {one.number} of {study!r} is queued: it continues trial {one.of} from epoch {one.after} to {epochs}"
        )
    if count is not None and len(queued) < count:
        say(f"{len(queued)} of {count} trials are queued: no others have a last state and fewer than {epochs} epochs")
    _warn_used_up(study, storage)


def _warn_used_up(study: str, storage: str | None) -> None:
    """Warn if a queued trial will not run until the study is launched with more trials."""
    from tuner.admin.edits import find_shortage

    with connected(storage_url(storage)) as engine:
        found = find_shortage(engine, study)
    if found is not None:
        say(found.describe(study))


def retry(
    study: StudyArgument,
    number: Annotated[int, typer.Argument(metavar="NUMBER", help="The trial's number.")],
    storage: StorageOption = None,
    debug: DebugOption = False,
) -> None:
    """Queue a new trial with the hyperparameters of one that failed, diverged, ran out of memory or timed out.

    For example: tuner retry digits_mlp 16
    """
    from tuner.admin.edits import retry as retry_trial

    retry_trial(storage_url(storage), study, number)
    say(f"a trial with the hyperparameters of trial {number} of {study!r} is queued")
    _warn_used_up(study, storage)


def delete(
    study: StudyArgument,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
    artifacts: ArtifactsOption = None,
    storage: StorageOption = None,
    debug: DebugOption = False,
) -> None:
    """Delete a study: its trials, and its checkpoints.

    Asks for confirmation. Checkpoints in folders of other machines stay. Running workers stop, and jobs of an engine
    such as Slurm are cancelled.
    For example: tuner delete digits_mlp
    """
    from tuner.admin.edits import belongings
    from tuner.admin.edits import delete as delete_study
    from tuner.launch.engines import cancel_open_jobs
    from tuner.storage.read.queries import find_study

    url = storage_url(storage)
    with connected(url) as engine:
        found = belongings(engine, study, artifacts_of(artifacts))
    what = f"study {study!r}, its {found.trials} trials{f' and {found.files}' if found.files else ''}"
    at_work = f"; running workers: {found.workers}" if found.workers else ""
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError(f"cannot ask for confirmation without a terminal: pass --yes to delete {what}{at_work}")
        if not typer.confirm(f"delete {what}{at_work}?", err=True):
            say("nothing was deleted")
            return
    with connected(url) as engine:
        what_then = "cancel it by hand, or workers that wait in its queue create the study again"
        cancel_open_jobs(engine, find_study(engine, study).study_id, what_then)
    delete_study(url, study, found.files)
    say(f"deleted {what}")


def gc(
    study: StudyArgument,
    keep: Annotated[int, typer.Option(metavar="K", help="How many of the best trials keep their checkpoints.")] = 3,
    artifacts: ArtifactsOption = None,
    storage: StorageOption = None,
    debug: DebugOption = False,
) -> None:
    """Remove the checkpoints of trials that have ended and are not among the best.

    Workers do this as they run. Use this command to keep fewer checkpoints, or after a worker died.
    For example: tuner gc digits_mlp --keep 1
    """
    from tuner.admin.edits import clear

    if keep < 0:
        raise UsageError(f"--keep must be at least 0: got {keep}")
    with connected(storage_url(storage)) as engine:
        numbers, size = clear(engine, study, artifacts_of(artifacts), keep)
    of_trials = f" of trials {', '.join(map(str, numbers))}" if numbers else ""
    say(f"removed {size / 1e6:.1f} MB of checkpoints{of_trials}")


def upgrade(
    from_timezone: Annotated[
        str | None,
        typer.Option(
            metavar="ZONE",
            help="Time zone of times stored by earlier versions, to convert them to UTC: America/New_York, UTC, ...",
        ),
    ] = None,
    storage: StorageOption = None,
    debug: DebugOption = False,
) -> None:
    """Upgrade a storage's tables to this version.

    Back up the database and stop all workers first. This also upgrades Optuna's own tables; older versions of Optuna
    can no longer use them. Earlier versions of tuner stored some times in local time: --from-timezone converts them to
    UTC.
    For example: tuner upgrade --from-timezone America/New_York
    """
    from tuner.storage.sql.schema import upgrade as upgrade_tables

    for line in upgrade_tables(storage_url(storage), from_timezone):
        say(line)
