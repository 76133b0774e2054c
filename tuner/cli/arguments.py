"""Options that several commands share."""

from __future__ import annotations

import enum
import json
import os
from typing import Annotated, Any, Literal

import typer

from tuner.errors import UsageError
from tuner.output.log import use_json

DEBUG_VARIABLE = "TUNER_DEBUG"


class Format(enum.StrEnum):
    """How results are printed."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"


class LogFormat(enum.StrEnum):
    """The format of the log on stderr."""

    TEXT = "text"
    JSON = "json"


FileArgument = Annotated[
    str,
    typer.Argument(
        metavar="FILE",
        help="Python file with a Study; FILE:NAME chooses one of several studies, or a training function or an Optuna"
        " objective.",
    ),
]


FilesArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="FILE...",
        help="Python files, each with a Study; FILE:NAME chooses one of several studies, or a training function or an"
        " Optuna objective.",
    ),
]


def complete_study(context: typer.Context, incomplete: str) -> list[str]:
    """Return the studies whose names start with `incomplete`; none if the storage cannot be read."""
    from tuner.errors import TunerError
    from tuner.storage import connected, storage_url
    from tuner.storage.read.queries import read_studies

    try:
        with connected(storage_url(context.params.get("storage"))) as engine:
            # The shell prints them: skip names with control characters.
            names = [study.name for study in read_studies(engine) if study.name.isprintable()]
            return [name for name in names if name.startswith(incomplete)]
    except TunerError:
        return []


StudyArgument = Annotated[str, typer.Argument(metavar="STUDY", help="The study's name.", autocompletion=complete_study)]
StudiesArgument = Annotated[
    list[str], typer.Argument(metavar="STUDY...", help="The studies' names.", autocompletion=complete_study)
]
StorageOption = Annotated[
    str | None,
    typer.Option(
        "--storage",
        metavar="URL",
        help="Database URL: sqlite:///FILE or postgresql+psycopg2://...  [default: $TUNER_STORAGE, or sqlite:///tuner.db]",
        show_default=False,
    ),
]
ArtifactsOption = Annotated[
    str | None,
    typer.Option(
        "--artifacts",
        metavar="DIR|URL",
        help="Folder or object storage for checkpoints, such as s3://BUCKET/PREFIX.  "
        "[default: $TUNER_ARTIFACTS, or tuner-artifacts]",
        show_default=False,
    ),
]
MlflowOption = Annotated[
    str | None,
    typer.Option(
        "--mlflow",
        metavar="URI",
        help="URI of the MLflow tracking server.  [default: $MLFLOW_TRACKING_URI]",
        show_default=False,
    ),
]
TensorboardOption = Annotated[
    str | None,
    typer.Option(
        "--tensorboard", metavar="DIR", help="Folder in which to write the study for TensorBoard.", show_default=False
    ),
]
WandbOption = Annotated[
    str | None,
    typer.Option(
        "--wandb",
        metavar="PROJECT",
        help="W&B project, or ENTITY/PROJECT, to send the study to.",
        show_default=False,
    ),
]
NotifyOption = Annotated[
    list[str] | None,
    typer.Option(
        "--notify",
        metavar="URL",
        help="Where to send notifications: https://..., slack+https://..., discord+https://..., smtp://...,"
        " exec:COMMAND, or @FILE with one on each line; may be repeated.  [default: $TUNER_NOTIFY]",
        show_default=False,
    ),
]
FormatOption = Annotated[Format, typer.Option("--format", help="Output format.")]
PreferOption = Annotated[
    str | None,
    typer.Option(
        "--prefer",
        metavar="NAME",
        help="With several objectives: take the trial of the Pareto front that is best in this objective, or the one "
        "that balances all (knee).",
        show_default=False,
    ),
]
TrialsOption = Annotated[
    int | None,
    typer.Option("--trials", metavar="N", help="Total number of trials; overrides the study's.", show_default=False),
]
WallHoursOption = Annotated[
    float | None,
    typer.Option(
        "--wall-hours",
        metavar="H",
        help="Time budget in hours, counted while at least one worker runs; overrides the study's.",
        show_default=False,
    ),
]
DeviceHoursOption = Annotated[
    float | None,
    typer.Option(
        "--device-hours",
        metavar="H",
        help="Device-hour budget; overrides the study's.",
        show_default=False,
    ),
]
TrialMinutesOption = Annotated[
    float | None,
    typer.Option(
        "--trial-minutes",
        metavar="M",
        help="Minutes that one trial may take; overrides the study's.",
        show_default=False,
    ),
]
StallMinutesOption = Annotated[
    float | None,
    typer.Option(
        "--stall-minutes",
        metavar="M",
        help="Minutes that a trial may go without progress; overrides the study's.",
        show_default=False,
    ),
]
CompileOnlyOption = Annotated[
    bool,
    typer.Option(
        "--compile-only",
        help="Compile the programs of all combinations of static hyperparameters into the compile cache, and exit. "
        "Runs no trial and needs no database.",
    ),
]
CohortOption = Annotated[
    str | None,
    typer.Option(
        "--cohort",
        metavar="K|auto",
        help="Trials that each worker trains at once in one program; auto measures how many. Overrides the study's.",
        show_default=False,
    ),
]
SeedOption = Annotated[
    int | None, typer.Option("--seed", metavar="N", help="Random seed; overrides the study's.", show_default=False)
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Fix a hyperparameter instead of searching it; may be repeated."),
]
NameOption = Annotated[
    str | None,
    typer.Option("--name", metavar="NAME", help="For a function: the name of its study.", show_default=False),
]
ObjectiveOption = Annotated[
    list[str] | None,
    typer.Option(
        "--objective",
        metavar="METRIC",
        help="For a function: the metric to optimize; may be repeated.  [default: value]",
        show_default=False,
    ),
]
DirectionOption = Annotated[
    list[str] | None,
    typer.Option(
        "--direction",
        metavar="DIRECTION",
        help="For a function: maximize or minimize, once for each objective.  [default: minimize, for an Optuna "
        "objective]",
        show_default=False,
    ),
]
SamplerOption = Annotated[
    str | None,
    typer.Option(
        "--sampler",
        metavar="NAME",
        help="Sampler, by name or as JSON with its options; overrides the study's.",
        show_default=False,
    ),
]
PrunerOption = Annotated[
    str | None,
    typer.Option(
        "--pruner",
        metavar="NAME",
        help="Pruner, by name or as JSON with its options; overrides the study's.",
        show_default=False,
    ),
]

WorkersOption = Annotated[
    int | None,
    typer.Option(
        "--workers",
        metavar="N",
        help="Number of worker processes.  [default: one per device, on CPUs at most 4; with --on: 1]",
        show_default=False,
    ),
]
DevicesOption = Annotated[str, typer.Option("--devices", metavar="LIST", help="auto, or device numbers such as 0,1.")]
DevicesPerWorkerOption = Annotated[
    int | None,
    typer.Option(
        "--devices-per-worker",
        metavar="N",
        help="Number of devices for each worker.  [default: 1; with --on: 0]",
        show_default=False,
    ),
]
HostsPerWorkerOption = Annotated[
    int | None,
    typer.Option(
        "--hosts-per-worker",
        metavar="N",
        help="Number of hosts that train each trial together; needs --on slurm.  [default: 1]",
        show_default=False,
    ),
]
HostsOption = Annotated[
    int | None,
    typer.Option(
        "--hosts",
        metavar="N",
        help="Number of hosts that train each trial together; run this command on each.  [default: 1]",
        show_default=False,
    ),
]
CoordinatorOption = Annotated[
    str | None,
    typer.Option(
        "--coordinator",
        metavar="HOST:PORT",
        help="With --hosts: where rank 0 waits for the others.",
        show_default=False,
    ),
]
RankOption = Annotated[
    int | None,
    typer.Option(
        "--rank",
        metavar="N",
        help="With --hosts: number of this process, from 0.  [default: $SLURM_PROCID, under srun]",
        show_default=False,
    ),
]
MetricsPortOption = Annotated[
    int | None,
    typer.Option(
        "--metrics-port",
        metavar="N",
        help="Port on which to serve Prometheus metrics; 0 picks a free port.  [default: off]",
        show_default=False,
    ),
]
MetricsHostOption = Annotated[
    str | None,
    typer.Option(
        "--metrics-host",
        metavar="ADDRESS",
        help="Address on which to serve the metrics; they need no login.  [default: 127.0.0.1]",
        show_default=False,
    ),
]
LiveOption = Annotated[
    bool | None,
    typer.Option("--live/--no-live", help="Show a live table, or one line per update.  [default: live on a terminal]"),
]
OwnerOption = Annotated[
    str | None,
    typer.Option(
        "--owner",
        metavar="NAME",
        help="Who the study belongs to.  [default: the study's, $TUNER_OWNER, or the user who launches it first]",
        show_default=False,
    ),
]
LabelOption = Annotated[
    list[str] | None,
    typer.Option("--label", metavar="LABEL", help="Add a label to the study; may be repeated.", show_default=False),
]
ShareOption = Annotated[
    bool,
    typer.Option("--share", help="Run several files at the same time: divide the workers among them."),
]
OnOption = Annotated[
    str | None,
    typer.Option(
        "--on",
        metavar="ENGINE",
        help="Run the workers on a cluster: slurm, kubernetes or ray.  [default: this machine]",
        show_default=False,
    ),
]
EngineOption = Annotated[
    list[str] | None,
    typer.Option(
        "--option",
        metavar="NAME=VALUE",
        help="With --on: a setting of the cluster, such as partition=gpu; may be repeated.",
        show_default=False,
    ),
]
LogsOption = Annotated[
    str | None,
    typer.Option(
        "--logs",
        metavar="DIR",
        help="With --on slurm or ray: folder for the workers' logs.  [default: tuner-logs]",
        show_default=False,
    ),
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="With --on: print what would be submitted, and submit nothing.")
]
DetachOption = Annotated[bool, typer.Option("--detach", help="With --on: submit and return at once.")]


def parse_named(what: str, text: str | None) -> str | dict[str, Any] | None:
    """Return a sampler or a pruner: its name, or from JSON its name and options.

    Raises:
        UsageError: the JSON is not valid; the message begins with `what`.
    """
    if text is None or not text.lstrip().startswith("{"):
        return text
    try:
        return json.loads(text)
    except ValueError as error:
        example = '{"name": "tpe"}'
        raise UsageError(f"{what} must be a name, or JSON such as {example}: got {text!r} ({error})") from None


def parse_cohort(text: str | None) -> int | Literal["auto"] | None:
    """Return the number of trials that train at once.

    Raises:
        UsageError: it is neither a whole number of at least 1 nor `auto`.
    """
    if text is None or text == "auto":
        return text
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"--cohort must be a whole number of at least 1, or auto: got {text!r}")
    return int(text)


def check_choice(trial: int | None, prefer: str | None) -> None:
    """Raise UsageError if a trial is chosen both by its number and by `--prefer`."""
    if trial is not None and prefer is not None:
        raise UsageError(f"--trial and --prefer both choose a trial: got {trial} and {prefer!r}; pass one of them")


def split_pairs(what: str, words: list[str] | None) -> dict[str, str]:
    """Parse words of the form NAME=VALUE into a dictionary.

    Raises:
        UsageError: a word has another form, or a name is repeated; the message begins with `what`.
    """
    values = {}
    for word in words or []:
        name, separator, value = word.partition("=")
        if not separator or not name:
            raise UsageError(f"{what} must have the form NAME=VALUE: got {word!r}")
        if name.strip() in values:
            raise UsageError(f"{what} is given twice: {name.strip()!r}")
        values[name.strip()] = value.strip()
    return values


def _set_log_format(format: LogFormat) -> LogFormat:
    if format is LogFormat.JSON:
        use_json()
    return format


LogFormatOption = Annotated[
    LogFormat,
    typer.Option("--log-format", help="Log format on stderr: text or json.", callback=_set_log_format),
]


def _set_debug(is_on: bool) -> None:
    if is_on:
        os.environ[DEBUG_VARIABLE] = "1"  # workers inherit it


DebugOption = Annotated[bool, typer.Option("--debug", help="Show the full traceback of an error.", callback=_set_debug)]
