"""The databases: URLs, engines, tables, and what SQLite and Postgres say differently."""
