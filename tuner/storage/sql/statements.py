"""The statements that a worker sends for each trial or report, by name.

`prepared_statements.py` runs them (`run`), prints their SQL (`text_of`) and shows how a database runs them (`explain`).
The values are those of the `bindparam`s, by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from tuner.storage.sql.dialect import clock, greatest, insert, is_recent, least, of_study, one_of, utc_now
from tuner.storage.sql.prepared_statements import Bind, held_statement, statement
from tuner.storage.sql.tables import (
    attempts,
    budgets,
    leases,
    records,
    rungs,
    studies,
    study_system_attributes,
    trial_heartbeats,
    trial_intermediate_values,
    trial_params,
    trial_system_attributes,
    trial_user_attributes,
    trial_values,
    trials,
)
from tuner.trial.failures import ANY_FAILURES

if TYPE_CHECKING:
    from tuner.storage.sql.row_types import AnySelect

AFTER_RESTART_S = 20.0
"""Seconds that workers have after a restart of the server to renew leases that ended while it was down."""
OTHERS_TRIAL_S = 3600
"""Seconds after its start that a running trial of a plain Optuna process uses budget..."""
OTHERS_HEARTBEAT_S = 600
"""...and while its latest heartbeat is younger than this."""
CHANGED_TRIALS_KEY = "tuner:trials"
"""The study attribute with the number of trials that a user has set after the launch (`tuner.storage.read.budget`)."""
SPACE_VERSION_KEY = "tuner:space_version"
"""The study attribute that counts how often the space was changed (`tuner migrate`); missing if never."""
CLOCK_JUMP_S = 1.0
"""Smaller changes of the clock are corrections of its rate, or the time between two readings."""


def _word(state: str) -> sa.ColumnElement[Any]:
    return sa.literal_column(f"'{state}'")


def _place(name: str, type_: Any) -> sa.ColumnElement[Any]:
    return sa.cast(sa.bindparam(name, type_=type_), type_)


def _is_held(table: sa.Table, held: sa.FromClause) -> sa.ColumnElement[bool]:
    # A value, because IN (SELECT ...) would be a join that Postgres may run over all trials.
    return table.c.trial_id == sa.select(held.c.trial_id).scalar_subquery()


# --- Claims


@statement("lock study")
def lock_study(dialect: str) -> Any:
    """Lock the row of `study_id` until the end of the transaction.

    Return identity and stop flag of its budget, and the number of trials that a user has set since, as JSON.
    """
    attributes = study_system_attributes.c
    is_changed = (attributes.study_id == studies.c.study_id) & (attributes.key == _word(CHANGED_TRIALS_KEY))
    return (
        sa.select(budgets.c.identity, budgets.c.stopped_at_s, attributes.value_json)
        .select_from(
            studies.outerjoin(budgets, budgets.c.study_id == studies.c.study_id).outerjoin(
                study_system_attributes, is_changed
            )
        )
        .where(studies.c.study_id == sa.bindparam("study_id"))
        # NO KEY, so that ending a trial, which refers to the study's row, need not wait.
        .with_for_update(of=studies, key_share=True)
    )


def space_version() -> sa.ColumnElement[str]:
    """Return the version of the space of the study in `studies`, as text; NULL if it was never changed."""
    table = study_system_attributes.c
    is_version = (table.study_id == studies.c.study_id) & (table.key == sa.literal_column(f"'{SPACE_VERSION_KEY}'"))
    return sa.select(table.value_json).where(is_version).correlate(studies).scalar_subquery()


@statement("standing")
def standing(dialect: str, are_new: bool) -> Any:
    """Count the trials of `study_id` that are not settled, and read the clock and the version of the space.

    In one statement: between two, another worker could end a trial, which neither would count.
    """
    now = clock(dialect)
    state, of_trial = trials.c.state, trials.c.trial_id
    is_ours = (state == _word("RUNNING")) & leases.c.trial_id.is_not(None)
    is_open = (state == _word("RUNNING")) | (state == _word("WAITING"))
    is_queued = state == _word("WAITING")
    is_others = (state == _word("RUNNING")) & leases.c.trial_id.is_(None) & is_alive(dialect)
    one: sa.ColumnElement[int] = sa.literal_column("1")
    count = sa.func.count
    table = study_system_attributes.c
    is_version = (table.study_id == sa.bindparam("study_id")) & (
        table.key == sa.literal_column(f"'{SPACE_VERSION_KEY}'")
    )
    version = sa.select(table.value_json).where(is_version).scalar_subquery()
    return (
        sa.select(
            count(),
            count(sa.case((is_used(state), one))),
            count(sa.case((is_ours | is_others, one))),
            count(sa.case((is_open, one))),
            sa.func.min(sa.case((is_queued, of_trial))),
            count(sa.case((is_ours & has_expired(dialect, now), one))),
            now,
            version,
        )
        .select_from(trials.outerjoin(leases, leases.c.trial_id == of_trial))
        .where(is_unsettled(dialect, are_new))
    )


def is_used(state: sa.Column[Any]) -> sa.ColumnElement[bool]:
    """Return whether a trial counts against the budget."""
    return (state == _word("COMPLETE")) | (state == _word("PRUNED"))


def is_unsettled(dialect: str, are_new: bool) -> sa.ColumnElement[bool]:
    """Return whether a trial must be counted, for the values `study_id`, `up_to` and `still_open`."""
    is_new = (trials.c.trial_id > sa.bindparam("up_to")) | one_of(dialect, trials.c.trial_id, "still_open")
    study_id: sa.ColumnElement[int] = sa.bindparam("study_id")
    return is_new & of_study(dialect, study_id, are_new)


def has_expired(dialect: str, now_s: float | sa.ColumnElement[float]) -> sa.ColumnElement[bool]:
    """Return whether a lease's trial may be taken over.

    A lease that ended while the server was down could not be renewed: its worker gets some time to do so.
    """
    has_ended = leases.c.expires_at_s <= now_s
    if dialect == "sqlite":
        return has_ended
    started_s = sa.literal_column("extract(epoch FROM pg_postmaster_start_time())", sa.Float(53))
    is_up_s: sa.ColumnElement[float] = sa.literal_column(str(AFTER_RESTART_S))
    was_given_back = leases.c.expires_at_s == sa.literal_column("0.0")
    return has_ended & (was_given_back | (leases.c.expires_at_s >= started_s) | (started_s + is_up_s <= now_s))


def is_alive(dialect: str) -> sa.ColumnElement[bool]:
    """Return whether a running trial of another tool probably has a live process."""
    # A value, not EXISTS, for which Postgres may read all heartbeats first.
    latest = sa.select(trial_heartbeats.c.heartbeat).where(trial_heartbeats.c.trial_id == trials.c.trial_id)
    began_lately = is_recent(dialect, trials.c.datetime_start, OTHERS_TRIAL_S)
    has_heartbeat = is_recent(dialect, latest.scalar_subquery(), OTHERS_HEARTBEAT_S, in_session_zone=True)
    return began_lately | has_heartbeat


@statement("latest errors")
def latest_errors(dialect: str) -> Any:
    """Return outcome, kind and traceback of the latest trials of `study_id` that ended since `since_s`."""
    return (
        sa.select(records.c.outcome, records.c.error_kind, records.c.error)
        .where(records.c.study_id == sa.bindparam("study_id"), records.c.ended_at_s >= sa.bindparam("since_s"))
        .order_by(records.c.ended_at_s.desc(), records.c.trial_id.desc())
        .limit(sa.literal_column(str(ANY_FAILURES)))
    )


@statement("create trial")
def create_trial(dialect: str) -> Any:
    """Create a running trial with the number `number`, and return its id."""
    row: dict[str, sa.ColumnElement[Any]] = {
        "number": sa.bindparam("number"),
        "study_id": sa.bindparam("study_id"),
        "state": _word("RUNNING"),
    }
    return trials.insert().values({**row, "datetime_start": utc_now(dialect)}).returning(trials.c.trial_id)


@statement("hours")
def hours(dialect: str) -> Any:
    """Return wall and device seconds of `study_id` between two times, the number of attempts, and the earliest end."""
    now, since, until = (_place(name, sa.Float(53)) for name in ("now_s", "since_s", "until_s"))
    started, ended, expires = attempts.c.started_at_s, attempts.c.ended_at_s, leases.c.expires_at_s
    start = greatest(dialect, started, since)
    end = sa.func.coalesce(ended, least(dialect, now, sa.func.coalesce(expires, started)))
    tried = (
        sa.select(
            start.label("start"),
            greatest(dialect, start, least(dialect, end, until)).label("end"),
            attempts.c.devices,
            attempts.c.worker,
            sa.case((ended.is_(None), expires)).label("expires_at_s"),
        )
        .select_from(attempts.outerjoin(leases, leases.c.trial_id == attempts.c.trial_id))
        .where(attempts.c.study_id == sa.bindparam("study_id"), ended.is_(None) | (ended > since))
        .subquery("tried")
    )
    zero: sa.ColumnElement[float] = sa.literal_column("0.0")

    def fresh(**among: Any) -> sa.ColumnElement[float]:
        """Return the part of an attempt after the end of all that started before it: the sum is that of their union."""
        before = sa.func.max(tried.c.end).over(order_by=tried.c.start, rows=(None, -1), **among)
        return greatest(
            dialect, tried.c.end - greatest(dialect, tried.c.start, sa.func.coalesce(before, tried.c.start)), zero
        )

    covered = sa.select(
        fresh().label("wall_s"),
        # Trials that a worker trains at once share its devices.
        (fresh(partition_by=tried.c.worker) * tried.c.devices).label("device_s"),
        tried.c.expires_at_s,
    ).subquery("covered")
    return sa.select(
        sa.func.coalesce(sa.func.sum(covered.c.wall_s), zero),
        sa.func.coalesce(sa.func.sum(covered.c.device_s), zero),
        sa.func.count(),
        sa.func.min(covered.c.expires_at_s),
    )


# --- Leases


@statement("extend lease")
def extend_lease(dialect: str, clock_columns: tuple[str, ...]) -> Any:
    """Extend a lease that is still held by `lease_s` seconds, and return its trial's id."""
    return _extension(dialect, clock_columns, {})


@statement("extend lease, reported")
def extend_lease_reported(dialect: str, clock_columns: tuple[str, ...]) -> Any:
    """The same for a report of `epoch`; if no attempt has got so far, the deaths up to now no longer count."""
    c, epoch = leases.c, _place("epoch", sa.Integer())
    is_further = c.farthest_epoch.is_(None) | (c.farthest_epoch < epoch)
    none: sa.ColumnElement[int] = sa.literal_column("0")
    changed: dict[str, sa.ColumnElement[int]] = {"deaths": none, "farthest_epoch": epoch, "farthest_fence": c.fence}
    progress = {name: sa.case((is_further, value), else_=c[name]) for name, value in changed.items()}
    return _extension(dialect, clock_columns, progress)


def _extension(dialect: str, clock_columns: tuple[str, ...], changes: Mapping[str, sa.ColumnElement[Any]]) -> Any:
    on_clock = {name: _place(f"of_{name}", leases.c[name].type) for name in clock_columns}
    ends = clock(dialect) + _place("lease_s", sa.Float(53))
    extended = {"expires_at_s": ends, **on_clock, **changes}
    return leases.update().where(*_is_still_held()).values(extended).returning(leases.c.trial_id)


@statement("release lease")
def release_lease(dialect: str) -> Any:
    """Give back a trial whose lease is still held, and return its id."""
    return leases.update().where(*_is_still_held()).values(_given_back()).returning(leases.c.trial_id)


@statement("bury lease")
def bury_lease(dialect: str) -> Any:
    """Give back a trial whose lease is still held, count a death, and return its id."""
    given_back = {**_given_back(), "deaths": leases.c.deaths + sa.literal_column("1")}
    return leases.update().where(*_is_still_held()).values(given_back).returning(leases.c.trial_id)


def _given_back() -> dict[str, sa.ColumnElement[Any]]:
    return {"worker": sa.null(), "expires_at_s": sa.literal_column("0.0")}


@statement("end lease")
def end_lease(dialect: str) -> Any:
    """Remove a lease that is still held, and return its trial's id."""
    return leases.delete().where(*_is_still_held()).returning(leases.c.trial_id)


def _is_still_held() -> tuple[sa.ColumnElement[bool], ...]:
    held_id = _place("held_id", sa.Integer())
    return (
        leases.c.trial_id == held_id,
        leases.c.fence == _place("fence", sa.Integer()),
        leases.c.worker == _place("worker", sa.Text()),
        # Another tool may have ended the trial, or deleted its study.
        sa.exists().where(trials.c.trial_id == held_id, trials.c.state == _word("RUNNING")),
    )


@statement("rebase")
def outdated_leases(dialect: str) -> Any:
    """Return a trial whose lease must be moved, for the values `now_id`, `now_clock`, `now_host`, `now_ahead_s`."""
    names = ("id", "clock", "host", "ahead_s")
    places: dict[str, sa.ColumnElement[Any]] = {name: sa.bindparam(f"now_{name}") for name in names}
    is_outdated = has_jumped(places) | is_of_earlier_boot(places)
    return sa.select(leases.c.trial_id).where(is_outdated).limit(sa.literal_column("1"))


def has_jumped(values: Mapping[str, object]) -> sa.ColumnElement[bool]:
    """Return whether the wall clock has jumped since a lease was written, and the lease has not been ended."""
    c = leases.c
    is_comparable = _begins(values["clock"]) & (c.ahead_fence == c.fence) & (c.expires_at_s > sa.literal_column("0.0"))
    return is_comparable & (sa.func.abs(values["ahead_s"] - c.ahead_s) > sa.literal_column(str(CLOCK_JUMP_S)))


def is_of_earlier_boot(values: Mapping[str, object]) -> sa.ColumnElement[bool]:
    """Return whether a lease that has not ended is from an earlier boot of this host."""
    c = leases.c
    is_of_host = sa.func.substr(c.boot, -sa.func.length(values["host"])) == values["host"]
    is_earlier = is_of_host & ~_begins(values["id"])
    return is_earlier & (c.ahead_fence == c.fence) & (c.expires_at_s > clock("sqlite"))


def _begins(text: Any) -> sa.ColumnElement[bool]:
    return sa.func.substr(leases.c.boot, 1, sa.func.length(text)) == text


# --- Writes to a held trial


@held_statement("insert row")
def insert_row(dialect: str, held: sa.FromClause, bind: Bind, table: sa.Table, columns: tuple[str, ...]) -> Any:
    """Add a row that belongs to the trial."""
    source = sa.select(held.c.trial_id, *(bind(name, table.c[name]).label(name) for name in columns))
    return table.insert().from_select(["trial_id", *columns], source)


@held_statement("upsert rows")
def upsert_rows(
    dialect: str,
    held: sa.FromClause,
    bind: Bind,
    table: sa.Table,
    columns: tuple[str, ...],
    unique: str,
    count: int,
    time_column: str | None,
) -> Any:
    """Store rows of the trial, replacing existing ones.

    The n-th row's value of a column is `COLUMN_n`. `time_column` gets the database's time, but an existing row keeps
    its time.
    """
    firsts = {} if time_column is None else {time_column: clock(dialect)}
    parts = [
        sa.select(
            held.c.trial_id,
            *(bind(f"{name}_{at}", table.c[name]).label(name) for name in columns),
            *(expression.label(name) for name, expression in firsts.items()),
        )
        for at in range(count)
    ]
    source = parts[0] if len(parts) == 1 else sa.select(sa.union_all(*parts).subquery())
    # SQLite parses ON CONFLICT as a join's ON unless a WHERE precedes it.
    names = ["trial_id", *columns, *firsts]
    made = insert(dialect, table).from_select(names, source.where(sa.literal_column("1 = 1")))
    changed = {name: made.excluded[name] for name in columns if name != unique}
    return made.on_conflict_do_update(index_elements=["trial_id", unique], set_=changed)


@held_statement("delete rows")
def delete_rows(dialect: str, held: sa.FromClause, bind: Bind, table: sa.Table, epoch: str) -> Any:
    """Remove the rows of the trial from the epoch `first` on; `epoch` is the column that has it."""
    return table.delete().where(_is_held(table, held), table.c[epoch] >= bind("first", table.c[epoch]))


@held_statement("delete attribute")
def delete_attribute(dialect: str, held: sa.FromClause, bind: Bind) -> Any:
    """Delete the system attribute `key` of the trial."""
    keys = trial_system_attributes.c.key
    return trial_system_attributes.delete().where(_is_held(trial_system_attributes, held), keys == bind("key", keys))


@held_statement("end trial")
def end_trial(dialect: str, held: sa.FromClause, bind: Bind) -> Any:
    """Set the trial's final state and time."""
    changes = {"state": bind("state", trials.c.state), "datetime_complete": utc_now(dialect)}
    return trials.update().where(_is_held(trials, held)).values(changes)


@held_statement("insert record")
def insert_record(dialect: str, held: sa.FromClause, bind: Bind, columns: tuple[str, ...]) -> Any:
    """Add the trial's record."""
    given = [bind(name, records.c[name]).label(name) for name in columns]
    source = sa.select(trials.c.trial_id, trials.c.study_id, clock(dialect), *given).where(_is_held(trials, held))
    return records.insert().from_select(["trial_id", "study_id", "ended_at_s", *columns], source)


@held_statement("end attempt")
def end_attempt(dialect: str, held: sa.FromClause, bind: Bind) -> Any:
    """Set the end of the attempt with the fence `fence`."""
    is_running = (attempts.c.fence == bind("fence", attempts.c.fence)) & attempts.c.ended_at_s.is_(None)
    told = {name: bind(name, attempts.c[name]) for name in ("ending", "error")}
    return attempts.update().where(_is_held(attempts, held), is_running).values(ended_at_s=clock(dialect), **told)


# --- Rungs


@statement("lock rungs")
def lock_rungs(dialect: str) -> Any:
    """Lock the row of `study_id`, so that positions in its rungs have no gaps."""
    study_id = sa.bindparam("study_id", type_=sa.Integer)
    return sa.select(studies.c.study_id).where(studies.c.study_id == study_id).with_for_update(key_share=True)


@statement("new in rungs")
def new_in_rungs(dialect: str) -> Any:
    """Return the rows of the rungs of `study_id` after the position `newest`."""
    columns = ("position", "trial_id", "bracket", "rung", "value", "is_promoted", "metric", "others")
    is_new = (rungs.c.study_id == sa.bindparam("study_id")) & (rungs.c.position > sa.bindparam("newest"))
    return sa.select(*(rungs.c[name] for name in columns)).where(is_new).order_by(rungs.c.position)


@statement("enter rung")
def enter_rung(dialect: str) -> Any:
    """Enter a trial of another tool into a rung."""
    return rungs.insert().values({column.name: sa.bindparam(column.name, type_=column.type) for column in rungs.c})


@statement("enter rung, held")
def enter_rung_held(dialect: str) -> Any:
    """Enter a trial into a rung if its lease is held; it cannot be taken over while the study's row is locked."""
    places = [_place(column.name, column.type) for column in rungs.c]
    is_held = sa.exists().where(
        leases.c.trial_id == _place("trial_id", sa.Integer()),
        leases.c.fence == sa.bindparam("fence", type_=sa.Integer),
        leases.c.worker == sa.bindparam("worker", type_=sa.Text),
    )
    made = insert(dialect, rungs).from_select([column.name for column in rungs.c], sa.select(*places).where(is_held))
    # A trial that started again has left the rung.
    names = ("position", "bracket", "value", "is_promoted", "metric", "others")
    changed = {name: made.excluded[name] for name in names}
    return made.on_conflict_do_update(index_elements=["trial_id", "rung"], set_=changed)


# --- Optuna's interface

TRIAL_COLUMNS = ("trial_id", "number", "state", "datetime_start", "datetime_complete")
PARAM, VALUE, REPORT, USER, SYSTEM = range(5)
"""Kinds of rows of `trial_details`. Parameters are in the order of their keys, which is that of suggestion."""


@statement("load trials")
def load_trials(dialect: str, are_new: bool) -> Any:
    """Return the trials of `study_id` with an id above `newer_than` or among `also`.

    Each has the study's name and the version of its space.
    """
    newer: sa.ColumnElement[int] = sa.bindparam("newer_than")
    if are_new and dialect == "sqlite":  # which does not look up the two parts of an OR in a join
        others = trials.alias()
        newest = sa.select(others.c.trial_id).where(others.c.trial_id > newer)
        listed = sa.func.json_each(sa.bindparam("also")).table_valued("value")
        found = sa.union_all(newest.where(others.c.study_id == sa.bindparam("study_id")), sa.select(listed.c.value))
        wanted = trials.c.trial_id.in_(found) & (trials.c.study_id + sa.literal_column("0") == studies.c.study_id)
    else:
        wanted = (trials.c.trial_id > newer) | one_of(dialect, trials.c.trial_id, "also")
        wanted &= of_study(dialect, studies.c.study_id, are_new)
    return (
        sa.select(*(trials.c[name] for name in TRIAL_COLUMNS), studies.c.study_name, space_version())
        .select_from(studies.outerjoin(trials, wanted))
        .where(studies.c.study_id == sa.bindparam("study_id"))
        .order_by(trials.c.trial_id)
    )


@statement("load trial")
def load_trial(dialect: str) -> Any:
    """Return the trial `trial_id`."""
    return sa.select(*(trials.c[name] for name in TRIAL_COLUMNS)).where(trials.c.trial_id == sa.bindparam("trial_id"))


@statement("trial details")
def trial_details(dialect: str, is_listed: bool) -> Any:
    """Return all details of trials, as rows of (kind, trial_id, position, name, number, text).

    The trials are those in `ids` if they are listed, else those of `study_id` from the id `first` on.
    """
    params, values, reports = trial_params.c, trial_values.c, trial_intermediate_values.c
    user, system = trial_user_attributes.c, trial_system_attributes.c
    zero: sa.ColumnElement[int] = sa.literal_column("0")
    nothing = sa.null()
    value, report = reports.intermediate_value, reports.intermediate_value_type

    def part(
        kind: int,
        columns: sa.ColumnCollection[str, sa.Column[Any]],
        position: sa.ColumnElement[int],
        name: sa.ColumnElement[str] | sa.Null,
        number: sa.ColumnElement[float] | sa.Null,
        text: sa.ColumnElement[str],
    ) -> AnySelect:
        kind_column: sa.ColumnElement[int] = sa.literal_column(str(kind))
        if is_listed:
            is_wanted = one_of(dialect, columns.trial_id, "ids")
        else:
            is_of_study = trials.c.study_id == sa.bindparam("study_id")
            newer = sa.select(trials.c.trial_id).where(is_of_study, trials.c.trial_id >= sa.bindparam("first"))
            is_wanted = columns.trial_id.in_(newer)
        return sa.select(
            kind_column.label("kind"),
            columns.trial_id,
            position,
            sa.cast(name, sa.Text),
            sa.cast(number, sa.Float(53)),
            sa.cast(text, sa.Text),
        ).where(is_wanted)

    return sa.union_all(
        part(PARAM, params, params.param_id, params.param_name, params.param_value, params.distribution_json),
        part(VALUE, values, values.objective, nothing, values.value, values.value_type),
        part(REPORT, reports, reports.step, nothing, value, report),
        part(USER, user, zero, user.key, nothing, user.value_json),
        part(SYSTEM, system, zero, system.key, nothing, system.value_json),
    )


@statement("open trial's row")
def open_trial_row(dialect: str, table: sa.Table, names: tuple[str, ...], changed: tuple[str, ...]) -> Any:
    """Store a row of the trial `id` if the trial has not ended; `changed` columns replace existing values."""
    unique = ["trial_id", *(name for name in names if name in ("param_name", "step", "key"))]
    columns = [_place(name, table.c[name].type) for name in names]
    is_open = (trials.c.state == _word("RUNNING")) | (trials.c.state == _word("WAITING"))
    source = sa.select(trials.c.trial_id, *columns).where(trials.c.trial_id == sa.bindparam("id"), is_open)
    made = insert(dialect, table).from_select(["trial_id", *names], source)
    if not changed:
        return made.on_conflict_do_nothing(index_elements=unique)
    return made.on_conflict_do_update(index_elements=unique, set_={name: made.excluded[name] for name in changed})


@statement("trial's value")
def trial_value(dialect: str) -> Any:
    """Store the value of an objective of a trial."""
    names = ("trial_id", "objective", "value", "value_type")
    places = {name: sa.bindparam(name, type_=trial_values.c[name].type) for name in names}
    made = insert(dialect, trial_values).values(places)
    changed = {name: made.excluded[name] for name in ("value", "value_type")}
    return made.on_conflict_do_update(index_elements=["trial_id", "objective"], set_=changed)
