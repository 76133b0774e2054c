"""Who a study belongs to, and the labels by which it is found."""

from __future__ import annotations

import getpass
import os
from collections.abc import Sequence
from typing import cast

from tuner.errors import StudyError
from tuner.output.sanitize import is_unstorable

OWNER_VARIABLE = "TUNER_OWNER"
"""The owner of studies that this process launches first."""
_LONGEST = 100


def check_owner(owner: object) -> None:
    """Raise StudyError unless an owner is None or a line of text."""
    if owner is not None and not _is_line(owner):
        raise StudyError(f"owner must be a line of 1 to {_LONGEST} characters: got {owner!r}")


def check_labels(labels: object) -> None:
    """Raise StudyError unless labels are a sequence of lines of text without commas."""
    are_several = isinstance(labels, Sequence) and not isinstance(labels, str | bytes)
    if not are_several or not all(_is_line(label) and "," not in label for label in cast("Sequence[str]", labels)):
        raise StudyError(
            f"labels must be texts of 1 to {_LONGEST} characters without commas, such as labels=['vision']: "
            f"got {labels!r}"
        )


def _is_line(text: object) -> bool:
    if not isinstance(text, str) or not 0 < len(text.strip()) == len(text) <= _LONGEST:
        return False
    return text.isprintable() and not is_unstorable(text)


def default_owner() -> str | None:
    """Return `$TUNER_OWNER`, else the name of this process's user; None if the user has no name."""
    given = os.environ.get(OWNER_VARIABLE)
    if given:
        check_owner(given)
        return given
    try:
        name = getpass.getuser()
    except (KeyError, OSError, ImportError):  # no such user, for example in a container
        return None
    return name if _is_line(name) else None
