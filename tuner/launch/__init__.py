"""Starting workers, each on its devices. They are processes of their own that meet in the storage."""

from tuner.launch.launcher import launch
from tuner.launch.options import LaunchOptions

__all__ = ["LaunchOptions", "launch"]
