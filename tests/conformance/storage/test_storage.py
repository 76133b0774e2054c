"""The storage on SQLite and on Postgres: Optuna's contract, creation by many at once, and what other tools can read."""

import contextlib
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import optuna
import pytest
import sqlalchemy as sa
from optuna.storages import BaseStorage
from optuna.storages._rdb.models import BaseModel
from optuna.testing.pytest_storages import StorageTestCase
from storage_tools import new_database, opened

import tuner
from tuner.errors import LeaseLost, StorageLost, UnknownStudy
from tuner.storage import connect, parse_url
from tuner.storage.read.queries import RECORD_KEY, find_record, find_study, read_studies
from tuner.storage.sql.dialect import clock
from tuner.storage.sql.tables import optuna_tables, tuner_tables
from tuner.storage.worker import claims, leases
from tuner.storage.worker.fences import Lease
from tuner.storage.worker.studies import Registered, register
from tuner.trial import Outcome, Report

optuna_models = cast("sa.MetaData", BaseModel.metadata)


def claim(engine: sa.Engine, study_id: int, worker: str) -> Lease:
    lease = claims.claim(engine, claims.Claimant(study_id, worker, trials=2, lease_s=300.0))
    assert isinstance(lease, Lease)
    return lease


def report(engine: sa.Engine, lease: Lease, value: float) -> None:
    leases.report(engine, lease, [Report(1, 10, {"loss": value})], "loss")


@contextlib.contextmanager
def connected(url: str) -> Iterator[sa.Engine]:
    engine = connect(url)
    try:
        yield engine
    finally:
        engine.dispose()


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def shared_url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URL of a database with tables, for tests that leave nothing in it."""
    url = f"sqlite:///{tmp_path_factory.mktemp('storage') / 'study.db'}"
    if request.param == "postgres":
        url = new_database(request.getfixturevalue("postgres_server"))
    with opened(url):
        return url


@pytest.mark.slow
class TestOptunasContract(StorageTestCase):
    """Optuna's own suite for storages: all of it, and no case needs an option. Each starts from an empty database."""

    @pytest.fixture
    def storage(self, shared_url: str) -> Iterator[BaseStorage]:
        with opened(shared_url) as storage:
            yield storage
        with connected(shared_url) as engine, engine.begin() as connection:
            for table in reversed(optuna_models.sorted_tables):
                if table.name != "version_info":
                    connection.execute(table.delete())


# --- Creation

PROCESSES = 4
CREATE = "import sys, optuna.storages, tuner; print('ready', flush=True); input(); tuner.open_storage(sys.argv[1])"


@pytest.mark.slow
def test_many_processes_may_create_the_tables_at_once(storage_url: str) -> None:
    command = [sys.executable, "-W", "error", "-c", CREATE, storage_url]
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    processes = [subprocess.Popen(command, text=True, **pipes) for _ in range(PROCESSES)]
    try:
        for process in processes:  # once all have imported what they need, they start together
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            print("go", file=process.stdin, flush=True)
        ends = [(process.communicate(timeout=300), process.returncode) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()

    assert ends == [(("", ""), 0)] * PROCESSES
    with connected(storage_url) as engine, engine.connect() as connection:
        for table in ("version_info", "alembic_version"):
            assert connection.execute(sa.text(f"SELECT count(*) FROM {table}")).scalar_one() == 1
        assert sa.inspect(connection).has_table("tuner_leases")


def test_a_database_of_plain_optuna_gets_our_table_and_keeps_its_studies(storage_url: str) -> None:
    plain = optuna.storages.RDBStorage(parse_url(storage_url).driver)
    optuna.create_study(storage=plain, study_name="theirs").add_trial(optuna.create_trial(value=0.5))
    plain.remove_session()
    plain.engine.dispose()

    with opened(storage_url) as storage, opened(storage_url), connected(storage_url) as engine:
        assert optuna.load_study(study_name="theirs", storage=storage).best_value == 0.5
        assert [study.name for study in read_studies(engine)] == ["theirs"]
        assert sa.inspect(engine).has_table("tuner_leases")


def test_a_sqlite_file_is_in_wal_mode(sqlite_url: str, tmp_path: Path) -> None:
    with opened(sqlite_url), contextlib.closing(sqlite3.connect(tmp_path / "study.db")) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


# --- Our description of Optuna's tables


@pytest.mark.parametrize("table", optuna_tables.sorted_tables, ids=str)
def test_a_description_equals_optunas_model(table: sa.Table) -> None:
    model = optuna_models.tables[table.name]

    for column in table.columns:
        theirs = model.columns[column.name]
        assert type(column.type) is type(theirs.type), column
        assert column.primary_key == theirs.primary_key, column
        assert column.nullable == theirs.nullable, column
        for detail in ("length", "precision", "name"):
            assert getattr(column.type, detail, None) == getattr(theirs.type, detail, None), f"{column} {detail}"
        assert sorted(getattr(column.type, "enums", [])) == sorted(getattr(theirs.type, "enums", [])), column


@pytest.mark.parametrize(
    "name",
    ["trials", "trial_values", "trial_intermediate_values", "trial_user_attributes", "study_system_attributes"],
)
def test_what_we_insert_lacks_nothing_that_optuna_requires(name: str) -> None:
    required = {column.name for column in optuna_models.tables[name].columns if not column.nullable}

    assert required <= set(optuna_tables.tables[name].columns.keys())


@pytest.mark.parametrize(
    ("name", "unique"),
    [
        ("trial_values", ["trial_id", "objective"]),
        ("trial_intermediate_values", ["trial_id", "step"]),
        ("trial_user_attributes", ["trial_id", "key"]),
        ("study_system_attributes", ["study_id", "key"]),
    ],
)
def test_what_we_overwrite_is_unique_in_the_database(shared_url: str, name: str, unique: list[str]) -> None:
    with connected(shared_url) as engine:
        found = sa.inspect(engine).get_unique_constraints(name)

    assert unique in [constraint["column_names"] for constraint in found]


def test_the_real_tables_have_every_column_that_we_name(shared_url: str) -> None:
    with connected(shared_url) as engine:
        for table in [*optuna_tables.sorted_tables, *tuner_tables.sorted_tables]:
            found = {column["name"] for column in sa.inspect(engine).get_columns(table.name)}
            assert set(table.columns.keys()) <= found, table


# --- Other tools


def test_plain_optuna_reads_what_we_wrote(storage_url: str) -> None:
    with opened(storage_url) as storage, connected(storage_url) as engine:
        study_id = register(storage, engine, "ours", ["maximize"], {"epochs": 3}).study_id
        for value in (0.5, 0.75):
            lease = claim(engine, study_id, "worker")
            trial = optuna.Trial(optuna.load_study(study_name="ours", storage=storage), lease.trial_id)
            trial.suggest_int("width", 1, 9)
            report(engine, lease, value / 2)
            leases.tell(engine, lease, Outcome.COMPLETE, [value], {"worker": "worker"})

    plain = optuna.storages.RDBStorage(parse_url(storage_url).driver)
    study = optuna.load_study(study_name="ours", storage=plain)
    assert (study.best_value, study.best_trial.number) == (0.75, 1)
    assert study.best_trial.user_attrs == {"outcome": "complete"}
    assert study.best_trial.intermediate_values == {1: 0.375}
    assert len(study.trials) == 2
    optuna.delete_study(study_name="ours", storage=plain)
    plain.remove_session()
    plain.engine.dispose()
    with connected(storage_url) as engine:
        assert read_studies(engine) == []


# --- Studies that come and go


@pytest.fixture
def places(storage_url: str) -> Iterator[tuple[BaseStorage, sa.Engine]]:
    with opened(storage_url) as storage, connected(storage_url) as engine:
        yield storage, engine


def test_whoever_comes_first_records_the_study(storage_url: str) -> None:
    start = threading.Barrier(2)

    def launch(epochs: int) -> Registered:
        with opened(storage_url) as storage, connected(storage_url) as engine:
            start.wait(timeout=300)
            return register(storage, engine, "raced", ["maximize", "minimize"], {"epochs": epochs})

    with ThreadPoolExecutor(2) as pool:
        one, two = pool.map(launch, (3, 4))

    assert one == two
    assert one.record in ({"epochs": 3}, {"epochs": 4})
    with opened(storage_url) as storage, connected(storage_url) as engine:
        assert register(storage, engine, "raced", ["maximize", "minimize"], {"epochs": 5}) == one
        (study,) = read_studies(engine)
    assert (study.study_id, study.name, study.record) == (one.study_id, "raced", one.record)
    assert (study.directions, study.maximize) == (("maximize", "minimize"), (True, False))


def test_a_study_of_plain_optuna_has_no_record_until_it_is_launched(places: tuple[BaseStorage, sa.Engine]) -> None:
    storage, engine = places
    theirs = optuna.create_study(study_name="theirs", storage=storage)._study_id

    assert find_record(engine, theirs, RECORD_KEY) is None
    registered = register(storage, engine, "theirs", ["minimize"], {"epochs": 9})
    assert (registered.study_id, registered.record) == (theirs, {"epochs": 9})


def claim_and_delete(storage: BaseStorage, engine: sa.Engine) -> tuple[int, Lease]:
    study_id = register(storage, engine, "ours", ["minimize"], {}).study_id
    lease = claim(engine, study_id, "one")
    optuna.delete_study(study_name="ours", storage=storage)
    return study_id, lease


def test_a_study_may_be_deleted_while_it_runs(places: tuple[BaseStorage, sa.Engine]) -> None:
    _, lease = claim_and_delete(*places)

    with pytest.raises(LeaseLost, match="trial 0 no longer belongs to one"):
        report(places[1], lease, 0.5)


def test_a_study_may_follow_a_deleted_one(places: tuple[BaseStorage, sa.Engine]) -> None:
    storage, engine = places
    _, old = claim_and_delete(storage, engine)
    study_id = register(
        storage, engine, "ours", ["minimize"], {}
    ).study_id  # on SQLite with the ids of what was deleted

    new = claim(engine, study_id, "two")
    assert (new.number, new.worker) == (0, "two")
    with pytest.raises(LeaseLost, match="trial 0 no longer belongs to one"):
        report(engine, old, 0.5)
    assert storage.get_all_trials(study_id)[0].intermediate_values == {}
    report(engine, new, 0.5)


def test_a_worker_learns_that_its_study_was_deleted(places: tuple[BaseStorage, sa.Engine]) -> None:
    study_id, _ = claim_and_delete(*places)

    with pytest.raises(UnknownStudy, match="deleted"):
        claim(places[1], study_id, "one")


# --- A database that does not answer


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.mark.parametrize("reach", [tuner.open_storage, connect])
@pytest.mark.parametrize(
    "url", ["postgresql://me:secret@127.0.0.1:{}/db", "postgres://127.0.0.1:{}/db?password=secret"]
)
def test_an_unreachable_server_is_one_line_without_the_password(reach: Any, url: str, closed_port: int) -> None:
    with pytest.raises(
        StorageLost, match=r"cannot reach the storage .*Connection refused.*; check the storage URL"
    ) as caught:
        reach(url.format(closed_port))

    message = str(caught.value)
    assert "\n" not in message
    assert "secret" not in message
    assert f"127.0.0.1:{closed_port}/db" in message


@pytest.mark.parametrize("reach", [tuner.open_storage, connect])
def test_a_server_without_the_database_says_so(reach: Any, postgres_url: str) -> None:
    with pytest.raises(StorageLost, match='database "no_such" does not exist') as caught:
        reach(sa.make_url(postgres_url).set(database="no_such").render_as_string(hide_password=False))

    assert "\n" not in str(caught.value)


def test_connecting_creates_no_file(sqlite_url: str, tmp_path: Path) -> None:
    with pytest.raises(StorageLost, match=r"no file '.*/study\.db' .*; launch a study first"):
        connect(sqlite_url)

    assert list(tmp_path.iterdir()) == []


def test_connecting_creates_no_tables(storage_url: str, tmp_path: Path) -> None:
    (tmp_path / "study.db").touch()

    with connected(storage_url) as engine:
        assert read_studies(engine) == []
        assert sa.inspect(engine).get_table_names() == []


def test_connecting_to_a_folder_fails(tmp_path: Path) -> None:
    with pytest.raises(StorageLost, match="unable to open database file"):
        connect(f"sqlite:///{tmp_path}")


@pytest.mark.parametrize("reach", [connect, tuner.open_storage])
def test_a_file_that_is_no_database_is_refused(reach: Any, sqlite_url: str, tmp_path: Path) -> None:
    (tmp_path / "study.db").write_text("not a database " * 100)

    with pytest.raises(StorageLost, match="file is not a database"):
        reach(sqlite_url)


@pytest.mark.parametrize("reach", [connect, tuner.open_storage])
def test_a_wrong_connection_option_is_one_line(reach: Any) -> None:
    with pytest.raises(StorageLost, match='invalid connection option "colour"') as caught:
        reach("postgresql://me:secret@127.0.0.1/db?colour=red")

    assert "secret" not in str(caught.value)


def test_a_server_that_goes_away_after_connecting_is_lost_too(closed_port: int) -> None:
    engine = sa.create_engine(f"postgresql+psycopg2://me:secret@127.0.0.1:{closed_port}/db")

    with pytest.raises(StorageLost, match="cannot reach the storage"):
        find_study(engine, "ours")


@pytest.mark.timezone
def test_sqlites_two_clocks_agree_to_the_millisecond(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'study.db'}"
    with opened(url), connected(url) as engine, engine.connect() as connection:
        for _ in range(200):  # SQLite's `now` is one moment in a statement
            query = sa.select(clock("sqlite"), sa.func.strftime("%s", "now"), sa.func.strftime("%f", "now"))
            seconds, whole, second = connection.execute(query).one()
            assert f"{seconds:.6f}" == f"{int(whole) + float(second) % 1:.6f}"
