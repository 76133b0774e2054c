"""`tuner migrate`: changes the space of a stored study."""

from __future__ import annotations

from typing import Annotated

import typer

from tuner.cli.arguments import DebugOption, SetOption, StorageOption, StudyArgument, split_pairs
from tuner.output.log import say
from tuner.storage import storage_url


def migrate(
    study: StudyArgument,
    file: Annotated[
        str, typer.Option("--file", metavar="FILE", help="The study's file with the new space, or FILE:NAME.")
    ],
    default: Annotated[
        list[str] | None,
        typer.Option(
            "--default",
            metavar="NAME=VALUE",
            help="The value of a new hyperparameter with which earlier trials were trained; may be repeated.",
        ),
    ] = None,
    fixed: SetOption = None,
    is_dry: Annotated[bool, typer.Option("--dry-run", help="Print what would change, and change nothing.")] = False,
    storage: StorageOption = None,
    debug: DebugOption = False,
) -> None:
    """Change the space of a stored study.

    Ranges may become wider or narrower, and choices may be added at the end. You can add hyperparameters if you give
    the value that earlier trials were trained with (--default). Stop all workers first. A backup is made. Restart
    Optuna's dashboard and other programs that have the study open.
    For example: tuner migrate digits_mlp --file studies/digits_mlp.py --dry-run
    """
    from tuner.admin.migrate import migrate as migrate_study

    found = migrate_study(
        storage_url(storage),
        study,
        file,
        defaults=split_pairs("--default", default),
        fixed=split_pairs("--set", fixed),
        is_dry=is_dry,
    )
    for line in found.lines:
        print(line)
    if found.version is None:
        return
    if is_dry:
        say(f"nothing was changed: this is what `tuner migrate {study}` would do without --dry-run")
        return
    say(f"the space of {study!r} is now version {found.version}; a backup is in {found.backup}")
    say("restart Optuna's dashboard, and other programs that have the study open")
