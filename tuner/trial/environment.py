"""Environment variables from the launcher to its workers, and the worker's name."""

import os
import socket
from typing import TypedDict

DEVICES_VARIABLE = "TUNER_DEVICES"
"""The worker's devices, as shown by `tuner launch`."""
CPUS_VARIABLE = "TUNER_CPUS"
"""The cores that the worker binds itself to, such as `0,1`."""
LAUNCHED_VARIABLE = "TUNER_LAUNCHED_AT"
"""The start time of the launch, in seconds since 1970 on the launcher's clock."""
RELAYED_VARIABLE = "TUNER_RELAYED"
"""Set for a worker without a launcher whose log is JSON: nothing kills it soon after a signal."""
WORKER_VARIABLE = "TUNER_WORKER"
"""The worker's name."""


class GitState(TypedDict):
    """The commit of a repository, and whether anything that it tracks differs."""

    commit: str
    is_changed: bool


def process_name() -> str:
    """Return `HOST:PID:HEX`, which no other process of this or another machine has."""
    return f"{socket.gethostname()}:{os.getpid()}:{os.urandom(2).hex()}"


def worker_name() -> str:
    """Return the name that a launcher has given to this worker, else a new unique name."""
    return os.environ.get(WORKER_VARIABLE) or process_name()
