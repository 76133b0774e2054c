"""Read models: what the query commands print, from the storage alone. Starts without JAX and without Optuna."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import Engine

from tuner.filters import filtered, in_order
from tuner.storage.queries import (
    Standing,
    StudyRow,
    TrialRow,
    find_study,
    outcome_counts,
    read_about,
    read_attempts,
    read_best,
    read_metrics,
    read_standings,
    read_studies,
    read_trial,
    read_trials,
)
from tuner.trial import Outcome

Row = dict[str, Any]


def study_rows(engine: Engine) -> list[Row]:
    """Return one row for each study: its name, state, objectives, counts and best value."""
    standings = read_standings(engine)
    return [_study_row(engine, study, standings.get(study.study_id)) for study in read_studies(engine)]


def _study_row(engine: Engine, study: StudyRow, standing: Standing | None) -> Row:
    counts = outcome_counts(engine, study.study_id)
    row: Row = {
        "study": study.name,
        "state": None if standing is None else _state(standing, counts),
        "workers": 0 if standing is None else standing.workers,
        "objective": ", ".join(study.record.get("objective", [])) or None,
        "direction": ", ".join(study.directions),
        "trials": sum(counts.values()),
        **{outcome.value: counts[outcome] for outcome in Outcome},
        "best": None,
    }
    if len(study.directions) == 1:
        best = read_best(engine, study, 1)
        row["best"] = plain(best[0].values[0]) if best and best[0].values else None
    return row


def _state(standing: Standing, counts: Mapping[Outcome, int]) -> str:
    """Return what a study is doing; the first that holds of: stopped, finished, out of hours, running, idle."""
    used = sum(count for outcome, count in counts.items() if outcome.uses_budget)
    if standing.is_stopped:
        return "stopped"
    if standing.trials is not None and used >= standing.trials:
        return "finished"
    if standing.is_out_of_hours:
        return "out of hours"
    return "running" if standing.workers else "idle"


def trial_rows(
    engine: Engine,
    study_name: str,
    *,
    where: Sequence[str] = (),
    outcomes: Collection[Outcome] = (),
    sort: str | None = None,
    limit: int | None = None,
) -> list[Row]:
    """Return one row for each trial, by number.

    Args:
        engine: The storage's engine.
        study_name: The study.
        where: Conditions that all must hold; see `tuner.filters.filtered`.
        outcomes: Only trials with one of these; all if empty.
        sort: A column or hyperparameter, `-NAME` for the largest first.
        limit: How many at most.

    Raises:
        UnknownStudy: there is no such study.
        UsageError: a condition, or what to sort by, is none.
    """
    study = find_study(engine, study_name)
    rows = [_trial_row(study, trial) for trial in read_trials(engine, study)]
    kept = [row for row in filtered(rows, where) if not outcomes or row["outcome"] in outcomes]
    return in_order(kept, sort)[:limit]


def best_rows(engine: Engine, study_name: str, count: int | None = 1) -> list[Row]:
    """Return the best complete trials, best first; of a study with several objectives its Pareto front.

    Args:
        engine: The storage's engine.
        study_name: The study.
        count: How many at most; None for all.

    Raises:
        UnknownStudy: there is no such study.
    """
    study = find_study(engine, study_name)
    if len(study.directions) == 1:
        best = read_best(engine, study, count)
    else:
        best = pareto_front(read_trials(engine, study), study.maximize)[:count]
    return [_trial_row(study, trial) for trial in best]


def pareto_front(trials: Sequence[TrialRow], maximize: Sequence[bool]) -> list[TrialRow]:
    """Return the complete trials that no other one beats in one objective and equals or beats in all, by number."""
    signs = [-1.0 if larger else 1.0 for larger in maximize]
    costs = {
        trial.trial_id: [sign * value for sign, value in zip(signs, trial.values, strict=True)]
        for trial in trials
        if trial.outcome is Outcome.COMPLETE and trial.values is not None
    }

    def is_beaten(trial_id: int) -> bool:
        own = costs[trial_id]
        return any(
            other != own and all(theirs <= mine for theirs, mine in zip(other, own, strict=True))
            for other in costs.values()
        )

    return [trial for trial in trials if trial.trial_id in costs and not is_beaten(trial.trial_id)]


def show_row(engine: Engine, study_name: str, number: int) -> Row:
    """Return everything about one trial: its row, its reports by epoch, when and where it ran, its error.

    Raises:
        UnknownStudy: there is no such study or trial.
    """
    study = find_study(engine, study_name)
    trial = read_trial(engine, study, number)
    attempts = read_attempts(engine, trial.trial_id)
    last = attempts[-1]["worker"] if attempts else ""
    return {
        "study": study.name,
        **_trial_row(study, trial),
        "started": trial.started.isoformat(timespec="seconds") + "Z" if trial.started else None,
        "completed": trial.completed.isoformat(timespec="seconds") + "Z" if trial.completed else None,
        **_timings(trial),
        "worker": trial.record.get("worker"),
        "checkpoint": trial.record.get("checkpoint"),
        "error": trial.record.get("error"),
        "reports": _report_rows(trial, read_metrics(engine, trial.trial_id)),
        "attempts": [_attempt_row(attempt) for attempt in attempts],
        "ran_with": read_about(engine, {attempt["worker"] for attempt in attempts[-1:]}).get(last),
    }


def _timings(trial: TrialRow) -> Row:
    """Return where a trial's seconds went; `wait_s` is the rest: earlier attempts at it, and time nobody ran it."""
    compile_s, train_s, compilations = (trial.record.get(key) for key in ("compile_s", "train_s", "compilations"))
    wait_s = None
    if trial.seconds is not None and compile_s is not None and train_s is not None:
        wait_s = max(0.0, round(trial.seconds - compile_s - train_s, 3))
    return {"compile_s": compile_s, "compilations": compilations, "train_s": train_s, "wait_s": wait_s}


def _report_rows(trial: TrialRow, metrics: Mapping[int, tuple[int, Mapping[str, float]]]) -> list[Row]:
    rows = []
    for epoch in sorted({*trial.reports, *metrics}):
        step, named = metrics.get(epoch, (None, {}))
        row: Row = {"epoch": epoch, "step": step, "value": plain(trial.reports.get(epoch))}
        rows.append({**row, "metrics": {name: plain(value) for name, value in named.items()}})
    return rows


def _attempt_row(attempt: Row) -> Row:
    """Return one worker's run of a trial; `ending` is an outcome, `preempted` or `died`, None while it goes on."""
    end_s = attempt["ended_at_s"]
    return {
        "worker": attempt["worker"],
        "devices": attempt["devices"],
        "seconds": None if end_s is None else round(end_s - attempt["started_at_s"], 3),
        "ending": attempt["ending"],
        "error": attempt["error"],
    }


def _trial_row(study: StudyRow, trial: TrialRow) -> Row:
    row: Row = {"number": trial.number, "outcome": trial.outcome.value}
    values = None if trial.values is None else [plain(value) for value in trial.values]
    if len(study.directions) == 1:
        row["value"] = None if values is None else values[0]
    else:
        row["values"] = values
    row["seconds"] = None if trial.seconds is None else round(trial.seconds, 3)
    row["hparams"] = {name: plain(hparam) for name, hparam in trial.hparams.items()}
    return row


def plain(value: Any) -> Any:
    """Return a value that JSON can carry: NaN and infinities as their names."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
