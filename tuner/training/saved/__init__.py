"""Checkpoints, and the files beside them."""
