"""Queries without changes: studies, trials, lineage, hours, the state of a server."""
