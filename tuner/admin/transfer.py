"""Queues the best hyperparameters of one study in another (`tuner enqueue STUDY --from OTHER`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tuner.admin.edits import check_exists, conditions_in, describe_domain, known_distributions, queue
from tuner.errors import UsageError, nearest
from tuner.results.rows import best_rows
from tuner.storage import AnyURL, connected
from tuner.storage.read.queries import find_study
from tuner.trial import optuna_private as private

SOURCE = "enqueued_from"
"""The user attribute of a queued trial with the study and the number of the trial whose hyperparameters it has."""


@dataclass(frozen=True)
class Transferred:
    """What was queued.

    Attributes:
        trials: The number of the trial in the other study, and the hyperparameters, for each queued trial.
        unmatched: What does not match, each in one line.
    """

    trials: Sequence[tuple[int, Mapping[str, Any]]]
    unmatched: Sequence[str]


def enqueue_best(
    url: AnyURL, name: str, other: str, count: int = 5, rename: Mapping[str, str] | None = None
) -> Transferred:
    """Queue trials with the hyperparameters of the best trials of another study, for the next free workers.

    Hyperparameters match by name, if the value is in the domain. Others are sampled. Trials with the same
    hyperparameters are queued once.

    Args:
        url: The storage's URL.
        name: The study.
        other: The other study; with several objectives, its Pareto front counts, by number.
        count: The number of trials; > 0.
        rename: Names of hyperparameters of the other study -> their names in this one.

    Raises:
        UnknownStudy: there is no such study.
        UsageError: a study has no trials, a name is unknown, or nothing matches; then nothing is queued.
    """
    if count < 1:
        raise UsageError(f"the number of trials to queue must be at least 1: got {count}")
    with connected(url) as engine:
        study = find_study(engine, name)
        known = known_distributions(engine, study)
        best = best_rows(engine, other, count)
    if not known:
        raise UsageError(f"study {name!r} has no trials yet, so its hyperparameters are unknown: launch it first")
    if not best:
        raise UsageError(f"study {other!r} has no complete trial whose hyperparameters could be queued")
    _check_names(rename or {}, best, other, known, name)
    conditions = conditions_in(study.record.get("space", {}), known)
    problems: Counter[str] = Counter()
    found: dict[int, dict[str, Any]] = {}
    for row in best:
        hparams = {(rename or {}).get(key, key): value for key, value in row["hparams"].items()}
        params = _matching(hparams, known, conditions, problems)
        if params and params not in found.values():
            found[row["number"]] = params
    unmatched = [f"{text} ({times} of {len(best)} trials)" for text, times in problems.items()]
    if not found:
        raise UsageError(f"no hyperparameter of {other!r} matches study {name!r}: {'; '.join(unmatched)}")
    for number, params in found.items():
        queue(url, name, params, {SOURCE: {"study": other, "trial": number}})
    return Transferred(list(found.items()), unmatched)


def _check_names(
    rename: Mapping[str, str], best: Sequence[Any], other: str, known: Mapping[str, object], name: str
) -> None:
    """Raise UsageError if a name to change, or its new name, is unknown."""
    theirs = {key: None for row in best for key in row["hparams"]}
    for old, new in rename.items():
        for study, key, names in ((other, old, theirs), (name, new, known)):
            if key not in names:
                raise UsageError(
                    f"cannot rename {old} to {new}: {study!r} has no hyperparameter {key!r}, it has "
                    f"{', '.join(names)}{nearest(key, names)}"
                )


def _matching(
    hparams: Mapping[str, Any],
    known: Mapping[str, list[str]],
    conditions: Mapping[str, list[tuple[str, str]]],
    problems: Counter[str],
) -> dict[str, Any]:
    """Return the hyperparameters that the study has with these values, and count those that it does not have."""
    from optuna.distributions import json_to_distribution

    params: dict[str, Any] = {}
    for key, value in hparams.items():
        domains = [json_to_distribution(text) for text in known.get(key, ())]
        if any(private.contains(one, value) for one in domains):
            params[key] = value
        elif domains:
            problems[f"{key} must be in {' or '.join(map(describe_domain, domains))}"] += 1
        else:
            problems[f"there is no hyperparameter {key}"] += 1
    for key in list(params):
        try:
            check_exists(key, params, conditions, known)
        except UsageError as error:
            problems[str(error).partition(": got ")[0].partition("; ")[0]] += 1
            del params[key]
    return params
