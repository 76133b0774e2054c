"""Creates a database and the role that owns it, on a server whose superuser we are."""

from __future__ import annotations

from typing import Any

import psycopg2
from psycopg2 import extensions, sql


def ensure_owned_database(
    *, host: str, port: int, superuser: str, superuser_password: str, role: str, password: str, database: str
) -> None:
    """Create the role and its database if they do not exist, and set the role's password.

    The role has no rights but those of an owner of the database. The password is sent as a SCRAM verifier, so that no
    log of the server can contain it.

    Raises:
        psycopg2.Error: The server refuses the login or a statement.
    """
    # What the environment sets for libpq, such as $PGSSLMODE, is for other servers.
    connection: Any = psycopg2.connect(
        host=host, port=port, user=superuser, password=superuser_password, dbname="postgres", connect_timeout=30,
        sslmode="disable", gssencmode="disable", options="", application_name="tuner database",
    )  # fmt: skip
    try:
        connection.autocommit = True
        verifier = extensions.encrypt_password(password, role, connection, "scram-sha-256")
        names = {"role": sql.Identifier(role), "database": sql.Identifier(database)}
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (role,))
            if cursor.fetchone() is None:
                cursor.execute(sql.SQL("CREATE ROLE {role} LOGIN").format(**names))
            cursor.execute(sql.SQL("ALTER ROLE {role} PASSWORD %s").format(**names), (verifier,))
            cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", (database,))
            if cursor.fetchone() is None:
                cursor.execute(sql.SQL("CREATE DATABASE {database} OWNER {role}").format(**names))
    finally:
        connection.close()
