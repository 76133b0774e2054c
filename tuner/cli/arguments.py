"""Options that several commands take."""

from __future__ import annotations

import enum
import os
from typing import Annotated

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
    """What a command says on stderr."""

    TEXT = "text"
    JSON = "json"


FileArgument = Annotated[
    str, typer.Argument(metavar="FILE", help="Python file with a Study in it; FILE:NAME where it has several.")
]


def complete_study(context: typer.Context, incomplete: str) -> list[str]:
    """Return the studies whose names begin so; none, without a word, where the storage cannot be read."""
    from tuner.errors import TunerError
    from tuner.storage import connect, storage_url
    from tuner.storage.read.queries import read_studies

    try:
        engine = connect(storage_url(context.params.get("storage")))
        try:
            # The shell prints them: none may steer the terminal.
            names = [study.name for study in read_studies(engine) if study.name.isprintable()]
            return [name for name in names if name.startswith(incomplete)]
        finally:
            engine.dispose()
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
        help="sqlite:///FILE or postgresql://...; $TUNER_STORAGE, else sqlite:///tuner.db, by default.",
        show_default=False,
    ),
]
ArtifactsOption = Annotated[
    str | None,
    typer.Option(
        "--artifacts",
        metavar="DIR",
        help="Folder for checkpoints; $TUNER_ARTIFACTS, else tuner-artifacts, by default.",
        show_default=False,
    ),
]
MlflowOption = Annotated[
    str | None,
    typer.Option(
        "--mlflow",
        metavar="URI",
        help="Send the study to this MLflow server; $MLFLOW_TRACKING_URI by default.",
        show_default=False,
    ),
]
TensorboardOption = Annotated[
    str | None,
    typer.Option(
        "--tensorboard", metavar="DIR", help="Write the study for TensorBoard into this folder.", show_default=False
    ),
]
WandbOption = Annotated[
    str | None,
    typer.Option(
        "--wandb",
        metavar="PROJECT",
        help="Send the study to this project, or ENTITY/PROJECT, of W&B.",
        show_default=False,
    ),
]
FormatOption = Annotated[Format, typer.Option("--format", help="How to print.")]
TrialsOption = Annotated[
    int | None, typer.Option("--trials", metavar="N", help="Trials in all, instead of the study's.", show_default=False)
]
WallHoursOption = Annotated[
    float | None,
    typer.Option(
        "--wall-hours",
        metavar="H",
        help="Hours in which at least one worker may be at work on the study, instead of the study's.",
        show_default=False,
    ),
]
DeviceHoursOption = Annotated[
    float | None,
    typer.Option(
        "--device-hours",
        metavar="H",
        help="Hours of training, times the devices of each worker, instead of the study's.",
        show_default=False,
    ),
]
SeedOption = Annotated[
    int | None, typer.Option("--seed", metavar="N", help="Seed, instead of the study's.", show_default=False)
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="A hyperparameter that is not searched; may be repeated."),
]


def split_pairs(what: str, words: list[str] | None) -> dict[str, str]:
    """Return words of the kind NAME=VALUE as name -> value.

    Raises:
        UsageError: one is not, or a name stands twice; the message begins with `what`.
    """
    values = {}
    for word in words or []:
        name, separator, value = word.partition("=")
        if not separator or not name:
            raise UsageError(f"{what} must be NAME=VALUE: got {word!r}")
        if name.strip() in values:
            raise UsageError(f"{what} must be given once: {name.strip()!r} stands twice")
        values[name.strip()] = value.strip()
    return values


def _set_log_format(format: LogFormat) -> LogFormat:
    if format is LogFormat.JSON:
        use_json()
    return format


LogFormatOption = Annotated[
    LogFormat,
    typer.Option("--log-format", help="What is said on stderr: lines for people, or JSON.", callback=_set_log_format),
]


def _set_debug(is_on: bool) -> None:
    if is_on:
        os.environ[DEBUG_VARIABLE] = "1"  # workers are to inherit it


DebugOption = Annotated[bool, typer.Option("--debug", help="Show the whole trace of an error.", callback=_set_debug)]
