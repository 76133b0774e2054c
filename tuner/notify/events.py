"""The events of a study that people are notified of, found in what all launches of it read."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tuner.output.log import now
from tuner.output.numbers import as_text, duration
from tuner.output.sanitize import hide_password
from tuner.storage.notices import REFERENCE, HoursBudget, Notice

BEST, BUDGET = "new_best", "budget_nearly_used"
FINISHED, FAILING, GONE = "finished", "failing", "workers_gone"
NEARLY = 0.9
"""The share of a budget from which it is nearly used."""
_NAMESPACE = uuid.UUID("5b1f3f0e-6d5f-4a55-9f1a-0c5f6b0f2f43")
_LONGEST_TEXT = 1000


@dataclass(frozen=True)
class StudyName:
    """A study, and what distinguishes it from others of its name."""

    name: str
    identity: str


@dataclass(frozen=True)
class State:
    """What a launch has counted of its study.

    Attributes:
        used: Trials that have used budget.
        trials: The budget.
        best: The best value; None if there is none, or with several objectives.
        best_trial: The trial with the best value.
    """

    used: int
    trials: int
    best: float | None
    best_trial: int | None


@dataclass(frozen=True)
class Ending:
    """How a launch ended.

    Attributes:
        kind: `finished`, `failing` or `workers_gone`.
        reason: For a finished study: `budget`, `hours`, `search_ended`, `ended_early` or `stopped`. Else the error.
        state: The study at the end.
        launch: Names the launch for people, in `workers_gone`; None if it is not known.
        workers: The number of workers of the launch.
    """

    kind: str
    reason: str
    state: State
    launch: str | None
    workers: int


def make_notice(study: StudyName, kind: str, what: object, text: str, **facts: object) -> Notice:
    """Return a notice; its id depends only on the study, the kind and `what`."""
    event_id = str(uuid.uuid5(_NAMESPACE, f"{study.identity} {kind} {what}"))
    text = hide_password(text)[:_LONGEST_TEXT]
    body = {"id": event_id, "event": kind, "study": study.name, "time": now(), "text": text, **facts}
    return Notice(event_id, kind, body)


def new_best(
    study: StudyName, state: State, last: Mapping[str, Any] | None, *, maximize: bool, margin: float | None
) -> Notice | None:
    """Return the notice of a best trial that is better than the last one by more than the noise.

    The first best trial is stored, to compare later ones with, and not sent.

    Args:
        study: The study.
        state: Its best trial.
        last: The body of the last such notice.
        maximize: Whether larger is better.
        margin: The largest difference that may be noise; None if it was not measured, which counts as zero.
    """
    if state.best is None:
        return None
    facts = {"trial": state.best_trial, "value": state.best}
    if last is None:
        return make_notice(study, REFERENCE, "", "the first result", **facts)
    gain = (state.best - last["value"]) * (1 if maximize else -1)
    if state.best_trial == last["trial"] or not gain > (margin or 0.0):
        return None
    noise = "the noise was not measured" if margin is None else f"more than the noise, {as_text(margin)}"
    text = (
        f"study {study.name!r}: trial {state.best_trial} is the new best with {as_text(state.best)}, better by "
        f"{as_text(gain)} than trial {last['trial']} ({noise})"
    )
    before = {"previous_trial": last["trial"], "previous_value": last["value"], "margin": margin}
    return make_notice(study, BEST, state.best_trial, text, **facts, **before)


def nearly_used(study: StudyName, state: State, hours: HoursBudget | None) -> list[Notice]:
    """Return a notice for each budget of which at least `NEARLY` is used."""
    found: list[Notice] = []
    if state.trials and state.used >= NEARLY * state.trials:
        text = f"study {study.name!r}: {state.used} of {state.trials} trials are used"
        facts = {"budget": "trials", "used": state.used, "limit": state.trials}
        found.append(make_notice(study, BUDGET, f"trials {state.trials}", text, **facts))
    if hours is None:
        return found
    of_hours = (("wall_hours", hours.wall_s, hours.used.wall_s), ("device_hours", hours.device_s, hours.used.device_s))
    for name, limit_s, used_s in of_hours:
        if limit_s is not None and used_s >= NEARLY * limit_s:
            what = f"{duration(used_s)} of {duration(limit_s)} of its {name.replace('_', ' ')} are used"
            facts = {"budget": name, "used": round(used_s / 3600, 4), "limit": round(limit_s / 3600, 4)}
            found.append(make_notice(study, BUDGET, f"{name} {limit_s}", f"study {study.name!r}: {what}", **facts))
    return found


_REASONS = {
    "budget": "is finished",
    "hours": "has used up its hours",
    "search_ended": "is finished, because its sampler has ended the search",
    "ended_early": "has ended at its target, without progress or by its terminator",
    "stopped": "was stopped with `tuner stop`",
}


def ended(study: StudyName, ending: Ending, attempts: int, joined: int = 0) -> Notice:
    """Return the notice of the end of a launch.

    Args:
        study: The study.
        ending: How it ended.
        attempts: The number of attempts that the study has had: if it is continued later, that is another end.
        joined: The number of workers that have ever joined it: if others come and are gone as well, that is another
            event.
    """
    state, facts = ending.state, {"used": ending.state.used, "trials": ending.state.trials}
    if ending.kind == FINISHED:
        best = "" if state.best is None else f"; the best is {as_text(state.best)} (trial {state.best_trial})"
        text = f"study {study.name!r} {_REASONS[ending.reason]}: {state.used} of {state.trials} trials{best}"
        known = {**facts, "reason": ending.reason, "value": state.best, "trial": state.best_trial}
        return make_notice(study, FINISHED, f"{ending.reason} {attempts}", text, **known)
    first, _, rest = hide_password(ending.reason).partition("\n")
    last = rest.rstrip().rpartition("\n")[2]
    why = f"{first}\n{last}" if last else first
    if ending.kind == FAILING:
        return make_notice(study, FAILING, attempts, why, **facts, error=why)
    count = f"all {ending.workers} workers" if ending.workers > 1 else "the only worker"
    launch = "" if ending.launch is None else f" of the launch {ending.launch}"
    text = f"study {study.name!r}: {count}{launch} {'are' if ending.workers > 1 else 'is'} gone: {why}"
    known = {**facts, "error": why, "launch": ending.launch}
    return make_notice(study, GONE, f"{attempts} {joined}", text, **known)
