"""`tuner studies`, `trials`, `best` and `show`: query studies without importing JAX or Optuna."""

from __future__ import annotations

import enum
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from tuner.cli.arguments import DebugOption, Format, FormatOption, StorageOption, StudiesArgument, StudyArgument
from tuner.cli.printing import emit, print_fields
from tuner.errors import UsageError
from tuner.output.log import say, tell
from tuner.output.numbers import as_text
from tuner.storage import connected, storage_url
from tuner.trial import Outcome

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from tuner.results.json_rows import BestJson


def studies(
    owner: Annotated[str | None, typer.Option(metavar="NAME", help="Only the studies of this owner.")] = None,
    label: Annotated[
        list[str] | None, typer.Option(metavar="LABEL", help="Only studies with this label; may be repeated.")
    ] = None,
    storage: StorageOption = None,
    format: FormatOption = Format.TABLE,
    debug: DebugOption = False,
) -> None:
    """List the studies of a storage with their owner, labels and state.

    For example: tuner studies --owner ann --label vision
    """
    from tuner.results.rows import study_rows
    from tuner.study.ownership import check_labels, check_owner

    check_owner(owner)
    check_labels(label or [])
    with connected(storage_url(storage)) as engine:
        emit(study_rows(engine, owner=owner, labels=label or ()), format)


def trials(
    study: StudyArgument,
    where: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CONDITION",
            help="Only trials that meet this condition: 'learning_rate<1e-3', optimizer=adam or, for several"
            " objectives, 'values.loss<1'; may be repeated.",
        ),
    ] = None,
    outcome: Annotated[
        list[Outcome] | None, typer.Option(help="Only trials with this outcome; may be repeated.")
    ] = None,
    sort: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Column or hyperparameter to sort by; -NAME puts the largest first."),
    ] = None,
    limit: Annotated[int | None, typer.Option(metavar="N", help="Maximum number of trials to list.")] = None,
    columns: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="Only these columns, separated by commas: number,value,learning_rate,user_attrs.note or, for several"
            " objectives, values.loss.",
            show_default=False,
        ),
    ] = None,
    storage: StorageOption = None,
    format: FormatOption = Format.TABLE,
    debug: DebugOption = False,
) -> None:
    """List the trials of a study.

    For example: tuner trials digits_mlp --where 'learning_rate<1e-3' --outcome complete --sort value --limit 10
    """
    from tuner.results.rows import only_columns, trial_rows

    if limit is not None and limit < 1:
        raise UsageError(f"--limit must be at least 1: got {limit}")
    with connected(storage_url(storage)) as engine:
        rows = trial_rows(engine, study, where=where or (), outcomes=outcome or (), sort=sort, limit=limit)
        emit(rows if columns is None else only_columns(rows, columns.split(",")), format)


def best(
    study: StudyArgument,
    count: Annotated[
        int | None,
        typer.Option("-n", metavar="K", help="Number of trials.  [default: 1, or the whole Pareto front]"),
    ] = None,
    prefer: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="With several objectives: order the Pareto front by this objective, or by balance of all (knee).",
            show_default=False,
        ),
    ] = None,
    storage: StorageOption = None,
    format: FormatOption = Format.TABLE,
    debug: DebugOption = False,
) -> None:
    """List the best trials of a study.

    Lists complete trials that satisfy their constraints; for several objectives, the Pareto front. Trials that `tuner
    confirm` has trained again come first, ranked by their mean over the seeds, with its 95 % interval.
    For example: tuner best digits_mlp -n 5 --format json
    """
    from tuner.results.rows import no_best

    if count is not None and count < 1:
        raise UsageError(f"-n must be at least 1: got {count}")
    with connected(storage_url(storage)) as engine:
        rows = _best(engine, study, count, prefer)
        missing = None if rows else no_best(engine, study)
    if missing is not None and format is Format.TABLE:
        print(missing)
    else:
        emit(rows, format)
        if missing is not None:
            say(missing)
    if format is Format.TABLE:
        _say_epochs(rows)
    say_how_sure(rows)


def _say_epochs(rows: Sequence[BestJson]) -> None:
    """Print on stderr which epoch's value ranks the trials, and which epoch's model is kept."""
    value, kept = (rows[0]["value_epoch"], rows[0]["kept_epoch"]) if rows else (None, None)
    if value is None:
        return
    models = {None: "", value: "; kept models are of that epoch"}
    say(f"ranked by each trial's {value} epoch{models.get(kept, f'; kept models are of its {kept} epoch')}")


def say_how_sure(rows: Sequence[BestJson]) -> None:
    """Print on stderr how the best trial compares with the others and with the baseline."""
    say_ties(rows)
    _say_baseline(rows)


def _say_baseline(rows: Sequence[BestJson]) -> None:
    baseline = rows[0].get("baseline") if rows else None
    if baseline is None:
        return
    number, than = rows[0]["number"], f"the baseline (trial {baseline['number']}, {as_text(baseline['value'])})"
    if number == baseline["number"]:
        say(f"the best trial, {number}, is the baseline")
        return
    if baseline["better_by"] is None:
        say(f"trial {number} cannot be compared with {than}")
        return
    better_by, seeds = float(baseline["better_by"]), baseline["seeds"]
    by = f"trial {number} is {'worse' if better_by < 0 else 'better'} than {than} by {as_text(abs(better_by))}"
    low, high = baseline["low"], baseline["high"]
    if low is None or high is None:
        known = f"over {seeds} seeds that show no noise" if seeds > 1 else "of one seed"
        say(f"{by}, {known}: run `tuner confirm` with more seeds to see how certain that is")
        return
    sign = -1 if better_by < 0 else 1
    ends = ", ".join(as_text(end) for end in sorted((sign * float(low), sign * float(high))))
    say(f"{by} [{ends}] (95 %, Tukey, {seeds} seeds)")


def say_ties(rows: Sequence[BestJson]) -> None:
    """Print on stderr which trials cannot be told apart from the best, if other seeds were tried."""
    confirmed = rows[0].get("confirmed") if rows else None
    tied = [str(number) for number in confirmed["tied_with"]] if confirmed else []
    if tied:
        others = f"trial{'s' if len(tied) > 1 else ''} {', '.join(tied)}"
        say(f"trial {rows[0]['number']} cannot be told apart from {others} (95 %, Tukey)")


def _best(engine: Engine, study: str, count: int | None, prefer: str | None = None) -> list[BestJson]:
    from tuner.results.rows import best_rows

    rows = best_rows(engine, study, count or 1, prefer=prefer)
    if not rows or "values" not in rows[0]:
        return rows
    # With several objectives one trial of the front is as arbitrary as any other.
    front = best_rows(engine, study, None, prefer=prefer)
    if count is not None and prefer is None and count < len(front):
        raise UsageError(
            f"the Pareto front of {study!r} has {len(front)} trials: pass --prefer to say which of them -n {count} "
            "lists, or leave out -n"
        )
    return front[:count]


def show(
    study: StudyArgument,
    number: Annotated[int, typer.Argument(metavar="NUMBER", help="The trial's number.")],
    storage: StorageOption = None,
    format: FormatOption = Format.TABLE,
    debug: DebugOption = False,
) -> None:
    """Show one trial.

    Prints its hyperparameters, times, curves, errors, workers and package versions.
    For example: tuner show digits_mlp 16
    """
    from tuner.results.rows import show_row

    with connected(storage_url(storage)) as engine:
        row = show_row(engine, study, number)
    if format is Format.TABLE:
        print_fields(row)
    elif format is Format.JSON:
        print(json.dumps(row, indent=2))
    else:
        emit([row], format)


def compare(
    studies: StudiesArgument,
    storage: StorageOption = None,
    format: FormatOption = Format.TABLE,
    debug: DebugOption = False,
) -> None:
    """Compare studies.

    Prints the best and median of the (first) objective, the number of trials, device hours, and an estimate of the
    hours that pruning saved.
    For example: tuner compare digits_mlp digits_cnn
    """
    from tuner.results.compare import compare_rows

    with connected(storage_url(storage)) as engine:
        emit(compare_rows(engine, studies), format)


class Of(enum.StrEnum):
    """What hyperparameters are important for."""

    OBJECTIVE = "objective"
    SECONDS = "seconds"


def importance(
    study: StudyArgument,
    of: Annotated[
        Of, typer.Option(help="Rank by the effect on the objective, or on the training time of a complete trial.")
    ] = Of.OBJECTIVE,
    storage: StorageOption = None,
    format: FormatOption = Format.TABLE,
    debug: DebugOption = False,
) -> None:
    """Rank hyperparameters by importance (PED-ANOVA and fANOVA).

    PED-ANOVA finds what distinguishes the best tenth of the trials from the rest; fANOVA measures how much each
    hyperparameter affects the objective over the whole space. A line on stderr says whether they agree. With --of
    seconds, PED-ANOVA finds what distinguishes the fastest tenth.
    For example: tuner importance digits_mlp --of seconds
    """
    from tuner.results.compare import importance_rows

    rows, notes = importance_rows(storage_url(storage), study, of.value)
    emit(rows, format)
    for note in notes:
        say(f"{note}")


def tell_best(study: str, storage: str | None) -> None:
    """Log the best trials of a study that has just ended as JSON."""
    with connected(storage_url(storage)) as engine:
        rows = _best(engine, study, None)
    for row in rows:
        known = {name: value for name, value in row.items() if name in ("value", "values", "objectives", "hparams")}
        tell(None, "best", "info", trial=row["number"], **known)


def print_best(study: str, storage: str | None) -> None:
    """Print the best trial of a study that has just ended."""
    from tuner.results.rows import no_best

    with connected(storage_url(storage)) as engine:
        rows = _best(engine, study, None)
        missing = None if rows else no_best(engine, study)
    if missing is not None:
        print(missing)
    elif "values" in rows[0]:
        print(f"Pareto front of {study!r}:")
        emit(rows, Format.TABLE)
    else:
        print(f"best trial of {study!r}:")
        print_fields(rows[0])
