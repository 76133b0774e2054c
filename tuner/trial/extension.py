"""A trial that continues an ended one: what is stored about it. Does not import JAX."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Self

EXTENSION_KEY = "tuner:extension"
"""The system attribute of a trial that continues another one."""
LAST_KEY = "tuner:last"
"""The system attribute of a trial whose last state was kept: the epoch of its last report."""
EXTENDS = "extends"
"""The user attribute of a trial that continues another one: the number of that one."""


@dataclass(frozen=True)
class Extension:
    """How a trial continues another one.

    Attributes:
        of: The number of the trial that it continues.
        after: The last epoch of that one.
        epochs: The number of epochs of both together; > `after`.
        first: The number of the trial with which the training began, whose seed it has.
        state: The folder or the URL of the last state of `of`.
    """

    of: int
    after: int
    epochs: int
    first: int
    state: str

    @classmethod
    def of_json(cls, stored: Any) -> Self:
        """Return what `to_json` returned."""
        return cls(**stored)

    def to_json(self) -> dict[str, Any]:
        """Return the value of the system attribute, as plain JSON."""
        return dataclasses.asdict(self)
