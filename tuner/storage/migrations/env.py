"""Runs our migrations for Alembic, on the connection that `tuner.storage.sql.schema` passes."""

from alembic import context

from tuner.storage.sql.tables import VERSION_TABLE

context.configure(connection=context.config.attributes["connection"], version_table=VERSION_TABLE)
context.run_migrations()
