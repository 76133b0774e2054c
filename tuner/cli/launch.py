"""`tuner launch`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from tuner.cli.arguments import (
    ArtifactsOption,
    CohortOption,
    DebugOption,
    DetachOption,
    DeviceHoursOption,
    DevicesOption,
    DevicesPerWorkerOption,
    DirectionOption,
    DryRunOption,
    EngineOption,
    FilesArgument,
    HostsPerWorkerOption,
    LabelOption,
    LiveOption,
    LogFormat,
    LogFormatOption,
    LogsOption,
    MetricsHostOption,
    MetricsPortOption,
    MlflowOption,
    NameOption,
    NotifyOption,
    ObjectiveOption,
    OnOption,
    OwnerOption,
    PrunerOption,
    SamplerOption,
    SeedOption,
    SetOption,
    ShareOption,
    StallMinutesOption,
    StorageOption,
    TensorboardOption,
    TrialMinutesOption,
    TrialsOption,
    WallHoursOption,
    WandbOption,
    WorkersOption,
    parse_cohort,
    parse_named,
    split_pairs,
)
from tuner.cli.run import busy_if_at_work
from tuner.errors import UsageError

if TYPE_CHECKING:
    from tuner.launch import LaunchOptions
    from tuner.launch.engines import JobOptions
    from tuner.launch.progress import Snapshot


def launch(
    files: FilesArgument,
    storage: StorageOption = None,
    workers: WorkersOption = None,
    devices: DevicesOption = "auto",
    devices_per_worker: DevicesPerWorkerOption = None,
    hosts_per_worker: HostsPerWorkerOption = None,
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
    mlflow: MlflowOption = None,
    tensorboard: TensorboardOption = None,
    wandb: WandbOption = None,
    notify: NotifyOption = None,
    metrics_port: MetricsPortOption = None,
    metrics_host: MetricsHostOption = None,
    log_format: LogFormatOption = LogFormat.TEXT,
    live: LiveOption = None,
    on: OnOption = None,
    options: EngineOption = None,
    logs: LogsOption = None,
    dry_run: DryRunOption = False,
    detach: DetachOption = False,
    share: ShareOption = False,
    debug: DebugOption = False,
) -> None:
    """Run a study with several workers.

    Ends when the budget is used up. Run it again to resume a study, or to add trials with --trials. Several files run
    one after another, or with --share at the same time.
    """
    from tuner.launch import LaunchOptions, check_several, in_turn

    given = LaunchOptions(
        storage=storage,
        artifacts=artifacts,
        workers=workers,
        devices=devices,
        devices_per_worker=devices_per_worker,
        hosts_per_worker=hosts_per_worker,
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
        cohort=parse_cohort(cohort),
        owner=owner,
        labels=tuple(label or ()),
        mlflow=mlflow,
        tensorboard=tensorboard,
        wandb=wandb,
        notify=tuple(notify or ()),
        metrics_port=metrics_port,
        metrics_host=metrics_host,
        live=live,
    )
    where = None
    if on is None:
        _refuse_without_engine(options=options, logs=logs, dry_run=dry_run, detach=detach)
    else:
        from tuner.launch.engines import JobOptions

        where = JobOptions(on=on, options=split_pairs("--option", options), logs=logs)
    _check_share(files, share, on)

    def one(file: str) -> None:
        with busy_if_at_work(file, storage):
            if where is None:
                study = _launch_here(file, given)
            else:
                study = _launch_there(file, given, where, dry_run, detach, log_format)
        _tell_result(study, storage, log_format)

    if len(files) == 1:
        one(files[0])
        return
    check_several(files, given)
    if share:
        _launch_shared(files, given, storage, log_format)
    else:
        in_turn(files, one)


def _launch_here(file: str, options: LaunchOptions) -> str:
    from tuner.launch import launch as launch_study

    return launch_study(file, options).study


def _launch_there(
    file: str, options: LaunchOptions, where: JobOptions, is_dry: bool, is_detached: bool, log_format: LogFormat
) -> str | None:
    from tuner.cli.jobs import launch_on

    return launch_on(file, options, where, is_dry=is_dry, is_detached=is_detached, log_format=log_format)


def _launch_shared(files: Sequence[str], options: LaunchOptions, storage: str | None, log_format: LogFormat) -> None:
    from tuner.launch import launch_at_once

    def tell(snapshot: Snapshot) -> None:
        _tell_result(snapshot.study, storage, log_format)

    launch_at_once(files, options, tell)


def _tell_result(study: str | None, storage: str | None, log_format: LogFormat) -> None:
    """Print the best trials of a study that has ended; None if nothing was waited for."""
    if study is None:
        return
    from tuner.cli.show import print_best, tell_best
    from tuner.storage.sql.background_calls import aside

    aside(partial(tell_best if log_format is LogFormat.JSON else print_best, study, storage))


def _check_share(files: Sequence[str], is_shared: bool, on: str | None) -> None:
    if is_shared and on is not None:
        raise UsageError(
            f"--share divides the workers of one launch, and each study is a job of its own with --on {on}: "
            "submit the jobs with --detach, and the scheduler runs them at the same time"
        )
    if is_shared and len(files) == 1:
        raise UsageError(f"--share needs several files: got {files[0]!r}")


def _refuse_without_engine(**given: object) -> None:
    for name, value in given.items():
        if value:
            raise UsageError(f"`{name}` has no effect without `on`: pass a cluster with `on`, such as slurm")
