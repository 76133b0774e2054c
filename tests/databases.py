"""Empty databases on a Postgres server, under names of their own: a server may be given, and have others beside."""

from __future__ import annotations

import uuid

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError

GIVEN = "TUNER_TEST_POSTGRES"
"""The variable with the URL of a server for the tests; its user is a superuser. Without it they start one."""

_made: list[str] = []
"""The URLs of those that this process has made."""


def new_database(server: str, template: str | None = None) -> str:
    """Make a database on a server, empty or as another one is to which nobody is connected.

    Returns:
        Its URL, whose driver is psycopg2.
    """
    name = f"tuner_{uuid.uuid4().hex[:12]}"  # one module's tests may be run in parts, by several processes
    source = "" if template is None else f" TEMPLATE {sa.make_url(template).database}"
    _execute(server, f"CREATE DATABASE {name}{source} STRATEGY FILE_COPY")  # half the time of the default, WAL_LOG
    url = _driver_url(server).set(database=name).render_as_string(hide_password=False)
    _made.append(url)
    return url


def drop_database(server: str, url: str) -> None:
    """Remove a database of `new_database`, whoever is connected to it."""
    _execute(server, f"DROP DATABASE IF EXISTS {sa.make_url(url).database} WITH (FORCE)")
    _made.remove(url)


def drop_databases(server: str) -> None:
    """Remove every database that this process has made and that is still there."""
    for url in list(_made):
        drop_database(server, url)


def turn_off_fsync(server: str) -> None:
    """Let a server of the tests alone not wait for its disk: a test may kill it, but the machine stays up."""
    for name in ("fsync", "full_page_writes"):
        _execute(server, f"ALTER SYSTEM SET {name} = off")
    _execute(server, "SELECT pg_reload_conf()")


def wait_until_old_enough(server: str, age_s: float) -> None:
    """Return once a server has been up for so many seconds.

    A lease that ended before the server started gets a while to be renewed; those of tests end a second back.
    """
    _execute(server, f"SELECT pg_sleep({age_s} - extract(epoch FROM clock_timestamp() - pg_postmaster_start_time()))")


def check_given(url: str) -> str:
    """Return the URL of a given server.

    Raises:
        ValueError: it is no URL of Postgres.
    """
    try:
        made = sa.make_url(url)
    except ArgumentError:
        made = None
    if made is None or made.get_backend_name() != "postgresql" or not made.database:
        form = "postgresql+psycopg2://USER:PASSWORD@HOST:PORT/postgres"
        raise ValueError(f"{GIVEN} must be like {form}, a superuser's URL")
    return made.set(drivername="postgresql").render_as_string(hide_password=False)


def _driver_url(server: str) -> sa.URL:
    return sa.make_url(server).set(drivername="postgresql+psycopg2")


def _execute(server: str, statement: str) -> None:
    engine = sa.create_engine(_driver_url(server), isolation_level="AUTOCOMMIT")
    try:
        with engine.connect() as connection:
            connection.exec_driver_sql(statement)
    finally:
        engine.dispose()
