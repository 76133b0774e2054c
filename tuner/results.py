"""Read models: what the query commands print, from the storage alone. Starts without JAX and without Optuna."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Engine

from tuner.storage.queries import (
    StudyRow,
    TrialRow,
    find_study,
    outcome_counts,
    read_attempts,
    read_best,
    read_studies,
    read_trial,
    read_trials,
)
from tuner.trial import Outcome

Row = dict[str, Any]


def study_rows(engine: Engine) -> list[Row]:
    """Return one row for each study: its name, objectives, counts and best value."""
    return [_study_row(engine, study) for study in read_studies(engine)]


def _study_row(engine: Engine, study: StudyRow) -> Row:
    counts = outcome_counts(engine, study.study_id)
    row: Row = {
        "study": study.name,
        "objective": ", ".join(study.record.get("objective", [])) or None,
        "direction": ", ".join(study.directions),
        "trials": sum(counts.values()),
        **{outcome.value: counts[outcome] for outcome in Outcome},
        "best": None,
    }
    if len(study.directions) == 1:
        best = read_best(engine, study, 1)
        row["best"] = _plain(best[0].values[0]) if best and best[0].values else None
    return row


def trial_rows(engine: Engine, study_name: str) -> list[Row]:
    """Return one row for each trial, by number.

    Raises:
        UnknownStudy: there is no such study.
    """
    study = find_study(engine, study_name)
    return [_trial_row(study, trial) for trial in read_trials(engine, study)]


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
    return {
        "study": study.name,
        **_trial_row(study, trial),
        "started": trial.started.isoformat(timespec="seconds") + "Z" if trial.started else None,
        "completed": trial.completed.isoformat(timespec="seconds") + "Z" if trial.completed else None,
        "reports": [{"epoch": epoch, "value": _plain(value)} for epoch, value in trial.reports.items()],
        **{key: trial.record.get(key) for key in ("worker", "compile_s", "train_s", "checkpoint", "error")},
        "attempts": [_attempt_row(attempt) for attempt in read_attempts(engine, trial.trial_id)],
    }


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
    values = None if trial.values is None else [_plain(value) for value in trial.values]
    if len(study.directions) == 1:
        row["value"] = None if values is None else values[0]
    else:
        row["values"] = values
    row["seconds"] = None if trial.seconds is None else round(trial.seconds, 3)
    row["hparams"] = {name: _plain(hparam) for name, hparam in trial.hparams.items()}
    return row


def _plain(value: Any) -> Any:
    """Return a value that JSON can carry: NaN and infinities as their names."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
