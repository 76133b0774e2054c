"""The tables: made from nothing, from plain Optuna's and from older ones, on SQLite and on Postgres."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import alembic.util
import optuna
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from command_line import Tuner
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from storage_tools import connection_to, everything, opened, restore

import tuner
from tuner.errors import StorageLost, StorageSchemaError
from tuner.results.rows import study_rows
from tuner.storage import connect, parse_url
from tuner.storage.sql import schema
from tuner.storage.sql.engine import new_engine
from tuner.storage.sql.tables import VERSION_TABLE, tuner_tables

inf, nan = math.inf, math.nan


# --- From nothing


def test_the_migrations_make_the_tables_that_are_described(storage_url: str) -> None:
    with opened(storage_url), connection_to(storage_url) as connection:
        context = MigrationContext.configure(
            connection,
            opts={
                "version_table": VERSION_TABLE,
                "compare_type": True,
                "include_object": lambda _, name, kind, *__: kind != "table" or name.startswith("tuner_"),
            },
        )
        assert compare_metadata(context, tuner_tables) == []


def test_optunas_tables_are_as_optuna_makes_them(storage_url: str, tmp_path: Path, postgres_url: str) -> None:
    theirs = f"sqlite:///{tmp_path / 'theirs.db'}"
    if storage_url.startswith("postgresql"):
        with connection_to(storage_url) as connection:
            connection.exec_driver_sql("CREATE SCHEMA theirs")
        in_schema = sa.make_url(storage_url).update_query_dict({"options": "-csearch_path=theirs"})
        theirs = in_schema.render_as_string(hide_password=False)
    plain = RDBStorage(parse_url(theirs).driver)
    plain.remove_session()
    plain.engine.dispose()
    with opened(storage_url):
        pass

    def tables(url: str) -> dict[str, Any]:
        with connection_to(url) as connection:
            inspector = sa.inspect(connection)
            names = [name for name in inspector.get_table_names() if not name.startswith("tuner_")]
            return {
                name: (
                    [
                        {**column, "type": str(column["type"]), "default": None}
                        for column in inspector.get_columns(name)
                    ],
                    sorted(map(str, inspector.get_unique_constraints(name))),
                    sorted(str(index) for index in inspector.get_indexes(name)),
                    [key["constrained_columns"] for key in inspector.get_foreign_keys(name)],
                    sorted(map(tuple, connection.execute(sa.text(f"SELECT * FROM {name}")))),
                )
                for name in names
            }

    assert tables(storage_url) == tables(theirs)


def test_half_made_tables_are_not_left_behind(storage_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(connection: sa.Connection) -> None:
        raise RuntimeError("planted")

    engine = new_engine(storage_url)
    with monkeypatch.context() as patch:
        patch.setattr(schema, "forget_deleted", fail)
        with pytest.raises(RuntimeError, match="planted"):
            schema.prepare(engine)
    assert sa.inspect(engine).get_table_names() == []
    schema.prepare(engine)
    assert sa.inspect(engine).has_table("tuner_leases")
    engine.dispose()


# --- From older ones

REFUSED = ["2.10.1", "3.1.1"]


@pytest.mark.parametrize("version", REFUSED)
def test_an_old_database_is_refused_and_left_alone(storage_url: str, version: str) -> None:
    restore(storage_url, version)
    before = everything(storage_url)

    message = (
        r"tables of Optuna in .* are at version v\S+, but this installation needs v3\.2\.0\.a; .* run `tuner upgrade`"
    )
    with pytest.raises(StorageSchemaError, match=message) as caught:
        tuner.open_storage(storage_url)
    assert "\n" not in str(caught.value)
    assert everything(storage_url) == before


@pytest.mark.parametrize("version", [*REFUSED, "3.6.2", "4.1.0"])
def test_an_old_database_is_upgraded_on_request_and_loses_nothing(storage_url: str, version: str) -> None:
    restore(storage_url, version)

    said = schema.upgrade(storage_url)

    assert any("upgraded the tables of tuner from version none to 0011" in line for line in said)
    assert any("upgraded the tables of Optuna from" in line for line in said) == (version in REFUSED)
    assert any("a copy of the database" in line for line in said) == storage_url.startswith("sqlite")
    with opened(storage_url) as storage:
        check_old_studies(storage, has_nan=(version, storage_url[:6]) != ("2.10.1", "sqlite"))
        study = optuna.load_study(study_name="old", storage=storage)
        study.optimize(lambda trial: trial.suggest_float("rate", 1e-5, 0.1, log=True), n_trials=2)
        assert len(study.trials) == 6
    assert schema.upgrade(storage_url)[0].endswith("are already at this version")


def check_old_studies(storage: Any, *, has_nan: bool) -> None:
    old, pair = (optuna.load_study(study_name=name, storage=storage) for name in ("old", "pair"))
    assert old.direction == optuna.study.StudyDirection.MAXIMIZE
    assert [direction.name for direction in pair.directions] == ["MINIMIZE", "MAXIMIZE"]
    assert old.user_attrs == {"purpose": "fixture"}
    states = [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.COMPLETE]
    assert [trial.state for trial in old.trials] == states
    first, pruned, failed, last = old.trials
    assert first.values == [0.7512345678901234]
    assert first.params == {
        "optimizer": "adam", "rate": 0.001, "layers": 3, "width": 64, "momentum": 0.625, "dropout": 0.25
    }  # fmt: skip
    assert first.intermediate_values == {0: 0.5, 1: 0.75}
    assert first.user_attrs == {"note": "first", "sizes": [1, 2.5, None, {"deep": True}]}
    assert first.duration is not None
    reports = {0: 0.125, 1: inf, 2: -inf, 4: 0.25, **({3: nan} if has_nan else {})}
    assert pruned.intermediate_values == pytest.approx(reports, rel=0, nan_ok=True)
    assert (failed.params, failed.user_attrs) == ({"rate": 0.05}, {"error": "diverged"})
    assert (last.values, last.params) == ([-inf], {"optimizer": None})
    assert old.best_trial.number == 0
    assert [trial.values for trial in pair.trials] == [[1.5, -2.5]]


def test_the_copy_of_a_sqlite_file_is_the_old_database(sqlite_url: str, tmp_path: Path) -> None:
    restore(sqlite_url, "2.10.1")
    before = everything(sqlite_url)

    schema.upgrade(sqlite_url)
    (copy,) = tmp_path.glob("study.db.before-upgrade-*")
    assert everything(f"sqlite:///{copy}") == before


@pytest.mark.slow
def test_our_first_tables_become_these(storage_url: str) -> None:
    """A database of the first version has leases without a revision, and keeps its records as user attributes."""
    plain = RDBStorage(parse_url(storage_url).driver)
    study = optuna.create_study(storage=plain, study_name="ours")
    trial = study.ask()
    for key, value in {"outcome": "complete", "worker": "w", "compile_s": 0.5, "other": [1]}.items():
        trial.set_user_attr(key, value)
    study.tell(trial, 0.25)
    theirs, running = study.ask(), study.ask()
    theirs.set_user_attr("outcome", "good")
    study.tell(theirs, 0.5)
    plain.set_study_system_attr(study._study_id, "tuner:id", "f00")
    plain.remove_session()
    plain.engine.dispose()
    with connection_to(storage_url) as connection:
        connection.execute(
            sa.text(
                "CREATE TABLE tuner_leases (trial_id INTEGER PRIMARY KEY REFERENCES trials (trial_id) ON DELETE "
                "CASCADE, worker VARCHAR(200), fence INTEGER NOT NULL, deaths INTEGER NOT NULL, expires_at_s FLOAT "
                "NOT NULL)"
            )
        )
        connection.execute(sa.text("INSERT INTO tuner_leases VALUES (:id, 'w', 3, 1, 7.5)"), {"id": running._trial_id})

    with pytest.raises(
        StorageSchemaError, match=r"of tuner in .* are at version 0001, but this installation needs 0011"
    ):
        tuner.open_storage(storage_url)
    schema.upgrade(storage_url)

    with opened(storage_url), connection_to(storage_url) as connection:
        record = connection.execute(sa.text("SELECT * FROM tuner_records")).one()
        assert (record.trial_id, record.outcome, record.worker, record.compile_s) == (
            trial._trial_id,
            "complete",
            "w",
            0.5,
        )
        assert record.ended_at_s > 1.7e9
        assert connection.execute(sa.text("SELECT fence, deaths, farthest_epoch FROM tuner_leases")).one() == (
            3,
            1,
            None,
        )
        assert connection.execute(sa.text("SELECT identity FROM tuner_budgets")).scalar_one() == "f00"


@pytest.mark.parametrize(("table", "owner"), [("alembic_version", "Optuna"), (VERSION_TABLE, "tuner")])
@pytest.mark.parametrize("act", [tuner.open_storage, schema.upgrade])
def test_a_newer_database_is_refused(storage_url: str, table: str, owner: str, act: Any) -> None:
    with opened(storage_url):
        pass
    with connection_to(storage_url) as connection:
        connection.execute(sa.text(f"UPDATE {table} SET version_num = 'v99'"))
    before = everything(storage_url)

    message = (
        f"tables of {owner} in .* are at version 'v99', which this installation does not know: .*; install a newer"
    )
    with pytest.raises(StorageSchemaError, match=message):
        act(storage_url)
    assert everything(storage_url) == before


def test_what_cannot_be_upgraded_is_told_apart(storage_url: str, tmp_path: Path) -> None:
    (tmp_path / "study.db").touch()
    with pytest.raises(StorageSchemaError, match=r"nothing to upgrade in .*: it has no tables"):
        schema.upgrade(storage_url)
    with pytest.raises(StorageLost, match="the storage does not exist"):
        schema.upgrade(f"sqlite:///{tmp_path / 'none.db'}")


def test_an_upgrade_that_fails_is_one_line(storage_url: str) -> None:
    restore(storage_url, "2.10.1")
    with connection_to(storage_url) as connection:
        connection.execute(sa.text("DROP TABLE trial_values"))

    with pytest.raises(StorageSchemaError, match=r"Optuna's migrations failed: \w+Error: ") as caught:
        schema.upgrade(storage_url)
    assert "\n" not in str(caught.value)


@pytest.mark.without_tables
@pytest.mark.slow
def test_the_command_says_what_it_did(tuner_on_sqlite: Tuner, sqlite_url: str) -> None:
    restore(sqlite_url, "3.1.1")
    tuner = tuner_on_sqlite

    done = [tuner.run("upgrade"), tuner.run_here("upgrade"), tuner.run_here("studies", "--format", "csv")]

    assert [one.returncode for one in done] == [0, 0, 0]
    lines = done[0].stderr.splitlines()
    assert [line.split(" ")[0] for line in lines] == ["tuner:"] * 4
    assert lines[1].endswith(" to v3.2.0.a")
    assert "`tuner upgrade --from-timezone ZONE`" in lines[3]
    assert done[1].stderr.count("already at this version") == 1
    assert [line.split(",")[0] for line in done[2].stdout.splitlines()] == ["study", "old", "pair"]


def test_a_query_on_old_tables_says_what_to_do(storage_url: str) -> None:
    restore(storage_url, "2.10.1")
    engine = connect(storage_url)
    try:
        with pytest.raises(
            StorageSchemaError,
            match=r"are at version v2\.6\.0\.a, but this installation needs v3\.2\.0\.a; .*`tuner upgrade`",
        ) as caught:
            study_rows(engine)
    finally:
        engine.dispose()
    assert "\n" not in str(caught.value)


# --- What belongs to trials that are deleted


def test_deleted_trials_take_our_rows_with_them(storage_url: str) -> None:
    """Also when plain Optuna deletes them: SQLite gives their ids to the next ones."""
    with opened(storage_url) as storage:
        study_id = storage.create_new_study([optuna.study.StudyDirection.MINIMIZE], "ours")
        trial_id = storage.create_new_trial(study_id)
    rows: dict[str, dict[str, Any]] = {
        "tuner_leases": {"fence": 1, "deaths": 0, "expires_at_s": 0.0},
        "tuner_attempts": {
            "fence": 1, "study_id": study_id, "worker": "w", "devices": 1, "started_at_s": 0.0
        },
        "tuner_records": {"study_id": study_id, "outcome": "complete", "ended_at_s": 0.0},
        "tuner_reports": {"epoch": 1, "step": 1, "metrics": "{}"},
        "tuner_rungs": {
            "rung": 0, "study_id": study_id, "position": 1, "bracket": 0, "value": 0.0, "is_promoted": True
        },
        "tuner_logs": {"fence": 1, "lines": "said", "written_at_s": 0.0},
        "tuner_budgets": {"study_id": study_id, "identity": "x"},
        "tuner_workers": {
            "study_id": study_id, "worker": "w", "host": "h", "pid": 1, "devices": "cpu", "started_at_s": 0.0,
            "seen_at_s": 0.0, "about": "{}",
        },
        "tuner_confirmations": {"study_id": study_id, "repeat": 1, "value": 0.5, "trained_at_s": 0.0},
        "tuner_mirrors": {"study_id": study_id, "target": "t", "expires_at_s": 0.0},
        "tuner_unknown_zones": {"is_start": True, "is_end": False},
        "tuner_notices": {"event_id": "e", "study_id": study_id, "kind": "finished", "body": "{}", "made_at_s": 0.0},
        "tuner_deliveries": {"event_id": "e", "receiver": "r", "study_id": study_id, "tries": 0, "next_at_s": 0.0},
        "tuner_mirrored": {"target": "t", "run": "r", "epoch": 1, "digest": "", "is_ended": False},
    }  # fmt: skip
    with connection_to(storage_url) as connection:
        for name, row in rows.items():
            table = tuner_tables.tables[name]
            own = {"trial_id": trial_id} if "trial_id" in table.columns else {}
            connection.execute(table.insert(), {**own, **row})

    plain = RDBStorage(parse_url(storage_url).driver)
    optuna.delete_study(study_name="ours", storage=plain)
    plain.remove_session()
    plain.engine.dispose()

    assert rows.keys() == {name for name in tuner_tables.tables if name.startswith("tuner_")}
    left = everything(storage_url)
    assert {name: left[name] for name in rows} == {name: [] for name in rows}


def test_what_other_tools_leave_of_a_deleted_trial_is_not_the_next_ones(sqlite_url: str) -> None:
    """Optuna deletes the reports that it has read; one more may be stored before it deletes the trial."""
    with opened(sqlite_url) as storage:
        study = optuna.create_study(study_name="ours", storage=storage)
        trial = study.ask()
        trial.suggest_float("x", 0.0, 1.0)
        trial.report(0.5, 1)
    with connection_to(sqlite_url) as connection:
        connection.execute(sa.text("DELETE FROM trials"))
        for name in ("trial_params", "trial_intermediate_values"):
            assert connection.execute(sa.text(f"SELECT count(*) FROM {name}")).scalar_one() == 0


@pytest.mark.with_tables
def test_a_storage_that_is_opened_again_runs_no_file_of_a_migration(
    storage_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []
    with opened(storage_url):
        monkeypatch.setattr(alembic.util, "load_python_file", lambda folder, name: ran.append(name))
    with opened(storage_url):
        assert ran == []
