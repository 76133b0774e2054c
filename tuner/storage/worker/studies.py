"""The rows of a study: creates and records it once, stops and resumes it, and lists its workers."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy import Connection, Engine

from tuner.errors import StudyError
from tuner.storage.read.budget import ChangedTrials, read_effective_trials
from tuner.storage.read.queries import (
    END_KEY,
    LABELS_KEY,
    OWNER_KEY,
    RECORD_KEY,
    SEARCH_ENDED_KEY,
    find_record,
    labels_in,
)
from tuner.storage.sql.dialect import clock, insert
from tuner.storage.sql.retry import write
from tuner.storage.sql.schema import prepare
from tuner.storage.sql.statements import CHANGED_TRIALS_KEY
from tuner.storage.sql.tables import (
    CHILDREN_OF_STUDIES,
    CHILDREN_OF_TRIALS,
    budgets,
    leases,
    studies,
    study_system_attributes,
    study_user_attributes,
    workers,
)
from tuner.storage.worker.claims import Claimant

if TYPE_CHECKING:
    from optuna.storages import BaseStorage


@dataclass(frozen=True)
class Owner:
    """Who a study belongs to.

    Attributes:
        name: The owner; None if nobody is known.
        is_certain: Whether the name was given, and replaces another one. A user's name does not.
    """

    name: str | None
    is_certain: bool = True


@dataclass(frozen=True)
class Budget:
    """The budget of a launch.

    Attributes:
        trials: The number of trials.
        wall_s: The seconds during which at least one worker runs; None for no limit.
        device_s: The device seconds; None for no limit.
    """

    trials: int
    wall_s: float | None = None
    device_s: float | None = None


@dataclass(frozen=True)
class Registered:
    """A registered study: its id, its recorded settings, and its identity, which a later study of its name lacks."""

    study_id: int
    record: dict[str, Any]
    identity: str


def register(
    storage: BaseStorage, engine: Engine, name: str, directions: Sequence[str], record: Mapping[str, object]
) -> Registered:
    """Create the study unless it exists, and record its settings unless some are recorded.

    Args:
        storage: The storage.
        engine: An engine on the same database.
        name: The study's name.
        directions: `minimize` or `maximize` for each objective.
        record: The settings; plain JSON.

    Returns:
        The study; its settings may be from an earlier launch.

    Raises:
        StudyError: the storage has a study of that name with other directions.

    Concurrency: safe from many workers; all get the same answer.
    """
    from optuna.exceptions import DuplicatedStudyError
    from optuna.study import StudyDirection

    try:
        study_id = storage.create_new_study([StudyDirection[text.upper()] for text in directions], name)
    except DuplicatedStudyError:
        study_id = storage.get_study_id_from_name(name)
        stored = [direction.name.lower() for direction in storage.get_study_directions(study_id)]
        if stored != list(directions):
            raise StudyError(
                f"study {name!r} has direction {', '.join(stored)} in this storage, but "
                f"{', '.join(directions)} in its file; change it back, or give the study a new name"
            ) from None
    return Registered(study_id, agree(engine, study_id, RECORD_KEY, record), identify(engine, study_id))


def identify(engine: Engine, study_id: int) -> str:
    """Return the identity of a study, which a later study with its name and id does not have; created on first use."""

    def work(connection: Connection, _: int) -> str:
        statement = insert(connection.dialect.name, budgets).values(study_id=study_id, identity=uuid.uuid4().hex)
        connection.execute(statement.on_conflict_do_nothing(index_elements=["study_id"]))
        return connection.execute(sa.select(budgets.c.identity).where(budgets.c.study_id == study_id)).scalar_one()

    return write(engine, work)


def agree(engine: Engine, study_id: int, key: str, value: object) -> Any:
    """Record a plain JSON value with a study unless the key has one; return the recorded value.

    Concurrency: safe from many workers; all get the same answer.
    """

    def work(connection: Connection, _: int) -> None:
        statement = insert(connection.dialect.name, study_system_attributes)
        connection.execute(
            statement.values(study_id=study_id, key=key, value_json=json.dumps(value)).on_conflict_do_nothing(
                index_elements=["study_id", "key"]
            )
        )

    write(engine, work)
    recorded = find_record(engine, study_id, key)
    assert recorded is not None
    return recorded


def put_record(engine: Engine, study_id: int, key: str, value: object) -> None:
    """Record a plain JSON value with a study; replace the one that the key has."""

    def work(connection: Connection, _: int) -> None:
        statement = insert(connection.dialect.name, study_system_attributes).values(
            study_id=study_id, key=key, value_json=json.dumps(value)
        )
        changed = {"value_json": statement.excluded.value_json}
        connection.execute(statement.on_conflict_do_update(index_elements=["study_id", "key"], set_=changed))

    write(engine, work)


def set_ownership(
    engine: Engine, study_id: int, owner: Owner, labels: Sequence[str], without: Sequence[str] = ()
) -> None:
    """Store who a study belongs to, and change its labels.

    They are user attributes of the study, so Optuna and its dashboard show them too.

    Args:
        engine: The storage's engine.
        study_id: The study.
        owner: The owner.
        labels: Labels to add.
        without: Labels to remove.

    Concurrency: one transaction that locks the study's row; safe from many workers.
    """
    attributes = study_user_attributes.c

    def work(connection: Connection, _: int) -> None:
        connection.execute(sa.select(studies.c.study_id).where(studies.c.study_id == study_id).with_for_update())
        query = sa.select(attributes.key, attributes.value_json).where(attributes.study_id == study_id)
        stored = {key: json.loads(text) for key, text in connection.execute(query)}
        changed: dict[str, Any] = {}
        if owner.name is not None and (owner.is_certain or OWNER_KEY not in stored):
            changed[OWNER_KEY] = owner.name
        known = labels_in(stored.get(LABELS_KEY))
        wanted = [label for label in dict.fromkeys([*known, *labels]) if label not in without]
        if wanted != known:
            changed[LABELS_KEY] = wanted
        for key, value in changed.items():
            statement = insert(connection.dialect.name, study_user_attributes)
            statement = statement.values(study_id=study_id, key=key, value_json=json.dumps(value))
            connection.execute(
                statement.on_conflict_do_update(
                    index_elements=["study_id", "key"], set_={"value_json": statement.excluded.value_json}
                )
            )

    write(engine, work)


def mode_of(engine: Engine, study_id: int, program: str, measure: Callable[[], str]) -> str:
    """Return whether a program runs as scan or as steps in this study: the recorded mode, or else measure it.

    Concurrency: if several workers measure at once, all use the result of the first.
    """
    key = f"tuner:loop:{hashlib.sha256(program.encode()).hexdigest()[:16]}"
    recorded = find_record(engine, study_id, key)
    return (recorded or agree(engine, study_id, key, {"program": program, "mode": measure()}))["mode"]


def join(engine: Engine, claimant: Claimant, about: Mapping[str, Any]) -> None:
    """Register a worker and its budget with the study.

    Args:
        engine: The storage's engine.
        claimant: The worker.
        about: `host`, `pid`, `devices`, and any other information as plain JSON.
    """
    asked = Budget(claimant.trials, claimant.wall_s, claimant.device_s)
    more = {key: value for key, value in about.items() if key not in ("host", "pid", "devices")}

    def work(connection: Connection, _: int) -> None:
        now = clock(connection.dialect.name)
        _store_budget(connection, claimant.study_id, asked)
        row = {"worker": claimant.worker, "study_id": claimant.study_id, "started_at_s": now, "seen_at_s": now}
        for name in ("host", "pid", "devices"):
            row[name] = about[name]
        statement = insert(connection.dialect.name, workers).values(**row, about=json.dumps(more))
        changed = {name: statement.excluded[name] for name in (*row, "about") if name != "worker"}
        connection.execute(
            statement.on_conflict_do_update(index_elements=["worker"], set_={**changed, "ended_at_s": None})
        )

    write(engine, work)


def note_search_ended(engine: Engine, study_id: int) -> None:
    """Record that the sampler has ended the search, before the budget was used up."""
    put_record(engine, study_id, SEARCH_ENDED_KEY, True)


def forget_search_end(engine: Engine, study_id: int) -> None:
    """Note that the search goes on, although a sampler had ended it."""
    write(engine, lambda connection, _: _forget_search_end(connection, study_id))


def _forget_search_end(connection: Connection, study_id: int) -> None:
    attributes = study_system_attributes.c
    was_ended = (attributes.study_id == study_id) & (attributes.key == SEARCH_ENDED_KEY)
    connection.execute(study_system_attributes.delete().where(was_ended))


def store_budget(engine: Engine, study_id: int, asked: Budget) -> None:
    """Store the budget of a launch whose workers start later; until then the study would seem to be finished."""

    def work(connection: Connection, _: int) -> None:
        _store_budget(connection, study_id, asked)
        _forget_search_end(connection, study_id)

    write(engine, work)


def _store_budget(connection: Connection, study_id: int, asked: Budget) -> None:
    connection.execute(budgets.update().where(budgets.c.study_id == study_id).values(**vars(asked)))


def change_trials(engine: Engine, study_id: int, trials: int) -> int | None:
    """Set the number of trials of a study that was launched, for its running workers and for later launches.

    It replaces the number of the latest launch, and applies until the study is launched with another one.

    Args:
        engine: The storage's engine.
        study_id: The study.
        trials: The number, at least 1.

    Returns:
        The number that applied before; None if the study was never launched, and then nothing is changed.

    Concurrency: one transaction that locks the study's row; each claim of a worker reads the number under that lock.
    """

    def work(connection: Connection, _: int) -> int | None:
        connection.execute(sa.select(studies.c.study_id).where(studies.c.study_id == study_id).with_for_update())
        before = read_effective_trials(connection, study_id).get(study_id)
        launched = connection.execute(sa.select(budgets.c.trials).where(budgets.c.study_id == study_id)).scalar()
        if launched is None:
            return None
        changed: ChangedTrials = {"trials": trials, "instead_of": launched}
        statement = insert(connection.dialect.name, study_system_attributes).values(
            study_id=study_id, key=CHANGED_TRIALS_KEY, value_json=json.dumps(changed)
        )
        replaced = {"value_json": statement.excluded.value_json}
        connection.execute(statement.on_conflict_do_update(index_elements=["study_id", "key"], set_=replaced))
        return before

    return write(engine, work)


def leave(engine: Engine, worker: str) -> None:
    """Store that a worker has exited normally."""

    def work(connection: Connection, _: int) -> None:
        connection.execute(
            workers.update().where(workers.c.worker == worker).values(ended_at_s=clock(connection.dialect.name))
        )

    write(engine, work)


def delete(engine: Engine, study_id: int) -> bool:
    """Delete a study with all its trials in one transaction; return whether there was one.

    Concurrency: workers that hold its trials lose their leases, and cannot write afterwards.
    """
    of_study = "SELECT trial_id FROM trials WHERE study_id = :study_id"

    def work(connection: Connection, _: int) -> bool:
        given = {"study_id": study_id}
        found = connection.execute(
            sa.select(studies.c.study_id).where(studies.c.study_id == study_id).with_for_update()
        ).first()
        if found is None:
            return False
        # First, so that running writes are waited for, and later ones find no lease.
        connection.execute(sa.text(f"DELETE FROM {leases.name} WHERE trial_id IN ({of_study})"), given)
        for name in CHILDREN_OF_TRIALS:
            connection.execute(sa.text(f"DELETE FROM {name} WHERE trial_id IN ({of_study})"), given)
        for name in ("trials", *CHILDREN_OF_STUDIES, "studies"):
            connection.execute(sa.text(f"DELETE FROM {name} WHERE study_id = :study_id"), given)
        return True

    return write(engine, work)


def stop(engine: Engine, study_id: int) -> bool:
    """Stop a study: its workers on all machines give back their trials and exit. Return whether it was not stopped."""
    prepare(engine)

    def work(connection: Connection, _: int) -> bool:
        now = clock(connection.dialect.name)
        statement = insert(connection.dialect.name, budgets).values(
            study_id=study_id, identity=uuid.uuid4().hex, stopped_at_s=now
        )
        was_running = budgets.c.stopped_at_s.is_(None)
        changed = connection.execute(
            statement.on_conflict_do_update(
                index_elements=["study_id"], set_={"stopped_at_s": statement.excluded.stopped_at_s}, where=was_running
            )
        )
        return changed.rowcount == 1

    return write(engine, work)


def resume(engine: Engine, study_id: int) -> bool:
    """Resume a stopped study; return whether it was stopped."""
    prepare(engine)
    return reopen_study(engine, study_id)


def end_study(engine: Engine, study_id: int, why: Mapping[str, object]) -> bool:
    """Stop a study as `stop` does, and record why it has ended.

    Returns:
        Whether it was not stopped yet; otherwise the earlier reason stays.

    Concurrency: one transaction that locks the study's row; safe from many workers.
    """
    reason = {"study_id": study_id, "key": END_KEY, "value_json": json.dumps(why)}

    def work(connection: Connection, _: int) -> bool:
        connection.execute(sa.select(studies.c.study_id).where(studies.c.study_id == study_id).with_for_update())
        is_running = (budgets.c.study_id == study_id) & budgets.c.stopped_at_s.is_(None)
        now = clock(connection.dialect.name)
        if connection.execute(budgets.update().where(is_running).values(stopped_at_s=now)).rowcount == 0:
            return False
        statement = insert(connection.dialect.name, study_system_attributes).values(**reason)
        changed = {"value_json": statement.excluded.value_json}
        connection.execute(statement.on_conflict_do_update(index_elements=["study_id", "key"], set_=changed))
        return True

    return write(engine, work)


def find_end(engine: Engine, study_id: int) -> dict[str, Any] | None:
    """Return what `end_study` has recorded; None if it has not ended the study."""
    return find_record(engine, study_id, END_KEY)


def reopen_study(engine: Engine, study_id: int) -> bool:
    """Undo `stop` or `end_study`; return whether the study was stopped."""
    attributes = study_system_attributes.c
    reason = study_system_attributes.delete().where(attributes.study_id == study_id, attributes.key == END_KEY)

    def work(connection: Connection, _: int) -> bool:
        statement = budgets.update().where(budgets.c.study_id == study_id, budgets.c.stopped_at_s.is_not(None))
        was_stopped = connection.execute(statement.values(stopped_at_s=None)).rowcount == 1
        connection.execute(reason)
        return was_stopped

    return write(engine, work)
