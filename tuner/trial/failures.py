"""Trials that end with an error: what is stored, and when failures stop a study."""

from __future__ import annotations

import os
import traceback
from collections.abc import Sequence

from tuner.output.sanitize import hide_password

_EQUAL_FAILURES = 3
_LONGEST_ERROR = 50_000
ANY_FAILURES = 10
"""The number of failed trials in a row, with any errors, that stops a study."""


def reason_to_stop(kinds: Sequence[str]) -> str | None:
    """Return why a study must stop; None if it need not.

    Args:
        kinds: The kinds of errors of the latest trials, newest first, up to the first that did not fail.
    """
    if len(kinds) >= _EQUAL_FAILURES and len(set(kinds[:_EQUAL_FAILURES])) == 1:
        return f"the same error ended {_EQUAL_FAILURES} trials in a row"
    return f"{ANY_FAILURES} trials in a row failed" if len(kinds) >= ANY_FAILURES else None


class CommandFailed(Exception):
    """A trial's command has failed.

    Args:
        message: What is wrong.
        last_lines: Its last output.
    """

    def __init__(self, message: str, last_lines: Sequence[str]) -> None:
        super().__init__(message, *last_lines)
        self.message, self.last_lines = message, list(last_lines)


def describe(error: Exception) -> dict[str, str]:
    """Return the attributes of an error; errors of the same kind differ at most in values in their text."""
    if isinstance(error, CommandFailed):  # a traceback would show only lines of tuner
        text = "\n".join([*error.last_lines, error.message])
        return {"error_kind": storable(error.message), "error": storable(text)}
    last = traceback.extract_tb(error.__traceback__)[-1]
    kind = f"{type(error).__qualname__} at {os.path.basename(last.filename)}:{last.lineno}"
    return {"error_kind": storable(kind), "error": storable("".join(traceback.format_exception(error)))}


def storable(text: str) -> str:
    """Return a text in a form that can be stored.

    It has no lone surrogates (as in undecodable file names), no NUL and no password, and a limited length.
    """
    return hide_password(text).encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")[-_LONGEST_ERROR:]


def last_line(trace: str) -> str:
    """Return the last line of a traceback: the error itself."""
    return trace.rstrip().rpartition("\n")[2]
