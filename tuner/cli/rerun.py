"""`tuner reproduce` and `tuner confirm`: train stored trials again, in the foreground."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from tuner.cli.arguments import DebugOption, Format, FormatOption, SetOption, StorageOption, StudyArgument, split_pairs
from tuner.cli.printing import emit
from tuner.errors import UsageError
from tuner.output.log import say
from tuner.output.numbers import plain
from tuner.storage import connected, storage_url
from tuner.trial import Report

FileOption = Annotated[
    str | None,
    typer.Option(
        "--file",
        metavar="FILE",
        help="The study's file.  [default: that of the study's latest worker]",
        show_default=False,
    ),
]


def reproduce(
    study: StudyArgument,
    number: Annotated[int, typer.Argument(metavar="NUMBER", help="The trial's number.")],
    tolerance: Annotated[
        float, typer.Option(metavar="X", help="Largest relative difference at which numbers still match.")
    ] = 1e-4,
    file: FileOption = None,
    fixed: SetOption = None,
    storage: StorageOption = None,
    format: FormatOption = Format.TABLE,
    debug: DebugOption = False,
) -> None:
    """Train a trial again from its seed and check that its results match.

    Nothing is stored. On the same kind of machine with the same package versions, results are identical, bit for bit.
    A trial that ran in a cohort now trains alone, so its results match only up to rounding. If the trial copied others
    (pruner pbt), their training is repeated up to the copy.
    Exit status 1 if they do not match.
    For example: tuner reproduce digits_mlp 16
    """
    from tuner.launch.devices import settle
    from tuner.worker.rerun import open_study
    from tuner.worker.rerun import reproduce as reproduce_trial

    if not 0 <= tolerance < 1:
        raise UsageError(f"--tolerance must be at least 0 and below 1: got {tolerance}")
    settle(os.environ)
    with connected(storage_url(storage)) as engine:
        rerunner = open_study(engine, study, file, split_pairs("--set", fixed))
        found = reproduce_trial(rerunner, number, lambda report: _say_epoch(number, report))
        lanes, stretches = rerunner.lanes(number), rerunner.lineage(number)
    emit([{key: plain(value) for key, value in vars(one).items()} for one in found], format)
    if lanes > 1:
        say(
            f"trial {number} ran in a program with {lanes} trainings at once (a cohort, or several seeds) and now "
            "trains one by one, so its numbers match only up to rounding"
        )
    for stretch in stretches[:-1]:
        say(f"epochs {stretch.first} to {stretch.last} are those of trial {stretch.trial}, which was copied")
    worst = max(found, key=lambda one: one.difference)
    if worst.difference == 0:
        say(f"trial {number} of {study!r} is identical, bit for bit")
    else:
        verdict = "matches" if worst.difference <= tolerance else "does not match"
        difference = f"the largest relative difference is {worst.difference:.3g} ({worst.metric})"
        say(f"trial {number} of {study!r} {verdict}: {difference}")
    if worst.difference > tolerance:
        raise typer.Exit(1)


def _say_epoch(number: int, report: Report) -> None:
    say(f"trial {number}, epoch {report.epoch}")


def confirm(
    study: StudyArgument,
    count: Annotated[int, typer.Option("-n", metavar="K", help="Number of best trials to train again.")] = 5,
    seeds: Annotated[int, typer.Option(metavar="N", help="Number of other seeds for each trial.")] = 3,
    file: FileOption = None,
    fixed: SetOption = None,
    storage: StorageOption = None,
    format: FormatOption = Format.TABLE,
    debug: DebugOption = False,
) -> None:
    """Train the best trials again with other seeds, to measure how much of their values is luck.

    Afterwards `tuner best` ranks these trials by their mean over the seeds, with a 95 % interval, and names those that
    cannot be told apart. The study's baseline is trained again too. Run the command again with more seeds to add them.
    For example: tuner confirm digits_mlp -n 5 --seeds 3
    """
    from tuner.cli.show import say_how_sure
    from tuner.launch.devices import settle
    from tuner.results.rows import best_rows
    from tuner.worker.rerun import confirm as confirm_trials
    from tuner.worker.rerun import open_study

    for option, value in (("-n", count), ("--seeds", seeds)):
        if value < 1:
            raise UsageError(f"{option} must be at least 1: got {value}")
    settle(os.environ)
    with connected(storage_url(storage)) as engine:
        rerunner = open_study(engine, study, file, split_pairs("--set", fixed))
        confirm_trials(rerunner, count, seeds, _say_repeat)
        rows = [row for row in best_rows(engine, study, None) if row.get("confirmed") is not None]
    emit(rows, format)
    say_how_sure(rows)


def _say_repeat(number: int, repeat: int, value: float | None) -> None:
    say(f"trial {number}, seed {repeat}: {'not finite' if value is None else f'{value:.5g}'}")
