"""Queries that change nothing: studies, trials, lineage, hours, the health of a server."""
