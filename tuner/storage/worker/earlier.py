"""Trials of earlier studies that the sampler of a new study sees (`Study.warm_start`): read once, stored with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine

from tuner.errors import SpaceError, StudyError, UnknownStudy
from tuner.storage.read.queries import StudyRow, TrialRow, find_study, read_trials
from tuner.trial import Outcome

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from tuner.study import StudySpec

MOST_TRIALS = 500
"""The maximum number of trials from each study: the best fifth of this, and others at regular intervals."""
_BAD = (Outcome.DIVERGED, Outcome.OUT_OF_MEMORY, Outcome.TIMED_OUT)


def read_earlier(engine: Engine, study: StudySpec, notes: list[str]) -> dict[str, Any]:
    """Return the trials of the studies that `warm_start` names, as plain JSON.

    Those that are complete, diverged, ran out of memory or timed out are taken, if their hyperparameters are in the
    space of the new study. Hyperparameters that the new study does not have are dropped.

    Args:
        engine: The storage's engine.
        study: The new study.
        notes: Receives what was taken and what does not match, a line for each study.

    Raises:
        StudyError: a study does not exist, has other objectives, or no trial that matches.
    """
    domains: list[str] = []
    found: list[dict[str, Any]] = []
    for name in study.warm_start:
        try:
            row = find_study(engine, name)
        except UnknownStudy as error:
            raise StudyError(f"warm_start of study {study.name!r}: {error}") from None
        _check_objectives(study, row)
        trials = [one for one in read_trials(engine, row) if one.outcome in (Outcome.COMPLETE, *_BAD)]
        problems: Counter[str] = Counter()
        matching = [one for one in (_encode(study, trial, domains, problems) for trial in trials) if one is not None]
        others = f"; {_listed(problems, len(trials))}" if problems else ""
        if not matching:
            raise StudyError(
                f"warm_start of study {study.name!r}: no trial of {name!r} matches its space{others or '; it has none'}"
            )
        taken = _thin(matching, maximize=row.maximize[0])
        dropped = sorted(
            {key for one in trials for key in one.hparams} - {key for one in taken for key in one["hparams"]}
        )
        unused = f"; not in the space of {study.name!r}: {', '.join(dropped)}" if dropped else ""
        notes.append(f"the sampler starts from {len(taken)} of {len(trials)} trials of {name!r}{others}{unused}")
        found += taken
    return {"domains": domains, "trials": found}


def _check_objectives(study: StudySpec, earlier: StudyRow) -> None:
    theirs, ours = list(earlier.directions), list(study.all_directions)
    names = earlier.named_objectives
    if theirs != ours or (names and names != list(study.objectives)):
        raise StudyError(
            f"warm_start needs studies with the same objectives: {study.name!r} has {', '.join(study.objectives)} "
            f"({', '.join(ours)}), {earlier.name!r} has {', '.join(earlier.objectives)} ({', '.join(theirs)})"
        )


def _encode(study: StudySpec, trial: TrialRow, domains: list[str], problems: Counter[str]) -> dict[str, Any] | None:
    """Return a trial as plain JSON, or None if it does not match; adds its distributions and its problem."""
    from optuna.distributions import distribution_to_json

    from tuner.study.sampling import suggested

    try:
        params, distributions = suggested(study, trial.hparams)
    except SpaceError as error:
        problems[str(error).partition(": got ")[0]] += 1
        return None
    places: dict[str, int] = {}
    for name, one in distributions.items():
        text = distribution_to_json(one)
        if text not in domains:
            domains.append(text)
        places[name] = domains.index(text)
    hparams = {name: [value, places[name]] for name, value in params.items()}
    outcome = trial.outcome.value
    return {"hparams": hparams, "values": trial.values, "constraints": trial.constraints, "outcome": outcome}


def _listed(problems: Mapping[str, int], trials: int) -> str:
    reasons = ", ".join(f"{text} ({count})" for text, count in problems.items())
    return f"{sum(problems.values())} of {trials} do not match: {reasons}"


def _thin(trials: Sequence[dict[str, Any]], *, maximize: bool) -> list[dict[str, Any]]:
    """Return at most `MOST_TRIALS`, in their order: the best by the first objective, and some of the others."""
    if len(trials) <= MOST_TRIALS:
        return list(trials)
    complete = [at for at, one in enumerate(trials) if one["values"] is not None]
    complete.sort(key=lambda at: trials[at]["values"][0], reverse=maximize)
    best = set(complete[: MOST_TRIALS // 5])
    rest = [at for at in range(len(trials)) if at not in best]
    count = MOST_TRIALS - len(best)
    kept = best | {rest[at * len(rest) // count] for at in range(count)}
    return [trials[at] for at in sorted(kept)]


def to_trials(record: Mapping[str, Any]) -> list[FrozenTrial]:
    """Return the trials of a record, with negative numbers and ids: they are no trials of the study."""
    from optuna.distributions import json_to_distribution
    from optuna.trial import TrialState, create_trial

    from tuner.storage.read.ranking import constraint_key
    from tuner.trial import optuna_private as private

    domains = [json_to_distribution(text) for text in record["domains"]]
    count = len(record["trials"])
    trials: list[FrozenTrial] = []
    for at, one in enumerate(record["trials"]):
        trial = create_trial(
            state=TrialState.COMPLETE if one["values"] is not None else TrialState.PRUNED,
            values=one["values"],
            params={name: value for name, (value, _) in one["hparams"].items()},
            distributions={name: domains[place] for name, (_, place) in one["hparams"].items()},
            user_attrs={"outcome": one["outcome"]},
            system_attrs={constraint_key(name): value for name, value in one["constraints"].items()},
        )
        private.set_number(trial, at - count)
        trials.append(trial)
    return trials
