"""A worker's run of one trial, and its parts."""
