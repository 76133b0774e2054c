"""What the database tells of a study that people are notified of: its state, and how its launches have ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tuner.notify.events import FAILING, FINISHED, GONE, Ending, State
from tuner.storage.read.launches import Activity
from tuner.storage.read.queries import Standing, StudyRow, last_errors, outcome_counts, read_best
from tuner.trial.failures import reason_to_stop

if TYPE_CHECKING:
    from sqlalchemy import Engine


def read_state(engine: Engine, study: StudyRow, trials: int | None) -> State:
    """Return what a launch would have counted of a study whose number of trials is `trials`."""
    counts = outcome_counts(engine, study.study_id)
    used = sum(count for outcome, count in counts.items() if outcome.uses_budget)
    best = read_best(engine, study, 1) if len(study.directions) == 1 else []
    value = best[0].values[0] if best and best[0].values else None
    return State(used, trials or 0, value, None if value is None else best[0].number)


def finished_by(standing: Standing, state: State) -> str | None:
    """Return why nothing is left to do in a study; None if something is left, or a worker still holds a trial.

    The order is that in which a worker asks before each trial, so that all that send an event give it the same id.
    """
    if standing.workers:
        return None
    if standing.is_stopped:
        return "stopped" if standing.end is None else "ended_early"
    if standing.trials is not None and state.used >= standing.trials:
        return "budget"
    if standing.search_ended:
        return "search_ended"
    return "hours" if standing.is_out_of_hours else None


def find_ending(engine: Engine, study: StudyRow, standing: Standing, state: State, activity: Activity) -> Ending | None:
    """Return how the launches of a study have ended, from the database alone; None if they have not.

    That workers were asked to stop is no end. A search that the sampler has ended is one only when no worker runs any
    more.
    """
    workers = max(1, activity.joined)
    reason = finished_by(standing, state)
    if reason == "search_ended" and activity.alive:
        return None
    if reason is not None:
        return Ending(FINISHED, reason, state, None, workers)
    if standing.workers or activity.alive or not activity.joined:
        return None
    errors = last_errors(engine, study.study_id, activity.since_s)
    why = reason_to_stop([kind for kind, _ in errors])
    if why is not None:
        text = f"study {study.name!r} stopped: {why}; fix it and launch again\n{errors[0][1].rstrip()}"
        return Ending(FAILING, text, state, None, workers)
    if activity.has_lost:
        return Ending(GONE, "none has given a sign of life for two minutes", state, None, workers)
    return None
