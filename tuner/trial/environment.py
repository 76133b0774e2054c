"""The environment variables by which a launcher tells a worker what it has been given, and the worker's name."""

import os

from tuner.output.log import process_name

DEVICES_VARIABLE = "TUNER_DEVICES"
"""The worker's devices, as shown by `tuner launch`."""
CPUS_VARIABLE = "TUNER_CPUS"
"""The cores that the worker binds itself to, such as `0,1`."""
LAUNCHED_VARIABLE = "TUNER_LAUNCHED_AT"
"""The start time of the launch, in seconds since 1970 on the launcher's clock."""
WORKER_VARIABLE = "TUNER_WORKER"
"""The worker's name."""


def worker_name() -> str:
    """Return the name that a launcher has given to this worker, else one of its own."""
    return os.environ.get(WORKER_VARIABLE) or process_name()
