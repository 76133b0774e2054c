"""What people do to a study by hand: queue a trial, try a failed one again, delete the study, clear checkpoints away.

All of it is safe while workers run.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuner.artifacts import collect, study_folder
from tuner.errors import TunerError, UsageError, nearest
from tuner.results import best_rows
from tuner.storage import connect, open_storage
from tuner.storage.queries import (
    find_study,
    outcome_counts,
    read_distributions,
    read_identity,
    read_standings,
    read_trial,
)
from tuner.storage.ranking import superfluous
from tuner.trial import Outcome

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from sqlalchemy import Engine


def enqueue(url: str, name: str, words: Mapping[str, str]) -> dict[str, Any]:
    """Queue a trial with given hyperparameters, which the next free worker runs; return them.

    Those that are not given are sampled. The trial counts towards the study's budget.

    Args:
        url: The storage's URL.
        name: The study.
        words: Hyperparameter -> its value as text; of a choice, its label.

    Raises:
        UnknownStudy: there is no such study.
        UsageError: a hyperparameter is unknown or its value outside its domain, or no trial has said which there are.
    """
    engine = connect(url)
    try:
        known = read_distributions(engine, find_study(engine, name).study_id)
    finally:
        engine.dispose()
    if not known:
        raise UsageError(f"hyperparameters are known from a study's first trial on: {name!r} has none yet; launch it")
    params = {key: _parse(key, word, known, name) for key, word in words.items()}
    _queue(url, name, params, {})
    return params


def _parse(key: str, word: str, known: Mapping[str, list[str]], study: str) -> Any:
    """Return a hyperparameter's value from its text, as the first of its domains that has it."""
    from optuna.distributions import json_to_distribution

    if key not in known:
        raise UsageError(
            f"study {study!r} has no hyperparameter {key!r}: it has {', '.join(known)}{nearest(key, known)}"
        )
    domains = [json_to_distribution(text) for text in known[key]]
    for domain in domains:
        found = [value for value in _readings(domain, word) if _contains(domain, value)]
        if found:
            return found[0]
    raise UsageError(f"{key} must lie in {' or '.join(map(_describe, domains))}: got {word!r}")


def _readings(domain: BaseDistribution, word: str) -> list[Any]:
    choices = getattr(domain, "choices", None)
    if choices is not None:
        return [choice for choice in choices if word in (choice, str(choice), json.dumps(choice))]
    try:
        number = float(word)
    except ValueError:
        return []
    return [int(number) if type(domain).__name__.startswith("Int") and number.is_integer() else number]


def _contains(domain: BaseDistribution, value: Any) -> bool:
    try:
        return domain._contains(domain.to_internal_repr(value))
    except ValueError:
        return False


def _describe(domain: BaseDistribution) -> str:
    choices = getattr(domain, "choices", None)
    if choices is not None:
        return "{" + ", ".join(map(str, choices)) + "}"
    low, high, step = (getattr(domain, name, None) for name in ("low", "high", "step"))
    return f"[{low}, {high}]{f' in steps of {step}' if step not in (None, 1) else ''}"


def retry(url: str, name: str, number: int) -> None:
    """Queue a trial with the hyperparameters of one that failed.

    It is a new trial, with a number, a seed and a curve of its own; its attribute `retry_of` names the old one.

    Raises:
        UnknownStudy: there is no such study or trial.
        UsageError: the trial did not fail.
    """
    engine = connect(url)
    try:
        trial = read_trial(engine, find_study(engine, name), number)
    finally:
        engine.dispose()
    if trial.outcome not in (Outcome.FAILED, Outcome.DIVERGED, Outcome.OUT_OF_MEMORY):
        raise UsageError(
            f"a trial that is tried again must have failed, diverged or run out of memory: trial {number} of {name!r} "
            f"is {trial.outcome}; `tuner reproduce` runs one again as it was, `tuner enqueue` takes its hyperparameters"
        )
    if not trial.hparams:
        raise UsageError(
            f"a trial that is tried again must have hyperparameters: trial {number} failed before it had any"
        )
    _queue(url, name, trial.hparams, {"retry_of": number})


def _queue(url: str, name: str, params: Mapping[str, Any], attributes: Mapping[str, Any]) -> None:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = open_storage(url)
    try:
        study = optuna.load_study(study_name=name, storage=storage)
        study.enqueue_trial(dict(params), user_attrs=dict(attributes))
    finally:
        storage.close()


def used_up(engine: Engine, name: str) -> int | None:
    """Return the number of trials that a study was launched for if all of them are used, so that none is run any more.

    Raises:
        UnknownStudy: there is no such study.
    """
    study = find_study(engine, name)
    standing = read_standings(engine, study.study_id).get(study.study_id)
    counts = outcome_counts(engine, study.study_id)
    used = sum(count for outcome, count in counts.items() if outcome.uses_budget)
    return standing.trials if standing is not None and standing.trials is not None and used >= standing.trials else None


@dataclass(frozen=True)
class Belongings:
    """What a study has: `trials`, `workers` that hold one of them now, and the `folder` of its checkpoints, if here."""

    trials: int
    workers: int
    folder: Path | None


def belongings(engine: Engine, name: str, artifacts: Path) -> Belongings:
    """Return what deleting a study would take away.

    Raises:
        UnknownStudy: there is no such study.
    """
    study = find_study(engine, name)
    identity = read_identity(engine, study.study_id)
    folder = None if identity is None else study_folder(artifacts, name, identity)
    standing = read_standings(engine).get(study.study_id)
    return Belongings(
        sum(outcome_counts(engine, study.study_id).values()),
        0 if standing is None else standing.workers,
        folder if folder is not None and folder.is_dir() else None,
    )


def delete(url: str, name: str, folder: Path | None) -> None:
    """Delete a study with all its trials, and the folder of its checkpoints; its workers end their trials and stop.

    Raises:
        UnknownStudy: there is no such study.
    """
    engine = connect(url)
    try:
        study_id = find_study(engine, name).study_id
    finally:
        engine.dispose()
    storage = open_storage(url)
    try:
        storage.delete_study(study_id)
    finally:
        storage.close()
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
        if folder.exists():
            raise TunerError(f"the study is deleted, its checkpoints must be removed by hand: {folder} is still there")


def clear(engine: Engine, name: str, artifacts: Path, keep: int) -> tuple[list[int], int]:
    """Remove the checkpoints of trials that have ended and are not among the best; return their numbers, and bytes.

    Args:
        engine: The storage's engine.
        name: The study.
        artifacts: The folder of all studies' checkpoints.
        keep: How many of the best keep theirs; of several objectives by the first, and the Pareto front as well.

    Raises:
        UnknownStudy: there is no such study.
        UsageError: it has no checkpoints there.
    """
    study = find_study(engine, name)
    identity = read_identity(engine, study.study_id)
    folder = None if identity is None else study_folder(artifacts, name, identity)
    if folder is None or not folder.is_dir():
        raise UsageError(f"the checkpoints of {name!r} must be in {artifacts}: they are not; give --artifacts")
    maximize = study.maximize[0]
    # Also those that other seeds have shown to be the best, and of several objectives the whole front.
    best = (
        {row["number"] for row in best_rows(engine, name, keep if len(study.directions) == 1 else None)} if keep else ()
    )

    def hopeless(numbers: Collection[int]) -> list[int]:
        found = superfluous(engine, study.study_id, numbers, keep, maximize=maximize)
        return [number for number in found if number not in best]

    return collect(folder, hopeless)
