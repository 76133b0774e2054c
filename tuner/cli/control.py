"""Commands that change a study: safe while workers run, unless a command says otherwise."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Annotated

import typer

from tuner.cli.arguments import ArtifactsOption, DebugOption, StorageOption, StudyArgument, split_pairs
from tuner.errors import UsageError
from tuner.output.log import say
from tuner.storage import connected, storage_url
from tuner.storage.artifacts import artifacts_of


def stop(
    study: StudyArgument,
    trial: Annotated[
        int | None,
        typer.Option("--trial", metavar="NUMBER", help="End only this trial; the study continues.", show_default=False),
    ] = None,
    storage: StorageOption = None,
    debug: DebugOption = False,
) -> None:
    """Stop a study on all machines, or end one trial of it.

    Running workers save their trials, release them, and exit within seconds. No worker starts on the study until
    `tuner resume`. Its jobs on a cluster (Slurm, Kubernetes or Ray) are cancelled. With --trial, the study continues: a
    running trial ends as pruned, and its worker takes the next one; a trial in the queue is removed from it.
    For example: tuner stop digits_mlp --trial 17
    """
    if trial is not None:
        from tuner.admin.edits import end_trial

        say(end_trial(storage_url(storage), study, trial).describe(study, trial))
        return
    from tuner.admin.lifecycle import stop as stop_study

    with connected(storage_url(storage)) as engine:
        was_running = stop_study(engine, study)
    say(f"study {study!r} {'is stopped' if was_running else 'was already stopped'}")


def resume(study: StudyArgument, storage: StorageOption = None, debug: DebugOption = False) -> None:
    """Allow a stopped study to be launched again, on any machine.

    If its target, patience or terminator ended the study, change that setting and launch the study again instead.
    For example: tuner resume digits_mlp
    """
    from tuner.admin.lifecycle import resume as resume_study

    with connected(storage_url(storage)) as engine:
        resumed = resume_study(engine, study)
    if resumed.end is not None:
        say(resumed.end.describe(study))
        return
    words = "can be launched again" if resumed.was_stopped else "was not stopped"
    say(f"study {study!r} {words}")


def label(
    study: StudyArgument,
    labels: Annotated[
        list[str] | None, typer.Argument(metavar="LABEL...", help="Labels to add.", show_default=False)
    ] = None,
    remove: Annotated[
        list[str] | None,
        typer.Option(metavar="LABEL", help="Remove this label; may be repeated.", show_default=False),
    ] = None,
    owner: Annotated[
        str | None, typer.Option(metavar="NAME", help="Set the owner of the study.", show_default=False)
    ] = None,
    storage: StorageOption = None,
    debug: DebugOption = False,
) -> None:
    """Change the labels and the owner of a study.

    `tuner studies` and the dashboard list the studies of an owner, or with a label.
    For example: tuner label digits_mlp vision --remove draft --owner ann
    """
    from tuner.admin.edits import relabel

    if not labels and not remove and owner is None:
        raise UsageError("nothing to change: pass labels to add, --remove or --owner")
    found = relabel(storage_url(storage), study, owner=owner, labels=labels or (), without=remove or ())
    say(
        f"study {study!r} belongs to {found.owner or 'nobody'}, "
        f"and {'has the labels ' + ', '.join(found.labels) if found.labels else 'has no label'}"
    )


def enqueue(
    study: StudyArgument,
    values: Annotated[
        list[str] | None, typer.Argument(metavar="NAME=VALUE...", help="Hyperparameters; the rest are sampled.")
    ] = None,
    other: Annotated[
        str | None,
        typer.Option("--from", metavar="OTHER", help="Queue the best trials of this study.", show_default=False),
    ] = None,
    count: Annotated[
        int | None,
        typer.Option("-n", metavar="K", min=1, help="With --from: number of trials.  [default: 5]", show_default=False),
    ] = None,
    rename: Annotated[
        list[str] | None,
        typer.Option(
            "--rename",
            metavar="OLD=NEW",
            help="With --from: use the other study's OLD as NEW in this one; may be repeated.",
        ),
    ] = None,
    storage: StorageOption = None,
    debug: DebugOption = False,
) -> None:
    """Queue trials with given hyperparameters, or with those of the best trials of another study.

    The next free workers run them. They count towards the study's number of trials.
    For example: tuner enqueue digits_mlp learning_rate=3e-3 width=128
    """
    from tuner.admin.edits import enqueue as enqueue_trial

    if other is not None and not values:
        _enqueue_best(study, other, count or 5, split_pairs("--rename", rename), storage)
    elif other is not None or not values:
        hint = ", not both" if other is not None else ""
        raise UsageError(f"pass either hyperparameters (NAME=VALUE) or another study (--from){hint}")
    elif count is not None or rename:
        raise UsageError("`-n` and `--rename` have no effect without `--from`: pass a study with --from")
    else:
        params = enqueue_trial(storage_url(storage), study, split_pairs("a hyperparameter", values))
        say(f"a trial of {study!r} with {_settings(params)} is queued")
    _warn_used_up(study, storage)


def _enqueue_best(study: str, other: str, count: int, rename: Mapping[str, str], storage: str | None) -> None:
    from tuner.admin.transfer import enqueue_best

    transferred = enqueue_best(storage_url(storage), study, other, count, rename)
    for number, params in transferred.trials:
        say(f"a trial of {study!r} with {_settings(params)} is queued, from trial {number} of {other!r}")
    for text in transferred.unmatched:
        say(f"not matched: {text}")
    if len(transferred.trials) < count:
        say(
            f"queued only {len(transferred.trials)} of {count} trials: {other!r} has no more complete, feasible trials "
            "with other hyperparameters"
        )


def _settings(params: Mapping[str, object]) -> str:
    return ", ".join(f"{name}={value}" for name, value in params.items())


def extend(
    study: StudyArgument,
    epochs: Annotated[
        int, typer.Option("--epochs", metavar="N", help="Total number of epochs, including those already trained.")
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
    study's number of trials. The finished trials do not change. Set keep_last in the study file first: otherwise last
    states are not saved. Extended trials are not pruned.
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

    queued = retry_trial(storage_url(storage), study, number)
    say(f"trial {queued} of {study!r} is queued, with the hyperparameters of trial {number}")
    _warn_used_up(study, storage)


def delete(
    study: StudyArgument,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
    artifacts: ArtifactsOption = None,
    storage: StorageOption = None,
    debug: DebugOption = False,
) -> None:
    """Delete a study: its trials, and its checkpoints.

    Asks for confirmation. Checkpoints in folders of other machines stay. Running workers stop, and jobs on a cluster
    (Slurm, Kubernetes or Ray) are cancelled.
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
