"""A wait that is interrupted where `threading` then raises another error."""

from __future__ import annotations

import threading
from typing import Any


def wait_interrupted() -> None:
    """Wait for a condition; an interrupt comes when the lock is to be taken back, so that it cannot be released."""

    def interrupt(saved: Any) -> None:
        raise KeyboardInterrupt

    condition: Any = threading.Condition()
    condition._acquire_restore = interrupt
    with condition:
        condition.wait(0)
