"""Turns errors into one-line messages for the command line, with options named by their flags."""

from __future__ import annotations

import re
import sqlite3
import traceback
from collections.abc import Iterator
from typing import Any

import typer
from typer.core import TyperCommand

from tuner.errors import StorageDenied, StorageSchemaError, TunerError, UsageError

_LARGEST = "2**31 - 1"


def explained(error: BaseException) -> TunerError | None:
    """Return an error with a message for the user who typed the command; None if it is a bug in tuner."""
    for one in _chain(error):
        found = _explained(one)
        if found is not None:
            return found
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, and those that led to it."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = getattr(error, "orig", None) or error.__cause__ or error.__context__


def _explained(error: BaseException) -> TunerError | None:
    code, text = getattr(error, "pgcode", None), str(error)
    first = text.strip().partition("\n")[0]
    if code == "42501" or (isinstance(error, sqlite3.OperationalError) and "readonly" in text):
        return StorageDenied.because(first)
    if code in ("42P01", "42703") or (
        isinstance(error, sqlite3.OperationalError) and text.startswith(("no such table", "no such column"))
    ):
        return StorageSchemaError(
            "the storage's tables are not of this version: back up the database, stop all workers, "
            "then run `tuner upgrade`"
        )
    if code == "22003" or (isinstance(error, OverflowError) and "SQLite INTEGER" in text):
        return UsageError(f"a number is too large to be stored: the largest is {_LARGEST}")
    if isinstance(error, UnicodeEncodeError) and "surrogates" in error.reason:
        return UsageError(f"a text is not valid UTF-8, so it cannot be stored or written: {error.object[:100]!r}")
    if isinstance(error, ValueError) and ("NUL (0x00)" in text or "embedded null" in text):
        return UsageError("a text contains a NUL character, so it cannot be stored")
    if isinstance(error, RecursionError) and _is_in_json(error):
        return TunerError(
            "the JSON of an attribute in the storage is nested too deeply to be read: remove the attribute"
        )
    return None


def _is_in_json(error: RecursionError) -> bool:
    frames = traceback.extract_tb(error.__traceback__)
    return any("/json/" in frame.filename or "json" in frame.name for frame in frames[-3:])


class Command(TyperCommand):
    """A command whose errors name its options as they are typed."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments; leave out the words that pydantic puts before the reason why a value is wrong."""
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as error:
            error.message = error.message.removeprefix("Value error, ")
            raise

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except TunerError as error:
            error.args = tuple(with_flags(one, self) if isinstance(one, str) else one for one in error.args)
            raise


def with_flags(message: str, command: TyperCommand) -> str:
    """Return a message in which a command's arguments have the names of its flags.

    The library names an argument as in Python: `devices_per_worker` becomes --devices-per-worker.
    """
    first, separator, rest = message.partition("\n")  # below it may be a traceback
    flags = {one.name: one.opts[0] for one in command.params if one.opts[0].startswith("-")}
    return re.sub(r"`(\w+)`", lambda found: flags.get(found[1]) or found[0], first) + separator + rest
