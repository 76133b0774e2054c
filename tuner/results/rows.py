"""The rows that the query commands print, read from the storage. Does not import JAX or Optuna."""

from __future__ import annotations

import datetime
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from sqlalchemy import Engine

from tuner.errors import UsageError
from tuner.output.labels import labelled
from tuner.output.numbers import plain, plain_json, with_error
from tuner.results.choice import no_rule, pareto_front, preferred
from tuner.results.confidence import Confirmed, rank
from tuner.results.filters import filtered, in_order, picked
from tuner.results.gpus import gpu_row
from tuner.results.json_rows import (
    AttemptJson,
    BaselineJson,
    BestJson,
    BestStderrJson,
    BusyJson,
    ConfirmedJson,
    CopyJson,
    EndedJson,
    EndJson,
    EpochsJson,
    JsonRow,
    ReportJson,
    ResultJson,
    Scalar,
    SeedsJson,
    ShownJson,
    StudyJson,
    TimingsJson,
    TrialJson,
    WatchedJson,
)
from tuner.storage.read.activity import WorkerRow, read_workers
from tuner.storage.read.extensions import find_extension
from tuner.storage.read.lineage import Attempt, read_about, read_attempts, read_metrics
from tuner.storage.read.population import read_copies
from tuner.storage.read.queries import (
    ProgramUse,
    Standing,
    StudyRow,
    TrialRow,
    find_baseline,
    find_study,
    outcome_counts,
    read_best,
    read_by_ids,
    read_latest,
    read_programs,
    read_standings,
    read_studies,
    read_trial,
    read_trials,
)
from tuner.storage.read.ranking import read_values
from tuner.storage.worker.confirmations import read_confirmations
from tuner.storage.worker.studies import find_end
from tuner.study.launch_record import kept_epoch_of, value_epoch_of
from tuner.study.population import Copy
from tuner.study.source import code_digest
from tuner.trial import Outcome

SEARCH_ENDED = "the sampler has ended the search"
"""The reason of a study that is finished because its sampler has nothing more to suggest, or has stopped it."""


def study_rows(engine: Engine, *, owner: str | None = None, labels: Collection[str] = ()) -> list[StudyJson]:
    """Return one row for each study: its name, owner, state, objectives, counts and best value.

    Args:
        engine: The storage's engine.
        owner: Only the studies of this owner.
        labels: Only studies that have all these labels.
    """
    standings = read_standings(engine)
    return [
        _study_row(engine, study, standings.get(study.study_id))
        for study in read_studies(engine)
        if owner in (None, study.owner) and set(labels) <= set(study.labels)
    ]


def study_row(engine: Engine, study_name: str) -> StudyJson:
    """Return the row of one study.

    Raises:
        UnknownStudy: there is no such study.
    """
    study = find_study(engine, study_name)
    return _study_row(engine, study, read_standings(engine, study.study_id).get(study.study_id))


def _study_row(engine: Engine, study: StudyRow, standing: Standing | None) -> StudyJson:
    counts = outcome_counts(engine, study.study_id)
    best = read_best(engine, study, 1) if len(study.directions) == 1 else []
    state, reason = (None, None) if standing is None else _state(standing, counts)
    return {
        "study": study.name,
        "owner": study.owner,
        "labels": list(study.labels),
        "state": state,
        "reason": reason,
        "workers": 0 if standing is None else standing.workers,
        "objective": ", ".join(study.record.get("objective", [])) or None,
        "direction": ", ".join(study.directions),
        "trials": sum(counts.values()),
        **ended_counts(counts),
        "preempted": counts[Outcome.PREEMPTED],
        "running": counts[Outcome.RUNNING],
        "waiting": counts[Outcome.WAITING],
        "best": plain(best[0].values[0]) if best and best[0].values else None,
        **_best_stderr(study, best),
    }


def _best_stderr(study: StudyRow, best: Sequence[TrialRow]) -> BestStderrJson:
    if not study.has_seeds:
        return {}
    stderrs = best[0].stderrs if best else None
    return {"best_stderr": None if stderrs is None else plain(stderrs[0])}


def ended_counts(counts: Mapping[Outcome, int]) -> EndedJson:
    """Return how many trials have ended how, by the names of the outcomes."""
    return {
        "complete": counts[Outcome.COMPLETE],
        "pruned": counts[Outcome.PRUNED],
        "diverged": counts[Outcome.DIVERGED],
        "out_of_memory": counts[Outcome.OUT_OF_MEMORY],
        "timed_out": counts[Outcome.TIMED_OUT],
        "failed": counts[Outcome.FAILED],
    }


def _state(standing: Standing, counts: Mapping[Outcome, int]) -> tuple[str, str | None]:
    """Return the state of a study, and why it has ended early.

    The state is the first that applies of stopped, finished, out of hours, running, idle.
    """
    used = sum(count for outcome, count in counts.items() if outcome.uses_budget)
    if standing.is_stopped:
        return "stopped" if standing.end is None else "finished", standing.end
    if standing.trials is not None and used >= standing.trials:
        return "finished", None
    if standing.search_ended:
        return "finished", SEARCH_ENDED
    if standing.is_out_of_hours:
        return "out of hours", None
    return "running" if standing.workers else "idle", None


def progress(engine: Engine, study_name: str, last: int) -> WatchedJson:
    """Return the progress of a study: its row, the current trial of each worker, and the latest ended trials.

    Args:
        engine: The storage's engine.
        study_name: The study.
        last: The number of ended trials to return.

    Raises:
        UnknownStudy: there is no such study.
    """
    study = find_study(engine, study_name)
    return {
        "study": study_row(engine, study_name),
        "workers": [_busy_row(row) for row in read_workers(engine, study.study_id) if row["trial"] is not None],
        "ended": [_end_row(study, trial) for trial in read_latest(engine, study, last)],
    }


def progress_line(row: StudyJson) -> str:
    """Return the progress of a study, its row, in one line."""
    counts = ", ".join(f"{count} {name}" for name, count in shown_counts(row).items())
    best = f", best {with_error(row['best'], row.get('best_stderr'))}" if row["best"] is not None else ""
    reason = f" ({row['reason']})" if row["reason"] else ""
    return f"{row['study']}: {row['state'] or 'not created by tuner'}{reason}, {counts or 'no trials'}{best}"


def shown_counts(row: JsonRow) -> dict[str, object]:
    """Return the number of a study's trials with each outcome that occurs, by the outcome's text."""
    return {outcome.replace("_", " "): row[outcome] for outcome in Outcome if row[outcome]}


def _busy_row(row: WorkerRow) -> BusyJson:
    metrics = {name: value for name, value in (row["metrics"] or {}).items() if not name.startswith("train_")}
    return {
        "worker": row["worker"],
        "devices": row["devices"],
        "trial": row["trial"],
        "epoch": row["epoch"],
        "metrics": ", ".join(f"{name} {float(value):.4g}" for name, value in metrics.items()),
    }


def trial_rows(
    engine: Engine,
    study_name: str,
    *,
    where: Sequence[str] = (),
    outcomes: Collection[Outcome] = (),
    sort: str | None = None,
    limit: int | None = None,
) -> list[TrialJson]:
    """Return one row for each trial, by number.

    Args:
        engine: The storage's engine.
        study_name: The study.
        where: Conditions that must all hold; see `tuner.results.filters.filtered`. With several objectives, each is
            `values.NAME`.
        outcomes: Outcomes of the trials to return; all if empty.
        sort: A column or hyperparameter; `-NAME` for the largest first.
        limit: The maximum number of rows.

    Raises:
        UnknownStudy: there is no such study.
        UsageError: a condition or the sort column is invalid.
    """
    study = find_study(engine, study_name)
    rows = [_trial_row(study, trial) for trial in read_trials(engine, study)]
    asked = filtered(rows, where, _columns)
    kept = [row for row in asked if not outcomes or row["outcome"] in outcomes]
    return in_order(kept, sort, _columns)[:limit]


def only_columns(rows: Sequence[TrialJson], names: Sequence[str]) -> list[JsonRow]:
    """Return some columns of the rows of trials, in this order; None where a trial does not have one.

    Args:
        rows: The rows.
        names: Columns, hyperparameters, `values.NAME` of several objectives, or `user_attrs.NAME`.

    Raises:
        UsageError: no row has such a column.
    """
    return picked([_columns(row) for row in rows], [name.strip() for name in names])


def _columns(row: TrialJson) -> JsonRow:
    """Return a row with a column for each of several objectives and for each user attribute."""
    return labelled({name: value for name, value in row.items() if name != "user_attrs"}) | {
        f"user_attrs.{name}": value for name, value in row["user_attrs"].items()
    }


def best_rows(
    engine: Engine, study_name: str, count: int | None = 1, *, confirmed: bool = True, prefer: str | None = None
) -> list[BestJson]:
    """Return the best complete trials, best first; for several objectives, the Pareto front.

    Trials that violate a constraint are skipped. Trials that were trained again with other seeds (`tuner confirm`) come
    first, by their mean over these seeds, because the value that made a trial the best includes luck. Each row has a
    comparison with the study's baseline, if any.

    Args:
        engine: The storage's engine.
        study_name: The study.
        count: The maximum number of trials; None for all.
        confirmed: Whether to use the results of `tuner confirm`.
        prefer: With several objectives, which trials come first; see `tuner.results.choice.preferred`. By number if
            None.

    Raises:
        UnknownStudy: there is no such study.
        UsageError: `prefer` is not possible for this study.
    """
    study = find_study(engine, study_name)
    if len(study.directions) > 1:
        front = pareto_front(read_trials(engine, study), study.maximize)
        chosen = preferred(study, front, prefer) if front and prefer is not None else front
        return [{**_trial_row(study, trial), **_epochs_row(study)} for trial in chosen[:count]]
    if prefer is not None:
        raise no_rule(study)
    repeats = read_confirmations(engine, study.study_id) if confirmed else {}
    again = {trial.trial_id: trial for trial in read_by_ids(engine, study, list(repeats))}
    infeasible = {trial_id for trial_id, trial in again.items() if trial.is_feasible is False}
    ranked = rank(repeats, maximize=study.maximize[0], infeasible=infeasible)
    best = {trial.trial_id: trial for trial in read_best(engine, study, None if count is None else count + len(ranked))}
    found = {**best, **again}
    known = [trial_id for trial_id in ranked if trial_id in found and trial_id not in infeasible]
    order = [trial_id for trial_id in known if ranked[trial_id].mean is not None]
    order += [trial_id for trial_id in best if trial_id not in ranked]
    order += [trial_id for trial_id in known if ranked[trial_id].mean is None]  # not finite with another seed
    tied = [found[one].number for one in known[1:] if ranked[one].is_tied]
    baseline = _find_baseline(engine, study)
    return [
        {
            **_end_row(study, found[one]),
            **_epochs_row(study),
            "confirmed": _confirmed_row(ranked[one], [] if at else tied) if one in ranked else None,
            "baseline": None if baseline is None else _compared(study, found[one], baseline, ranked),
            "hparams": _hparams_of(found[one]),
            "user_attrs": plain_json(found[one].user_attrs),
        }
        for at, one in enumerate(order[:count])
    ]


def _epochs_row(study: StudyRow) -> EpochsJson:
    """Return which epoch ranks the trials, and which one's model is kept."""
    kind = study.record.get("train", "trainer") if study.record else None
    is_ranked, keeps = kind in ("trainer", "function", "command"), kind in ("trainer", "function")
    return {
        "value_epoch": value_epoch_of(study.record) if is_ranked else None,
        "kept_epoch": kept_epoch_of(study.record) if keeps else None,
    }


def _confirmed_row(confirmed: Confirmed, tied: list[int]) -> ConfirmedJson:
    return {
        "seeds": confirmed.seeds,
        "mean": plain(confirmed.mean),
        "low": plain(confirmed.low),
        "high": plain(confirmed.high),
        "is_tied": confirmed.is_tied,
        "margin": plain(confirmed.margin),
        "tied_with": tied,
    }


def no_best(engine: Engine, study_name: str) -> str:
    """Return why a study that has no best trial has none, with its numbers of trials by outcome."""
    infeasible = no_feasible(engine, study_name)
    if infeasible is not None:
        return infeasible
    counts = outcome_counts(engine, find_study(engine, study_name).study_id)
    found = ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count)
    return f"study {study_name!r} has no complete trial yet: {found or 'no trials'}"


def no_feasible(engine: Engine, study_name: str) -> str | None:
    """Return the message if all complete trials of a study violate a constraint, else None."""
    study = find_study(engine, study_name)
    complete = outcome_counts(engine, study.study_id)[Outcome.COMPLETE]
    if not complete or read_values(engine, study.study_id):
        return None
    return (
        f"no best trial: none of the {complete} complete trials of {study_name!r} satisfies all constraints; "
        f"run `tuner show {study_name} NUMBER` to see a trial's constraints"
    )


def _find_baseline(engine: Engine, study: StudyRow) -> TrialRow | None:
    """Return the trial with the study's baseline, if it is complete."""
    number = find_baseline(engine, study)
    return None if number is None else read_trial(engine, study, number)


def _compared(study: StudyRow, trial: TrialRow, baseline: TrialRow, ranked: Mapping[int, Confirmed]) -> BaselineJson:
    """Return how much better a trial is than the baseline, over the common seeds if there are any.

    The interval is Tukey's, so that it is also valid for a trial that was selected as the best of many.
    """
    own, other = ranked.get(trial.trial_id), ranked.get(baseline.trial_id)
    values, seeds, margin = (trial.values, baseline.values), 0, None
    if own is not None and other is not None:
        values, seeds, margin = ([own.mean], [other.mean]), own.seeds, own.margin
    first, second = (None if value is None else value[0] for value in values)
    better = low = high = None
    if first is not None and second is not None:
        better = first - second if study.maximize[0] else second - first
        if margin is not None and trial.trial_id != baseline.trial_id:
            low, high = better - margin, better + margin
    return {
        "number": baseline.number,
        "value": plain(second),
        "better_by": plain(better),
        "low": plain(low),
        "high": plain(high),
        "seeds": seeds,
    }


def show_row(engine: Engine, study_name: str, number: int) -> ShownJson:
    """Return all information about a trial: its row, its reports by epoch, when and where it ran, its error.

    Raises:
        UnknownStudy: there is no such study or trial.
    """
    study = find_study(engine, study_name)
    trial = read_trial(engine, study, number)
    attempts = read_attempts(engine, trial.trial_id)
    last = attempts[-1].worker if attempts else None
    end, extension = find_end(engine, study.study_id), find_extension(engine, trial.trial_id)
    return {
        "study": study.name,
        **_trial_row(study, trial),
        **_seeds_row(study, trial),
        "constraints": {name: plain(value) for name, value in trial.constraints.items()} or None,
        "started": format_time(trial.started),
        "completed": format_time(trial.completed),
        **_timings(trial, read_programs(engine, trial.trial_id)),
        "gpu": gpu_row(trial),
        "worker": trial.record.worker,
        "checkpoint": trial.record.checkpoint,
        "error": trial.record.error,
        "copies": _copy_rows(read_copies(engine, study.study_id, number).get(number, ())),
        "extends": None if extension is None else extension.of,
        "reports": _report_rows(trial, read_metrics(engine, trial.trial_id)),
        "attempts": [_attempt_row(attempt) for attempt in attempts],
        "ran_with": None if last is None else read_about(engine, [last]).get(last),
        "ended_study": None if end is None or end["trial"] != number else end["why"],
    }


def format_time(moment: datetime.datetime | None, timespec: str = "seconds") -> str | None:
    """Return a trial's time in ISO 8601, UTC with a `Z`; without a `Z` if its zone is unknown."""
    if moment is None or moment.tzinfo is None:
        return moment and moment.isoformat(timespec=timespec)
    return moment.astimezone(datetime.UTC).replace(tzinfo=None).isoformat(timespec=timespec) + "Z"


def _timings(trial: TrialRow, programs: ProgramUse) -> TimingsJson:
    """Return how a trial's time was spent; `wait_s` is the rest: earlier attempts, and time when no worker ran it."""
    compile_s, train_s, wait_s = trial.record.compile_s, trial.record.train_s, None
    if trial.seconds is not None and compile_s is not None and train_s is not None:
        wait_s = max(0.0, round(trial.seconds - compile_s - train_s, 3))
    compilations = trial.record.compilations
    return {
        "compile_s": compile_s,
        "compilations": compilations,
        "programs_fetched": None if compilations is None else programs.fetched,
        "compile_saved_s": programs.saved_s,
        "lanes": None if compilations is None else programs.lanes,
        "train_s": train_s,
        "wait_s": wait_s,
    }


def _copy_rows(copies: Sequence[Copy]) -> list[CopyJson] | None:
    return [{"epoch": copy.epoch, "trial": copy.trial, "hparams": dict(copy.hparams)} for copy in copies] or None


def _report_rows(trial: TrialRow, metrics: Mapping[int, tuple[int, Mapping[str, float]]]) -> list[ReportJson]:
    rows: list[ReportJson] = []
    nothing: tuple[None, Mapping[str, float]] = (None, {})
    for epoch in sorted({*trial.reports, *metrics}):
        step, named = metrics.get(epoch, nothing)
        shown = {name: plain(value) for name, value in named.items()}
        rows.append({"epoch": epoch, "step": step, "value": plain(trial.reports.get(epoch)), "metrics": shown})
    return rows


def has_changed(engine: Engine, trial: TrialRow, file: Path) -> bool:
    """Return whether a study's file differs from the one that a trial ran with, ignoring comments and layout."""
    worker = trial.record.worker or ""
    about = read_about(engine, [worker]).get(worker)
    code = None if about is None else about.get("code")
    return code is not None and code != code_digest(file)


OTHER_FILE = ", or pass a copy of the old version as `file`"
"""What else the user of a command can do that takes the study's file."""


def check_file(engine: Engine, trial: TrialRow, file: Path, or_else: str = "") -> None:
    """Compare a study's file with the one that a trial ran with.

    Args:
        engine: The storage's engine.
        trial: The trial.
        file: The study's file.
        or_else: What else the user can do, for the message.

    Raises:
        UsageError: they differ.
    """
    if has_changed(engine, trial, file):
        raise UsageError(f"the study's file has changed since trial {trial.number} ran: {file}; restore it{or_else}")


def _attempt_row(attempt: Attempt) -> AttemptJson:
    end_s = attempt.ended_at_s
    return {
        "worker": attempt.worker,
        "devices": attempt.devices,
        "seconds": None if end_s is None else round(end_s - attempt.started_at_s, 3),
        "ending": attempt.ending,
        "error": attempt.error,
    }


def _trial_row(study: StudyRow, trial: TrialRow) -> TrialJson:
    return {**_end_row(study, trial), "hparams": _hparams_of(trial), "user_attrs": plain_json(trial.user_attrs)}


def _end_row(study: StudyRow, trial: TrialRow) -> EndJson:
    return {
        "number": trial.number,
        "outcome": trial.outcome.value,
        **_result_of(study, trial),
        "is_feasible": trial.is_feasible,
        "seconds": None if trial.seconds is None else round(trial.seconds, 3),
    }


def _result_of(study: StudyRow, trial: TrialRow) -> ResultJson:
    values = None if trial.values is None else [plain(value) for value in trial.values]
    row: ResultJson = {"value": None if values is None else values[0]}
    if len(study.directions) > 1:
        row = {"values": values, "objectives": study.objectives}
    if not study.has_seeds:
        return row
    stderrs = None if trial.stderrs is None else [plain(stderr) for stderr in trial.stderrs]
    if len(study.directions) > 1:
        row["stderrs"] = stderrs
    else:
        row["stderr"] = None if stderrs is None else stderrs[0]
    row["trained_seeds"] = None if trial.seeds is None else len(trial.seeds.values)
    return row


def _seeds_row(study: StudyRow, trial: TrialRow) -> SeedsJson:
    """Return the values of a trial's seeds, if trials of its study have several."""
    if not study.has_seeds:
        return {}
    values = None if trial.seeds is None else [[plain(value) for value in one] for one in trial.seeds.values]
    if values is None or len(study.directions) > 1:
        return {"seed_values": values}
    return {"seed_values": [one[0] for one in values]}


def _hparams_of(trial: TrialRow) -> dict[str, Scalar]:
    return {name: plain(hparam) for name, hparam in trial.hparams.items()}
