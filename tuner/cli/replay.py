"""`tuner replay`: what other pruners would have done with a study's recorded curves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from tuner.cli.arguments import DebugOption, Format, FormatOption, StorageOption, StudyArgument, parse_named
from tuner.cli.printing import emit
from tuner.output.log import say
from tuner.output.numbers import as_text
from tuner.storage import connected, storage_url

if TYPE_CHECKING:
    from tuner.results.json_rows import ReplayJson


def replay(
    study: StudyArgument,
    pruner: Annotated[
        list[str],
        typer.Option(metavar="NAME", help="Pruner, by name or as JSON with its options; may be repeated."),
    ],
    orders: Annotated[int, typer.Option(metavar="N", help="Random orders in which the trials arrive.")] = 20,
    workers: Annotated[int, typer.Option(metavar="N", help="Trials that run at once.")] = 4,
    storage: StorageOption = None,
    format: FormatOption = Format.TABLE,
    debug: DebugOption = False,
) -> None:
    """Compare pruners on the recorded curves of a study.

    Prints how many trials each pruner would have stopped, the epochs and device hours saved, and the regret: how much
    worse the best trial that it keeps is than the best trial of the study. Each figure is the mean over random orders
    of the trials, with the range of 95 % of the orders. For a study that ran with a pruner, only bounds are known.
    For example: tuner replay digits_mlp --pruner hyperband --pruner '{"name": "asha", "reduction_factor": 4}'
    """
    from tuner.results.replay import flat_row, replay_rows

    pruners: list[Any] = [parse_named("--pruner", text) for text in pruner]
    with connected(storage_url(storage)) as engine:
        rows, notes = replay_rows(engine, study, pruners, orders=orders, workers=workers)
    if format is Format.JSON:
        emit(rows, format)
    else:
        emit([_shown(row) if format is Format.TABLE else flat_row(row) for row in rows], format)
    for note in notes:
        say(note)


def _shown(row: ReplayJson) -> dict[str, object]:
    """Return the columns of the table; each range as `mean [low, high]`."""
    names = ("pruner", "stopped", "epochs_saved", "epochs", "hours_saved", "hours", "regret", "best")
    values: dict[str, Any] = {name: row[name] for name in names}
    return {name: _range(value) if isinstance(value, dict) else value for name, value in values.items()}


def _range(spread: dict[str, Any]) -> str:
    mean = "" if spread["mean"] is None else f"{as_text(spread['mean'])} "
    return f"{mean}[{as_text(spread['low'])}, {as_text(spread['high'])}]"
