"""The databases: URLs, engines, tables, and the differences between SQLite and Postgres."""
