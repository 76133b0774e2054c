"""A Postgres server from pip, for those who have no administrator; see docs/guide/database.md."""

from tuner.admin.database.serving import DatabaseOptions, serve_database

__all__ = ["DatabaseOptions", "serve_database"]
