"""Changes the space of a stored study (`tuner migrate`): other ranges, more choices, new hyperparameters."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuner.errors import UsageError
from tuner.output.sanitize import folder_name
from tuner.storage import StorageURL, connected
from tuner.storage.read.lineage import read_study_file
from tuner.storage.read.population import read_copies
from tuner.storage.read.queries import StudyRow, find_study, read_identity
from tuner.storage.sql.schema import back_up
from tuner.storage.worker.migrations import Migrated, dump, migrate_space, preview
from tuner.study import StudySpec
from tuner.study.file import split_target
from tuner.study.migration import ADDED, SpacePlan, plan_space
from tuner.worker.rerun import load_again

if TYPE_CHECKING:
    from sqlalchemy import Engine


@dataclass(frozen=True)
class Migration:
    """What `tuner migrate` changes, or has changed.

    Attributes:
        lines: What changes, one line for each.
        version: The version of the space afterwards; None if nothing changes.
        backup: The file with what was there before; None for a dry run, or if nothing changes.
    """

    lines: tuple[str, ...]
    version: int | None = None
    backup: Path | None = None


def migrate(
    url: StorageURL,
    name: str,
    file: str,
    *,
    defaults: Mapping[str, str] | None = None,
    fixed: Mapping[str, str] | None = None,
    is_dry: bool = False,
) -> Migration:
    """Change the space of a stored study to that of a study file.

    Args:
        url: The storage's URL.
        name: The study.
        file: `FILE` or `FILE:NAME` with the study and its new space.
        defaults: The values of earlier trials for new hyperparameters, as text, by name.
        fixed: Hyperparameters that are not searched, as in the launch: name -> text.
        is_dry: Whether to change nothing.

    Returns:
        What changes.

    Raises:
        UnknownStudy: there is no such study.
        UsageError: a change is not possible, a worker holds a trial of the study, or a trial waits to continue another
            one; nothing was changed.
    """
    with connected(url) as engine:
        row = find_study(engine, name)
        study = _load(engine, row, file, fixed or {})
        plan = plan_space(row.record["space"], study, defaults or {})
        after = _record(row, plan)
        _check_copies(engine, row, plan)
        if not plan.changes:
            return Migration((f"the space of {name!r} is that of {file} already: nothing to change",))
        found = preview(engine, row.study_id, plan)
        if is_dry:
            return Migration(_describe(plan, found), found.version)
        backup = _back_up(engine, url, row)
        changes = [dataclasses.asdict(change) for change in plan.changes]
        about = {"changes": changes, "defaults": dict(plan.defaults), "outside": list(found.outside)}
        found = migrate_space(engine, row.study_id, plan, before=row.record, after=after, about=about)
        return Migration(_describe(plan, found), found.version, backup)


def _load(engine: Engine, row: StudyRow, file: str, fixed: Mapping[str, str]) -> StudySpec:
    if not row.record:
        raise UsageError(f"study {row.name!r} was not created by tuner: only studies of `tuner launch` can be migrated")
    path, asked = split_target(file)
    study = load_again(row, read_study_file(engine, row.study_id), path, asked).changed(
        seed=row.record["seed"], fixed=fixed
    )
    if study.name != row.name:
        raise UsageError(f"{file} has the study {study.name!r}: it must have {row.name!r}, with the new space")
    return study


def _record(row: StudyRow, plan: SpacePlan) -> dict[str, Any]:
    """Return the settings to record: the new space, and the baseline with the new hyperparameters.

    Raises:
        StudyChanged: another setting of the study has changed too.
    """
    new: dict[str, Any] = json.loads(json.dumps(plan.study.record()))
    after = {**row.record, "space": new["space"]}
    if "baseline" in after:
        extended = {**after["baseline"], **{name: value for name, value in plan.defaults.items()}}
        wanted = new.get("baseline", {})
        after["baseline"] = {name: value for name, value in extended.items() if name in wanted}
    plan.study.check_unchanged(after)
    return after


def _check_copies(engine: Engine, row: StudyRow, plan: SpacePlan) -> None:
    if any(change.what == ADDED for change in plan.changes) and read_copies(engine, row.study_id):
        raise UsageError(
            f"cannot add hyperparameters to study {row.name!r}: its trials copied others (pruner pbt), and the copies "
            "lack them"
        )


def _back_up(engine: Engine, url: StorageURL, row: StudyRow) -> Path:
    """Copy a SQLite database; for Postgres, write what a migration can change in the study to a JSON file."""
    if url.file is not None:
        return back_up(engine, url.file, "before-migration")
    stem = folder_name(row.name, read_identity(engine, row.study_id) or "")
    path = Path(f"{stem}.before-migration-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}.json").absolute()
    try:
        path.write_text(json.dumps({"study": row.name, **dump(engine, row.study_id)}), encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"cannot write the backup {path}: {error.strerror}; run the command in another folder"
        ) from None
    return path


def _describe(plan: SpacePlan, found: Migrated) -> tuple[str, ...]:
    lines = [
        f"{one.name}: {one.what}: {one.before} -> {one.after}"
        + (f"; earlier trials get {plan.defaults[one.name]!r}" if one.name in plan.defaults else "")
        for one in plan.changes
    ]
    rewritten: dict[str, int] = {}
    for one in found.rewrites:
        rewritten[one.name] = rewritten.get(one.name, 0) + one.trials
    added: dict[str, int] = {}
    for addition in found.additions:
        added[addition.name] = added.get(addition.name, 0) + 1
    lines += [f"{_trials(count)}: the stored domain of {name} is replaced" for name, count in rewritten.items()]
    lines += [f"{_trials(count)}: {name} is added" for name, count in added.items()]
    if found.outside:
        which = ", ".join(map(str, found.outside))
        lines.append(f"{_trials(len(found.outside))} outside of the new space: samplers do not see {which}")
    if found.incomplete:
        which = ", ".join(map(str, found.incomplete))
        lines.append(f"{_trials(len(found.incomplete))} without all hyperparameters: nothing is added to {which}")
    return tuple(lines)


def _trials(count: int) -> str:
    return f"{count} trial{'' if count == 1 else 's'}"
