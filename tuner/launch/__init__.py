"""Starts workers, each on its own devices. They are separate processes that share the storage."""

from tuner.launch.launcher import launch

__all__ = ["launch"]
