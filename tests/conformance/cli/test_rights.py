"""A Postgres role without rights, and tables of an earlier version: one line from every command, never SQL."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from tuner.admin.doctor import _storage
from tuner.cli.explain import explained
from tuner.errors import StorageDenied, StorageSchemaError
from tuner.storage import connect, open_storage, parse_url
from tuner.storage.read.queries import read_studies
from tuner.storage.sql.retry import read, write
from tuner.storage.sql.schema import upgrade


@pytest.fixture
def limited(postgres_url: str) -> Iterator[tuple[sa.Engine, str]]:
    """The owner's engine of a storage with tables, and the URL of a role that has no rights on them."""
    open_storage(postgres_url).close()
    url = sa.make_url(postgres_url)
    role = f"reader_{url.database}"
    owner = sa.create_engine(url.set(drivername="postgresql+psycopg2"), isolation_level="AUTOCOMMIT")
    with owner.connect() as connection:
        connection.exec_driver_sql(f"CREATE ROLE {role} LOGIN PASSWORD 'x'")
    yield owner, url.set(username=role, password="x").render_as_string(hide_password=False)
    with owner.connect() as connection:
        connection.exec_driver_sql(f"DROP OWNED BY {role}; DROP ROLE {role}")
    owner.dispose()


LINE = r"the database user is not allowed to read and write the storage's tables: '[^\n]*'; [^\n]*grant[^\n]*"


def test_a_role_without_rights_is_told_so_in_one_line_and_doctor_finds_it(limited: tuple[sa.Engine, str]) -> None:
    owner, url = limited
    engine = connect(url)
    with pytest.raises(StorageDenied) as denied:
        read_studies(engine)
    assert re.fullmatch(LINE, str(denied.value))
    assert "permission denied for table" in str(denied.value)
    (row,) = _storage(parse_url(url))
    assert (row["check"], row["status"]) == ("storage", "fail")
    assert re.search(r"no SELECT on \w+, .* more", row["found"])
    with pytest.raises(Exception, match="permission denied") as raised:
        open_storage(url)
    assert re.fullmatch(LINE, str(explained(raised.value)))

    with owner.connect() as connection:
        role = sa.make_url(url).username
        connection.exec_driver_sql(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}")
    assert read_studies(engine) == []
    (row,) = _storage(parse_url(url))
    assert re.search(r"no INSERT on \w+", row["found"]), "reading alone is not enough"
    with pytest.raises(StorageDenied):
        write(engine, lambda connection, _: connection.exec_driver_sql("DELETE FROM studies"))

    with owner.connect() as connection:
        connection.exec_driver_sql(f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role}")
    assert "USAGE on" in _storage(parse_url(url))[0]["found"]
    with owner.connect() as connection:
        connection.exec_driver_sql(f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {role}")
    assert {row["status"] for row in _storage(parse_url(url))} <= {"ok", "warn"}
    engine.dispose()


def test_a_role_that_may_use_no_schema_is_told_so_when_it_connects(limited: tuple[sa.Engine, str]) -> None:
    owner, url = limited
    with owner.connect() as connection:
        connection.exec_driver_sql("REVOKE USAGE ON SCHEMA public FROM PUBLIC")

    with pytest.raises(StorageDenied, match="no USAGE on a schema of the search path") as denied:
        connect(url)

    assert re.fullmatch(LINE, str(denied.value))
    (row,) = _storage(parse_url(url))
    assert (row["status"], row["found"]) == ("fail", str(denied.value))


def test_doctor_and_upgrade_find_that_our_tables_cannot_be_made_beside_optunas(limited: tuple[sa.Engine, str]) -> None:
    owner, url = limited
    role = sa.make_url(url).username
    with owner.connect() as connection:
        connection.exec_driver_sql("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
        connection.exec_driver_sql(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}")
        connection.exec_driver_sql(f"GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {role}")
        assert {row["status"] for row in _storage(parse_url(url))} <= {"ok", "warn"}
        connection.exec_driver_sql("DROP TABLE tuner_alembic_version, tuner_leases")

    (row,) = _storage(parse_url(url))

    assert row["status"] == "fail"
    assert "no CREATE on schema public" in row["found"]
    with pytest.raises(StorageDenied, match="permission denied for schema public") as denied:
        upgrade(url, None)
    assert re.fullmatch(LINE, str(denied.value))


def test_what_the_database_refused_is_told_without_the_statement(limited: tuple[sa.Engine, str]) -> None:
    owner, url = limited
    with owner.connect() as connection:
        connection.exec_driver_sql("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    engine = connect(url)
    with pytest.raises(StorageDenied, match="permission denied for schema public") as denied:
        write(engine, lambda connection, _: connection.exec_driver_sql("CREATE TABLE mine (number int)"))
    engine.dispose()

    assert re.fullmatch(LINE, str(denied.value))
    assert "CREATE TABLE" not in str(denied.value)


def test_tables_of_an_earlier_version_are_named_with_both_versions(storage_url: str) -> None:
    open_storage(storage_url).close()
    engine = connect(storage_url)
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE tuner_alembic_version SET version_num = '0004'")
        connection.exec_driver_sql("DROP TABLE tuner_unknown_zones")
    with pytest.raises(
        StorageSchemaError, match=r"are at version 0004, but this installation needs \d+; .*`tuner upgrade`$"
    ):
        read(engine, lambda connection: connection.exec_driver_sql("SELECT * FROM tuner_unknown_zones").all())
    with pytest.raises(
        StorageSchemaError, match=r"are at version 0004, but this installation needs \d+; .*`tuner upgrade`$"
    ):
        open_storage(storage_url)
    engine.dispose()
