"""Writes of workers: claims, leases, reports, rungs, and the end of a trial."""
