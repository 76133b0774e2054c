"""Cohorts: several trials of a worker that train in one program."""
