"""Optuna's storage interface on Optuna's tables: frequent calls take a statement or two, `RDBStorage` does the rest."""

from __future__ import annotations

import datetime
import json
import threading
from bisect import bisect_left
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, TypeVar

import sqlalchemy as sa
from optuna.distributions import (
    BaseDistribution,
    check_distribution_compatibility,
    distribution_to_json,
    json_to_distribution,
)
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from tuner.storage.optuna.held import Held, flush_together
from tuner.storage.optuna.loading import Loaded, copies, load_trial, load_trials, new_trial, to_distribution
from tuner.storage.optuna.window import Window, load_window
from tuner.storage.read.ranking import is_constraint_key
from tuner.storage.sql import schema, statements
from tuner.storage.sql.encoding import stored_number
from tuner.storage.sql.engine import lost, new_engine
from tuner.storage.sql.prepared_statements import run
from tuner.storage.sql.retry import IMPATIENT, Patience, patient, read, retried, write, write_once
from tuner.storage.sql.tables import (
    studies,
    trial_intermediate_values,
    trial_params,
    trial_system_attributes,
    trial_user_attributes,
    trials,
)
from tuner.storage.sql.url import AnyURL, parse_url
from tuner.storage.sql.zones import UTC, utc_time
from tuner.storage.worker.fences import Lease
from tuner.storage.worker.leases import delete_attributes, store_attribute
from tuner.storage.worker.points import Choice, Point, take_point
from tuner.storage.worker.rungs import Entry, Rungs, enter_rung, enter_rungs
from tuner.storage.worker.studies import delete
from tuner.trial import optuna_private as private

T = TypeVar("T")


@dataclass
class _Known:
    """The cached trials of a study. Ended trials do not change, except with the version of the space; ids only grow."""

    name: str | None = None
    version: str | None = None
    directions: list[StudyDirection] | None = None
    trials: list[FrozenTrial] = field(default_factory=list[FrozenTrial])  # by number
    unfinished: set[int] = field(default_factory=set[int])
    newest: int = -1
    distributions: dict[str, BaseDistribution] = field(default_factory=dict[str, BaseDistribution])
    rungs: Rungs = field(default_factory=Rungs)

    def add(self, several: list[FrozenTrial]) -> None:
        for trial in several:
            if not self.trials or trial.number > self.trials[-1].number:
                self.trials.append(trial)
                self._note(trial)
                continue
            at = bisect_left(self.trials, trial.number, key=attrgetter("number"))
            if at < len(self.trials) and self.trials[at].number == trial.number:
                self.trials[at] = trial
            else:
                self.trials.insert(at, trial)
            self._note(trial)

    def _note(self, trial: FrozenTrial) -> None:
        trial_id = private.trial_id(trial)
        self.newest = max(self.newest, trial_id)
        if trial.state.is_finished():
            self.unfinished.discard(trial_id)
        else:
            self.unfinished.add(trial_id)


class Storage(BaseStorage):
    """Optuna's storage on SQLite or Postgres.

    Ended trials are read once and cached; others are read again on each call, all in two statements. A trial whose
    lease is passed to `hold` is served from memory, and `flush` writes all its suggestions together.

    Args:
        url: The database's URL.
        patience: How long to wait in each call, including this one, for a database that does not answer.
        zone: The zone of trials' times. None for local times without a zone, as `RDBStorage` returns them.
        creates_tables: Whether to create missing tables now; if not, the first study that is created or deleted here
            does.

    Raises:
        StorageLost: the database cannot be reached, in this or any other call.
        StorageSchemaError: its tables belong to another version.

    Concurrency: safe from many processes and threads.
    """

    def __init__(
        self,
        url: AnyURL,
        patience: Patience = IMPATIENT,
        zone: datetime.tzinfo | None = None,
        *,
        creates_tables: bool = True,
    ) -> None:
        url = parse_url(url)
        self.url, self.zone, self._has_all_tables = url, zone, creates_tables
        self._lock = threading.RLock()
        self._known: dict[int, _Known] = {}
        self._windows: dict[int, Window] = {}
        self._held: dict[int, Held] = {}
        self._entered: dict[tuple[int, int], bool] = {}  # decisions of `enter_rungs`, by trial and rung
        self._studies_of_new: dict[int, int] = {}  # trials created here that have not ended here
        self._optunas: RDBStorage | None = None
        self.engine = patient(new_engine(url), patience)
        try:
            retried(self.engine, lambda _: (schema.prepare if creates_tables else schema.check)(self.engine))
        except DBAPIError as error:
            self.engine.dispose()
            raise lost(error, url) from None
        except BaseException:
            self.engine.dispose()
            raise

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url.text, "zone": self.zone, "creates_tables": self._has_all_tables}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["url"], zone=state.get("zone"), creates_tables=state.get("creates_tables", True))

    @property
    def _rdb(self) -> RDBStorage:
        """Optuna's own storage, using our connections; it needs its tables."""
        with self._lock:
            if self._optunas is None:
                pool = {"pool": self.engine.pool}
                self._optunas = private.storage_on_checked_tables(self.url.for_optuna, pool)
            return self._optunas

    def close(self) -> None:
        """Close all connections; a later call opens new ones."""
        self.remove_session()
        self.engine.dispose()
        if self._optunas is not None:
            self._optunas.engine.pool = self.engine.pool  # dispose() creates a new pool

    def remove_session(self) -> None:
        if self._optunas is not None:
            self._optunas.remove_session()

    def _cold(self, call: Callable[[], T]) -> T:
        """Make a call of `RDBStorage`, with our patience and our errors."""

        def attempt(_: int) -> T:
            try:
                return call()
            except StorageInternalError as error:
                cause = error.__cause__
                raise cause if isinstance(cause, DBAPIError | PoolTimeout) else error from None

        return retried(self.engine, attempt)

    # --- Studies

    def _create_tables(self) -> None:
        if not self._has_all_tables:
            retried(self.engine, lambda _: schema.prepare(self.engine))
            self._has_all_tables = True

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        self._create_tables()
        study_id = self._cold(lambda: self._rdb.create_new_study(directions, study_name))
        with self._lock:
            self._known[study_id] = _Known(study_name, directions=list(directions))
        return study_id

    def delete_study(self, study_id: int) -> None:
        self._create_tables()
        with self._lock:
            self._known.pop(study_id, None)
            self._studies_of_new.clear()
            self._held = {trial_id: held for trial_id, held in self._held.items() if held.study_id != study_id}
        if not delete(self.engine, study_id):
            raise KeyError(f"no study with id {study_id}")

    def set_study_user_attr(self, study_id: int, key: str, value: object) -> None:
        self._cold(lambda: self._rdb.set_study_user_attr(study_id, key, value))

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        self._cold(lambda: self._rdb.set_study_system_attr(study_id, key, value))

    def get_study_id_from_name(self, study_name: str) -> int:
        study_id = self._cold(lambda: self._rdb.get_study_id_from_name(study_name))
        with self._lock:
            # Read by name, it may be another study than the cached one: SQLite reuses the ids of deleted studies.
            self._known.pop(study_id, None)
        return study_id

    def get_study_name_from_id(self, study_id: int) -> str:
        known = self._of(study_id)
        if known.name is None:
            known.name = self._cold(lambda: self._rdb.get_study_name_from_id(study_id))
        return known.name

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        known = self._of(study_id)
        if known.directions is None:
            known.directions = self._cold(lambda: self._rdb.get_study_directions(study_id))
        return list(known.directions)

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        return self._cold(lambda: self._rdb.get_study_user_attrs(study_id))

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        return self._cold(lambda: self._rdb.get_study_system_attrs(study_id))

    def get_all_studies(self) -> list[private.FrozenStudy]:
        if not (self._has_all_tables or read(self.engine, lambda one: sa.inspect(one).has_table(studies.name))):
            return []
        found = self._cold(self._rdb.get_all_studies)
        with self._lock:
            for study in found:
                study_id = private.study_id(study)
                if self._of(study_id).name not in (None, study.study_name):
                    self._known[study_id] = _Known()
        return found

    def _of(self, study_id: int) -> _Known:
        with self._lock:
            return self._known.setdefault(study_id, _Known())

    # --- Trials that this process holds

    def hold(self, lease: Lease, study_id: int) -> None:
        """Serve a trial from memory from now on, and write to it with its lease.

        Raises:
            KeyError: the trial does not exist.
        """
        trial = new_trial(lease.trial_id, lease.number) if lease.is_new else self.get_trial(lease.trial_id)
        with self._lock:
            self._held[lease.trial_id] = Held(lease, study_id, trial)

    def flush(self, trial_id: int) -> None:
        """Write the hyperparameters suggested since the last call and the sampler's attributes together.

        Raises:
            LeaseLost: another worker has the trial.

        Concurrency: another thread may suggest more meanwhile; the next call writes it.
        """
        self._held[trial_id].flush(self.engine)

    def flush_together(self, trial_ids: Sequence[int]) -> None:
        """Do what `flush` does for several trials, in one transaction.

        The suggestions for a trial that another worker has are not written; `flush` for that trial raises `LeaseLost`.
        """
        flush_together(self.engine, [self._held[trial_id] for trial_id in sorted(set(trial_ids))])

    def forget_pruning(self, trial_id: int) -> None:
        """Forget the reports of a trial, and delete its constraints and what Optuna's own pruners stored with it."""
        held = self._held[trial_id]
        with self._lock:
            self._forget_entered(trial_id)
        held.trial.intermediate_values.clear()
        attributes = held.trial.system_attrs
        keys = [key for key in attributes if key.startswith(private.RUNG_KEY) or is_constraint_key(key)]
        if keys:
            delete_attributes(self.engine, held.lease, keys)
        for key in keys:
            del private.system_attrs(held.trial)[key]

    def drop(self, trial_id: int) -> None:
        """Stop serving a trial from memory."""
        with self._lock:
            self._held.pop(trial_id, None)
            self._forget_entered(trial_id)

    def enter_rung(self, study_id: int, trial_id: int, **place: Any) -> bool:
        """See `tuner.storage.worker.rungs.enter_rung`."""
        with self._lock:
            decided = self._entered.pop((trial_id, place["rung"]), None)
            if decided is not None:
                return decided
            held = self._held.get(trial_id)
            entry = Entry(trial_id, None if held is None else held.lease, **place)
            return enter_rung(self.engine, self._of(study_id).rungs, study_id, entry)

    def enter_rungs(self, study_id: int, several: Sequence[tuple[Lease, Mapping[str, Any]]]) -> None:
        """Enter held trials into rungs in one transaction; the next `enter_rung` of each returns its decision.

        Args:
            study_id: The study.
            several: Each trial's lease, and the rung as in `enter_rung`.
        """
        with self._lock:
            entries = [Entry(lease.trial_id, lease, **place) for lease, place in several]
            decisions = enter_rungs(self.engine, self._of(study_id).rungs, study_id, entries)
            for entry, decided in zip(entries, decisions, strict=True):
                if decided is not None and entry.trial_id in self._held:
                    self._entered[entry.trial_id, entry.rung] = decided

    def _forget_entered(self, trial_id: int) -> None:
        self._entered = {key: promoted for key, promoted in self._entered.items() if key[0] != trial_id}

    def take_point(self, study_id: int, trial_id: int, key: str, choose: Choice) -> Point:
        """See `tuner.storage.worker.points.take_point`."""
        held = self._held.get(trial_id)
        point = take_point(self.engine, None if held is None else held.lease, trial_id, study_id, key, choose)
        if held is not None:
            held.trial.system_attrs[key] = dict(point)
        return point

    # --- Trials

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        if template_trial is not None:
            return self._cold(lambda: self._rdb.create_new_trial(study_id, template_trial))

        def work(connection: Connection, _: int) -> tuple[int, str | None]:
            lock = sa.select(statements.space_version()).select_from(studies).where(studies.c.study_id == study_id)
            found = connection.execute(lock.with_for_update(of=studies, key_share=True)).first()
            if found is None:
                raise KeyError(f"there is no study with id {study_id}")
            number = sa.select(sa.func.count()).select_from(trials).where(trials.c.study_id == study_id)
            statement = trials.insert().values(
                number=number.scalar_subquery(),
                study_id=study_id,
                state="RUNNING",
                datetime_start=utc_time(datetime.datetime.now(UTC)),
            )
            return connection.execute(statement.returning(trials.c.trial_id)).scalar_one(), found[0]

        trial_id, version = write(self.engine, work)
        self._note_version(study_id, version)  # not under the study's lock, for which others may wait with ours
        self._studies_of_new[trial_id] = study_id
        return trial_id

    def _note_version(self, study_id: int, version: str | None) -> None:
        """Forget the cached trials of a study whose space has been changed since."""
        with self._lock:
            known = self._of(study_id)
            if known.version != version:
                self._known[study_id] = _Known(known.name, version, known.directions)

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        held = self._held.get(trial_id)
        study_id = held.study_id if held is not None else self._study_of(trial_id)
        try:
            self._check_distribution(study_id, param_name, distribution)
        except ValueError:
            self._check_updatable(trial_id)  # Optuna expects this error if both apply
            raise
        text = distribution_to_json(distribution)
        distribution = to_distribution(text)  # the caller may change its copy
        if held is not None:
            with held.changing:
                held.new_params.append((param_name, float(param_value_internal), text))
            held.trial.params[param_name] = distribution.to_external_repr(param_value_internal)
            held.trial.distributions[param_name] = distribution
        else:
            row = {"param_name": param_name, "param_value": param_value_internal, "distribution_json": text}
            self._insert(trial_id, trial_params, row, ())
        self._of(study_id).distributions.setdefault(param_name, distribution)

    def _study_of(self, trial_id: int) -> int:
        study_id = self._studies_of_new.get(trial_id)
        if study_id is not None:
            return study_id
        query = sa.select(trials.c.study_id).where(trials.c.trial_id == trial_id)
        study_id = read(self.engine, lambda connection: connection.execute(query).scalar_one_or_none())
        if study_id is None:
            raise KeyError(f"there is no trial with id {trial_id}")
        return study_id

    def _check_distribution(self, study_id: int, name: str, distribution: BaseDistribution) -> None:
        """Raise ValueError if a parameter of that name has an incompatible distribution."""
        before = self._of(study_id).distributions.get(name)
        if before is None:
            query = (
                sa.select(trial_params.c.distribution_json)
                .select_from(trials.join(trial_params, trial_params.c.trial_id == trials.c.trial_id))
                .where(trials.c.study_id == study_id, trial_params.c.param_name == name)
                .limit(1)
            )
            text = read(self.engine, lambda connection: connection.execute(query).scalar_one_or_none())
            before = None if text is None else json_to_distribution(text)
        if before is not None:
            check_distribution_compatibility(before, distribution)

    def _insert(self, trial_id: int, table: sa.Table, row: Mapping[str, object], changed: Sequence[str]) -> None:
        """Store a row that belongs to a trial, if the trial has not ended."""
        what = statements.open_trial_row.of(table, tuple(row), tuple(changed))
        values = {**row, "id": trial_id}
        count = write_once(self.engine, lambda connection, _: run(connection, what, values).rowcount)
        if count == 0:
            self._check_updatable(trial_id)

    def _check_updatable(self, trial_id: int) -> None:
        query = sa.select(trials.c.state).where(trials.c.trial_id == trial_id)
        state = read(self.engine, lambda connection: connection.execute(query).scalar_one_or_none())
        if state is None:
            raise KeyError(f"there is no trial with id {trial_id}")
        self.check_trial_is_updatable(trial_id, TrialState[state])

    def get_trial_id_from_study_id_trial_number(self, study_id: int, trial_number: int) -> int:
        query = sa.select(trials.c.trial_id).where(trials.c.study_id == study_id, trials.c.number == trial_number)
        trial_id = read(self.engine, lambda connection: connection.execute(query).scalar_one_or_none())
        if trial_id is None:
            raise KeyError(f"there is no trial {trial_number} in the study with id {study_id}")
        return trial_id

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        now = utc_time(datetime.datetime.now(UTC))
        change: dict[str, Any] = {"state": state.name}
        if state == TrialState.RUNNING:
            change["datetime_start"] = now
        if state.is_finished():
            change["datetime_complete"] = now
        allowed = ["WAITING"] if state == TrialState.RUNNING else ["RUNNING", "WAITING"]
        statement = trials.update().where(trials.c.trial_id == trial_id, trials.c.state.in_(allowed)).values(**change)
        rows: list[dict[str, Any]] = []
        for objective, value in enumerate(values or ()):
            number, kind = stored_number(value)
            rows.append({"trial_id": trial_id, "objective": objective, "value": number, "value_type": kind})

        def work(connection: Connection, _: int) -> bool:
            if connection.execute(statement).rowcount != 1:
                return False
            if rows:
                for row in rows:
                    run(connection, statements.trial_value, row)
            return True

        is_set = write(self.engine, work)
        if not is_set:
            self._check_updatable(trial_id)
        if state.is_finished():
            self._studies_of_new.pop(trial_id, None)
        return is_set

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        number, kind = stored_number(intermediate_value)
        row = {"step": step, "intermediate_value": number, "intermediate_value_type": kind}
        self._insert(trial_id, trial_intermediate_values, row, ("intermediate_value", "intermediate_value_type"))

    def set_trial_user_attr(self, trial_id: int, key: str, value: object) -> None:
        self._set_attribute(trial_id, trial_user_attributes, key, value)

    def set_trial_system_attr(self, trial_id: int, key: str, value: object) -> None:
        self._set_attribute(trial_id, trial_system_attributes, key, value)

    def _set_attribute(self, trial_id: int, table: sa.Table, key: str, value: object) -> None:
        held = self._held.get(trial_id)
        if held is None:
            self._insert(trial_id, table, {"key": key, "value_json": json.dumps(value)}, ("value_json",))
            return
        text = json.dumps(value)
        if table is trial_system_attributes and not held.is_suggested:
            with held.changing:
                held.new_attributes[key] = text
        else:
            store_attribute(self.engine, held.lease, table, key, value)
        attributes = held.trial.user_attrs if table is trial_user_attributes else held.trial.system_attrs
        attributes[key] = json.loads(text)

    def get_trial(self, trial_id: int) -> FrozenTrial:
        held = self._held.get(trial_id)
        trial = held.trial if held is not None else read(self.engine, lambda c: load_trial(c, trial_id, self.zone))
        if trial is None:
            raise KeyError(f"there is no trial with id {trial_id}")
        return next(copies([trial]))  # also if it was just read, because it shares its distributions

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        with self._lock:
            known = self._of(study_id)
            held = [held for held in self._held.values() if held.study_id == study_id]
            also = known.unfinished - {private.trial_id(held.trial) for held in held}
            found = self._load(study_id, known.newest, sorted(also))
            # SQLite has reused the id of a deleted study, or the space has changed.
            if known.name not in (None, found.name) or known.version != found.version:
                is_partial = known.newest >= 0
                known = self._known[study_id] = _Known()
                found = self._load(study_id, -1, []) if is_partial else found
            known.name, known.version = found.name, found.version
            known.add(found.trials)
            # As in Optuna's storages, a list of trials does not change afterwards: a pruner may store what it compares.
            known.add(list(copies([held.trial for held in held])))
            several = known.trials
            several = list(several) if states is None else [trial for trial in several if trial.state in states]
        return list(copies(several)) if deepcopy else several

    def get_window(self, study_id: int) -> list[FrozenTrial]:
        """Return the trials that a sampler sees, by number; they must not be changed.

        These are all trials of a small study; of a large one the best, those that run, and a sample of the others. No
        more is read. Two processes that have read the same trials return the same.
        """
        with self._lock:
            window = self._windows.get(study_id) or Window(self._maximized(study_id))
            held = [held for held in self._held.values() if held.study_id == study_id]
            also = sorted(window.unfinished - {private.trial_id(held.trial) for held in held})

            def work(connection: Connection) -> Loaded | None:
                if window.newest < 0:
                    return load_window(connection, window, study_id, self.zone)
                return load_trials(connection, study_id, window.newest, also, zone=self.zone)

            found = read(self.engine, work)
            if found is None:
                self._windows.pop(study_id, None)
                raise KeyError(f"there is no study with id {study_id}")
            # SQLite has reused the id of a deleted study, or the space has changed.
            if window.name is not None and (window.name, window.version) != (found.name, found.version):
                del self._windows[study_id]
                return self.get_window(study_id)
            window.name, window.version = found.name, found.version
            window.add([*found.trials, *copies([held.trial for held in held])])
            window.shrink()
            self._windows[study_id] = window
            if window.is_short:
                del self._windows[study_id]
                return self.get_window(study_id)
            return list(window.seen)

    def _maximized(self, study_id: int) -> list[bool]:
        return [direction == StudyDirection.MAXIMIZE for direction in self.get_study_directions(study_id)]

    def _load(self, study_id: int, newer_than: int, also: list[int]) -> Loaded:
        found = read(self.engine, lambda c: load_trials(c, study_id, newer_than, also, zone=self.zone))
        if found is None:
            self._known.pop(study_id, None)
            raise KeyError(f"there is no study with id {study_id}")
        return found

    def get_best_trial(self, study_id: int) -> FrozenTrial:
        best = self._cold(lambda: self._rdb.get_best_trial(study_id))
        return best if self.zone is None else self.get_trial(private.trial_id(best))


class WindowedStorage:
    """The storage, whose list of trials is the window of a sampler; see `Storage.get_window`."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """Return a study's trials; see `optuna.storages.BaseStorage`."""
        found = self._storage.get_window(study_id)
        wanted = found if states is None else [trial for trial in found if trial.state in states]
        return list(copies(wanted)) if deepcopy else wanted
