"""What is stored with a study for its sampler: the choice of `auto`, the module of `hub`, trials of earlier studies.

It is made before the study's first trial, and all workers read the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine

from tuner.errors import StudyError
from tuner.storage.read.queries import MIGRATIONS_KEY, find_record, read_studies
from tuner.storage.sql.statements import SPACE_VERSION_KEY
from tuner.storage.worker.earlier import read_earlier, to_trials
from tuner.storage.worker.studies import agree
from tuner.trial import optuna_private as private

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from tuner.search import Agreed
    from tuner.search.hub import Source
    from tuner.trial import optuna_private as private
from tuner.study import StudySpec

AUTO_KEY = "tuner:auto"
"""The study attribute with the samplers that `auto` has chosen."""
EARLIER_KEY = "tuner:warm_start"
"""The study attribute with trials of earlier studies."""
_HUB_KEY = "tuner:hub:"


@dataclass(frozen=True)
class Prepared:
    """What is to be stored with a study for its sampler, unless another worker stores it first.

    Attributes:
        records: Plain JSON by key.
        notes: What a user should know of it, each in one line.
    """

    records: Mapping[str, Any]
    notes: Sequence[str] = field(default_factory=list[str])


def prepare_search(engine: Engine, study: StudySpec) -> Prepared:
    """Make what a study's sampler needs and the storage does not have yet; nothing is stored.

    A module of OptunaHub is fetched from the network.

    Raises:
        StudyError: another study does not exist or fit, a module cannot be fetched, or it differs from the stored one.
    """
    from tuner.search import learns_as

    name, options = learns_as(study.sampler)
    if name not in ("auto", "hub") and not study.warm_start:
        return Prepared({})
    stored = next((row.study_id for row in read_studies(engine) if row.name == study.name), None)
    records: dict[str, Any] = {}
    notes: list[str] = []

    def find(key: str) -> Any:
        return None if stored is None else find_record(engine, stored, key)

    if name == "auto" and find(AUTO_KEY) is None:
        plan = _plan(study)
        records[AUTO_KEY] = {"first": plan.first, "later": plan.later}
        change = "" if plan.first == plan.later else f" for the first 250 complete trials, then {plan.later}"
        notes.append(f"the sampler 'auto' has chosen {plan.first}{change}")
    if name == "hub":
        source = _source(options)
        known = find(_hub_key(source))
        if known is None:
            records[_hub_key(source)] = _fetch(source, notes)
        else:
            _check_folder(source, known["digest"], study.name)
    if study.warm_start and find(EARLIER_KEY) is None:
        records[EARLIER_KEY] = read_earlier(engine, study, notes)
    return Prepared(records, notes)


def agree_on_search(engine: Engine, study_id: int, study: StudySpec, prepared: Prepared) -> Agreed:
    """Store what was prepared unless the study has it; return what it has.

    Concurrency: safe from many workers; all get the same answer.
    """
    from tuner.search import Agreed, Plan, learns_as
    from tuner.search.hub import Module

    for key, value in prepared.records.items():
        agree(engine, study_id, key, value)
    name, options = learns_as(study.sampler)
    plan = find_record(engine, study_id, AUTO_KEY) if name == "auto" else None
    module = find_record(engine, study_id, _hub_key(_source(options))) if name == "hub" else None
    earlier = find_record(engine, study_id, EARLIER_KEY) if study.warm_start else None
    return Agreed(
        None if plan is None else Plan.of(plan),
        None if module is None else Module.of(module),
        () if earlier is None else _in_present_space(engine, study_id, study, to_trials(earlier)),
    )


def _in_present_space(
    engine: Engine, study_id: int, study: StudySpec, trials: Sequence[FrozenTrial]
) -> Sequence[FrozenTrial]:
    """Return trials of earlier studies as samplers see those of the study after its space was changed.

    New hyperparameters have the values that the study's trials got. Conditional ones are not added.
    """
    from tuner.search.view import in_space
    from tuner.study.sampling import context_of

    if find_record(engine, study_id, SPACE_VERSION_KEY) is None:
        return trials
    unconditional = context_of(study, 0, 0, None).distributions or {}
    defaults: dict[str, Any] = {}
    migrations: Any = find_record(engine, study_id, MIGRATIONS_KEY) or []
    for migration in migrations:
        defaults |= migration.get("defaults", {})
    for trial in trials:
        added = {name: defaults[name] for name in unconditional if name in defaults and name not in trial.params}
        trial.distributions = {**trial.distributions, **{name: unconditional[name] for name in added}}
        trial.params = {**trial.params, **added}
    seen = in_space(trials, study.distributions())
    # A new hyperparameter may have got a narrower domain since.
    return [
        one
        for one in seen
        if all(private.contains(one.distributions[name], value) for name, value in one.params.items())
    ]


def _plan(study: StudySpec) -> Any:
    from tuner.search.auto import choose_plan
    from tuner.study.sampling import context_of

    return choose_plan(context_of(study, 0, 0, None))


def _source(options: Mapping[str, Any]) -> Source:
    from tuner.search.hub import split_source

    return split_source(dict(options))


def _hub_key(source: Source) -> str:
    return f"{_HUB_KEY}{hashlib.sha256(str(source).encode()).hexdigest()[:16]}"


def _fetch(source: Source, notes: list[str]) -> dict[str, Any]:
    from tuner.search.hub import fetch

    module = fetch(source)
    notes.append(f"the sampler module {source} is stored with the study, SHA-256 {module.digest}")
    return module.record()


def _check_folder(source: Source, digest: str, study: str) -> None:
    """Raise StudyError if the folder of a module is here and has other code than the stored copy."""
    from tuner.search.hub import fetch

    if source.path is not None and Path(source.path).is_dir() and fetch(source).digest != digest:
        raise StudyError(
            f"the sampler module in {source.path!r} has changed since study {study!r} was created (SHA-256 "
            f"{digest}): change it back, or give the study a new name"
        )
