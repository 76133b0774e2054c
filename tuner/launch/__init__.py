"""Starts workers, each on its own devices. They are separate processes that share the storage."""

from tuner.launch.launcher import launch
from tuner.launch.options import LaunchOptions

__all__ = ["LaunchOptions", "launch"]
