"""Starts workers, each on its own devices. They are separate processes that share the storage."""

from tuner.launch.launcher import check_several, in_turn, launch, launch_at_once
from tuner.launch.options import LaunchOptions

__all__ = ["LaunchOptions", "check_several", "in_turn", "launch", "launch_at_once"]
