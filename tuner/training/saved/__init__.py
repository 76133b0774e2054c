"""Checkpoints, logs and pictures."""
