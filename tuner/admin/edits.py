"""Changes the trials of a study by hand: queue one, retry a failed one, end one; deletes studies and checkpoints.

All of it is safe while workers run.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tuner.errors import TunerError, UsageError, nearest
from tuner.results.rows import best_rows
from tuner.storage import AnyURL, connected, open_storage
from tuner.storage.artifacts import Artifacts, StudyArtifacts
from tuner.storage.read.extensions import find_extension, unneeded
from tuner.storage.read.launches import Activity, read_activity
from tuner.storage.read.queries import (
    MIGRATIONS_KEY,
    Standing,
    StudyRow,
    TrialRow,
    find_record,
    find_study,
    outcome_counts,
    read_distributions,
    read_identity,
    read_standings,
    read_trial,
)
from tuner.storage.sql.schema import prepare
from tuner.storage.worker.leases import end_by_hand
from tuner.storage.worker.retries import queue_retry
from tuner.storage.worker.studies import Owner, set_ownership
from tuner.study.migration import recorded_domains
from tuner.study.ownership import check_labels, check_owner
from tuner.trial import Outcome
from tuner.trial import optuna_private as private
from tuner.trial.extension import Extension

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from sqlalchemy import Engine


def enqueue(url: AnyURL, name: str, words: Mapping[str, str]) -> dict[str, Any]:
    """Queue a trial with given hyperparameters for the next free worker; return the hyperparameters.

    The others are sampled. The trial counts towards the study's budget.

    Args:
        url: The storage's URL.
        name: The study.
        words: Hyperparameter -> its value as text; for a choice, its label.

    Raises:
        UnknownStudy: there is no such study.
        UsageError: a hyperparameter is unknown, its value is outside its domain, or the trial might not have it; or the
            hyperparameters are not known yet, because there is no trial.
    """
    with connected(url) as engine:
        study = find_study(engine, name)
        known = known_distributions(engine, study)
    if not known:
        raise UsageError(f"study {name!r} has no trials yet, so its hyperparameters are unknown: launch it first")
    params = {key: _parse(key, word, known, name) for key, word in words.items()}
    conditions = conditions_in(study.record.get("space", {}), known)
    for key in params:
        check_exists(key, params, conditions, known)
    queue(url, name, params, {})
    return params


def known_distributions(engine: Engine, study: StudyRow) -> dict[str, list[str]]:
    """Return the distributions with which a trial may be queued, as JSON by hyperparameter.

    They are those of the study's trials; after `tuner migrate` those of the present space.
    """
    from optuna.distributions import distribution_to_json

    if find_record(engine, study.study_id, MIGRATIONS_KEY) is None:
        return read_distributions(engine, study.study_id)
    domains = recorded_domains(study.record["space"])
    return {name: [distribution_to_json(domain.distribution())] for name, domain in domains.items()}


def relabel(
    url: AnyURL, name: str, *, owner: str | None = None, labels: Collection[str] = (), without: Collection[str] = ()
) -> StudyRow:
    """Change the owner and the labels of a study; return the study as it is then.

    Args:
        url: The storage's URL.
        name: The study.
        owner: Its new owner; None changes nothing.
        labels: Labels to add.
        without: Labels to remove.

    Raises:
        UnknownStudy: there is no such study.
        UsageError: the study does not have a label to remove, or one is to be added and removed.
        StudyError: a text is no label or no owner.
    """
    check_owner(owner)
    check_labels(list(labels))
    both = [label for label in labels if label in without]
    if both:
        raise UsageError(f"a label is either added or removed: got {both[0]!r} in both")
    with connected(url) as engine:
        study = find_study(engine, name)
        for label in without:
            if label not in study.labels:
                known = f"it has {', '.join(study.labels)}" if study.labels else "it has none"
                raise UsageError(f"study {name!r} has no label {label!r}: {known}{nearest(label, study.labels)}")
        set_ownership(engine, study.study_id, Owner(owner), list(labels), list(without))
        return find_study(engine, name)


def _parse(key: str, word: str, known: Mapping[str, list[str]], study: str) -> Any:
    """Parse a hyperparameter's value with the first of its domains that contains it."""
    from optuna.distributions import json_to_distribution

    if key not in known:
        raise UsageError(
            f"study {study!r} has no hyperparameter {key!r}: it has {', '.join(known)}{nearest(key, known)}"
        )
    domains = [json_to_distribution(text) for text in known[key]]
    for domain in domains:
        found = [value for value in _readings(domain, word) if private.contains(domain, value)]
        if found:
            return found[0]
    raise UsageError(f"{key} must be in {' or '.join(map(describe_domain, domains))}: got {word!r}")


def conditions_in(space: Mapping[str, str], known: Mapping[str, list[str]]) -> dict[str, list[tuple[str, str]]]:
    """Return the options of choices under which each conditional hyperparameter exists; one of them is enough.

    Args:
        space: A study's space from `Study.record`, such as `uniform(0.0, 1.0) if optimizer=SGD or kind=b`. For a
            define-by-run space it has no conditions.
        known: The distributions of the hyperparameters as JSON, by name.
    """
    options = [(name, str(label)) for name, texts in known.items() for label in _labels(texts)]
    found: dict[str, list[tuple[str, str]]] = {}
    for name, text in space.items():
        rest, conditions = text, []
        while True:
            ends = [(word, option) for option in options for word in (" or ", " if ") if _ends(rest, word, option)]
            if not ends:
                break
            # If a text ends with both `a=b` and `c.a=b`, the longer one counts.
            word, option = max(ends, key=lambda end: len("=".join(end[1])))
            conditions.append(option)
            rest = rest.removesuffix(f"{word}{option[0]}={option[1]}")
            if word == " if ":
                found[name] = conditions[::-1]
                break
    return found


def _ends(text: str, word: str, option: tuple[str, str]) -> bool:
    return text.endswith(f"{word}{option[0]}={option[1]}")


def _labels(texts: list[str]) -> list[Any]:
    from optuna.distributions import CategoricalDistribution, json_to_distribution

    domains = [json_to_distribution(text) for text in texts]
    return [label for domain in domains if isinstance(domain, CategoricalDistribution) for label in domain.choices]


def check_exists(
    name: str,
    params: Mapping[str, object],
    conditions: Mapping[str, list[tuple[str, str]]],
    known: Mapping[str, list[str]],
) -> None:
    """Raise UsageError unless a trial with these hyperparameters has a hyperparameter of this name."""
    if name not in conditions:
        return
    needed = " or ".join(f"{choice}={label}" for choice, label in conditions[name])
    for choice, label in conditions[name]:
        given = [params[choice]] if choice in params else _labels(known.get(choice, []))
        if {str(value) for value in given} == {label}:  # it is given, or is the only option
            return check_exists(choice, params, conditions, known)
    others = {choice: params[choice] for choice, _ in conditions[name] if choice in params}
    found = ", ".join(f"{choice}={value}" for choice, value in others.items())
    if found:
        raise UsageError(f"hyperparameter {name} needs {needed}: got {found}")
    raise UsageError(f"hyperparameter {name} needs {needed}; pass that as well")


def _readings(domain: BaseDistribution, word: str) -> list[Any]:
    choices = getattr(domain, "choices", None)
    if choices is not None:
        return [choice for choice in choices if word in (choice, str(choice), json.dumps(choice))]
    try:
        number = float(word)
    except ValueError:
        return []
    return [int(number) if type(domain).__name__.startswith("Int") and number.is_integer() else number]


def describe_domain(domain: BaseDistribution) -> str:
    """Return a domain as text: `[low, high]`, or `{option, ...}`."""
    choices = getattr(domain, "choices", None)
    if choices is not None:
        return "{" + ", ".join(map(str, choices)) + "}"
    low, high, step = (getattr(domain, name, None) for name in ("low", "high", "step"))
    return f"[{low}, {high}]{f' in steps of {step}' if step not in (None, 1) else ''}"


MAY_BE_RETRIED = (Outcome.FAILED, Outcome.DIVERGED, Outcome.OUT_OF_MEMORY, Outcome.TIMED_OUT)
"""How a trial must have ended for `retry`."""


def retry(url: AnyURL, name: str, number: int) -> int:
    """Queue a trial with the hyperparameters of one that failed; return its number.

    It is a new trial with its own number, seed and curve; its attribute `retry_of` has the number of the old one.

    Raises:
        UnknownStudy: there is no such study or trial.
        UsageError: the trial did not fail, or continued another one; or a trial that repeats it has not ended.
    """
    with connected(url) as engine:
        study = find_study(engine, name)
        trial = read_trial(engine, study, number)
        _check_retry(name, trial, find_extension(engine, trial.trial_id))
        queued = queue_retry(engine, study.study_id, number, trial.hparams)
    if not queued.is_new:
        raise UsageError(
            f"trial {queued.number} of {name!r} is already a retry of trial {number}: wait until it has ended"
        )
    return queued.number


def _check_retry(name: str, trial: TrialRow, extension: Extension | None) -> None:
    refused = f"cannot retry trial {trial.number} of {name!r}"
    if trial.outcome not in MAY_BE_RETRIED:
        raise UsageError(
            f"{refused}, which is {trial.outcome}: only trials that failed, diverged, ran out of memory or timed out "
            "can be retried; `tuner reproduce` trains this one again"
        )
    if extension is not None:
        raise UsageError(
            f"{refused}, which continued trial {extension.of}: continue that one again with `tuner extend {name}`, "
            f"for {extension.epochs} epochs"
        )
    if not trial.hparams:
        raise UsageError(f"{refused}: it failed before its hyperparameters were sampled")


@dataclass(frozen=True)
class EndedTrial:
    """A trial that was ended by hand.

    Attributes:
        before: What it was before.
        outcome: How it has ended: `pruned`, or `failed` if it was in the queue or another program ran it.
        continues: The number of the trial that it was to continue; None for others.
    """

    before: Outcome
    outcome: Outcome
    continues: int | None

    @property
    def was_waiting(self) -> bool:
        """Whether it was in the queue."""
        return self.before is Outcome.WAITING and self.outcome is Outcome.FAILED

    def describe(self, name: str, number: int) -> str:
        """Return in one line what has happened to trial `number` of study `name`."""
        if self.was_waiting:
            text = f"trial {number} of {name!r} is removed from the queue"
        elif self.outcome is Outcome.FAILED:
            text = f"trial {number} of {name!r} is ended as failed: the program that runs it cannot report any more"
        elif self.before is Outcome.PREEMPTED:
            text = f"trial {number} of {name!r} is ended as pruned; no worker resumes it"
        else:
            text = f"trial {number} of {name!r} is ended as pruned; its worker drops it at its next report"
        if self.continues is None:
            return text
        return f"{text}; trial {self.continues}, which it continues, can be continued again with `tuner extend`"


def end_trial(url: AnyURL, name: str, number: int) -> EndedTrial:
    """End one trial of a study that continues.

    A trial that has started ends as pruned: its reports stay, it counts towards the study's number of trials, and
    samplers learn from it. Its worker drops it at its next report, or when it renews its lease. A queued trial is
    removed from the queue: it ends as failed, which does not count.

    Raises:
        UnknownStudy: there is no such study or trial.
        UsageError: the trial has ended already.
    """
    with connected(url) as engine:
        trial = read_trial(engine, find_study(engine, name), number)
        prepare(engine)  # a study of plain Optuna
        ending = end_by_hand(engine, trial.trial_id)
        if ending is None:
            outcome = read_trial(engine, find_study(engine, name), number).outcome
            raise UsageError(f"trial {number} of {name!r} has ended already: it is {outcome}")
        extension = find_extension(engine, trial.trial_id)
    return EndedTrial(trial.outcome, ending, None if extension is None else extension.of)


def queue(url: AnyURL, name: str, params: Mapping[str, object], attributes: Mapping[str, object]) -> None:
    """Queue a trial with hyperparameters that were checked, and user attributes."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with contextlib.closing(open_storage(url)) as storage:
        study = optuna.load_study(study_name=name, storage=storage)
        study.enqueue_trial(dict(params), user_attrs=dict(attributes))


@dataclass(frozen=True)
class Shortage:
    """A study with more queued trials than its budget allows.

    Attributes:
        trials: The number of trials of the latest launch.
        used: The number of trials that have used the budget.
        needed: The number of trials with which to launch it, so that all queued trials run.
    """

    trials: int
    used: int
    needed: int

    def describe(self, name: str) -> str:
        """Return in one line what the user must do, so that the queued trials of study `name` run."""
        how = "used up" if self.used >= self.trials else "used up, running or queued"
        trials = f"all {self.trials} trials of {name!r} are" if self.trials != 1 else f"the one trial of {name!r} is"
        return f"{trials} {how}: `tuner launch FILE --trials {self.needed}` runs what is queued"


def find_shortage(engine: Engine, name: str) -> Shortage | None:
    """Return why some queued trials will not run; None if all will, or if the study was never launched.

    Raises:
        UnknownStudy: there is no such study.
    """
    study = find_study(engine, name)
    standing = read_standings(engine, study.study_id).get(study.study_id)
    return shortage_of(standing, outcome_counts(engine, study.study_id))


def shortage_of(standing: Standing | None, counts: Mapping[Outcome, int]) -> Shortage | None:
    """Return the shortage of a study with this standing, and these numbers of trials by outcome."""
    used = sum(count for outcome, count in counts.items() if outcome.uses_budget)
    needed = sum(count for outcome, count in counts.items() if outcome is not Outcome.FAILED)
    if standing is None or standing.trials is None or needed <= standing.trials:
        return None
    return Shortage(standing.trials, used, needed)


@dataclass(frozen=True)
class Belongings:
    """The size of a study: its `trials`, the `workers` that run, and its `files`, if it has any."""

    trials: int
    workers: int
    files: StudyArtifacts | None


def belongings(engine: Engine, name: str, artifacts: Artifacts) -> Belongings:
    """Return what deleting a study would remove.

    Raises:
        UnknownStudy: there is no such study.
        ArtifactsLost: object storage cannot be reached.
    """
    study = find_study(engine, name)
    identity = read_identity(engine, study.study_id)
    files = None if identity is None else artifacts.of_study(name, identity)
    standing = read_standings(engine, study.study_id).get(study.study_id, Standing())
    alive = read_activity(engine).get(study.study_id, Activity()).alive  # those between two trials too
    return Belongings(
        sum(outcome_counts(engine, study.study_id).values()),
        max(standing.workers, alive),
        files if files is not None and files.exist() else None,
    )


def delete(url: AnyURL, name: str, files: StudyArtifacts | None) -> None:
    """Delete a study, its trials and its files; its workers stop.

    Raises:
        UnknownStudy: there is no such study.
        TunerError: the files could not be removed.
    """
    with connected(url) as engine:
        study_id = find_study(engine, name).study_id
    with contextlib.closing(open_storage(url)) as storage:
        storage.delete_study(study_id)
    if files is not None:
        try:
            files.remove()
        except (TunerError, OSError) as error:
            raise TunerError(
                f"the study is deleted, but not its checkpoints: remove {files} by hand ({error})"
            ) from None


def clear(engine: Engine, name: str, artifacts: Artifacts, keep: int) -> tuple[list[int], int]:
    """Remove the checkpoints of ended trials that are not among the best; return their numbers and the freed bytes.

    Args:
        engine: The storage's engine.
        name: The study.
        artifacts: Where all studies' checkpoints are.
        keep: The number of best trials to keep; with several objectives by the first, plus the Pareto front.

    Raises:
        UnknownStudy: there is no such study.
        UsageError: the study has no checkpoints there.
        ArtifactsLost: object storage cannot be reached.
    """
    study = find_study(engine, name)
    identity = read_identity(engine, study.study_id)
    files = None if identity is None else artifacts.of_study(name, identity)
    if files is None or not files.exist():
        raise UsageError(f"no checkpoints of {name!r} in {artifacts}: pass their folder or URL as `artifacts`")
    maximize = study.maximize[0]
    # Also keep the best trials over other seeds, and with several objectives the whole front.
    best = (
        {row["number"] for row in best_rows(engine, name, keep if len(study.directions) == 1 else None)} if keep else ()
    )

    def hopeless(numbers: Collection[int]) -> list[int]:
        found = unneeded(engine, study.study_id, numbers, keep, maximize=(maximize,))
        return [number for number in found if number not in best]

    return files.collect(hopeless)
